"""`rumor partition` and its script: cuts the network of a running cluster, and shows what its nodes believe.

It acts on a cluster that was started with `launch --netns`, or on the services of docker-compose.yml. In both, each
node has a firewall in a network of its own: it gets one chain, RUMOR, and nothing else there changes. Every command
reads from the firewalls which cuts are in force (see `cuts`), so a node that restarted without its rules gets them
again with the next cut.

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

from cluster import redis_address
from cluster.errors import ConfigError, RumorError
from node.lab import beliefs_table, cuts, network
from node.lab import record as records
from node.lab.cluster import NETNS_REDIS, indent, partition_program
from node.lab.cuts import CHAIN, REDIS, Chain, Cut
from node.lab.process import wait_for
from node.lab.record import LAUNCHER, ROOT, Record
from node.plural import counted

T = TypeVar("T")

ASK_LIMIT_S = 1.0
COMMAND_LIMIT_S = 20.0
ALONE_LIMIT_S = 60.0  # wait for another command that cuts; every user who may read the program can hold its lock
EVERY_S = 0.5
PROJECT, FOLDER, SERVICE = (f"com.docker.compose.{name}" for name in ("project", "project.working_dir", "service"))

# Fills the chain from standard input, in one step, and lets INPUT and OUTPUT lead into it.
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
        f"{'heal [CUT]':<{WIDTH}}remove all cuts (or this one)",
        f"{'status':<{WIDTH}}show the cuts in force, and how many packets they dropped",
        f"{'watch':<{WIDTH}}show what each node believes about each other, live (--once: print it and end)",
        "",
        "Cuts add up. A node is its number, from 1. Where a cut takes one node, it takes several, too: no-redis 1,2",
    ]
)


class NoSite(ConfigError):
    """There is no cluster that can be cut. Nothing was changed."""

    code = "no_site"


class CutFailed(RumorError):
    """A firewall could not be changed; other nodes' may have been. `heal` removes what they got."""

    code = "cut_failed"


@dataclass(frozen=True, slots=True)
class Place:
    """One node from outside: its addresses, and the words that run a command in its network."""

    number: int
    node_id: str
    address: str
    url: str
    token: str
    inside: tuple[str, ...]
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """A running cluster from outside. `redis`: the address of its Redis."""

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
        """Do it at all nodes at once: a cut that spreads from node to node would be another experiment."""
        with ThreadPoolExecutor(max(1, len(self.places))) as pool:
            # Not by pool.map: it cancels what has not begun when one of them fails, and `heal` must reach all others.
            futures = [pool.submit(do, place) for place in self.places]
            return {number: future.result() for number, future in zip(self.numbers, futures, strict=True)}


def partition(
    words: Sequence[str], *, kind: str = "", data_dir: str | None = None, once: bool = False, every_s: float = EVERY_S
) -> int:
    """Carry out one command line. Returns the exit status; raises RumorError. `kind`: netns, compose, "" for both."""
    if not words:
        raise cuts.BadCut("No cut and no command is given.", f"The cuts and commands are:\n{indent(USAGE)}")
    word, rest = words[0], words[1:]
    if word not in (*cuts.USAGE, "heal", "status", "watch"):
        raise cuts.BadCut(f"{word!r} is no cut and no command.", f"The cuts and commands are:\n{indent(USAGE)}")
    if rest and word in ("status", "watch"):
        raise cuts.BadCut(f"{rest[0]!r} after {word!r} is not expected.", f"For example: {partition_program()} {word}")
    site = find(kind, records.folder_of(data_dir))
    if word == "watch":
        return watch(site, once, every_s)
    if word == "status":
        chains = site.each(look)
        print(status(site, chains, in_force_of(chains)))
        return 0
    with alone():
        chosen: list[Cut] = []
        if word != "heal":
            chosen = cuts.merge(in_force_of(site.each(look)), cuts.parse(words, site.numbers))
        elif rest:
            chosen = without(in_force_of(site.each(look)), rest, site)
        # `heal` alone reads no firewall before: a node that cannot be reached must not stop it at the others.
        site.each(lambda place: put(place, chosen, site))
    print(f"in force: {listed(chosen)}", flush=True)
    return 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one command change cuts at a time: of two at once, each would write its own cut and lose the other's."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        if not wait_for(lambda: is_locked(folder), ALONE_LIMIT_S):
            raise CutFailed(
                f"Another command has locked {ROOT} for {ALONE_LIMIT_S:.0f} s.",
                f"`fuser {ROOT}` names it: another command that cuts, or another user's program.",
            )
        yield
    finally:
        os.close(folder)


