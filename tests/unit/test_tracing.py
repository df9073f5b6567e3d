"""Whether a node makes spans at all, and that it costs nothing where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from cluster.shards.task import Backoff, Claimed, Spec
from node.observe import tracing

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("environ", "is_on"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_an_endpoint_switches_it_on(environ: Mapping[str, str], is_on: bool) -> None:
    code = "import os; from node.observe import tracing; print(tracing.start('n1').is_on)"
    assert run(code, environ) == str(is_on)


def test_another_protocol_is_refused_in_words() -> None:
    with capture_logs() as lines:
        started = tracing.start("n1", {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert started is tracing.OFF
    assert "grpc" in lines[0]["reason"]
    assert "http/protobuf" in lines[0]["hint"]


def test_an_environment_that_cannot_be_read_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        started = tracing.start("n1")
    assert started is tracing.OFF
    assert "max_export_batch_size" in lines[0]["reason"]


def test_what_is_off_imports_nothing() -> None:
    """redis-py imports OpenTelemetry's metrics by itself where they are installed; nothing of ours does."""
    code = (
        "import sys\nfrom node import cli, main\nfrom node.gateway import app\n"
        "from node.observe import tracing\nfrom node.work import child\ntracing.start('n1')\n"
        "heavy = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    assert run(code, {}) == "[]"


def test_a_node_runs_where_the_package_is_not_installed() -> None:
    code = (
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from node import cli, main\nfrom node.gateway import app\n"
        "from node.observe import tracing\nfrom node.work import child\n"
        "print(tracing.start('n1').is_on)"
    )
    assert run(code, {}) == "False"


def test_the_handlers_own_provider_is_used() -> None:
    code = (
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from node.observe import tracing\n"
        "print(tracing.start('n1').is_on)\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "print(tracing.start('n1').is_on)"
    )
    assert run(code, {}).split() == ["False", "True"]
    assert run(code, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).split() == ["False", "True"], "its exporter is its own"


@pytest.mark.parametrize("broken", ["on_start", "on_end"])
def test_a_broken_processor_costs_spans_and_no_task(broken: str) -> None:
    code = f"""
import asyncio, contextvars
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from cluster.shards.task import Backoff, Claimed, Kind, Lost, Outcome, Spec
from node.observe import tracing

class Broken(SpanProcessor):
    def {broken}(self, *_):
        raise ZeroDivisionError

provider = TracerProvider()
provider.add_span_processor(Broken())
trace.set_tracer_provider(provider)
spans = tracing.start("n1")
spec = Spec("t", "default", 5, 5, 60.0, Backoff(1.0, 2.0, 300.0), trace="00-{"a" * 32}-{"b" * 16}-01")
claimed = Claimed("01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f", 31, 1, 1, spec, b"null")
span = spans.begin(claimed, contextvars.copy_context())
if span is not None:
    spans.end(span, Outcome(claimed, Kind.SUCCEEDED), "")
spans.waited(claimed, 1.0)
spans.recovered("n1/1-1", [Lost(claimed, 1.0, "queued")], 0.1)

async def store(items, keys, context, started_s):
    return ["stored"]

print(asyncio.run(spans.sending(store)([], None, None, 0.0)))
"""
    assert run(code, {}) == "['stored']"


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_one_in_four_is_one_in_four(sampler: str) -> None:
    code = """
import asyncio
from node.observe import tracing
from node.schema import Submission

spans = tracing.start("n1")
contexts = []

async def store(items, keys, context, started_s):
    contexts.append(context)
    return []

async def main():
    for _ in range(2000):
        await spans.sending(store)([Submission(type="t")], None, None, 0.0)

asyncio.run(main())
sampled = [context for context in contexts if context]
assert all(int(context[19:35], 16) < 1 << 62 for context in sampled)
assert len({context[3:35] for context in sampled}) == len(sampled)
print(400 < len(sampled) < 600)
"""
    assert run(code, {**ENDPOINT, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.25"}) == "True"


def test_an_attempts_span_has_the_same_id_wherever_it_is_asked_for() -> None:
    from node.observe.otel import _attempt_context, attempt_id

    spec = Spec("t", "default", 5, 5, 60.0, Backoff(1.0, 2.0, 300.0), trace=f"00-{'a' * 32}-{'b' * 16}-01 k=v")
    claimed = Claimed("01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f", 31, 2, 1, spec, b"null")
    context = _attempt_context(claimed, spec.trace or "")
    assert context.span_id == attempt_id(claimed.id, 2) != attempt_id(claimed.id, 1)
    assert (context.trace_flags, context.trace_state.get("k")) == (1, "v")


@pytest.mark.parametrize("line", ["", "x", "00-zz-1-01", "00-1-2", "a-b-c-d-e", f"00-{'0' * 32}-{'0' * 16}-01"])
def test_a_context_that_cannot_be_read_is_none(line: str) -> None:
    from node.observe.otel import _span_context

    assert not _span_context(line).is_valid


def run(code: str, environ: Mapping[str, str]) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environ}, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
