"""What a person sees and does: a kill is shown and explained, tasks are acted on, and the page outlives its node."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from node.lab.process import wait_for
from tests.browser.conftest import Page
from tests.kept import fill
from tests.processes import LaunchedCluster
from tests.waiting import wait_until

Open = Callable[..., Page]
Cluster = Callable[..., LaunchedCluster]

WITHIN_S = 1.0  # from the kill to the page that explains it


TRACE_URL = "https://traces.example/t/{trace_id}"
SETTINGS = {"queues": "default:20,sync:1", "backoff_base_s": 0.05, "drain_s": 0.2, "trace_url": TRACE_URL}


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedCluster]:
    """A cluster whose nodes no test kills, so that the tests may share it."""
    shared = LaunchedCluster(tmp_path_factory.mktemp("steady"), 2, **SETTINGS)  # type: ignore[arg-type]
    yield shared
    shared.close()


@pytest.fixture
def three(cluster: Cluster) -> LaunchedCluster:
    return cluster(3, **SETTINGS)


def kill(cluster: LaunchedCluster, number: int) -> None:
    os.kill(cluster.node(number)["pid"], signal.SIGKILL)


def test_a_kill_moves_the_arcs_and_is_explained_within_a_second_without_a_reload(
    three: LaunchedCluster, open_page: Open
) -> None:
    page = open_page(three.url(1))
    page.page.evaluate("window.unreloaded = true")
    victim = three.node(2)["node_id"]
    shards = page.until(f"document.querySelectorAll('.arc[data-owner=\"{victim}\"]').length")
    remote = three.remote(1)
    ids = [remote.call("POST", "/tasks", {"type": "sleep", "data": 8})[1]["id"] for _ in range(30)]

    def owners() -> list[str]:
        """Who runs each task; [] while one of them still waits for a slot."""
        tasks = [remote.call("GET", f"/tasks/{task_id}")[1] for task_id in ids]
        return [task["node_id"] for task in tasks] if all(task["state"] == "running" for task in tasks) else []

    owner = wait_until(owners, WITHIN_S, "all of them run")
    lost = owner.count(victim)
    assert lost, "it runs some of them"

    pid = three.node(2)["pid"]
    began_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    page.until(f"document.querySelectorAll('.arc[data-owner=\"{victim}\"]').length === 0", WITHIN_S)
    page.until("document.querySelector('.story[data-tone=bad] .end')", WITHIN_S)
    assert time.monotonic() - began_s < WITHIN_S
    story = page.text(".story[data-tone=bad]")
    for part in (
        "is gone; others took over its work after",
        "refuse new connections",
        "declared it dead",
        "Redis confirms",
        f"{lost} task",
    ):
        assert part in story, story
    assert "+0 ms" in story
    assert f"{shards} shards moved to" in story
    page.until(f"[...document.querySelectorAll('.members tr')].some(tr => tr.textContent.includes('{victim}') "
               "&& tr.textContent.includes('dead'))", WITHIN_S)  # fmt: skip
    page.until("document.getElementById('now-head').textContent.includes('is gone; others took over')", WITHIN_S)
    assert page.page.evaluate("window.unreloaded"), "without a reload"


def test_a_task_is_submitted_cancelled_and_its_history_read_from_the_page(
    steady: LaunchedCluster, open_page: Open
) -> None:
    page = open_page(steady.url(1) + "/#/tasks")
    page.page.get_by_role("button", name="Submit a task").click()
    page.page.get_by_label("Type", exact=True).last.fill("sleep")
    page.page.get_by_label("Data, as JSON").fill("60")
    page.page.get_by_role("button", name="Submit", exact=True).click()
    page.until("location.hash.startsWith('#/tasks/') && document.querySelector('#task h1')")
    assert "running" in page.text("#task h1")
    page.page.get_by_role("button", name="Cancel task").click()
    page.until("document.querySelector('#task h1').textContent.includes('cancelled')")
    assert "cancelled" in page.text("#history")
    page.page.get_by_role("button", name="Queue again").click()
    page.until("document.querySelector('#task h1').textContent.includes('running')")
    assert "Queued again by hand" in page.text("#history")


def test_a_task_that_is_part_of_a_trace_links_to_it(steady: LaunchedCluster, open_page: Open) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    task = steady.remote(1).call("POST", "/tasks", {"type": "noop"}, headers=headers)[1]
    page = open_page(f"{steady.url(2)}/#/tasks/{task['id']}")
    page.until("document.querySelector('.facts a')")
    assert page.text(".facts a") == trace_id
    assert page.page.evaluate("document.querySelector('.facts a').href") == TRACE_URL.format(trace_id=trace_id)


def test_charts_begin_with_what_was_done_before_the_page_was_opened(steady: LaunchedCluster, open_page: Open) -> None:
    remote = steady.remote(2)
    done = remote.call("POST", "/tasks/batch", [{"type": "noop"}] * 50)[1]
    assert remote.call("GET", f"/tasks/{done['results'][-1]['id']}?wait_s=5")[1]["state"] == "succeeded"

    def is_kept() -> bool:
        return any(step["outcomes"] for step in remote.call("GET", "/sums")[1]["sums"])

    assert wait_for(is_kept, 20.0, 0.2), "the step is over, and all nodes have told it"
    page = open_page(steady.url(1) + "/#/tasks")
    page.until("tasks.sums.some(sum => sum.isPast && sum.outcomes.succeeded)", 3)
    assert page.page.locator("#chart-rate path.k0").get_attribute("d")


def test_bad_data_is_told_beside_the_form_and_nothing_is_submitted(steady: LaunchedCluster, open_page: Open) -> None:
    remote = steady.remote(1)
    before = remote.call("GET", "/tasks")[1]["tasks"]
    page = open_page(steady.url(1) + "/#/tasks")
    page.page.get_by_role("button", name="Submit a task").click()
    page.page.get_by_label("Data, as JSON").fill("{oops")
    page.page.get_by_role("button", name="Submit", exact=True).click()
    page.until("document.getElementById('submit-note').textContent.includes('not JSON')")
    assert [task["id"] for task in remote.call("GET", "/tasks")[1]["tasks"]] == [task["id"] for task in before]


NUMBERS = (
    *("9007199254740993", "-9007199254740993", "123456789012345678901234567890", "1.10", "-0", "-0.0", "0.1000", "1e2"),
    *("1E+2", "1e-7", "1.7976931348623157e308", "5e-324", "0.30000000000000004", "18446744073709551615"),
)


def test_numbers_are_submitted_and_shown_as_they_are_written(steady: LaunchedCluster, open_page: Open) -> None:
    text = '{"2": [' + ", ".join(NUMBERS) + '], "1": {"deep": 9007199254740993}, "2": 1.10, "s": "1.10 \\u00e9"}'
    lines = ["{", '  "2": [', *(f"    {number}," for number in NUMBERS[:-1]), f"    {NUMBERS[-1]}", "  ],"]
    lines += ['  "1": {', '    "deep": 9007199254740993', "  },", '  "2": 1.10,', '  "s": "1.10 é"', "}"]
    page = open_page(steady.url(1) + "/#/tasks")
    for many in ("1", "3"):
        page.page.get_by_role("button", name="Submit a task").click()
        page.page.get_by_label("Type", exact=True).last.fill("noop")
        page.page.get_by_label("Data, as JSON").fill(text)
        page.page.get_by_label("How many").fill(many)
        page.page.get_by_role("button", name="Submit", exact=True).click()
        page.until("!document.getElementById('submit').open")
        (newest,) = steady.remote(1).call("GET", "/tasks?limit=1&type=noop")[1]["tasks"]
        raw = steady.remote(1).request("GET", f"/tasks/{newest['id']}")[1].decode()
        assert text in raw, "the node has the digits that were typed"
        page.go(f"#/tasks/{newest['id']}")
        page.until("document.querySelector('#task h1')?.textContent.includes('succeeded')")
        assert page.page.locator("#task pre").first.inner_text().splitlines() == lines
        page.go("#/tasks")


def test_what_is_no_number_of_json_is_told_beside_the_form(steady: LaunchedCluster, open_page: Open) -> None:
    page = open_page(steady.url(1) + "/#/tasks")
    page.page.get_by_role("button", name="Submit a task").click()
    for text, why in (("1e400", "number out of range"), ("01", "not JSON"), ("NaN", "not JSON"), ("+1", "not JSON")):
        page.page.get_by_label("Data, as JSON").fill(text)
        page.page.get_by_role("button", name="Submit", exact=True).click()
        page.until(f"document.getElementById('submit-note').textContent.includes({why!r})")


def test_json_is_laid_out_as_javascript_would_but_for_its_digits(steady: LaunchedCluster, open_page: Open) -> None:
    page = open_page(steady.url(1))
    values: list[Any] = [None, {}, [], [[]], [{}], {"a": {}}, "", '"', "\\", '\\"', "{[,:]}", "\n\u2028\x7f", 0, True]
    values += [
        {"a": [1, "x", {"b": None}], "": {"c": [[], {}]}},
        ["a\\", {'\\"': 1}],
        "é😀",
        "x" * 1_000_000,
        [[1]] * 99,
    ]
    for value in values:
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=3)):
            laid_out = page.page.evaluate("text => exact.laidOut(text)", text)
            assert laid_out == page.page.evaluate("text => JSON.stringify(JSON.parse(text), null, 2)", text)
    fields = page.page.evaluate(
        "text => exact.fieldsOf(text)", '{"a" : 1.10 ,"b":{"c":[1,{"d":2}],"e":"}"}, "f\\"":"x,\\":", "g":[]}'
    )
    assert fields == {"a": "1.10", "b": '{"c":[1,{"d":2}],"e":"}"}', 'f"': '"x,\\":"', "g": "[]"}
    assert page.page.evaluate("exact.fieldsOf('{}')") == {}
    assert page.page.evaluate("exact.withField({}, 'data', '1.10')") == '{"data":1.10}'


def test_the_docs_page_shows_the_digits_of_an_answer(steady: LaunchedCluster, one_browser: Any) -> None:
    from scripts.screenshots import until

    context = one_browser.new_context()
    page = context.new_page()
    page.goto(steady.url(1) + "/docs#submit")
    call = page.locator("#submit")
    call.get_by_label("Body", exact=True).fill('{"type": "noop", "data": [9007199254740993, 1.10]}')
    call.get_by_label("Idempotency-Key").fill("ключ é")
    call.get_by_role("button", name="Send").click()
    call.locator("[role=status] .status[data-kind='2']").wait_for()
    shown = "[...document.querySelectorAll('#submit pre')].at(-1).textContent"
    until(page, shown + ".includes('9007199254740993,\\n    1.10\\n')")
    submission = {"type": "noop", "data": [9007199254740993, 1.1]}
    headers = {"Idempotency-Key": "ключ é"}
    status, _ = steady.remote(1).request("POST", "/tasks", submission, headers=headers)
    assert status == 200, "the same key from another client"
    context.close()


def test_a_search_says_how_far_it_looked_goes_on_and_is_not_repeated_by_itself(
    cluster: Cluster, open_page: Open
) -> None:
    one = cluster(1, **SETTINGS)
    fill(one.redis_url, 2, kind="rare")
    fill(one.redis_url, 25_000, first_ms=1_750_000_000_000)
    page = open_page(one.url(1) + "/#/tasks?type=rare")
    page.until("document.getElementById('rows-note').textContent.includes('searched the newest')")
    assert re.search(r"^type rare: searched the newest (19|20),\d{3} tasks, found none yet\.$", page.text("#rows-note"))
    assert page.page.locator("#older").is_hidden()
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url) if "/tasks?" in request.url else None)
    done = one.remote(1).call("POST", "/tasks/batch", [{"type": "noop"}] * 20)[1]
    assert done["accepted"] == 20
    shown = "document.querySelector('#states [data-state=succeeded] b').textContent"
    page.until(f"{shown} === '25,022'")  # the sums that made the list load itself until now
    page.until("tasks.sums.length >= 4")
    assert asked == []
    page.page.get_by_role("button", name="Go on").click()
    page.until("document.querySelectorAll('#rows tr').length === 2")
    assert page.text("#rows-note") == "type rare, newest first"
    assert page.page.locator("#go-on").is_hidden()
    page.page.get_by_role("button", name="Search again").click()
    page.until("document.querySelectorAll('#rows tr').length === 0")
    assert len(asked) == 2
    page.go("#/tasks?type=nothing")
    page.until("document.getElementById('rows-note').textContent.startsWith('type nothing: searched')")
    page.page.get_by_role("button", name="Go on").click()
    page.until("document.getElementById('rows-note').textContent === 'No task matches: type nothing.'")


def test_dead_letters_are_replayed_one_by_one_and_all_at_once(steady: LaunchedCluster, open_page: Open) -> None:
    remote = steady.remote(1)
    submission = {"type": "fail", "data": {"message": "<b>no luck</b>"}, "max_attempts": 1}
    ids = [remote.call("POST", "/tasks", submission)[1]["id"] for _ in range(3)]
    for task_id in ids:
        assert remote.call("GET", f"/tasks/{task_id}?wait_s=10")[1]["state"] == "dead"

    def deliveries() -> list[int]:
        tasks = [remote.call("GET", f"/tasks/{task_id}?wait_s=5")[1] for task_id in ids]
        return [task["delivery"] for task in tasks]

    page = open_page(steady.url(1) + "/#/dead")
    page.until("document.querySelectorAll('#dead-rows tr').length === 3")
    assert "<b>no luck</b>" in page.text("#dead-rows"), "what a task says is text"
    assert page.page.locator("#dead-rows b b").count() == 0
    page.page.get_by_label(f"Select {ids[0]}").check()
    page.page.get_by_role("button", name="Replay 1 selected").click()
    page.until("document.getElementById('dead-note').textContent.includes('1 task queued again')")
    assert deliveries() == [2, 1, 1]
    page.until("(tasks.sums.at(-1)?.states ?? {}).dead === 3")
    page.page.get_by_role("button", name="Replay all…").click()
    assert page.text("#sure-text") == "Run 3 dead tasks again? Each gets its full number of attempts."
    page.page.locator("#sure").get_by_role("button", name="Cancel").click()
    assert deliveries() == [2, 1, 1]
    page.page.get_by_role("button", name="Replay all…").click()
    page.page.locator("#sure").get_by_role("button", name="Replay all").click()
    page.until("document.getElementById('dead-note').textContent.includes('3 tasks queued again')")
    assert deliveries() == [3, 2, 2]
    page.until("(tasks.sums.at(-1)?.states ?? {}).dead === 3")
    page.page.get_by_role("button", name="Remove all…").click()
    assert page.text("#sure-text") == "Remove 3 dead tasks? Nobody can restore their data and errors."
    page.page.locator("#sure").get_by_role("button", name="Remove all").click()
    page.until("document.querySelectorAll('#dead-rows tr').length === 0")


def test_the_page_goes_on_with_another_node_when_its_own_dies_and_comes_home(
    three: LaunchedCluster, open_page: Open
) -> None:
    page = open_page(three.url(1).replace("127.0.0.1", "localhost"))
    page.page.evaluate("window.unreloaded = true")
    kill(three, 1)
    page.until("net.isLive && net.base !== net.HOME", 5)
    page.until("document.querySelector('.story[data-tone=bad] .end, .story[data-tone=bad] h3')", 5)
    page.until("cluster.view.node_id !== undefined && cluster.view.members.some(m => m.verdict === 'dead')", 5)
    assert "does not answer" in page.text("#away")
    other = page.page.evaluate("net.base")
    assert page.page.get_by_role("link", name="open the page of").get_attribute("href").startswith(other)
    with pytest.raises(Exception, match="own node does not answer"):
        page.page.evaluate("net.change('POST', '/tasks', {type: 'noop'})")
    three.restart(1)
    page.until("net.isLive && net.base === net.HOME", 15)
    assert page.page.locator("#away").is_hidden()
    assert page.page.evaluate("window.unreloaded"), "without a reload"


def test_the_page_asks_for_the_token_and_keeps_it_in_the_tab(cluster: Cluster, one_browser: Any) -> None:
    from scripts.screenshots import until

    token = "a-token-of-this-test"
    guarded = cluster(1, api_token=token)
    context = one_browser.new_context()
    page = context.new_page()
    page.goto(guarded.url(1))
    until(page, "document.getElementById('door').open")
    page.get_by_role("textbox", name="Token").fill("wrong")
    page.get_by_role("button", name="Continue").click()
    until(page, "document.getElementById('door').open && document.getElementById('door-note').textContent")
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Continue").click()
    until(page, "net.isLive && cluster.view !== null")
    page.reload()
    until(page, "net.isLive && cluster.view !== null")
    assert not page.evaluate("document.getElementById('door').open")
    context.close()


@pytest.mark.parametrize("look", ["desktop-light", "desktop-dark", "phone-light", "phone-dark"])
def test_every_view_fits_its_screen_and_can_be_named(steady: LaunchedCluster, open_page: Open, look: str) -> None:
    """No view scrolls sideways; every control has a name; text stands out from its ground (WCAG AA)."""
    page = open_page(steady.url(1), look)
    steady.remote(1).call("POST", "/tasks", {"type": "fail", "data": {"message": "x" * 300}, "max_attempts": 1})
    for view in ("#/cluster", "#/tasks", "#/dead"):
        page.go(view)
        time.sleep(0.3)
        wide = page.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{view} is {wide} px too wide"
        unnamed = page.page.evaluate(
            "[...document.querySelectorAll('button, input, select, textarea, a')].filter(one => one.checkVisibility()"
            " && !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).map(one => one.outerHTML)"
        )
        assert unnamed == []
    for name, ground in (("--soft", "--ground"), ("--ink", "--card"), ("--bad", "--bad-ground"), ("--warn", "--ground"),
                         ("--accent", "--ground"), ("--good", "--ground"), ("--on-accent", "--accent")):  # fmt: skip
        ratio = page.page.evaluate(CONTRAST, [name, ground])
        assert ratio >= 4.5, f"{name} on {ground} has a contrast of {ratio:.2f}"


CONTRAST = """
([name, ground]) => {
  const light = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const rgb = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
    probe.remove();
    const [r, g, b] = rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(name), light(ground)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}
"""
