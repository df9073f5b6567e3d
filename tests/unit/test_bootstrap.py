"""scripts/bootstrap.py, where the environment belongs to another user."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, on an environment of its own that it may not write to."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, path in (("VENV", tmp_path), ("PYTHON", tmp_path / "python"), ("STAMP", tmp_path / "stamp.json")):
        monkeypatch.setattr(module, name, path)
    module.PYTHON.touch()
    before = Path.open

    def refuse(self: Path, mode: str = "r", *more: object, **named: object) -> object:
        if self.name == module.LOCK:
            raise PermissionError(13, "Permission denied", str(self))
        return before(self, mode, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    return module


def test_what_another_user_installed_is_used_when_it_is_what_is_wanted(
    bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.STAMP.write_text(json.dumps(bootstrap.make_stamp(["test"])), "utf-8")
    assert bootstrap.main([]) == 0
    assert capsys.readouterr().out == f"{bootstrap.PYTHON}\n"


def test_what_another_user_would_have_to_install_is_told(
    bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.STAMP.write_text(json.dumps(bootstrap.make_stamp([])), "utf-8")
    assert bootstrap.main(["embedded"]) == 1
    assert "belongs to another user" in capsys.readouterr().err
