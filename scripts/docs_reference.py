"""The pages of docs/ that are made from the code: http.md, cli.md, metrics.md and configuration.md.

    python scripts/docs_reference.py            # write them
    python scripts/docs_reference.py --check    # status 1 if one is out of date

A test compares them with the code, so that the pages say what the nodes do.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.config import Config  # noqa: E402
from node import cli  # noqa: E402
from node.cli import config_options  # noqa: E402
from node.gateway import openapi  # noqa: E402
from node.gateway.routes import CALLERS, ROUTES, Route  # noqa: E402
from node.observe import gauges  # noqa: E402
from node.observe.metrics import Metrics  # noqa: E402

MADE = "This page is made from the code by `scripts/docs_reference.py`; a test fails when it is out of date.\n"


# ---- HTTP


def http() -> str:
    """The route table and the types of requests, from the OpenAPI description."""
    document = openapi.document()
    schemas: Mapping[str, Any] = document["components"]["schemas"]
    lines = [
        "# HTTP reference\n",
        MADE,
        "Every node answers every call. Bodies and answers are JSON. The same in machine-readable form (OpenAPI 3.1) "
        "is at `GET /openapi.json` on every node.\n",
        "- **Token.** With an `api_token` set, every call needs `Authorization: Bearer TOKEN`, except those marked *no "
        "token* here.",
        '- **Errors** have one form: `{"error": {"code", "message", "hint"}}`. The message says what happened, with '
        "the values; the hint says what to do. `400`, `401` and `403` are possible everywhere.",
        "- **`429` and `503`** carry `Retry-After`. A `503` says in `may_have_happened` whether the call may have been "
        "carried out: send it again with the same `Idempotency-Key`, and it cannot be stored twice.",
        "- **Names end in their unit**: `_s` is seconds, `_ms` milliseconds (instants: since 1970, by Redis's "
        "clock).\n",
        "| call | does |",
        "| --- | --- |",
    ]
    shown = [route for route in ROUTES if route.is_public]
    lines += [f"| [`{route.method} {route.path}`](#{_anchor(route)}) | {_cell(route.summary)} |" for route in shown]
    for route in shown:
        lines += ["", *_call(route, document["paths"][route.path][route.method.lower()], schemas)]
    lines += ["", HTTP_OBJECTS, "## Types\n"]
    for name, schema in schemas.items():
        lines += [f"### {name}\n", *([_text(schema["description"]), ""] if schema.get("description") else [])]
        lines += [*_fields(schema, schemas), ""]
    return "\n".join(lines).rstrip() + "\n"


HTTP_OBJECTS = """\
## Answers of no fixed form

Fields are only ever added to these.

