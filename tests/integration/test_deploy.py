"""What stands in deploy/ is valid, says only what the nodes know, and a real Prometheus takes it.

promtool, prometheus, systemd-analyze and kubernetes-validate are asked where they are there; elsewhere these tests are
skipped. That alerts and dashboard name existing metrics is always tested.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError

from cluster.config import Config
from cluster.redis_client import connect
from node.queue import redis_checks
from tests.integration.conftest import find_binary, free_port
from tests.processes import ROOT, LaunchedCluster, free_base_port
from tests.waiting import wait_until

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
NO_KUBERNETES_KIND = ("kustomization.yaml", "keda.yaml")  # schemas of their own
METRIC = re.compile(r"\b(?:rumor|process)_[a-z_]+\b|\bup\b")
SELECTOR = re.compile(r"\b((?:rumor|process)_[a-z_]+|up)\{([^}]*)\}")
SCRAPED = ("job", "instance")  # labels that Prometheus adds

Make = Callable[..., LaunchedCluster]


def run(*words: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tool(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"there is no {name}")


def alert_expressions() -> list[str]:
    """Each `expr` of alerts.yml; a block (`|`) runs to the next field."""
    found = re.findall(r"^ +expr: (?:\|\n((?: {12}.*\n| {10}.*\n)+)|(.*)\n)", ALERTS.read_text("utf-8"), re.MULTILINE)
    expressions = [" ".join((block or line).split()) for block, line in found]
    assert len(expressions) == ALERTS.read_text("utf-8").count("- alert:")
    return expressions


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text("utf-8"))


def dashboard_expressions() -> list[str]:
    """Every query, with the variables filled in as Grafana would."""
    board = dashboard()
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    queries += [one["expr"] for one in board["annotations"]["list"]]
    queries += [query for one in board["templating"]["list"] if (query := _label_values(one))]
    values = {"$job": "rumor", "$instance": ".*", "$__rate_interval": "10s", "$__interval": "10s"}
    for name, value in values.items():
        queries = [query.replace(name, value) for query in queries]
    assert not [query for query in queries if "$" in query]
    return queries


def _label_values(variable: Any) -> str | None:
    match = re.match(r"label_values\((.*), \w+\)", variable["query"]["query"]) if variable["type"] == "query" else None
    return match[1] if match else None


# ---- Prometheus and Grafana


def test_the_alerts_and_the_configuration_are_valid() -> None:
    promtool = tool("promtool")
    run(promtool, "check", "rules", str(ALERTS))
    run(promtool, "check", "config", str(ALERTS.parent / "prometheus.yml"))


def test_the_alerts_speak_when_they_should_and_only_then() -> None:
    run(tool("promtool"), "test", "rules", str(ALERTS.parent / "alerts_test.yml"))


def test_the_dashboard_is_whole() -> None:
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"], panel["title"]


def test_alerts_and_dashboard_query_what_a_node_tells(cluster: Make) -> None:
    one = cluster(nodes=2)
    remote = one.remote(1)
    _, task = remote.call("POST", "/tasks", {"type": "noop"})
    remote.call("GET", f"/tasks/{task['id']}", query={"wait_s": 5})

    def labels() -> dict[str, set[str]]:
        """Of every sample that any node tells. (The outcome's counter may follow its commit.)"""
        found: dict[str, set[str]] = {"up": set()}
        for number in (1, 2):
            _, text = one.remote(number).request("GET", "/metrics")
            for family in text_string_to_metric_families(text.decode()):
                # A counter without samples yet is still a metric of that name.
                found.setdefault(f"{family.name}_total" if family.type == "counter" else family.name, set())
                for sample in family.samples:
                    found.setdefault(sample.name, set()).update(sample.labels)
        return found

    wait_until(lambda: "outcome" in labels()["rumor_task_commits_by_type_total"], 5, "the commit is counted")
    told = labels()
    # Not counted on a quiet cluster, so these labels are only documented.
    described = {
        **{"rumor_problems": {"code", "severity"}, "rumor_submissions_rejected_total": {"reason"}},
        "rumor_unhandled_tasks": {"queue", "type"},
    }
    for expression in (*alert_expressions(), *dashboard_expressions()):
        for name in METRIC.findall(expression):
            assert name in told, f"{name} in: {expression}"
        for name, selector in SELECTOR.findall(expression):
            asked = set(re.findall(r"(\w+)\s*[=!]", selector))
            assert asked <= told[name] | described.get(name, set()) | set(SCRAPED), f"{name} in: {expression}"


def test_what_describes_the_cluster_is_told_once_and_a_wait_is_seen_while_nothing_starts(cluster: Make) -> None:
    one = cluster(nodes=3)
    bodies: list[dict[str, Any]] = [{"type": "noop", "queue": "nobodys"}] * 3
    bodies += [{"type": "fail", "max_attempts": 9, "backoff": {"base_s": 9000, "max_s": 9000}}] * 2
    bodies += [{"type": "noop", "delay_s": 9000}] * 4 + [{"type": "sleep", "data": 60}] * 5
    one.remote(2).call("POST", "/tasks/batch", bodies)

    def summed(name: str) -> dict[str, float]:
        """A metric added up over all nodes, by the values of its labels, as `sum by (…)` does."""
        sums: dict[str, float] = {}
        for number in (1, 2, 3):
            _, text = one.remote(number).request("GET", "/metrics")
            for family in text_string_to_metric_families(text.decode()):
                for sample in family.samples:
                    if sample.name == name:
                        label = ",".join(sample.labels[label] for label in sorted(sample.labels))
                        sums[label] = sums.get(label, 0.0) + sample.value
        return sums

    def states() -> dict[str, float]:
        return {state: n for state, n in summed("rumor_tasks").items() if n}

    expected = {"queued": 3, "retrying": 2, "scheduled": 4, "running": 5}
    wait_until(lambda: states() == expected, 10, "each task is counted once, in its state")
    assert summed("rumor_queued_tasks") == {"default": 0, "sync": 0, "nobodys": 3}
    wait_until(lambda: summed("rumor_oldest_queued_seconds")["nobodys"] > 2, 10, "the wait grows")
    assert summed("rumor_oldest_queued_seconds")["default"] == 0
    assert summed("rumor_slots_taken") == {"default": 5, "sync": 0}
    assert summed("rumor_task_commits_by_type_total")["dead,fail"] == 0


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Callable[..., Any]]:
    """A Prometheus with deploy/'s configuration, for these targets; yields a caller of its API."""
    binary = tool("prometheus")
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    rows = "".join(f"          - {target}\n" for target in targets)
    text = re.sub(r"(      - targets:\n)(?:          - .*\n)+", lambda match: match[1] + rows, text)
    text = re.sub(r"(scrape|evaluation)_interval: 5s", r"\1_interval: 500ms", text)
    (folder / "prometheus.yml").write_text(text, "utf-8")
    shutil.copy(ALERTS, folder / "alerts.yml")
    port = free_base_port(1)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
        )

    def ask(path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it starts
                return None
            with error:
                raise AssertionError(f"{query}: {error.read().decode()}") from None
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            return None

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def test_a_real_prometheus_scrapes_a_cluster_and_tells_of_a_death(cluster: Make, tmp_path: Path) -> None:
    tool("prometheus")
    one = cluster(nodes=3, drain_s=1)
    targets = [one.url(number).removeprefix("http://") for number in (1, 2, 3)]
    with prometheus(tmp_path, targets) as ask:

        def value(query: str) -> float | None:
            found = (ask("query", query=query) or {"result": []})["result"]
            return float(found[0]["value"][1]) if found else None

        wait_until(lambda: value('sum(up{job="rumor"})') == 3, 20, "all nodes are scraped")
        bodies = [{"type": "sleep", "data": {"seconds": 20}, "max_attempts": 2} for _ in range(30)]
        one.remote(1).call("POST", "/tasks/batch", bodies)
        wait_until(lambda: value('max(rumor_tasks{state="running"})') == 30, 10, "30 tasks run")
        # While a node's word is fresh: a death 5 minutes from now would find its samples stale.
        for expression in (*alert_expressions(), *dashboard_expressions()):
            ask("query", query=expression)  # raises when Prometheus does not understand it
        one.kill(3)
        wait_until(lambda: (value("sum(rumor_fences_total)") or 0) >= 1, 10, "the fence is counted")
        wait_until(lambda: (value("sum(rumor_tasks_reaped_total)") or 0) >= 1, 10, "its tasks were queued again")
        wait_until(lambda: (value("sum(rumor_recovery_seconds_count)") or 0) >= 1, 10, "the recovery was timed")
        mean_s = value("sum(rumor_recovery_seconds_sum) / sum(rumor_recovery_seconds_count)")
        assert mean_s is not None
        assert 0 < mean_s < 5
        wait_until(
            lambda: (
                {(alert["labels"]["alertname"], alert["labels"].get("instance")) for alert in ask("alerts")["alerts"]}
                >= {("RumorNodeDown", targets[2])}
            ),
            10,
            "the alert is pending",
        )


# ---- Kubernetes


def manifests() -> list[tuple[str, Any]]:
    """Every document, with its file's name."""
    yaml = pytest.importorskip("yaml")
    found = []
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        found += [(path.name, document) for document in yaml.safe_load_all(path.read_text("utf-8"))]
    return found


def stateful_set() -> Any:
    return next(document for _, document in manifests() if document["kind"] == "StatefulSet")


def test_the_manifests_fit_the_schemas_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kinds = []
    for name, document in manifests():
        if name not in NO_KUBERNETES_KIND:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
            kinds.append(document["kind"])
    assert {"StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"} <= set(kinds)


def test_kustomize_puts_all_of_it_together() -> None:
    yaml = pytest.importorskip("yaml")
    kubectl = tool("kubectl")
    made = list(yaml.safe_load_all(run(kubectl, "kustomize", str(DEPLOY / "kubernetes"))))
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text("utf-8"))
    written = [document for name, document in manifests() if name in listed["resources"]]
    assert sorted((one["kind"], one["metadata"]["name"]) for one in made) == sorted(
        (one["kind"], one["metadata"]["name"]) for one in written
    )
    pod = next(one for one in made if one["kind"] == "StatefulSet")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].startswith("registry.example.com/rumor:")


