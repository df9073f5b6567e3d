"""Data of the cluster does nothing to a terminal: each command runs on one, and every text of its node is hostile."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.hints import in_lines
from node.client.errors import error_of
from node.escapes import harmless, lines, one_line
from node.lab.record import LaunchFailed

EVIL = "a\x1b[31m\x1b]8;;http://evil\x07\x9b2J\u202edcba\u2066\x7f\r\n\tz\u2028\ud800[bold]"
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
OF_RICH = re.compile(r"\x1b\[\??[0-9;]*[mlhAK]|\r")  # styles, and the cursor of a line that moves
FAILURE = {"type": EVIL, "message": EVIL, "traceback": EVIL}
TASK = {
    **{
        "id": EVIL,
        "type": EVIL,
        "state": "dead",
        "queue": EVIL,
        "priority": 5,
        "node_id": EVIL,
        "key": EVIL,
        EVIL: EVIL,
    },
    **{"data": {EVIL: [EVIL]}, "result": EVIL, "error": FAILURE, "progress": EVIL, "trace_url": EVIL, "attempt": 1},
    "history": [{"at_ms": 0, "attempt": EVIL, "outcome": EVIL, "node_id": EVIL, "error": FAILURE}],
}
MEMBER = {
    **dict.fromkeys(("node_id", "session", "url", "state", "redis", "verdict", "evidence", "by"), EVIL),
    **{"rtt_ms": 1.0, "load": {"running": 1, "queues": {EVIL: {"free": 1, "queued": 3}}}},
}
PROBLEM = {"code": EVIL, "severity": EVIL, "message": EVIL, "hint": EVIL}
EVENT = {"id": EVIL, "at_ms": 1, "kind": EVIL, "node_id": EVIL, "by": EVIL, "to": {EVIL: 3}}
ANSWERS: dict[str, Any] = {
    "/tasks": {"tasks": [TASK], "cursor": EVIL, "searched": 3, "complete": False},
    "/tasks/x": TASK,
    "/tasks/y": {**TASK, "state": EVIL},
    "/tasks/gone": {"error": {"code": EVIL, "message": EVIL, "hint": EVIL}},
    "/tasks/batch": {"results": [TASK, {"error": {"code": EVIL, "message": EVIL}}]},
    "/workers": {"workers": [{**MEMBER, "pid": EVIL, "version": EVIL, "queues": {EVIL: {"running": 1, "slots": 2}}}]},
    "/cluster": {
        "node_id": EVIL,
        "leader": {"node_id": EVIL, "epoch": EVIL},
        "members": [MEMBER],
        "shards": {"0": EVIL},
    },
    "/health": {"status": "ok", "problems": [PROBLEM]},
    "/sums": {"sums": []},
}


class Hostile(BaseHTTPRequestHandler):
    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = self.path.partition("?")[0]
        if path == "/events":
            body = b"".join(
                f"event: {name}\ndata: {json.dumps({**EVENT, 'kind': kind})}\n\n".encode()
                for name, kind in (("member", EVIL), ("member", "member_dead"), ("shards", "shards_moved"))
            )
        else:
            body = json.dumps(ANSWERS[path]).encode()
        self.send_response(404 if path.endswith("gone") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        """Tests print enough."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def on_a_terminal(url: str, words: list[str], given: str = "") -> str:
    """What a command writes, with a terminal for its output."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "RUMOR_URL": url, "COLUMNS": "500", "TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-m", "node", *words], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(given.encode())
        process.stdin.close()
        parts = []
        try:
            while part := os.read(ours, 65_536):
                parts.append(part)
        except OSError:  # the other end is closed
            pass
        os.close(ours)
    return b"".join(parts).decode()


COMMANDS = (
    ["status"],
    ["tasks"],
    ["task", "x"],
    ["task", "gone"],
    ["cancel", "y"],
    ["cancel", "y", "gone"],
    ["workers"],
    ["submit", "noop"],
    ["submit", "noop", "--each"],
    ["top", "--once"],
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_hands_data_to_the_terminal_as_it_is(url: str, words: list[str]) -> None:
    if words == ["submit", "noop"]:
        ANSWERS["/tasks"] = {**ANSWERS["/tasks"], **TASK}
    within = ["--interval-s", "0.2"] if words[0] == "top" else []
    text = on_a_terminal(url, [*words, *within], "1\n2\n" if "--each" in words else "")
    text = OF_RICH.sub("", text)
    found = ACTING.search(text)
    assert found is None, repr(text[max(0, found.start() - 60) : found.start() + 20])
    assert r"\u001b[31m" in text, text
    assert "Traceback" not in text, text


def test_lines_of_plain_output_have_no_more_cells_and_lines_than_they_should(url: str) -> None:
    command = [sys.executable, "-m", "node", "tasks", "--url", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("\n") == 1
    assert told.count("\t") == 6


def test_json_is_exact(url: str) -> None:
    command = [sys.executable, "-m", "node", "task", "x", "--json", "--url", url]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert told.isascii()
    assert json.loads(told) == TASK


@given(st.text() | st.text(alphabet="\x1b\x9b\u202e\ud800\n\t a"))
def test_nothing_acts_and_nothing_else_changes(text: str) -> None:
    assert ACTING.search(one_line(text)) is None
    assert "\n" not in one_line(text)
    assert ACTING.search(lines(text)) is None
    assert lines(text).count("\n") == text.count("\n")
    if not ACTING.search(text) and text.isprintable():
        assert one_line(text) == lines(text) == text


def test_scripts_and_emoji_stay_as_they_are() -> None:
    for text in ("Привет", "日本語", "שלום", "👩\u200d🚀", "é", "naïve – “quoted”", "می\u200cخواهم"):
        assert one_line(text) == lines(text) == text
    assert harmless({"a\n": ["\x1b", 1, None, {"b": "\u202e"}]}) == {r"a\n": [r"\u001b", 1, None, {"b": r"\u202e"}]}


def test_an_error_of_a_node_stays_in_its_two_lines() -> None:
    error = error_of(400, {"error": {"code": "a\nb", "message": "m\n  Do rm -rf", "hint": "h\x1b"}}, "http://n1")
    assert in_lines(error) == "a\\nb: m\\n  Do rm -rf\n  h\\u001b"
    ours = LaunchFailed("node 1 ended.\n  its last words:\x1b[2J", "The whole log: x")
    assert in_lines(ours) == "launch_failed: node 1 ended.\n  its last words:\\u001b[2J\n  The whole log: x"
