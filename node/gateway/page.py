"""The pages at `/` and `/docs`: each is one answer made of the files in `static`, without a build step.

An HTML file names its style and its scripts; the node puts them into it at its start. The Content-Security-Policy
allows exactly these, by their hashes, so a task's data shown on the page can never run as a script. The page may send
requests to this node, and to the other nodes' hosts for when this one is gone. Does not know: what the page shows,
which the page fetches by itself.
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
    """A page, plain and compressed, and its policy without the nodes that it may ask."""

    body: bytes
    zipped: bytes
    policy: str

    def answer(self, sources: Sequence[str], is_zipped: bool) -> tuple[bytes, dict[str, str]]:
        """The body and the headers of an answer; `sources` are the addresses of other nodes that the page may ask."""
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
    """The page put together from its files; raises FileNotFoundError when the package was installed without them."""
    text = inlined(resources.files("node.gateway").joinpath("static"), name)
    body = text.encode()
    return StaticPage(body, gzip.compress(body, mtime=0), policy(text))


def inlined(folder: Traversable, name: str) -> str:
    """The text of an HTML file with its style and its scripts inside."""

    def read(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    text = STYLE.sub(lambda match: f"<style>\n{read(match[1])}</style>", read(name))
    return SCRIPT.sub(lambda match: f"<script>\n{read(match[1])}</script>", text)


def policy(text: str) -> str:
    """The Content-Security-Policy that allows the styles and scripts of exactly this text."""
    return (
        f"default-src 'none'; img-src data:; script-src {_hashes(text, 'script')}; "
        f"style-src {_hashes(text, 'style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(text: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