- **`GET /cluster`**: `node_id` and `session` of the node that answers; `members`, each with `url` (for callers),
  `address` (where its peers reach it), `state` (gossip's word alone: `alive`, `leaving`, `suspect`, `dead`, `left`),
  `redis` (the second witness's word: `live`, `stale`, `gone`, `unknown`), `verdict` (both together: `healthy`,
  `cut_from_redis`, `cut_from_peers`, `dead`), the `evidence` against it and the accuser (`by`), `rtt_ms` and `load`;
  `leader` with its `epoch`, or null; `shards`, number to owner; `events`, the timeline.
- **`GET /workers`**: `workers`, each with `node_id`, `session`, `url`, `pid`, `queues` (slots and how many are taken)
  and `tasks`, the ids that it runs.
- **`GET /sums`**: `sums` of the whole cluster, one for each step of `window_s` seconds that is over, oldest first:
  `at_ms` (its end), `accepted` tasks, `outcomes` of attempts by kind, `refused` outcomes, tasks `reaped`, and `wait_ms`
  and `run_ms` (`p50`, `p95`, `p99`, or null when nothing ran). The stream of `/events` continues them in steps of a
  second. Each node adds its counts when a step is over; the counts of a node that is killed before are lost.
- **`GET /health`**: `status` (`ok`, `degraded`, `unavailable`), `ready` and the `reason`, and `problems`, worst first,
  each with `code`, `severity`, `message` and `hint`: [what each means](operating.md#what-each-problem-means).
"""


def _call(route: Route, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {route.method} {route.path}\n"
    yield _text(route.summary) + "." + ("" if route.for_whom == CALLERS else " *No token.*")
    parameters = operation.get("parameters", ())
    if parameters:
        yield "\n| parameter | in | type | what it is |\n| --- | --- | --- | --- |"
        for field in parameters:
            kind = _kind(field["schema"], schemas)
            yield f"| `{field['name']}` | {field['in']} | {kind} | {_cell(field.get('description', ''))} |"
    if (body := operation.get("requestBody")) is not None:
        content = body["content"]["application/json"]
        yield f"\nBody: {_kind(content['schema'], schemas)}, for example `{json.dumps(content['example'])}`."
    answers = []
    for status, answer in operation["responses"].items():
        (content,) = answer.get("content", {"": {}}).items()
        kind, what = content[0], content[1].get("schema", {})
        shown = _kind(what, schemas) if kind == "application/json" else f"`{kind}`"
        if "ErrorJson" not in shown:
            answers.append(f"`{status}` {shown}")
    yield f"\nAnswers: {', '.join(answers)}. Errors: {', '.join(f'`{s}`' for s in _errors(operation)) or 'none'}."


def _errors(operation: Mapping[str, Any]) -> list[str]:
    return [status for status, answer in operation["responses"].items() if "ErrorJson" in json.dumps(answer)]


def _fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    if "properties" not in schema:
        yield f"{_kind(schema, schemas)}"
        return
    required = set(schema.get("required", ()))
    yield "| field | type | default | what it is |\n| --- | --- | --- | --- |"
    for name, field in schema["properties"].items():
        default = f"`{json.dumps(field['default'])}`" if "default" in field else "–"
        default = "*required*" if name in required else default
        yield f"| `{name}` | {_kind(field, schemas)} | {default} | {_cell(field.get('description', ''))} |"


def _kind(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """A schema in a few words, with its bounds."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name in schemas else name
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_kind(member, schemas) for member in schema[union]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"array of {_kind(schema.get('items', {}), schemas)}"
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if kind == "string":
        low, high = schema.get("minLength"), schema.get("maxLength")
    above = "above " if "exclusiveMinimum" in schema else ""
    bounds = f"{above}{_number(low)} to {_number(high)}" if high is not None and low is not None else ""
    bounds = bounds or (f"at most {_number(high)}" if high is not None else "")
    bounds = bounds or (f"{above or 'at least '}{_number(low)}" if low is not None else "")
    what = f"{kind}, {bounds}" + (" characters" if kind == "string" else "") if bounds else str(kind)
    return what + (f", `{schema['pattern']}`" if "pattern" in schema else "")


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else str(value)


def _anchor(route: Route) -> str:
    """As GitHub makes anchors: lower case, hyphens for blanks, only letters, digits, `-` and `_`."""
    return re.sub(r"[^\w\- ]", "", f"{route.method} {route.path}".lower()).replace(" ", "-")


def _text(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


# ---- command line


def command_line() -> str:
    """Every command of `rumor` with its arguments and options; a node's settings are a page of their own."""
    settings = {field.name for field in dataclasses.fields(Config)}
    lines = ["# Command line\n", MADE, _prose(cli.rumor)]
    lines += [
        "Commands that talk to a node do so over HTTP, to `--url` or `RUMOR_URL`, with the token in "
        "`RUMOR_API_TOKEN`. An error is two lines on stderr: what happened, and what to do. Exit status 0: done; 1: "
        "the command failed, or the task that you asked for is dead or cancelled; 2: the command line or the "
        "configuration is wrong, and nothing was done; 3: the task that `--wait-s` waited for still goes on. "
        "`python -m node` is the same as `rumor`. A command that concerns tasks which it does not name (`rumor purge`, "
        "`rumor replay` without ids) asks first; without a terminal it needs `--yes`.\n",
        "| command | does |",
        "| --- | --- |",
    ]
    named = list(_commands(cli.rumor, ""))
    lines += [
        f"| [`rumor {name}`](#rumor-{name.replace(' ', '-')}) | {_cell(_first(command))} |" for name, command in named
    ]
    for name, command in named:
        context = click.Context(command, info_name=f"rumor {name}")
        usage = " ".join([f"rumor {name}", *command.collect_usage_pieces(context)])
        lines += ["", f"## rumor {name}\n", "```text", usage, "```\n", _prose(command)]
        is_node = settings <= {p.name for p in command.params}
        left_out = settings if is_node else set()
        mine = [p for p in command.params if isinstance(p, click.Option) and p.name not in left_out and not p.hidden]
        if mine:
            lines += ["| option | what it is |", "| --- | --- |"]
            for option in mine:
                record = option.get_help_record(context)
                if record is not None:
                    lines.append(f"| `{record[0].replace('|', chr(92) + '|')}` | {_cell(record[1])} |")
        if is_node:
            lines.append("\nAnd every setting of a node: [configuration](configuration.md).")
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: click.Group, before: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _first(command: click.Command) -> str:
    return (command.help or "").replace("\b", "").strip().split("\n")[0]


def _prose(command: click.Command) -> str:
    """The help text; a part that begins with \\b keeps its lines, as click keeps them."""
    parts = []
    for part in (command.help or "").split("\n\n"):
        words = part.strip("\n")
        if words.lstrip().startswith("\b"):
            shown = words.replace("\b", "").strip("\n").rstrip()
            parts.append(f"```text\n{textwrap.dedent(shown).strip(chr(10))}\n```")
        else:
            parts.append(_text(words))
    return "\n\n".join(parts) + "\n"


# ---- metrics


class Nobody:
    """The engine that the gauges would read; here nobody reads them."""

    config = Config()


def metrics() -> str:
    """Every name that /metrics of a node shows, with its kind, its labels and what it counts."""
    registry = Metrics()
    gauges.register(registry, Nobody(), {})  # type: ignore[arg-type]
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels) or '–'} | {_cell(help)} |"
        for name, kind, labels, help in registry.described()
    ]
    return "\n".join([METRICS_HEAD.format(made=MADE, queues=gauges.QUEUES_MAX), *rows, METRICS_TAIL])


