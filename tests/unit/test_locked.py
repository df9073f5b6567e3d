"""requirements.txt, from which the image is built: complete, current, and of no index in particular."""

from __future__ import annotations

import re
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts import lock_image

PIN = re.compile(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def locked() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version, _ in PIN.findall(lock_image.LOCKED.read_text("utf-8"))}


def needed(requirement: Requirement, found: set[str]) -> None:
    """Add the package and all that it needs here, as far as it is not there yet."""
    name = canonicalize_name(requirement.name)
    if name in found and not requirement.extras:
        return
    found.add(name)
    for text in requires(name) or ():
        child = Requirement(text)
        extras = requirement.extras or {""}
        if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
            needed(child, found)


def test_the_image_installs_all_that_a_node_needs_in_the_versions_that_are_tested() -> None:
    pins = locked()
    constraints = dict(
        line.split("==") for line in lock_image.CONSTRAINTS.read_text("utf-8").splitlines() if "==" in line
    )
    tested = {canonicalize_name(name): version for name, version in constraints.items()}
    found: set[str] = set()
    for text in lock_image.wanted():
        requirement = Requirement(text)
        assert requirement.specifier.contains(Version(pins[canonicalize_name(requirement.name)])), text
        if requirement.name not in lock_image.BUILDS:
            needed(requirement, found)
    assert found | set(lock_image.BUILDS) <= pins.keys(), "run scripts/lock_image.py"
    assert pins == {name: tested[name] for name in pins}, "run scripts/lock_image.py"


def test_every_package_has_a_hash_and_none_has_an_address() -> None:
    text = lock_image.LOCKED.read_text("utf-8")
    assert PIN.sub("", text) == lock_image.HEAD, "nothing but packages with their hashes"
    assert "://" not in text


def test_the_image_takes_nothing_without_a_hash() -> None:
    lines = (lock_image.ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert "!requirements.txt" in (lock_image.ROOT / ".dockerignore").read_text("utf-8").splitlines()
