"""Errors as the command line prints them: a node's own hints are for callers who speak HTTP to it."""

from __future__ import annotations

from cluster.errors import RumorError
from node.client.errors import BY_CODE, Unreachable
from node.escapes import lines, one_line

HINTS = {  # code -> what to do at a command line
    "unauthorized": "Set RUMOR_API_TOKEN to the cluster's token.",
    "not_found": "`rumor tasks` lists the tasks there are.",
    "store_unavailable": "Try again soon, or give several nodes in --url; "
    "the same --idempotency-key means the same task.",
}
# The beginning of the message when Redis refuses. The node's hint is about Redis then and suits every reader. Over HTTP
# an error carries its code and no kind, so that the message alone tells a refusal from a Redis that is away.
REFUSAL = "Redis refuses"
NO_CALL = "there is no /"  # the beginning of the message when the path of the URL is wrong
OF_NODES = {RumorError, Unreachable, *BY_CODE.values()}  # classes of errors whose words come from a node


def in_lines(error: RumorError) -> str:
    """A line for what happened, and one for what to do."""
    hint = error.hint if error.message.startswith(REFUSAL) else HINTS.get(error.code, error.hint)
    if error.message.startswith(NO_CALL):
        hint = "A node has no such path: the URL ends with the port, or where a proxy serves the node."
    if error.idempotency_key:
        hint = f"Try again under --idempotency-key {error.idempotency_key}: what is stored is not stored twice."
    text = one_line if type(error) in OF_NODES else lines  # an error of our own may have several lines
    return text(f"{error.code}: {error.message}") + (f"\n  {text(hint)}" if hint else "")
