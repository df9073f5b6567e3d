"""Cuts in a running cluster, and a look at what its nodes make of them. `rumor partition` and its script.

Acts on a cluster that was started with `launch --netns`, or on the services of docker-compose.yml. Either way a node is
met inside its own network: there its firewall gets one chain of ours, RUMOR, and nothing else is touched. What is in
force is read from the firewalls each time (see `cuts`), so a node that came back without its rules gets them again with
the next command.

Does not know: how nodes find out that they are cut off. It asks `/cluster`, as any user could.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cluster.errors import ConfigError, RumorError
from node.lab import beliefs_table, cuts, network
from node.lab import record as records
from node.lab.cluster import NETNS_REDIS, indent, partition_program
from node.lab.cuts import CHAIN, REDIS, Cut, Found
from node.lab.record import LAUNCHER, ROOT, Record
from node.plural import counted

T = TypeVar("T")

ASK_LIMIT_S = 1.0
COMMAND_LIMIT_S = 20.0
EVERY_S = 0.5
PROJECT, FOLDER, SERVICE = (f"com.docker.compose.{name}" for name in ("project", "project.working_dir", "service"))

# INPUT and OUTPUT lead into the chain; it is filled from standard input, in one step.
APPLY = f"""\
set -e
iptables-restore -w --noflush
for way in INPUT OUTPUT; do
  iptables -w -C $way -j {CHAIN} 2>/dev/null || iptables -w -I $way -j {CHAIN}
done
"""
HEAL = f"""\
for way in INPUT OUTPUT; do
  while iptables -w -D $way -j {CHAIN} 2>/dev/null; do :; done
done
iptables -w -F {CHAIN} 2>/dev/null || exit 0
iptables -w -X {CHAIN}
"""
LOOK = "iptables-save -c -t filter"

WIDTH = max(len(f"{verb} {words}") for verb, (words, _) in cuts.USAGE.items()) + 2
USAGE = "\n".join(
    [
        *(f"{f'{verb} {words}':<{WIDTH}}{text}" for verb, (words, text) in cuts.USAGE.items()),
        f"{'heal [CUT]':<{WIDTH}}take all cuts away again (or the one named)",
        f"{'status':<{WIDTH}}what is in force, and how many packets it took",
        f"{'watch':<{WIDTH}}what each node believes of each other, live (--once: print it and end)",
        "",
        "Cuts add up. Nodes are numbers from 1; where one is named, so can be several: no-redis 1,2",
    ]
)


class NoSite(ConfigError):
    """There is no cluster that can be cut. Nothing was changed."""

    code = "no_site"


class CutFailed(RumorError):
    """A firewall could not be changed; those of other nodes may have been. `heal` takes away what was."""

    code = "cut_failed"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is met: its addresses, and the words that run a command beside it."""

    number: int
    node_id: str
    address: str
    url: str
    token: str
    inside: tuple[str, ...]
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """A running cluster, seen from outside."""

    title: str
    places: tuple[Place, ...]
    redis: str

    @property
    def addresses(self) -> dict[int, str]:
        return {place.number: place.address for place in self.places} | {REDIS: self.redis}

    @property
    def numbers(self) -> list[int]:
        return [place.number for place in self.places]

    def each(self, do: Callable[[Place], T]) -> dict[int, T]:
        """At all nodes at once: a cut that creeps from node to node is another experiment."""
        with ThreadPoolExecutor(max(1, len(self.places))) as pool:
            # Not by pool.map: it cancels what has not begun when one of them fails, and `heal` must reach all others.
            futures = [pool.submit(do, place) for place in self.places]
            return {number: future.result() for number, future in zip(self.numbers, futures, strict=True)}


