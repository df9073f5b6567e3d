"""The Lua scripts as files: their text, their hash, and the one way to call them.

What a script's header says it uses of `lua/include` is put before it: Redis knows no libraries of ours. NOSCRIPT is
answered by EVAL, which also loads the script for the next call.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError, RedisError

USES = re.compile(r"^-- Uses +include/(\w+\.lua)$", re.M)
Arg = str | bytes | int | float
# What a call to Redis raises when there is no answer. RuntimeError: of uvloop, for a write to a connection that was
# reset while nothing was asked of it.
UNANSWERED = (RedisError, OSError, TimeoutError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Script:
    """One file of `cluster/lua`."""

    name: str
    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script of this name. Raises FileNotFoundError if there is none."""
    folder = resources.files("cluster").joinpath("lua")
    text = folder.joinpath(f"{name}.lua").read_text("utf-8")
    text = "".join(folder.joinpath("include", used).read_text("utf-8") for used in USES.findall(text)) + text
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())


async def call(client: Any, name: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
    """Run one script by itself (the shards' lanes send theirs in pipelines). Redis errors pass through."""
    one = script(name)
    try:
        return await client.execute_command("EVALSHA", one.sha, len(keys), *keys, *args)
    except NoScriptError:
        return await client.execute_command("EVAL", one.text, len(keys), *keys, *args)
