"""Whether a folder is this user's alone: nobody else can put anything into it, or another folder in its place.

A cluster's folder holds keys, passwords, and the record by which later commands start and kill processes. Whoever else
can write there runs code as this user. So a folder is used only if

- this user owns it, its mode is 0700, and it is no link;
- nobody but root, this user and the owner of this program can rename a folder on the way to it: each is theirs, and
  others may not write to it, unless its sticky bit keeps them from renaming what is not theirs (`/tmp`);
- everything in it belongs to this user, and has one name: no symbolic link, no second hard link.

Once these hold, nobody else can change them, so that files in the folder are opened by their names without a race.

Does not know: what the folder is for.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import RumorError

PROGRAM = Path(__file__).resolve().parents[2]
LINKS_MAX = 40  # links on the way to a folder, as many as Linux follows
PRIVATE = 0o700
OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotOurs(RumorError):
    """The folder, or something in it or on the way to it, is in somebody else's hands. Nothing was done."""

    code = "not_ours"


def make(folder: Path) -> None:
    """Make the folder if it is missing. Raises NotOurs unless it is this user's alone; OSError if it cannot be made."""
    if not check(folder):
        missing = [folder, *folder.parents]
        for part in reversed([part for part in missing if not os.path.lexists(part)]):
            part.mkdir(mode=PRIVATE, exist_ok=True)  # somebody may be quicker: `check` looks again
        check(folder)


def check(folder: Path) -> bool:
    """Whether the folder exists. Raises NotOurs if it does and is not this user's alone."""
    refuse_way(folder)
    try:
        found = folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    refuse_foreign(folder, found)
    if not stat.S_ISDIR(found.st_mode):
        raise NotOurs(f"{folder} is not a folder.", "Set RUMOR_DATA_DIR to another one.")
    if is_open_to_others(found) and any(folder.iterdir()):
        # They may have renamed one of our own files, a log say, to the name of another.
        raise NotOurs(
            f"Others may write to {folder} (mode {stat.S_IMODE(found.st_mode):04o}): they may have put files into it.",
            f"If you know all that is in it, close it with `chmod 700 {folder}`. {advice()}",
        )
    if stat.S_IMODE(found.st_mode) != PRIVATE:
        folder.chmod(PRIVATE)
    for path, inside in walk(folder):
        refuse_foreign(path, inside)
        if stat.S_ISREG(inside.st_mode) and inside.st_nlink > 1:
            raise NotOurs(f"{path} is a hard link: the same file has another name elsewhere.", advice())
    return True


def read(path: Path) -> str | None:
    """The text of this user's own file; None if there is none. Raises NotOurs for a link or somebody else's file."""
    try:
        refuse_foreign(path, path.lstat())
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def write_new(path: Path, text: str) -> None:
    """Write a new file that only this user may read. It must not exist, not even as a link that leads nowhere."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)


def secret(path: Path, text: str) -> str:
    """The secret in this file, which is made with `text` when it is missing."""
    kept = read(path)
    if kept is None:
        write_new(path, text + "\n")
        kept = text
    return kept.strip()


def opener(path: str, flags: int) -> int:
    """For `open`: a file that is made is this user's alone, and a link is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def refuse_way(folder: Path) -> None:
    """Raise NotOurs if somebody else could put another folder in place of one on the way to this one."""
    at, names, links = Path("/"), list(reversed(folder.absolute().parent.parts[1:])), 0
    refuse_writable(at)
    while names:
        name = names.pop()
        at = at.parent if name == ".." else at / name  # `at` holds no link, so its parent is the folder above
        try:
            found = at.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISDIR(found.st_mode):
            refuse_writable(at)
            continue
        if not stat.S_ISLNK(found.st_mode):
            return
        links += 1
        if found.st_uid not in trusted() or links > LINKS_MAX:
            raise NotOurs(f"{at}, on the way to {folder}, is a link of {user(found.st_uid)}.", advice())
        target = at.readlink()
        names += [part for part in reversed(target.parts) if part != "/"]
        at = Path("/") if target.is_absolute() else at.parent


def refuse_writable(path: Path) -> None:
    """Raise NotOurs if somebody else may rename what is in this folder."""
    found = path.stat()
    if found.st_uid not in trusted():
        raise NotOurs(f"{path} belongs to {user(found.st_uid)}, who may put another folder there.", advice())
    if is_open_to_others(found) and not found.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(found.st_mode)
        raise NotOurs(f"Others may write to {path} (mode {mode:04o}) and put another folder there.", advice())


def is_open_to_others(found: os.stat_result) -> bool:
    """Whether others may write here. A group that is this user alone is nobody else."""
    writers = found.st_mode & OTHERS
    return bool(writers) and not (writers == stat.S_IWGRP and is_own_group(found.st_gid))


def refuse_foreign(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise NotOurs(f"{path} is a link.", f"{advice()} If this folder is the cluster's, remove the link.")
    if found.st_uid != os.geteuid():
        owner, me = user(found.st_uid), user(os.geteuid())
        raise NotOurs(
            f"{path} belongs to {owner}, and this is {me}.", f"Run this as {owner} if the cluster is theirs. {advice()}"
        )


def advice() -> str:
    return f"Set RUMOR_DATA_DIR to a folder of your own, such as {Path('~/.rumor').expanduser()}."


def trusted() -> tuple[int, ...]:
    """Those who can do anything here anyway: root, this user, and the owner of the program that runs."""
    return 0, os.geteuid(), PROGRAM.stat().st_uid


def is_own_group(gid: int) -> bool:
    """Whether this is the group that many systems make for each user, with no other member."""
    try:
        own, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return own.pw_gid == gid and group.gr_name == own.pw_name and set(group.gr_mem) <= {own.pw_name}


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user with the number {uid}"


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything in the folder, with what `lstat` says; links are not followed."""
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # Redis has just removed it
            found = path.lstat()
            yield path, found
            if stat.S_ISDIR(found.st_mode):
                yield from walk(path)