def partition(
    words: Sequence[str], *, kind: str = "", data_dir: str | None = None, once: bool = False, every_s: float = EVERY_S
) -> int:
    """Carry out one command line. Returns the exit status; raises RumorError. `kind`: netns, compose, or whichever."""
    if not words:
        raise cuts.BadCut("Say what to do.", f"What there is:\n{indent(USAGE)}")
    word, rest = words[0], words[1:]
    if word not in (*cuts.USAGE, "heal", "status", "watch"):
        raise cuts.BadCut(f"{word!r} is no cut and no command.", f"What there is:\n{indent(USAGE)}")
    if rest and word in ("status", "watch"):
        raise cuts.BadCut(f"{rest[0]!r} after {word!r} means nothing.", f"For example: {partition_program()} {word}")
    site = find(kind, records.folder_of(data_dir))
    if word == "watch":
        return watch(site, once, every_s)
    if word == "status":
        found = site.each(look)
        print(status(site, found, known(found)))
        return 0
    with alone():
        left: list[Cut] = []
        if word != "heal":
            left = cuts.merge(known(site.each(look)), cuts.parse(words, site.numbers))
        elif rest:
            left = without(known(site.each(look)), rest, site)
        site.each(lambda place: put(place, left, site))  # `heal` does so unseen: one that cannot be met stops no other
    print(f"in force: {listed(left)}", flush=True)
    return 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One change at a time: of two at once, either would add its cut to what was in force before the other's."""
    place = os.open(ROOT, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def without(in_force: Sequence[Cut], named: Sequence[str], site: Site) -> list[Cut]:
    """What stays in force when the named cut is healed. Raises BadCut if it is not there."""
    # `loss 3` is as good a name as `loss 3 30%`.
    words = [*named, "1%"] if named[0] == "loss" and len(named) == 2 else list(named)
    healed = {(cut.verb, cut.groups) for cut in cuts.parse(words, site.numbers)}
    left = [cut for cut in in_force if (cut.verb, cut.groups) not in healed]
    if len(left) == len(in_force):
        raise cuts.BadCut(f"{' '.join(named)!r} is not in force.", f"In force: {listed(in_force)}.")
    return left


# Finding the cluster


def find(kind: str, folder: Path) -> Site:
    """The cluster to act on: launched with --netns in this folder, else compose's. Raises NoSite."""
    reason = ""
    if kind != "compose":
        record = records.load(folder)
        if record is not None and record.is_running:
            if record.network is not None:
                network.refuse_if_unable()
                return site_of_record(record, record.network)
            reason = f"The nodes of the cluster in {folder} share this machine's network, where nothing can be cut."
        else:
            reason = f"No cluster runs in {folder}."
    if kind != "netns":
        try:
            site = site_of_compose()
        except NoSite as error:  # the client is there, and no engine answers it
            site, reason = None, f"{reason} {error.message}".strip()
        if site is not None:
            return site
        reason = f"{reason} No services of docker-compose.yml run.".strip()
    raise NoSite(reason, f"Start one with `{launcher()} 5 --netns` (as root), or with `docker compose up`.")


def site_of_record(record: Record, net: network.Network) -> Site:
    """The nodes of a launched cluster, running or not: a namespace stays when its node ends."""
    token, ca_file = record.told.get("api_token", ""), record.told.get("tls_cert", "")
    places = [
        Place(n.number, n.node_id, net.address(n.number), n.url, token, net.inside(n.number), ca_file)
        for n in record.nodes
    ]
    return Site(f"network namespaces, {net.prefix}.0/24", tuple(places), net.address(NETNS_REDIS))


def site_of_compose() -> Site | None:
    """The running containers of docker-compose.yml; None where there are none, or no Docker. Raises NoSite for two."""
    if shutil.which("docker") is None:
        return None
    ids = docker("ps", "--quiet", "--no-trunc", "--filter", f"label={SERVICE}").split()
    if not ids:
        return None
    wanted = os.environ.get("COMPOSE_PROJECT_NAME", "")
    projects: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(docker("inspect", *ids)):
        labels = one["Config"]["Labels"]
        is_ours = labels[PROJECT] == wanted if wanted else Path(labels.get(FOLDER, "/")).resolve() == ROOT
        if is_ours:
            projects.setdefault(labels[PROJECT], []).append(one)
    if not projects:
        return None
    if len(projects) > 1:
        raise NoSite(f"Several projects run: {', '.join(sorted(projects))}.", "Name one by COMPOSE_PROJECT_NAME.")
    [(project, containers)] = projects.items()
    by_service = {one["Config"]["Labels"][SERVICE]: one for one in containers}
    places = sorted(
        (
            place_of(int(name.removeprefix("node")), one)
            for name, one in by_service.items()
            if name.startswith("node") and name.removeprefix("node").isdigit()
        ),
        key=lambda place: place.number,
    )
    redis = by_service.get(redis_host(containers))
    if not places or redis is None:
        raise NoSite(f"Of the project {project}, not even Redis and one node run.", "See `docker compose ps`.")
    return Site(f"docker compose, project {project}", tuple(places), address_of(redis))


def redis_host(containers: Sequence[Mapping[str, Any]]) -> str:
    """The service that the nodes' Redis URL names."""
    urls = (environ_of(one).get("RUMOR_REDIS_URL") for one in containers)
    return next((urlsplit(url).hostname or "" for url in urls if url), "redis")


def environ_of(container: Mapping[str, Any]) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in container["Config"]["Env"])


def place_of(number: int, container: Mapping[str, Any]) -> Place:
    """A node's container as Docker describes it."""
    environ = environ_of(container)
    port = environ.get("RUMOR_PORT", "5000")
    published = (container["NetworkSettings"]["Ports"].get(f"{port}/tcp") or [None])[0]
    address = address_of(container)
    url = f"http://{published['HostIp']}:{published['HostPort']}" if published else f"http://{address}:{port}"
    inside = ("docker", "exec", "--interactive", "--user", "0", container["Id"])
    return Place(number, environ.get("RUMOR_NODE_ID", ""), address, url, environ.get("RUMOR_API_TOKEN", ""), inside)