def test_a_pod_may_take_as_long_to_end_as_its_node_does() -> None:
    pod = stateful_set()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    told = {one["name"]: one.get("value") for one in container["env"]}
    before_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before_s + float(told["RUMOR_DRAIN_S"])
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > Config().stall_limit_s
    assert probe["httpGet"]["path"] == "/livez"


def test_no_node_is_process_1_of_its_container() -> None:
    """As process 1 a node would keep, dead, whatever an async handler's programs or a probe leave behind."""
    node = (ROOT / "docker-compose.yml").read_text("utf-8").split("\nx-node:")[1].split("\nx-redis:")[0]
    assert re.search(r"^  init: true\b", node, re.MULTILINE)
    stateful = (DEPLOY / "kubernetes" / "statefulset.yaml").read_text("utf-8")
    assert re.search(r"^      shareProcessNamespace: true\b", stateful, re.MULTILINE)
    operating = (ROOT / "docs" / "operating.md").read_text("utf-8")
    commands = re.findall(r"^\$ docker run .* rumor$", operating, re.MULTILINE)
    assert commands
    assert all(" --init " in command for command in commands)


def test_a_pods_variables_make_a_configuration() -> None:
    from cluster.config import from_env

    (container,) = stateful_set()["spec"]["template"]["spec"]["containers"]
    given = {"RUMOR_NODE_ID": "rumor-0", "RUMOR_ADVERTISE_HOST": "10.1.2.3"}
    environ = {one["name"]: one.get("value") or given.get(one["name"], "redis://x") for one in container["env"]}
    config = from_env(environ)
    assert (config.name, config.reachable_host, config.seeds) == ("rumor-0", "10.1.2.3", ("rumor-nodes:5000",))


