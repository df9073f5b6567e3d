"""What the handlers of outlive_tasks.py can do. A test that imports that module itself would register them all."""

SABOTAGE = (
    "all tasks cancelled",
    "a lane cancelled",
    "a lane fails",
    "housekeeping fails",
    "housekeeping cancelled",
    "the load's report cancelled",
    "the memory's watch fails",
    "the timeline cancelled",
    "the heartbeat fails",
    "the vitals thread ends",
    "the vitals thread hangs",
)
LEFT = (
    "nothing",
    "a task that swallows its cancellation",
    "a full executor",
    "a thread",
    "a program that ignores signals",
    "an exit hook that blocks",
    "an exit hook that raises",
    "a generator that is not closed",
    "a broken logging handler",
)
