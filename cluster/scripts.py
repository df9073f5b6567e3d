"""The Lua scripts as files: their text, their hash, and the one way to call them.

NOSCRIPT is answered by EVAL, which also loads the script for the next call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

Arg = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """One file of `cluster/lua`."""

    name: str
    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script of this name. Raises FileNotFoundError if there is none."""
    text = resources.files("cluster").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())


async def call(client: Any, name: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
    """Run one script by itself (the shards' lanes send theirs in pipelines). Redis errors pass through."""
    one = script(name)
    try:
        return await client.execute_command("EVALSHA", one.sha, len(keys), *keys, *args)
    except NoScriptError:
        return await client.execute_command("EVAL", one.text, len(keys), *keys, *args)