def test_every_object_is_selected_by_the_same_label() -> None:
    label = {"app.kubernetes.io/name": "rumor"}
    for _, document in manifests():
        spec = document.get("spec", {})
        match document["kind"]:
            case "Service":
                assert spec["selector"] == label
            case "StatefulSet":
                assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == label
            case "PodDisruptionBudget":
                assert spec["selector"]["matchLabels"] == label
            case "NetworkPolicy":
                assert spec["podSelector"]["matchLabels"] == label


# ---- Redis


async def test_a_redis_with_the_given_configuration_has_nothing_to_mend_but_a_replica(tmp_path: Path) -> None:
    port = free_port()
    command = [find_binary(), str(DEPLOY / "redis" / "redis.conf"), "--port", str(port), "--dir", str(tmp_path)]
    client = connect(f"redis://127.0.0.1:{port}/0")
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(10):
            while (notes := await examined(client)) is None:
                await asyncio.sleep(0.05)
        assert [note["code"] for note in notes] == ["redis_no_replica"]
    finally:
        process.kill()
        await process.wait()
        await client.aclose()


async def examined(client: redis.asyncio.Redis) -> list[redis_checks.Note] | None:
    try:
        return await redis_checks.examine(client, Config())
    except RedisError:
        return None


# ---- systemd


def test_the_unit_is_valid(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    text = (DEPLOY / "systemd" / "rumor@.service").read_text("utf-8")
    unit = tmp_path / "rumor@5000.service"
    # There is no /opt/rumor here; and what verify finds in the machine's other units is not ours.
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE), "utf-8")
    said = run(analyze, "verify", "--man=no", str(unit))
    assert "rumor@" not in said, said


def test_the_example_of_its_settings_is_a_configuration() -> None:
    from cluster.config import from_env

    text = (DEPLOY / "systemd" / "rumor.env.example").read_text("utf-8")
    environ = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    environ["RUMOR_API_TOKEN"] = "a token"
    assert from_env(environ).name == "10.0.0.11:5000"
