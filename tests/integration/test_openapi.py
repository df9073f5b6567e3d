"""schemathesis makes requests out of `/openapi.json`, right and wrong ones, and finds nothing that a live node does
otherwise than it says. Skipped where schemathesis is not installed (extra `conformance`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import LaunchedCluster

CONFIG = Path(__file__).resolve().parent.parent / "schemathesis.toml"
PROGRAM = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 15
LIMIT_S = 100.0


@pytest.mark.skipif(not PROGRAM.exists(), reason="schemathesis is not installed")
def test_a_live_node_does_what_its_description_says(cluster: Callable[..., LaunchedCluster]) -> None:
    node = cluster(1)
    command = [
        *(
            str(PROGRAM),
            "--config-file",
            str(CONFIG),
            "run",
            f"{node.url(1)}/openapi.json",
            "--seed",
            "1",
            "--no-color",
        ),
        *("--checks", "all", "--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing,stateful"),
        *("--exclude-checks", "use_after_free"),  # a cancelled task can still be read
        *("--suppress-health-check", "all", "--continue-on-failure", "--request-timeout", "10"),
        *("--exclude-path", "/events"),  # it has no end: tests/unit/test_gateway_events.py reads it
    ]
    done = subprocess.run(
        command, cwd=node.folder, capture_output=True, text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Selected: " in done.stdout
