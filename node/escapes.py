"""Text of the cluster as a terminal may show it: what would act on the terminal is shown as an escape. Pure.

Data, names and errors come from whoever submits tasks. Raw control characters in them could recolour or clear a screen,
set its title, make false lines or links, and turn the order of text round. The escapes are those of JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters (C0, DEL, C1), line and paragraph separators, characters that turn the direction of text round or
# are invisible, and halves of surrogate pairs, which no output can encode.
_ACTING = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f"
)
_IN_A_LINE = re.compile(f"[{_ACTING}]")
_IN_LINES = re.compile(rf"(?![\n\t])[{_ACTING}]")


def one_line(text: object) -> str:
    """Text for a field or a line: no line break remains in it."""
    return _IN_A_LINE.sub(_escape, str(text))


def lines(text: object) -> str:
    """Text that may have several lines: its line feeds and tabs stay."""
    return _IN_LINES.sub(_escape, str(text))


def harmless(answer: Any) -> Any:
    """An answer in JSON's types, each text in it for a line."""
    match answer:
        case str():
            return one_line(answer)
        case dict():
            return {one_line(name): harmless(value) for name, value in answer.items()}
        case list():
            return [harmless(value) for value in answer]
    return answer


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]
