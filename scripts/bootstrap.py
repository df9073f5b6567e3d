"""Make or refresh the project's virtual environment, .venv, and print the path of its Python.

    python3 scripts/bootstrap.py [EXTRA …]

It needs nothing but Python 3.11 and its standard library. It installs the project, editable, with these extras and the
versions of constraints.txt. A stamp records what is installed, so that the next call takes milliseconds and needs no
network. Of two calls at once, one waits for the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".rumor-stamp.json"
LOCK = ".rumor-lock"
INPUTS = ("setup.cfg", "setup.py", "constraints.txt")


def main(extras: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - the user may have an older one
        return fail(
            f"Rumor needs Python 3.11 or newer and this is {sys.version.split()[0]}.", "Set PYTHON to a newer one."
        )
    try:
        VENV.mkdir(exist_ok=True)
        file = (VENV / LOCK).open("a")
    except PermissionError:
        return use_as_it_is(extras)
    with file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = read_stamp()
        target = target_stamp(extras, installed)
        if target != installed and not refresh(installed, target):
            return 1
    print(PYTHON)
    return 0


def use_as_it_is(extras: list[str]) -> int:
    """Use an environment of another user (root, by sudo), provided that nothing has to be installed."""
    installed = read_stamp()
    if installed and target_stamp(extras, installed) == installed:
        print(PYTHON)
        return 0
    return fail(
        f"{VENV} belongs to another user, and something must be installed into it.",
        f"Run this as that user (sudo), or remove it: sudo rm -r {VENV}",
    )


def target_stamp(extras: list[str], installed: dict[str, object]) -> dict[str, object]:
    """The stamp that the environment shall have; extras that are installed stay."""
    return make_stamp(sorted({*extras, *(installed["extras"] if is_same_place(installed) else ())}))


def make_stamp(extras: list[str]) -> dict[str, object]:
    """All that an environment depends on, its path included: a virtual environment does not survive a move."""
    inputs = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in INPUTS)).hexdigest()
    return {"path": str(VENV), "python": os.path.realpath(PYTHON), "inputs": inputs, "extras": extras}


def read_stamp() -> dict[str, object]:
    """The stamp of the last successful install; {} if there was none."""
    try:
        stamp = json.loads(STAMP.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and PYTHON.exists() else {}


def is_same_place(stamp: dict[str, object]) -> bool:
    return stamp.get("path") == str(VENV) and stamp.get("python") == os.path.realpath(PYTHON)


def refresh(installed: dict[str, object], target: dict[str, object]) -> bool:
    """Install what the target stamp names. True if the environment can be used afterwards."""
    if not is_same_place(installed):
        say("Making .venv and installing Rumor into it; this happens once.")
        for path in VENV.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if run([sys.executable, "-m", "venv", str(VENV)]) != 0:
            fail(
                "The virtual environment could not be made.",
                "On Debian and Ubuntu: apt-get install python3-venv. Or set PYTHON to another Python 3.11+.",
            )
            return False
    else:
        say("Bringing .venv up to date.")
    extras = ",".join(map(str, target["extras"])) if isinstance(target["extras"], list) else ""
    project = f"{ROOT}[{extras}]" if extras else str(ROOT)
    pip = [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
    if run([*pip, "--constraint", str(ROOT / "constraints.txt"), "--editable", project]) != 0:
        if is_same_place(installed) and installed["extras"] == target["extras"]:
            # Without a network an environment with an older pin is better than none.
            say("The update failed (see above); using what is installed.")
            return True
        fail(
            "Rumor's dependencies could not be installed.",
            "pip's own words are above. Check that a package index is reachable.",
        )
        return False
    temporary = STAMP.with_suffix(".tmp")
    temporary.write_text(json.dumps(target | {"python": os.path.realpath(PYTHON)}), "utf-8")
    temporary.replace(STAMP)
    return True


def run(command: list[str]) -> int:
    """Run a command with its output on stderr: stdout is for the answer."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), check=False).returncode


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(message: str, hint: str) -> int:
    say(f"bootstrap: {message}\n  {hint}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
