"""The command line: what it asks a node for, what it prints, and its exit status. The node is a canned one."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from cluster.errors import refused
from node import cli
from node.cli import hints
from node.client.blocking import SyncClient
from node.schema import Submission

TASK = {"id": "01A-1f", "type": "noop", "state": "succeeded", "attempt": 1, "max_attempts": 5, "result": {"n": 1}}
RUNNING = {**TASK, "id": "01R-1f", "state": "running", "result": None, "node_id": "n1", "progress": 0.5}
DEAD = {**TASK, "id": "01B-1f", "state": "dead", "result": None, "queued_at_ms": 0}
NOT_FOUND = {"error": {"code": "not_found", "message": "No task 01C-1f.", "hint": "It may be past its retention."}}
VIEW = {
    "node_id": "n1",
    "leader": None,
    "shards": {"0": "n1", "1": "n2", "2": "n1"},
    "members": [
        {"node_id": "n1", "state": "alive", "redis": "live", "verdict": "healthy", "rtt_ms": None, "url": "http://n1"},
        {"node_id": "n2", "state": "dead", "redis": "gone", "verdict": "dead", "rtt_ms": 1.25, "url": "http://n2"},
    ],
}
WORKER = {
    **{"node_id": "n1", "state": "alive", "verdict": "healthy", "pid": 7, "version": "1.0", "running": 3, "tasks": []},
    "queues": {"default": {"slots": 40, "running": 2}, "sync": {"slots": 2, "running": 1}},
}
ANSWERS: dict[tuple[str, str], tuple[int, Any]] = {
    ("POST", "/tasks"): (202, TASK),
    ("GET", "/tasks"): (200, {"tasks": [TASK, DEAD], "cursor": "c2"}),
    ("GET", "/tasks/01A-1f"): (200, TASK),
    ("GET", "/tasks/01B-1f"): (200, DEAD),
    ("GET", "/tasks/01C-1f"): (404, NOT_FOUND),
    ("GET", "/tasks/01R-1f"): (200, RUNNING),
    ("DELETE", "/tasks/01C-1f"): (404, NOT_FOUND),
    ("POST", "/tasks/batch"): (200, {"accepted": 1, "rejected": 1, "results": [TASK, NOT_FOUND]}),
    ("DELETE", "/tasks/01A-1f"): (200, {**TASK, "state": "cancelled"}),
    ("POST", "/tasks/01B-1f/retry"): (200, {**DEAD, "state": "queued"}),
    ("POST", "/dead/replay"): (200, {"replayed": 3}),
    ("DELETE", "/dead"): (200, {"removed": 4}),
    ("GET", "/workers"): (200, {"workers": [WORKER]}),
    ("GET", "/cluster"): (200, VIEW),
    ("GET", "/health"): (200, {"status": "ok", "problems": []}),
}


class Canned(BaseHTTPRequestHandler):
    """Answers from the table and remembers what it was asked."""

    asked: list[dict[str, Any]]

    def answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.asked.append({"call": (self.command, path), "query": query, "body": body, "headers": dict(self.headers)})
        status, found = ANSWERS.get((self.command, path), (500, None))
        raw = b"oops" if found is None else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        """Tests print enough."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A canned node that RUMOR_URL names; the list of what it was asked."""
    handler = type("Handler", (Canned,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("RUMOR_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.delenv("RUMOR_API_TOKEN", raising=False)
        yield handler.asked
        server.shutdown()
        thread.join()


def run(*words: str, default: str | None = None) -> int:
    """The exit status of one command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words, default)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_submit_sends_json_where_it_is_json_and_text_where_it_is_not(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("submit", "noop", '{"a": 1}', "--priority", "7", "--delay-s", "2", "--idempotency-key", "k") == 0
    assert run("submit", "noop", "Hello World", "--priority", "high") == 0
    assert run("submit", "noop") == 0
    assert [json.loads(one["body"]) for one in asked] == [
        {"type": "noop", "data": {"a": 1}, "priority": 7, "delay_s": 2.0},
        {"type": "noop", "data": "Hello World", "priority": "high"},
        {"type": "noop"},
    ]
    assert asked[0]["headers"]["Idempotency-Key"] == "k"
    assert capsys.readouterr().out == "01A-1f\n" * 3


def test_submit_takes_every_field_of_a_submission(asked: list[dict[str, Any]]) -> None:
    words = [
        "--queue",
        "mail",
        "--key",
        "k1",
        "--run-at",
        "2030-01-31T08:00:00Z",
        "--max-attempts",
        "3",
        "--timeout-s",
        "9",
    ]
    words += ["--backoff-base-s", "1", "--backoff-factor", "3", "--backoff-max-s", "60", "--retention-s", "100"]
    assert run("submit", "noop", *words, "--unique-for-s", "5", "--unique-key", "u", "--priority", "low") == 0
    sent = json.loads(asked[0]["body"])
    assert sent["backoff"] == {"base_s": 1.0, "factor": 3.0, "max_s": 60.0}
    assert set(sent) | {"delay_s", "data"} == set(Submission.__struct_fields__), "or the two differ"


def test_a_word_that_is_none_of_those_allowed_is_answered_with_them(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, allowed in (
        (("submit", "noop", "--priority", "urgent"), "low, normal, high, or 0 to 9"),
        (("submit", "noop", "--priority", "10"), "low, normal, high, or 0 to 9"),
        (("tasks", "--state", "done"), "'succeeded'"),
        (("events", "--json", "--name", "x"), "'member'"),
    ):
        assert run(*words) == 2
        assert allowed in capsys.readouterr().err
    assert not asked


def test_purge_asks_and_without_a_terminal_wants_yes(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run("purge") == 2
    assert "--yes" in capsys.readouterr().err
    assert not asked
    assert run("purge", "--yes") == 0
    assert capsys.readouterr().out == "removed 4\n"
    assert asked[0]["call"] == ("DELETE", "/dead")


def test_workers_are_listed_with_their_slots(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("workers") == 0
    assert capsys.readouterr().out == "n1\talive\thealthy\t3\tdefault 2/40, sync 1/2\t7\t1.0\n"
    assert run("workers", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"workers": [WORKER]}


def test_submit_can_wait_for_the_outcome(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("submit", "noop", "--wait", "--json") == 0
    assert json.loads(capsys.readouterr().out) == TASK
    assert asked[-1]["call"] == ("POST", "/tasks"), "a task that ends soon takes one request"
    assert asked[-1]["query"] == "wait_s=0.500"
    assert run("submit", "noop", "--wait-s", "0.1", "--json") == 0
    assert asked[-1]["query"] == "wait_s=0.100"
    assert run("submit", "noop") == 0
    assert asked[-1]["query"] == ""
    assert run("task", "01B-1f", "--wait") == 1


def test_a_wait_whose_time_is_up_is_status_3_and_shows_the_task(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "01R-1f", "--wait-s", "0.5") == 3
    assert asked[-1]["query"].startswith("wait_s=")
    told = capsys.readouterr()
    assert "state         running" in told.out
    assert told.err == (
        "not_finished: task 01R-1f is running after 0.5 s.\n"
        "  It goes on; wait again with `rumor task 01R-1f --wait`, or cancel it.\n"
    )


def test_each_line_of_standard_input_can_be_a_task(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"n": 1}\n\nplain text\n'))
    assert run("submit", "noop", "--each", "--queue", "mail", "--idempotency-key", "k") == 1
    assert json.loads(asked[-1]["body"]) == [
        {"type": "noop", "data": {"n": 1}, "queue": "mail"},
        {"type": "noop", "data": "plain text", "queue": "mail"},
    ]
    assert asked[-1]["headers"]["Idempotency-Key"] == "k/0/0"
    told = capsys.readouterr()
    assert told.out == "01A-1f\n"
    assert told.err.startswith("not_found: ")


def test_only_a_line_feed_ends_a_line_and_a_line_that_is_too_much_has_its_own_error(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ['"a\u2028b\x85c"', "[" * 100_000, "9" * 5_000, '"\\ud800"', "NaN", "1e999", "7\r"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert run("submit", "noop", "--each") == 1
    sent = json.loads(asked[-1]["body"])
    assert sent[0]["data"] == "a\u2028b\x85c"
    assert sent[1:6] == [None] * 5
    assert sent[6]["data"] == 7
    told = capsys.readouterr().err.splitlines()
    assert [line[:20] for line in told[1:3]] == ["invalid: this JSON i"] * 2


@pytest.mark.parametrize("key", ["", "a\nb", " a", "k" * 256])
def test_an_idempotency_key_that_cannot_be_is_refused_before_a_node_is_asked(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    assert run("submit", "noop", "--idempotency-key", key) == 2
    assert run("submit", "noop", "--each", "--idempotency-key", key) == 2
    assert asked == []


def test_what_is_cut_off_in_the_middle_names_the_key_to_go_on_with(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n2\n" * 1_000))
    whole, calls = SyncClient.submit_many, 0

    def once(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(SyncClient, "submit_many", once)
    monkeypatch.setitem(ANSWERS, ("POST", "/tasks/batch"), (200, {"results": [TASK] * 1_000}))
    assert run("submit", "noop", "--each") == 130
    told = capsys.readouterr()
    assert told.out == "01A-1f\n" * 1_000
    key = asked[-1]["headers"]["Idempotency-Key"].partition("/")[0]
    assert told.err.startswith("cut off after 1,000 of 2,000 lines.\n")
    assert f"--idempotency-key {key} " in told.err


def test_one_of_several_nodes_is_enough(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUMOR_URL", "http://127.0.0.1:1," + os.environ["RUMOR_URL"])
    assert run("status") == 0


def test_an_id_that_fails_does_not_keep_the_others_from_being_cancelled(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cancel", "01C-1f", "01A-1f") == 1
    told = capsys.readouterr()
    assert told.out == "01A-1f cancelled\n"
    assert told.err == "01C-1f not_found: No task 01C-1f.\n  `rumor tasks` lists the tasks there are.\n"


def test_a_shell_completes_commands_and_ids(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("completion", "zsh") == 0
    assert "_RUMOR_COMPLETE=zsh_complete" in capsys.readouterr().out
    monkeypatch.setenv("_RUMOR_COMPLETE", "zsh_complete")
    for words, cword, found in (("rumor ca", 1, "cancel"), ("rumor task 01A", 2, "01A-1f")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(cword))
        run()
        assert found in capsys.readouterr().out.split()


def test_every_command_of_the_table_exists_and_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +\w", shown, re.MULTILINE), name
        assert run(name, "--help") == 0


def test_a_task_that_ended_badly_is_status_1(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("task", "01A-1f") == 0
    assert run("task", "01B-1f") == 1
    assert "1970-01-01T00:00:00.000+00:00" in capsys.readouterr().out


def test_an_error_of_the_node_is_two_lines_and_status_1(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "01C-1f") == 1
    assert capsys.readouterr().err == "not_found: No task 01C-1f.\n  `rumor tasks` lists the tasks there are.\n"


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (401, "unauthorized", "this call needs the API token.", "Set RUMOR_API_TOKEN"),
        (503, "store_unavailable", "Redis: no answer.", "Try again soon, or give several nodes in --url"),
        (503, "store_unavailable", "Redis refuses: it is read-only.", "As the node said."),
        (409, "conflict", "The task has ended.", "As the node said."),
        (404, "not_found", "there is no /x/tasks.", "A node has no such path"),
    ],
)
def test_hints_are_for_the_command_line(
    asked: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    message: str,
    hint: str,
) -> None:
    answer = {"error": {"code": code, "message": message, "hint": "As the node said."}}
    monkeypatch.setitem(ANSWERS, ("DELETE", "/tasks/01A-1f"), (status, answer))
    assert run("cancel", "01A-1f") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"{code}: {message}"
    assert second.startswith(f"  {hint}")


def test_a_refusal_of_redis_is_told_by_how_the_errors_message_begins() -> None:
    assert refused(Exception("NOPERM no permissions")).message.startswith(hints.REFUSAL)


def test_an_answer_that_is_no_rumor_node_is_told_as_such(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "unknown") == 1
    assert "http_500" in capsys.readouterr().err


def test_tasks_are_listed_and_filtered(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "--state", "dead", "--type", "noop", "--limit", "2") == 0
    assert asked[-1]["query"] == "state=dead&type=noop&limit=2"
    told = capsys.readouterr()
    rows = [line.split("\t") for line in told.out.splitlines()]
    assert [row[:4] for row in rows] == [["01A-1f", "noop", "succeeded", "1/5"], ["01B-1f", "noop", "dead", "1/5"]]
    assert told.err == "more: --cursor c2\n"
    assert run("tasks", "--state", "queued", "--queue", "mail", "--fields", "data,result", "--json") == 0
    assert asked[-1]["query"] == "state=queued&queue=mail&fields=data%2Cresult&limit=20"
    page = json.loads(capsys.readouterr().out)
    assert (page["tasks"][0]["id"], page["cursor"], page["complete"]) == ("01A-1f", "c2", True)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ({"searched": 312, "complete": True, "cursor": None}, "no task found; searched 312 tasks\n"),
        ({"searched": 1, "complete": True, "cursor": None}, "no task found; searched 1 task\n"),
        (
            {"searched": 20_000, "complete": False, "cursor": "c9"},
            "no task found; searched 20,000 tasks; to go on: --all, or --cursor c9\n",
        ),
        ({"cursor": None}, "no task found\n"),
        (
            {"searched": 20_000, "complete": False, "cursor": "c9", "tasks": [TASK]},
            "searched 20,000 tasks; to go on: --all, or --cursor c9\n",
        ),
        ({"searched": 3, "complete": True, "cursor": None, "tasks": [TASK]}, ""),
        (
            {"searched": 3, "complete": True, "cursor": None, "tasks": [TASK], "unreadable": ["01C-1f", "\x1b[2J"]},
            "2 tasks cannot be read: 01C-1f, \\x1b[2J\n",
        ),
    ],
)
def test_a_list_says_how_far_it_looked_where_that_matters(
    asked: list[dict[str, Any]],
    page: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(ANSWERS, ("GET", "/tasks"), (200, {"tasks": [], **page}))
    assert run("tasks", "--type", "nope") == 0
    assert capsys.readouterr().err == words


def test_all_pages_of_a_list_are_printed_one_after_the_other(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {
        "": {"tasks": [TASK], "cursor": "c1", "searched": 20_000, "complete": False},
        "c1": {"tasks": [], "cursor": "c2", "searched": 20_000, "complete": False},
        "c2": {"tasks": [DEAD], "cursor": None, "searched": 7, "complete": True},
    }

    def next_page(url: str) -> dict[str, Any]:
        return pages[parse_qs(url).get("cursor", [""])[0]]

    def answer(self: Canned) -> None:
        monkeypatch.setitem(ANSWERS, ("GET", "/tasks"), (200, next_page(self.path.partition("?")[2])))
        Canned.answer(self)

    monkeypatch.setattr(Canned, "do_GET", answer)
    assert run("tasks", "--type", "noop", "--all") == 0
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["01A-1f", "01B-1f"]
    assert told.err == ""
    assert run("tasks", "--type", "noop", "--all", "--json") == 0
    assert [json.loads(line)["cursor"] for line in capsys.readouterr().out.splitlines()] == ["c1", "c2", None]


def test_cancel_and_replay(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cancel", "01A-1f") == 0
    assert run("replay", "01B-1f") == 0
    assert run("replay", "--type", "noop", "--limit", "9", "--yes") == 0
    assert [one["call"] for one in asked] == [
        ("DELETE", "/tasks/01A-1f"),
        ("POST", "/tasks/01B-1f/retry"),
        ("POST", "/dead/replay"),
    ]
    assert json.loads(asked[-1]["body"]) == {"type": "noop", "limit": 9}
    assert capsys.readouterr().out.splitlines() == ["01A-1f cancelled", "01B-1f queued", "replayed 3"]


class Terminal(io.StringIO):
    """A standard input at which somebody sits."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("words", "question", "call"),
    [
        (["replay"], "Run 2 dead tasks again?", ("POST", "/dead/replay")),
        (["replay", "--type", "noop"], "Run 2 dead tasks of type noop again?", ("POST", "/dead/replay")),
        (["replay", "--limit", "2"], "Run 2 dead tasks again?", ("POST", "/dead/replay")),
        (["replay", "--limit", "9"], "Run at least 2 dead tasks again?", ("POST", "/dead/replay")),
        (["purge"], "Remove 2 dead tasks, their data and errors?", ("DELETE", "/dead")),
    ],
)
def test_what_names_no_task_asks_and_without_a_terminal_wants_yes(
    asked: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    question: str,
    call: tuple[str, str],
) -> None:
    rows = ANSWERS["GET", "/tasks"][1]["tasks"]
    cursor = "c2" if "at least" in question else None
    monkeypatch.setitem(ANSWERS, ("GET", "/tasks"), (200, {"tasks": rows, "cursor": cursor}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run(*words) == 2
    assert "add --yes" in capsys.readouterr().err
    assert asked == []
    for said, status in (("n\n", 130), ("", 130), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin", Terminal(said))
        assert run(*words) == status
        assert question in capsys.readouterr().err
        assert (asked[-1]["call"] == call) == (status == 0)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    asked.clear()
    assert run(*words, "--yes") == 0
    assert [one["call"] for one in asked] == [call]
    monkeypatch.setitem(ANSWERS, ("GET", "/tasks"), (200, {"tasks": [], "cursor": None}))
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert run(*words) == 0, "nothing to ask about"
    assert asked[-1]["call"] == ("GET", "/tasks")


def test_status_shows_both_witnesses_and_the_shards(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seen by n1, leader none"
    assert lines[1].split("\t")[:6] == ["n1", "alive", "live", "healthy", "", "2"]
    assert lines[2].split("\t")[:8] == ["n2", "dead", "gone", "dead", "-", "1", "-", "-"]


def test_the_token_comes_from_the_environment(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUMOR_API_TOKEN", "t0ken")
    assert run("task", "01A-1f") == 0
    assert asked[-1]["headers"]["Authorization"] == "Bearer t0ken"


def test_a_node_that_does_not_answer_is_status_1_with_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--url", "http://127.0.0.1:1") == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("unreachable: http://127.0.0.1:1 does not answer")
    assert len(told) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["submit"], "Missing argument 'TYPE'"),
        (["fly"], "No such command 'fly'"),
        (["node", "--lease-s", "x"], "lease_s is 'x'"),
        (["node", "--lease-s"], "requires an argument"),
        (["task", "1", "--url", "ftp://x"], "not an HTTP address"),
        (["tasks", "--state", "odd"], "'odd' is not one of"),
        (["submit", "noop", "--wait-s", "-1"], "-1 is no time to wait"),
        (["submit", "noop", "--wait-s", "nan"], "nan is no time to wait"),
        (["task", "1", "--wait-s", "nan"], "nan is no time to wait"),
        (["tasks", "--type", ""], "Invalid value for '--type': it is empty."),
        (["tasks", "--key", ""], "Invalid value for '--key': it is empty."),
        (["tasks", "--queue", "", "--state", "queued"], "Invalid value for '--queue': it is empty."),
        (["submit", "noop", "--each", "--wait"], "--each does not wait"),
    ],
)
def test_what_makes_no_sense_is_status_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert told in capsys.readouterr().err


def test_without_a_subcommand_the_module_means_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--port", "0", default="node") == 2
    assert "port is 0" in capsys.readouterr().err
    assert run("--help", default="node") == 0
    assert "launch" in capsys.readouterr().out


def test_keygen_makes_keys_that_only_their_owner_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keygen") == 0
    assert len(b64decode(capsys.readouterr().out, validate=False)) == 32
    path = tmp_path / "key"
    assert run("keygen", "--file", str(path)) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert run("keygen", "--file", str(path)) == 2
    assert path.read_bytes() == before


def test_config_never_shows_a_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RUMOR_API_TOKEN", "t0ken")
    monkeypatch.setenv("RUMOR_REDIS_URL", "redis://:pa55@h/0")
    assert run("config", "--lease-s", "7.5") == 0
    told = capsys.readouterr().out
    assert "7.5" in told
    assert "t0ken" not in told
    assert "pa55" not in told
