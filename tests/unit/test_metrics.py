"""What a node counts: plain ints that become Prometheus samples when somebody scrapes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cluster.view import Leader
from node.gateway.app import build
from node.observe.gauges import QUEUES_MAX, Counted
from node.observe.metrics import Metrics, Pairs, Spread
from node.observe.recovery_time import SESSIONS_MAX, Signs
from node.queue.queries import QUEUES_MAX as QUEUES_MAX_COUNTED
from node.queue.queries import queue_rows
from tests.fake_engine import FakeEngine


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_counters_start_at_zero_and_rise_by_what_is_added() -> None:
    metrics = Metrics()
    assert samples(metrics)["rumor_tasks_accepted_total", ()] == 0
    metrics.accepted.add(3)
    metrics.commits.add("succeeded")
    metrics.refused.add("fenced", 2)
    after = samples(metrics)
    assert after["rumor_tasks_accepted_total", ()] == 3
    assert after["rumor_task_commits_total", (("outcome", "succeeded"),)] == 1
    assert after["rumor_task_commits_total", (("outcome", "dead"),)] == 0
    assert after["rumor_task_refused_total", (("reason", "fenced"),)] == 2


def test_two_nodes_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.reaped.add()
    assert samples(second)["rumor_tasks_reaped_total", ()] == 0


@given(st.lists(st.floats(min_value=0, max_value=10)))
@settings(deadline=None)  # A busy machine is no failure.
def test_a_bucket_holds_what_is_at_or_below_its_bound(values: list[float]) -> None:
    metrics = Metrics()
    metrics.wait_s = Spread("rumor_task_wait_seconds", "", (1.0, 2.0, 5.0))
    for value in values:
        metrics.wait_s.add(value)
    exported = samples(metrics)
    for bound in (1.0, 2.0, 5.0):
        assert exported["rumor_task_wait_seconds_bucket", (("le", str(bound)),)] == sum(v <= bound for v in values)
    assert exported["rumor_task_wait_seconds_bucket", (("le", "+Inf"),)] == len(values)
    assert exported["rumor_task_wait_seconds_count", ()] == len(values)


def test_a_gauge_is_read_at_each_scrape() -> None:
    metrics = Metrics()
    state: dict[tuple[str, ...], float] = {("a",): 1.0}
    metrics.gauge("rumor_thing", "A thing.", ("of",), lambda: state)
    assert samples(metrics)["rumor_thing", (("of", "a"),)] == 1
    state["a",] = 5.0
    state["b",] = 2.0
    exported = samples(metrics)
    assert (exported["rumor_thing", (("of", "a"),)], exported["rumor_thing", (("of", "b"),)]) == (5, 2)


def labelled(metrics: Metrics, name: str) -> dict[str, float]:
    """The samples of a metric with one label."""
    return {labels[0][1]: value for (of, labels), value in samples(metrics).items() if of == name}


def test_what_describes_the_cluster_is_told_by_its_leader_alone() -> None:
    """Repeated by every node it would invite `sum`."""
    cluster_wide = ("rumor_running_tasks", "rumor_redis_memory_used_bytes", "rumor_redis_memory_limit_bytes")
    cluster_wide += ("rumor_tasks", "rumor_queued_tasks", "rumor_oldest_queued_seconds")
    engine = FakeEngine()
    build(engine)
    counted = next(read.args[0].counted for *_, read in engine.metrics._gauges if isinstance(read, partial))
    assert not {name for name, _ in samples(engine.metrics)} & set(cluster_wide)
    engine.view = replace(engine.view, leader=Leader("n1", engine.view.session, 1))
    counted.keep({"states": {"queued": 1}, "queues": {"default": {"queued": 1, "oldest_s": 2.5}}}, ["default", "mail"])
    told = {name for name, _ in samples(engine.metrics)}
    assert {name for name in cluster_wide if name not in told} <= {"rumor_running_tasks"}  # no member has told a load
    assert labelled(engine.metrics, "rumor_oldest_queued_seconds") == {"default": 2.5, "mail": 0.0}
    described = {name: help for name, _, _, help in engine.metrics.described()}
    assert all(described[name].endswith("The leader tells it.") for name in cluster_wide)


def test_queues_beyond_the_bound_are_told_together_and_served_ones_always() -> None:
    counted = Counted()
    queues = {f"q{n}": {"queued": n, "oldest_s": float(n)} for n in range(1, 301)}
    counted.keep({"queues": queues | {"mail": {"queued": 1, "oldest_s": 9.0}}}, ["mail", "default"])
    assert len(counted.queued) == QUEUES_MAX + 1
    assert counted.queued["mail",] == 1
    assert counted.queued["default",] == 0
    assert counted.queued["q300",] == 300
    assert sum(counted.queued.values()) == sum(range(301)) + 1
    assert counted.queued["other",] == sum(range(1, 203))
    assert counted.oldest_s["other",] == 202
    counted.forget()
    assert (counted.states, counted.queued, counted.oldest_s) == ({}, {}, {})


def test_counts_name_a_bounded_number_of_queues_and_lose_no_task() -> None:
    queued = {f"q{n}": n for n in range(1, 1001)}
    rows = queue_rows(queued, {queue: float(n) for queue, n in queued.items()}, ["q1", "idle"])
    assert len(rows) == QUEUES_MAX_COUNTED + 1
    assert sum(row["queued"] for row in rows.values()) == sum(queued.values())
    assert rows["q1"] == {"queued": 1, "oldest_s": 1.0}, "served here, however few wait"
    assert rows["q1000"] == {"queued": 1000, "oldest_s": 1000.0}
    assert rows["other"]["oldest_s"] == 801.0


def test_slots_are_told_by_queue() -> None:
    engine = FakeEngine()
    build(engine)
    assert labelled(engine.metrics, "rumor_slots_taken") == {"default": 3.0}


def test_past_the_bound_a_type_counts_as_other() -> None:
    pairs = Pairs("rumor_things", "Things.", ("type", "outcome"), most=2)
    for name in ("a", "b", "c", "d", "a"):
        pairs.add((name, "succeeded"))
    assert pairs.values == {("a", "succeeded"): 2, ("b", "succeeded"): 1, ("other", "succeeded"): 2}


def test_what_is_described_is_what_is_rendered() -> None:
    build(engine := FakeEngine())
    metrics = engine.metrics
    metrics.commits_by_type.add(("noop", "succeeded"))
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    for name, kind, labels, help in metrics.described():
        family = families.pop(name.removesuffix("_total") if kind == "counter" else name)
        assert (family.type, family.documentation) == (kind, help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), name
    assert not [name for name in families if not name.startswith("process_")]


def test_a_death_is_timed_from_its_first_sign_once() -> None:
    signs = Signs()
    for at_s, kind in ((1.0, "member_suspect"), (2.5, "member_dead"), (2.6, "session_fenced")):
        signs.see({"kind": kind, "session": "n1/1-a"}, at_s)
    assert signs.took_s("n1/1-a", 4.0) == 3.0
    assert signs.took_s("n1/1-a", 9.0) is None


def test_a_refuted_suspicion_is_no_sign() -> None:
    signs = Signs()
    signs.see({"kind": "member_suspect", "session": "n1/1-a"}, 1.0)
    signs.see({"kind": "member_alive", "session": "n1/1-a"}, 2.0)
    signs.see({"kind": "member_dead", "session": "n1/1-a"}, 8.0)
    assert signs.took_s("n1/1-a", 8.5) == 0.5


def test_signs_are_bounded() -> None:
    signs = Signs()
    for n in range(SESSIONS_MAX + 1):
        signs.see({"kind": "member_dead", "session": f"n{n}"}, 1.0)
    assert signs.took_s("n0", 2.0) is None
    assert signs.took_s(f"n{SESSIONS_MAX}", 2.0) == 1.0