def is_locked(folder: int) -> bool:
    """Whether this command holds the lock now. Some network file systems cannot lock a folder: then nobody waits."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def without(in_force: Sequence[Cut], words: Sequence[str], site: Site) -> list[Cut]:
    """The cuts that stay in force when the one that `words` mean is healed. Raises BadCut if it is not in force."""
    given = " ".join(words)
    # `loss 3` means the same cut as `loss 3 30%`.
    words = [*words, "1%"] if words[0] == "loss" and len(words) == 2 else list(words)
    healed = {(cut.verb, cut.groups) for cut in cuts.parse(words, site.numbers)}
    left = [cut for cut in in_force if (cut.verb, cut.groups) not in healed]
    if len(left) == len(in_force):
        raise cuts.BadCut(f"{given!r} is not in force.", f"In force: {listed(in_force)}.")
    return left


# Finding the cluster


def find(kind: str, folder: Path) -> Site:
    """The cluster to act on: the one launched with --netns in this folder, else that of compose. Raises NoSite."""
    reason = ""
    if kind != "compose":
        record = records.load(folder)
        if record is not None and record.is_running:
            if record.network is not None:
                network.refuse_if_unable()
                return site_of_record(record, record.network)
            reason = f"The nodes of the cluster in {folder} share this machine's network, which cannot be cut."
        else:
            reason = f"No cluster runs in {folder}."
    if kind != "netns":
        try:
            site = site_of_compose()
        except NoSite as error:  # docker is installed, but no engine answers it
            site, reason = None, f"{reason} {error.message}".strip()
        if site is not None:
            return site
        reason = f"{reason} No services of docker-compose.yml run.".strip()
    raise NoSite(reason, f"Start one with `{launcher()} 5 --netns` (as root), or with `docker compose up`.")


def site_of_record(record: Record, net: network.Network) -> Site:
    """The nodes of a launched cluster, those that ended included: their namespaces stay."""
    token, ca_file = record.told.get("api_token", ""), record.told.get("tls_cert", "")
    places = [
        Place(n.number, n.node_id, net.address(n.number), n.url, token, net.inside(n.number), ca_file)
        for n in record.nodes
    ]
    return Site(f"network namespaces, {net.prefix}.0/24", tuple(places), net.address(NETNS_REDIS))


def site_of_compose() -> Site | None:
    """The running containers of docker-compose.yml; None if there are none, or no Docker. Raises NoSite."""
    if shutil.which("docker") is None:
        return None
    ids = docker("ps", "--quiet", "--no-trunc", "--filter", f"label={SERVICE}").split()
    if not ids:
        return None
    name = os.environ.get("COMPOSE_PROJECT_NAME", "")
    projects: dict[str, list[dict[str, Any]]] = {}
    for container in json.loads(docker("inspect", *ids)):
        labels = container["Config"]["Labels"]
        is_ours = labels[PROJECT] == name if name else Path(labels.get(FOLDER, "/")).resolve() == ROOT
        if is_ours:
            projects.setdefault(labels[PROJECT], []).append(container)
    if not projects:
        return None
    if len(projects) > 1:
        raise NoSite(
            f"Several projects run: {', '.join(sorted(projects))}.", "Set COMPOSE_PROJECT_NAME to one of them."
        )
    [(project, containers)] = projects.items()
    by_service = {container["Config"]["Labels"][SERVICE]: container for container in containers}
    places = sorted(
        (
            place_of(int(service.removeprefix("node")), container)
            for service, container in by_service.items()
            if service.startswith("node") and service.removeprefix("node").isdigit()
        ),
        key=lambda place: place.number,
    )
    redis = by_service.get(redis_host(containers))
    if not places or redis is None:
        raise NoSite(f"The project {project} runs no node, or no Redis.", "Look at `docker compose ps`.")
    return Site(f"docker compose, project {project}", tuple(places), address_of(redis))


def redis_host(containers: Sequence[Mapping[str, Any]]) -> str:
    """The service to which the nodes' Redis URL points."""
    urls = (environ_of(container).get("RUMOR_REDIS_URL") for container in containers)
    return next((redis_address.parse(url).host for url in urls if url), "redis")


