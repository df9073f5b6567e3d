"""The Lua scripts as files: their text, their hash, and the one way to call them.

Redis knows no libraries of ours, so each file of `lua/include` that a script's header names is put before the script.
A call that Redis answers with NOSCRIPT is repeated as EVAL, which also loads the script for the next call.

Does not know: keys, what a script answers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, RedisError, ResponseError

USES = re.compile(r"^-- Uses +include/(\w+\.lua)$", re.M)
NOT_AFTER = "not_after.lua"  # a script that uses this file takes the last moment for it before its arguments
Arg = str | bytes | int | float
# Exceptions that a call to Redis raises if no answer comes. uvloop raises RuntimeError for a write to a connection
# that was reset while it was idle.
UNANSWERED = (RedisError, OSError, TimeoutError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Script:
    """One file of `cluster/lua`, with what it includes."""

    name: str
    text: str
    sha: str
    is_dated: bool  # whether it refuses to be carried out late: its first argument says until when


@cache
def script(name: str) -> Script:
    """The script of this name. Raises FileNotFoundError if there is no such file."""
    folder = resources.files("cluster").joinpath("lua")
    text = folder.joinpath(f"{name}.lua").read_text("utf-8")
    uses = USES.findall(text)
    text = "".join(folder.joinpath("include", file).read_text("utf-8") for file in uses) + text
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest(), NOT_AFTER in uses)


def is_answer(error: BaseException) -> bool:
    """Whether Redis itself answered this error. redis-py takes some refusals for errors of the connection."""
    kinds = (ResponseError, AuthenticationError, BusyLoadingError)
    return isinstance(error, kinds) or getattr(error, "status_code", None) is not None


async def call(client: Any, name: str, keys: Sequence[str], args: Sequence[Arg]) -> Any:
    """Run one script by itself (the shards' lanes send theirs in pipelines). Errors of Redis pass through."""
    lua = script(name)
    try:
        return await client.execute_command("EVALSHA", lua.sha, len(keys), *keys, *args)
    except NoScriptError:
        return await client.execute_command("EVAL", lua.text, len(keys), *keys, *args)
