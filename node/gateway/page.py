"""The pages at `/` and `/docs`: each one answer made of the files in `static`, no build step, nothing from elsewhere.

An HTML file names its style and its scripts; they are put into it when the node starts. The Content-Security-Policy
allows exactly these, by their hashes, so that a task's data shown on the page can never run. It may ask this node, and
the hosts of the others for when this one is gone. Does not know: what the page shows; it fetches that by itself.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

STYLE = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">')
SCRIPT = re.compile(r'<script src="(\w+\.js)"></script>')


@dataclass(frozen=True, slots=True)
class StaticPage:
    """The page, also compressed, and its policy but for whom it may ask."""

    body: bytes
    zipped: bytes
    policy: str

    def answer(self, sources: Sequence[str], is_zipped: bool) -> tuple[bytes, dict[str, str]]:
        """Body and headers; `sources` are the places of other nodes that the page may ask."""
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": "; ".join([self.policy, " ".join(["connect-src 'self'", *sources])]),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
            "Vary": "Accept-Encoding",
            "Server": "rumor",
        }
        if is_zipped:
            return self.zipped, {**headers, "Content-Encoding": "gzip"}
        return self.body, headers


def load(name: str = "index.html") -> StaticPage:
    """Put the files together; raises FileNotFoundError when the package was installed without them."""
    text = whole(resources.files("node.gateway").joinpath("static"), name)
    body = text.encode()
    return StaticPage(body, gzip.compress(body, mtime=0), policy(text))


def whole(folder: Traversable, name: str) -> str:
    """The file with its style and its scripts inside."""

    def read(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    text = STYLE.sub(lambda found: f"<style>\n{read(found[1])}</style>", read(name))
    return SCRIPT.sub(lambda found: f"<script>\n{read(found[1])}</script>", text)


def policy(text: str) -> str:
    """The policy for this very text."""
    return (
        f"default-src 'none'; img-src data:; script-src {_hashes(text, 'script')}; "
        f"style-src {_hashes(text, 'style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(text: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