def environ_of(container: Mapping[str, Any]) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in container["Config"]["Env"])


def place_of(number: int, container: Mapping[str, Any]) -> Place:
    """A node in a container, from Docker's description."""
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
    """The output of a docker command. Raises NoSite with its own words."""
    done = subprocess.run(
        ["docker", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_LIMIT_S,
    )
    if done.returncode != 0:
        raise NoSite(
            f"`docker {words[0]}` failed: {done.stderr.strip()}", "Check that the engine runs and that you may use it."
        )
    return done.stdout


# Firewalls


def put(place: Place, chosen: Sequence[Cut], site: Site) -> None:
    """Replace this node's rules with those of exactly these cuts."""
    if not chosen:
        run(place, HEAL)
    else:
        run(place, APPLY, cuts.restore_text(cuts.rules(chosen, site.addresses, place.number)))


def look(place: Place) -> Chain | None:
    return cuts.read(run(place, LOOK))


def in_force_of(chains: Mapping[int, Chain | None]) -> list[Cut]:
    """The cuts that have a rule in any firewall."""
    texts = sorted({text for chain in chains.values() if chain for text in chain.rules})
    parsed: list[Cut] = []
    for text in texts:
        # Take the cut's own numbers as nodes: one of them may have ended since, and its cut can still be healed.
        words = text.split()
        numbers = {int(part) for word in words[1:] for part in word.split(",") if part.isdigit()}
        with contextlib.suppress(cuts.BadCut):  # a rule of somebody else; the next change removes it
            parsed += cuts.parse(words, numbers)
    return parsed


def run(place: Place, script: str, text: str = "") -> str:
    """Run a shell script in a node's network; its output. Raises CutFailed with its own words."""
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
        raise CutFailed(
            f"node {place.number}: no answer within {COMMAND_LIMIT_S:.0f} s.", "It may be paused."
        ) from None
    if done.returncode != 0:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        hint = "`heal` removes what other nodes got."
        if "not found" in reason:
            hint = "Its image may lack iptables: build it with `docker compose build`."
        elif "ermission" in reason:
            hint = "It may lack NET_ADMIN: see cap_add in docker-compose.yml."
        raise CutFailed(f"node {place.number}: {reason}", hint)
    return done.stdout


# Looking


def status(site: Site, chains: Mapping[int, Chain | None], in_force: Sequence[Cut]) -> str:
    """The cuts in force, and for each node the number of its rules and of the packets that they dropped."""
    lines = [f"in force: {listed(in_force)}  ({site.title})"]
    for place in site.places:
        chain = chains[place.number]
        expected = len(cuts.rules(in_force, site.addresses, place.number))
        present = sum(chain.rules.values()) if chain else 0
        text = f"{counted(present, 'rule')}, {counted(chain.packets if chain else 0, 'packet')} dropped"
        if present != expected:
            text += f"; {expected} expected: restarted since? The next cut sets them again"
        lines.append(f"  node {place.number:<3} {place.url:<28} {text}")
    return "\n".join(lines)


def watch(site: Site, once: bool, every_s: float) -> int:
    """Show what each node believes until interrupted: in place on a terminal, else each time it has changed."""
    names = {place.number: place.node_id for place in site.places}
    is_terminal = sys.stdout.isatty()
    shown = ""
    while True:
        in_force = in_force_of(site.each(look))
        text = beliefs_table.table(site.each(ask), names, colour=is_terminal)
        text = f"in force: {listed(in_force)}\n\n{text}"
        if once:
            print(text, flush=True)
            return 0
        stamp = time.strftime("%H:%M:%S")
        if is_terminal:
            print(f"\x1b[H\x1b[2J{stamp}  {text}\n\nPress Ctrl-C to end.", flush=True)
        elif text != shown:
            print(f"{stamp}  {text}\n", flush=True)
        shown = text
        time.sleep(every_s)


def ask(place: Place) -> dict[str, Any] | None:
    """What this node believes; None if it does not answer."""
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