def address_of(container: Mapping[str, Any]) -> str:
    return str(next(iter(container["NetworkSettings"]["Networks"].values()))["IPAddress"])


def docker(*words: str) -> str:
    """Docker's answer. Raises NoSite with its own words."""
    done = subprocess.run(
        ["docker", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_LIMIT_S,
    )
    if done.returncode != 0:
        raise NoSite(f"`docker {words[0]}` failed: {done.stderr.strip()}", "Does the engine run, and may you use it?")
    return done.stdout


# Firewalls


def put(place: Place, chosen: Sequence[Cut], site: Site) -> None:
    """Make this node's rules those of exactly these cuts."""
    if not chosen:
        run(place, HEAL)
    else:
        run(place, APPLY, cuts.restore_text(cuts.rules(chosen, site.addresses, place.number)))


def look(place: Place) -> Found | None:
    return cuts.read(run(place, LOOK))


def known(found: Mapping[int, Found | None]) -> list[Cut]:
    """The cuts whose rules stand in any firewall."""
    texts = sorted({text for one in found.values() if one for text in one.rules})
    parsed: list[Cut] = []
    for text in texts:
        # A node that was cut may have ended since; its cut stands, and can still be healed.
        words = text.split()
        numbers = {int(part) for word in words[1:] for part in word.split(",") if part.isdigit()}
        with contextlib.suppress(cuts.BadCut):  # rules that somebody else put there go with the next change
            parsed += cuts.parse(words, numbers)
    return parsed


def run(place: Place, script: str, text: str = "") -> str:
    """Run a shell script beside a node, and return what it printed. Raises CutFailed with its own words."""
    try:
        done = subprocess.run(
            [*place.inside, "sh", "-c", script],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise CutFailed(f"node {place.number}: no answer within {COMMAND_LIMIT_S:.0f} s.", "Is it paused?") from None
    if done.returncode != 0:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        hint = "`heal` takes away what other nodes got."
        if "not found" in reason:
            hint = "Is iptables in its image? `docker compose build` makes it anew."
        elif "ermission" in reason:
            hint = "Has it NET_ADMIN? See cap_add in docker-compose.yml."
        raise CutFailed(f"node {place.number}: {reason}", hint)
    return done.stdout


# Looking


def status(site: Site, found: Mapping[int, Found | None], in_force: Sequence[Cut]) -> str:
    """What is in force, and at each node how many of its rules stand there and what they took."""
    lines = [f"in force: {listed(in_force)}  ({site.title})"]
    for place in site.places:
        one = found[place.number]
        wanted = len(cuts.rules(in_force, site.addresses, place.number))
        have = sum(one.rules.values()) if one else 0
        text = f"{counted(have, 'rule')}, {one.packets if one else 0} packets taken"
        if have != wanted:
            text += f"; {wanted} expected: started anew since? The next cut sets all again"
        lines.append(f"  node {place.number:<3} {place.url:<28} {text}")
    return "\n".join(lines)


def watch(site: Site, once: bool, every_s: float) -> int:
    """Show what each node believes until interrupted: in place on a terminal, else whenever it has changed."""
    names = {place.number: place.node_id for place in site.places}
    is_terminal = sys.stdout.isatty()
    shown = ""
    while True:
        in_force = known(site.each(look))
        text = beliefs_table.table(site.each(ask), names, colour=is_terminal)
        text = f"in force: {listed(in_force)}\n\n{text}"
        if once:
            print(text, flush=True)
            return 0
        stamp = time.strftime("%H:%M:%S")
        if is_terminal:
            print(f"\x1b[H\x1b[2J{stamp}  {text}\n\nCtrl-C ends this.", flush=True)
        elif text != shown:
            print(f"{stamp}  {text}\n", flush=True)
        shown = text
        time.sleep(every_s)


def ask(place: Place) -> dict[str, Any] | None:
    """What this very node believes; None if it does not answer."""
    from node.client.blocking import SyncClient  # here: the launcher's other commands start without it

    try:
        with SyncClient(
            place.url, token=place.token, ca_file=place.ca_file, within_s=ASK_LIMIT_S, learn=False, insist=False
        ) as node:
            return node.cluster()
    except RumorError:
        return None


def listed(chosen: Sequence[Cut]) -> str:
    return "; ".join(map(str, chosen)) or "nothing"


def launcher() -> str:
    script = os.environ.get(LAUNCHER, "")
    return str(Path(script).parent / "launch_cluster.sh") if script.endswith(".sh") else "rumor launch"
