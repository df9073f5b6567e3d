"""Adds to docs/mkdocs.yml what it cannot hold: the menu, from docs/README.md, and anchors as GitHub makes them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

INDEX = Path(__file__).resolve().parent.parent / "docs" / "README.md"
GROUP_OR_PAGE = re.compile(r"^\*\*(?P<group>.+)\*\*$|\[(?P<title>[^\]]+)\]\((?P<page>[^)#]+\.md)\)", re.MULTILINE)


def on_config(config: Any) -> Any:
    config.nav = menu(INDEX.read_text("utf-8"))
    config.mdx_configs["toc"] = {"permalink": True, "slugify": anchor}
    return config


def menu(index: str) -> list[Any]:
    """Groups with their pages, each once; the project's README first and its changelog last."""
    groups: list[Any] = [{"Rumor": "README.md"}, {"Documentation": "docs/README.md"}]
    named = {"README.md"}
    pages: list[Any] = []
    for match in GROUP_OR_PAGE.finditer(index):
        if match["group"]:
            pages = []
            groups.append({match["group"]: pages})
        elif (page := posixpath.normpath(f"docs/{match['page']}")) not in named:
            named.add(page)
            pages.append({match["title"]: page})
    return [*groups, {"Changelog": "CHANGELOG.md"}]


def anchor(heading: str, separator: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)
