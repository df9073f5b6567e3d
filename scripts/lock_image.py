"""Write requirements.txt: what the image installs, with the hash of every file that the package index has of it.

    .venv/bin/python scripts/lock_image.py      (needs the extra `lock`: pip install -c constraints.txt -e '.[lock]')

The versions are those of constraints.txt, and the packages what setup.cfg requires of every node, with what these need,
and what builds Rumor itself. With `--require-hashes`, pip then installs these files or none. Run it after a change of
either; a test says when it is due. It asks the package index alone: a folder of wheels knows the hashes of its own
files, and lacks those of other platforms.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS, LOCKED = ROOT / "constraints.txt", ROOT / "requirements.txt"
BUILDS = ("setuptools",)  # what builds the project itself, without a network
HEAD = """\
# What the image installs, by `pip install --require-hashes`. scripts/lock_image.py makes this file.
"""
FLAGS = (
    *("--quiet", "--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header", "--no-annotate"),
    *("--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links", "--no-emit-options"),
)


def wanted() -> list[str]:
    """The requirements of a node, as setup.cfg has them."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    return [*filter(None, parser["options"]["install_requires"].split("\n")), *BUILDS]


def main() -> int:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") or name == "PIP_CERT"}
    with tempfile.TemporaryDirectory() as folder:
        listed, locked = Path(folder, "requirements.in"), Path(folder, "requirements.txt")
        listed.write_text("\n".join(wanted()) + "\n", "utf-8")
        command = [sys.executable, "-m", "piptools", "compile", *FLAGS]
        command += ["--constraint", str(CONSTRAINTS), "--output-file", str(locked), str(listed)]
        done = subprocess.run(command, env=environ | {"PIP_CONFIG_FILE": os.devnull}, cwd=folder, check=False)
        if done.returncode == 0:
            lines = [line for line in locked.read_text("utf-8").splitlines() if line and not line.startswith("#")]
            LOCKED.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
