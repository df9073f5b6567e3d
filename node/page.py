"""The page at `/`: one file, no build step, nothing from elsewhere.

Its Content-Security-Policy allows exactly the style and the script that stand in the file, by their hashes, so that a
task's data shown on it can never run. Does not know: what the page shows; it fetches that by itself.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Page:
    """The file and the headers it is sent with."""

    body: bytes
    headers: dict[str, str]


def load() -> Page:
    """Read the file; raises FileNotFoundError when the package was installed without it."""
    text = resources.files("node").joinpath("static", "index.html").read_text("utf-8")
    return Page(
        text.encode(),
        {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy(text),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def policy(text: str) -> str:
    """The policy for this very text."""
    return (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_hashes(text, 'script')}; "
        f"style-src {_hashes(text, 'style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(text: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