METRICS_HEAD = """\
# Metrics

{made}
Every node serves `GET /metrics` in Prometheus's text format. If an API token is set, give it to the scraper:

```yaml
scrape_configs:
  - job_name: rumor
    authorization: {{credentials_file: /etc/prometheus/rumor.token}}
    static_configs: [{{targets: ["10.0.0.11:5000", "10.0.0.12:5000"]}}]
```

[`deploy/prometheus/`](../deploy/prometheus/prometheus.yml) has a configuration and alerts,
[`deploy/grafana/`](../deploy/grafana/dashboard.json) a dashboard; a test asks a live node for every name in them.

Most metrics describe one node: add them up over all nodes (`sum`). What describes the whole cluster (`rumor_tasks`,
`rumor_queued_tasks`, …) the leader tells alone, so that `sum` and `max` say the same; while the lead changes hands,
two nodes may tell it for one scrape, and `max` is right then too. A `curl` by hand has to ask all nodes, or the one
whose `rumor_is_leader` is 1. `rumor_members`, `rumor_problems` and `rumor_leader_epoch` are each node's own view: take
their `max`.

The values of labels are bounded: no label ever holds a task, a session or a key. The label `type` holds task types up
to a number, and `other` beyond. The label `queue` of the cluster's numbers holds the queues that live nodes serve, and
those in which something is queued: a name that was used once goes with its last task, and beyond {queues} names the
rest is `other`.

| name | kind | labels | what it is |
| --- | --- | --- | --- |"""

METRICS_TAIL = """
A histogram has the usual `_bucket`, `_sum` and `_count`. In addition a node serves the usual `process_…` metrics of its
own process, without its children.

Questions, and the queries that answer them:

| question | query |
| --- | --- |
| How long does the oldest task wait? | `max by (queue) (rumor_oldest_queued_seconds)`: also when nothing starts |
| How long did others wait? | `histogram_quantile(0.95, sum by (le) (rate(rumor_task_wait_seconds_bucket[5m])))` |
| Which queue lacks slots? | `sum by (queue) (rumor_slots_taken) / sum by (queue) (rumor_slots)` |
| How much is there to do? | `max(rumor_tasks{state="queued"}) + max(rumor_tasks{state="running"})` |
| Which type fails? | `sum by (type) (rate(rumor_task_commits_by_type_total{outcome="dead"}[5m]))` |
| Who died, and of what? | `sum by (cause) (increase(rumor_fences_total[1h]))` |
| How soon did its tasks run again? | `histogram_quantile(0.9, sum by (le) (rate(rumor_recovery_seconds_bucket[1h])))` |
| Was work done twice? | `sum by (reason) (increase(rumor_task_refused_total[1h]))`: run twice, committed once |
| Is Redis the bottleneck? | `histogram_quantile(0.99, sum by (le) (rate(rumor_redis_call_seconds_bucket[5m])))` |
| Does a handler block its node? | `rate(rumor_loop_lag_seconds_sum[5m]) / rate(rumor_loop_lag_seconds_count[5m])` |
"""


# ---- all of them

PAGES: dict[str, Callable[[], str]] = {
    "http.md": http,
    "cli.md": command_line,
    "metrics.md": metrics,
    "configuration.md": config_options.markdown,
}


def stale() -> list[str]:
    """The pages that do not say what the code says."""
    folder = ROOT / "docs"
    return [
        name
        for name, make in PAGES.items()
        if not (folder / name).exists() or (folder / name).read_text("utf-8") != make()
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        old = stale()
        if old:
            print(f"out of date: {', '.join(old)}. Run scripts/docs_reference.py", file=sys.stderr)
        return 1 if old else 0
    for name in stale():
        (ROOT / "docs" / name).write_text(PAGES[name](), "utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
