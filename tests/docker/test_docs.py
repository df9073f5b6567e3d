"""docs/compose.md is run as it stands, in a copy of this tree: start, kill, scale, metrics, and the second Redis.

Ports, project and the name of the sixth node are this test's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker.conftest import COUNT, find_compose
from tests.integration.test_docs import Shell
from tests.processes import ROOT, clean_environ, free_base_port

pytestmark = [pytest.mark.chaos, pytest.mark.docker, pytest.mark.timeout(900)]

PLACE = re.compile(r"\b(localhost|127\.0\.0\.1):(50|90)(\d\d)")
PORTS = 16  # 5000 to 5005, and 9090 as the sixteenth
NO_COPY = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
STAND_IN = """\
FROM {base}
COPY prometheus /usr/bin/prometheus
RUN mkdir -p /prometheus && chown nobody /prometheus
USER nobody
"""


def prometheus_image(folder: Path) -> str:
    """PROMETHEUS_IMAGE, or the public one; where BASE_IMAGE stands in for its own, this machine's program on that."""
    base = os.environ.get("BASE_IMAGE")
    if "PROMETHEUS_IMAGE" in os.environ or base is None:
        return os.environ.get("PROMETHEUS_IMAGE", "")
    program = shutil.which("prometheus") or pytest.skip(
        "there is no PROMETHEUS_IMAGE, and no prometheus to make one of"
    )
    folder.mkdir()
    shutil.copy(program, folder)
    (folder / "Dockerfile").write_text(STAND_IN.format(base=base), "utf-8")
    name = "rumor-test-prometheus:local"
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(folder)], check=True, capture_output=True)
    return name


@dataclass
class ComposeShell(Shell):
    """A copy of the tree, where a `.env` may be written."""

    command: str = ""
    image: str = ""

    @property
    def environ(self) -> dict[str, str]:
        return clean_environ() | {
            "COMPOSE_PROJECT_NAME": f"rumordocs{os.getpid()}",
            **{f"NODE{number}_PORT": str(self.base + number - 1) for number in range(1, COUNT + 1)},
            "PROMETHEUS_PORT": str(self.base + PORTS - 1),
            **({"PROMETHEUS_IMAGE": self.image} if self.image else {}),
        }

    def here(self, text: str) -> str:
        def port(found: re.Match[str]) -> str:
            return f"{found[1]}:{self.base + (PORTS - 1 if found[2] == '90' else int(found[3]))}"

        text = PLACE.sub(port, text.replace("docker compose", self.command).replace("4999", str(self.base - 1)))
        return re.sub(r"\bnode6\b", f"node6-{os.getpid()}", text)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[ComposeShell]:
    command = " ".join(find_compose())
    tree = tmp_path / "rumor"
    shutil.copytree(ROOT, tree, ignore=NO_COPY)
    shutil.copy(ROOT / ".dockerignore", tree)
    one = ComposeShell(tmp_path, free_base_port(PORTS), tree, 600, command, prometheus_image(tmp_path / "prometheus"))
    try:
        yield one
    finally:
        words = f"docker rm --force node6; {command} --profile metrics down --volumes --timeout 5"
        subprocess.run(["bash", "-c", one.here(words)], cwd=tree, env=one.environ, capture_output=True, check=False)


def test_compose_does_what_its_page_says_and_nothing_is_lost_with_the_first_redis(shell: ComposeShell) -> None:
    shell.check(ROOT / "docs" / "compose.md")
