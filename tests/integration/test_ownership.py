"""A folder that is not this user's alone is refused, whoever prepared it, and nothing in it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from node.lab import ownership
from node.lab.ownership import NotOurs
from node.lab.process import of_pid
from tests.processes import TRACEBACK, LaunchedCluster, clean_environ, free_base_port, launch

STRANGER = 65_534  # `nobody`
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with this user's own files, as a cluster leaves it."""
    folder = tmp_path / "data"
    ownership.make(folder)
    (folder / "redis").mkdir()
    ownership.write_new(folder / "redis" / "password", "kept")
    ownership.write_new(folder / "gossip.key", "kept")
    return folder


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    assert child.poll() is None, "a bystander was ended"
    child.kill()
    child.wait()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_new_folder_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ownership.make(tmp_path / "a" / "b")
        ownership.write_new(tmp_path / "a" / "b" / "key", "secret")
        os.close(ownership.opener(str(tmp_path / "a" / "b" / "log"), os.O_WRONLY | os.O_CREAT))
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    assert mode(tmp_path / "a" / "b" / "key") == mode(tmp_path / "a" / "b" / "log") == 0o600
    assert ownership.check(tmp_path / "a" / "b")


def test_no_folder_is_no_fault(tmp_path: Path) -> None:
    assert not ownership.check(tmp_path / "none" / "at" / "all")
    assert ownership.read(tmp_path / "none") is None


def test_a_folder_that_others_could_only_read_is_closed(place: Path) -> None:
    place.chmod(0o755)
    assert ownership.check(place)
    assert mode(place) == 0o700


def link_itself(place: Path) -> Path:
    place.rename(place.with_name("real"))
    place.symlink_to(place.with_name("real"))
    return place


def link_inside(place: Path) -> Path:
    (place / "node-1.log").symlink_to(place.with_name("victim"))
    return place


def link_below(place: Path) -> Path:
    (place / "redis" / "redis.conf").symlink_to(place.with_name("victim"))
    return place


def second_name(place: Path) -> Path:
    place.with_name("victim").write_text("precious")
    (place / "cluster.tmp").hardlink_to(place.with_name("victim"))
    return place


def open_to_all(place: Path) -> Path:
    place.chmod(0o777)
    return place


def way_open_to_all(place: Path) -> Path:
    place.parent.chmod(0o777)
    return place


def no_folder(place: Path) -> Path:
    return place / "gossip.key"


BAD = {
    link_itself: "data is a link",
    link_inside: "node-1.log is a link",
    link_below: "redis.conf is a link",
    second_name: "cluster.tmp is a hard link",
    open_to_all: "Others may write to",
    way_open_to_all: "put another folder there",
    no_folder: "is not a folder",
}


@pytest.mark.parametrize("prepare", BAD, ids=lambda prepare: prepare.__name__)
def test_a_folder_into_which_others_may_have_put_something_is_refused(
    place: Path, prepare: Callable[[Path], Path]
) -> None:
    bad = prepare(place)
    for act in (ownership.check, ownership.make):
        with pytest.raises(NotOurs, match=BAD[prepare]) as caught:
            act(bad)
        assert "RUMOR_DATA_DIR" in caught.value.hint
    done = launch("status", environ=clean_environ() | {"RUMOR_DATA_DIR": str(bad)})
    assert done.returncode == 1
    assert BAD[prepare] in done.stderr
    assert TRACEBACK not in done.stderr
    place.parent.chmod(0o700)


def test_a_sticky_folder_on_the_way_is_fine_and_so_is_a_link_of_ours_there(place: Path) -> None:
    place.parent.chmod(0o1777)
    assert ownership.check(place)
    way = place.with_name("way")
    way.symlink_to("data")
    ownership.make(way / "deeper" / "..")
    with pytest.raises(NotOurs, match="way is a link"):
        ownership.check(way)
    place.parent.chmod(0o700)


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        ownership.write_new(tmp_path / "link", "secret")
    with pytest.raises(OSError, match="symbolic links"):
        ownership.opener(str(tmp_path / "link"), os.O_WRONLY | os.O_CREAT)
    with pytest.raises(NotOurs, match="is a link"):
        ownership.read(tmp_path / "link")
    assert not (tmp_path / "victim").exists()


@needs_root
@pytest.mark.parametrize("part", [".", "..", "gossip.key", "redis", "redis/password"])
def test_what_another_user_owns_is_refused(place: Path, part: str) -> None:
    os.chown(place / part, STRANGER, STRANGER)
    with pytest.raises(NotOurs, match="belongs to"):
        ownership.check(place)
    os.chown(place / part, 0, 0)
    assert ownership.check(place)


@needs_root
def test_a_link_of_another_user_on_the_way_is_refused(place: Path) -> None:
    place.parent.chmod(0o1777)
    way = place.with_name("way")
    way.symlink_to(place)
    os.lchown(way, STRANGER, STRANGER)
    with pytest.raises(NotOurs, match=r"way, on the way to .*, is a link of"):
        ownership.make(way / "deeper")
    assert not (place / "deeper").exists()


@needs_root
def test_a_record_that_another_user_prepared_kills_runs_and_overwrites_nothing(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    folder, victim = tmp_path / "data", tmp_path / "victim"
    folder.mkdir(mode=0o777)
    victim.write_text("precious")
    began = of_pid(bystander.pid).began
    process = {"pid": bystander.pid, "began": began}
    node = {"number": 1, "node_id": "n1", "url": "http://127.0.0.1:9", **process}
    record = {"launch_id": "x", "base_port": 5000, "told": {"tasks": "evil"}, "cwd": str(folder), "python_path": ""}
    record |= {"redis": {"url": "redis://127.0.0.1:9/0", "port": 9, **process}, "nodes": [node]}
    (folder / "cluster.json").write_text(json.dumps(record))
    (folder / "gossip.key").write_text("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
    (folder / "node-1.log").symlink_to(victim)
    for path in (folder, *folder.iterdir()):
        os.lchown(path, STRANGER, STRANGER)
    environ = clean_environ() | {"RUMOR_DATA_DIR": str(folder), "RUMOR_BASE_PORT": str(free_base_port(2))}
    for words in (["status"], ["stop"], ["kill", "1"], ["restart", "1"], ["add"], ["1", "--detach"]):
        done = launch(*words, environ=environ)
        assert done.returncode == 1, (words, done.stdout, done.stderr)
        assert "belongs to" in done.stderr, (words, done.stderr)
    assert bystander.poll() is None
    assert victim.read_text() == "precious"
    assert not (folder / "lock").exists()


def test_nobody_without_the_password_can_read_or_empty_the_clusters_own_redis(
    cluster: Callable[..., LaunchedCluster],
) -> None:
    one = cluster(nodes=1)
    host, port = one.status()["redis"].removeprefix("redis://").removesuffix("/0").split(":")
    with Redis(host, int(port)) as stranger:
        for words in ("FLUSHALL", "KEYS *", "CONFIG GET dir", "SHUTDOWN NOSAVE"):
            with pytest.raises(AuthenticationError):
                stranger.execute_command(*words.split())
    with Redis.from_url(one.redis_url) as owner:
        assert owner.smembers("workers:active")
    password = (one.folder / "redis" / "password").read_text().strip()
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert password not in shown
    assert password not in one.launch("status").stdout
    assert password not in one.log(1)
    one.launch("restart", "redis")
    assert one.remote(1).request("GET", "/readyz")[0] in (200, 503)
    private = [path for path in one.folder.rglob("*") if path.is_file() and mode(path) & 0o077]
    assert private == []
