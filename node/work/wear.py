"""When a child process has served long enough, by its tasks and by its memory. Pure: the time is handed in.

A library that leaks must not take the machine's memory, and a process cannot give memory back that it has cut into
small pieces. So a child that has reached a limit ends after its task, and a fresh one takes its place. That one starts
some seconds before it is needed, so that no task waits for an interpreter.

Does not know: processes, idleness.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GROWTH_MB = 512  # memory that a child may gain after its first task, where no limit is set
AHEAD_S = 3.0  # the time before a child's end at which its successor starts: an interpreter, and the user's imports
MB = 1_048_576


class Reason(StrEnum):
    """Why a child was replaced."""

    TASKS = "tasks"
    MEMORY = "memory"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may reach; 0 stands for no limit of tasks, and for GROWTH_MB after the first task."""

    tasks: int = 0
    memory_mb: int = 0


class Wear:
    """What one child has done so far."""

    def __init__(self, limits: Limits, now_s: float) -> None:
        self.tasks = 0
        self.memory_bytes = 0  # after its latest task; 0: unknown
        self._first_bytes = 0  # after its first task
        self._growth_bytes = 0  # the most that one later task added
        self._limits = limits
        self._since_s = now_s

    def add(self, memory_bytes: int) -> None:
        """It has run a task, and is so large now."""
        self.tasks += 1
        if self.tasks == 1:
            self._first_bytes = memory_bytes
        else:
            self._growth_bytes = max(self._growth_bytes, memory_bytes - self.memory_bytes)
        self.memory_bytes = memory_bytes

    def over(self) -> Reason | None:
        """The limit that it has reached, if it must run no further task."""
        if self._limits.tasks and self.tasks >= self._limits.tasks:
            return Reason.TASKS
        if self.tasks and self.memory_bytes >= self._memory_max():
            return Reason.MEMORY
        return None

    def is_near(self, now_s: float) -> bool:
        """Whether the task that it begins now may be one of its last."""
        if self._limits.tasks and self.tasks + 1 >= self._limits.tasks:
            return True
        if not self.tasks:
            return False
        used = self.tasks / self._limits.tasks if self._limits.tasks else 0.0
        room_bytes = self._memory_max() - self._first_bytes
        gained_bytes = self.memory_bytes - self._first_bytes
        if self._growth_bytes > 0 and gained_bytes + 2 * self._growth_bytes >= room_bytes:
            return True  # the next task, or the one after it, may be the last
        if room_bytes > 0:
            used = max(used, gained_bytes / room_bytes)
        return used > 0 and (now_s - self._since_s) * (1 - used) / used <= AHEAD_S

    def _memory_max(self) -> int:
        if self._limits.memory_mb:
            return self._limits.memory_mb * MB
        return self._first_bytes + GROWTH_MB * MB
