"""The documents say what is so: pages made from the code are current, links lead somewhere, no claim is too large."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cluster.config import from_text
from node.observe import report
from scripts import docs_reference

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# Said of others, or as what is not claimed: the sentence has to hold one of these words.
NEVER = ("exactly once", "exactly-once", "no single point of failure", "fastest")
DENIAL = re.compile(r"\b(?:not|no|never|nobody|none|cannot|neither)\b", re.IGNORECASE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    return CODE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower().replace("`", "")).replace(" ", "-") for head in heads}


def test_the_pages_made_from_the_code_are_current() -> None:
    assert docs_reference.stale() == [], "run: python scripts/docs_reference.py"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_a_test_that_is_named_exists(path: Path) -> None:
    for file, function in TEST.findall(path.read_text("utf-8")):
        assert (ROOT / file).exists(), file
        if function:
            tree = ast.parse((ROOT / file).read_text("utf-8"))
            names = {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert function in names, f"{file}::{function}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_nothing_is_claimed_that_is_not_so(path: Path) -> None:
    for sentence in re.split(r"(?<=[.!?:;|])\s", " ".join(prose(path).split())):
        for words in NEVER:
            if words in sentence.lower():
                assert DENIAL.search(sentence.lower().replace(words, "")), sentence


def handlers_queues(text: str) -> set[str]:
    """The queues in which the handlers of a page wait."""
    return {"default", "sync", *re.findall(r"^@task\([^)]*queue=\"(\w+)\"", text, re.MULTILINE)}


DEPLOYED = {  # configuration -> where it says which queues its nodes serve
    "docker-compose.yml": r"RUMOR_QUEUES: \$\{RUMOR_QUEUES:-([^}]*)\}",
    "deploy/kubernetes/statefulset.yaml": r"name: RUMOR_QUEUES\n +value: (\S+)",
    "deploy/systemd/rumor.env.example": r"^RUMOR_QUEUES=(\S+)",
}


@pytest.mark.parametrize("file", DEPLOYED)
def test_every_handler_of_the_readme_runs_under_every_configuration(file: str) -> None:
    (queues,) = re.findall(DEPLOYED[file], (ROOT / file).read_text("utf-8"), re.MULTILINE)
    served = from_text({"queues": queues}).queue_slots
    shown = handlers_queues((ROOT / "README.md").read_text("utf-8"))
    assert len(shown) > 2, "the README shows a handler with a queue of its own"
    assert shown <= served.keys()


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_a_page_serves_the_queues_of_the_handlers_that_it_shows(path: Path) -> None:
    text = path.read_text("utf-8")
    commands = re.findall(r"(?:--queues |RUMOR_QUEUES=)([a-z]+:\d+(?:,[a-z]+:\d+)*)", text)
    served = [set(from_text({"queues": queues}).queue_slots) for queues in commands]
    shown = handlers_queues(text) - {"default", "sync"}
    assert all(any(queue in one for one in served) for queue in shown), f"{shown} of {served}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name


def test_every_problem_that_health_names_is_explained() -> None:
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    codes = {verdict.value for verdict in report.CUT}
    for file in ("observe/report.py", "queue/redis_checks.py", "observe/redis_memory.py"):
        text = (ROOT / "node" / file).read_text("utf-8")
        codes |= set(re.findall(r'\b_problem\(\s*"(\w+)"', text)) | set(re.findall(r'"code": "(\w+)"', text))
    assert len(codes) >= 9
    assert [code for code in sorted(codes) if f"| `{code}` |" not in page] == []
