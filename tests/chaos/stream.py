"""A steady stream of submissions from a thread of its own, and the answer to each: load while things break."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from cluster.errors import RumorError
from node.client.one_node import Remote
from tests.chaos.nodes import Node


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one submission. Status 0: there was no answer."""

    at_s: float
    took_s: float
    status: int
    node: int
    task_id: str = ""
    code: str = ""


class Stream:
    """Submits one task after the other, round robin through the nodes, `pause_s` after each answer."""

    def __init__(
        self, nodes: Sequence[Node], type: str, data: Any, pause_s: float, timeout_s: float = 5.0, **more: Any
    ) -> None:
        self.answers: list[Answer] = []
        self._nodes = nodes
        self._item = {"type": type, "data": data, **more}
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def accepted(self) -> list[str]:
        """Tasks whose submission got a 202."""
        return [answer.task_id for answer in list(self.answers) if answer.status == 202]

    def of(self, keep: Callable[[Answer], bool]) -> list[Answer]:
        return [answer for answer in list(self.answers) if keep(answer)]

    def _run(self) -> None:
        for node in itertools.cycle(self._nodes):
            if self._ending.is_set():
                return
            remote = Remote(node.remote.url, node.remote.token, timeout_s=self._timeout_s)
            at_s = time.monotonic()
            status, task_id, code = 0, "", ""
            try:
                status, answer = remote.call("POST", "/tasks", self._item)
                task_id = answer["id"]
            except RumorError as error:
                code = error.code
                status = 0 if code == "unreachable" else error.status
            self.answers.append(Answer(at_s, time.monotonic() - at_s, status, node.number, task_id, code))
            self._ending.wait(self._pause_s)
