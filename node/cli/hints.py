"""Errors as the command line tells them: a node's own hints are for those who speak HTTP to it."""

from __future__ import annotations

from cluster.errors import RumorError

HINTS = {  # code -> what to do at a command line
    "unauthorized": "Set RUMOR_API_TOKEN to the cluster's token.",
    "not_found": "`rumor tasks` lists what there is.",
    "store_unavailable": "Try again soon, or give several nodes in --url; the same --idempotency-key is the same task.",
}
REFUSAL = "Redis refuses"  # then the hint is about Redis, whoever reads it


def told(error: RumorError) -> str:
    """What happened, and what to do, in a line each."""
    hint = error.hint if error.message.startswith(REFUSAL) else HINTS.get(error.code, error.hint)
    return f"{error.code}: {error.message}" + (f"\n  {hint}" if hint else "")
