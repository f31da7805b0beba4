"""Files and folders that only this process's user may read and write, and paths that only trusted users may change.

    make_private_folder("/dev/shm/paywarden/mirror")     makes it with mode 0700, or takes permissions of others away
    open_private("/dev/shm/paywarden/answered", ...)     makes it with mode 0600, and follows no link
    require_not_planted("/dev/shm/paywarden/mirror")     says so if another user's folder or link is on the way
    require_unwritable("bundle/native/model.so")         says so if another user can replace the file

Trusted are root and the user of this process. `/dev/shm` and `/tmp` are shared: every user of the machine can make
files there. Below such a folder every part of a path must belong to a trusted user. Otherwise the first user to come
could read decisions, or lead us to a file of theirs.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paywarden.schemas.errors import Misconfigured

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_folder(folder: Path) -> None:
    """Make a folder for this user alone, and the missing folders above it.

    A folder that exists and belongs to this user loses the permissions of others, and so do the files in it. A folder
    of root stays as it is, for example the mount point of a volume. Raises Misconfigured if the folder, a link on the
    way or a file in it belongs to a user who is not trusted; OSError.
    """
    make_parent(folder)
    folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    require_not_planted(folder)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        if not _is_trusted(status.st_uid):
            raise Misconfigured(f"{folder} belongs to {_name(status.st_uid)}; wanted a folder of {_name(os.geteuid())}")
        return
    if status.st_mode & _OF_OTHERS:
        folder.chmod(_FOLDER_MODE)
    with os.scandir(folder) as entries:
        for entry in entries:
            # Another process may have removed the file since the folder was listed.
            with contextlib.suppress(FileNotFoundError):
                _take_from_others(entry)


@contextmanager
def private_new_files() -> Iterator[None]:
    """Make the files that a library creates in the block, in any thread, this user's alone.

    DuckDB makes a file beside its database at any time, with the mode that the process gives.
    """
    before = os.umask(_OF_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def take_from_others(path: Path) -> None:
    """Take the permissions of others away from a file that belongs to this user, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if status.st_mode & _OF_OTHERS and status.st_uid == os.geteuid():
            path.chmod(_FILE_MODE)


def make_parent(path: Path) -> None:
    """Make the missing folders above a path, for this user alone.

    Raises Misconfigured, before it makes any, if another user's folder or link is on the way; OSError.
    """
    require_not_planted(path)
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def open_private(path: Path, flags: int) -> int:
    """Open a file, made with mode 0600 if `flags` have O_CREAT, and return its descriptor. It follows no link.

    Raises Misconfigured if a user who is not trusted made the file or a folder on the way, or if it is a link; OSError.
    """
    require_not_planted(path)
    # A named pipe that nobody reads or writes would be waited for without end.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _FILE_MODE)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if not _is_trusted(status.st_uid):
        os.close(fd)
        raise Misconfigured(f"{path} belongs to {_name(status.st_uid)}; wanted a file of {_name(os.geteuid())}")
    if status.st_uid == os.geteuid() and status.st_mode & _OF_OTHERS:
        os.fchmod(fd, _FILE_MODE)
    return fd


def private_opener(path: str, flags: int) -> int:
    """Opens a file for `open(…, opener=private_opener)`: a new file has mode 0600, whatever the umask is.

    A named pipe in its place is an error: it would be waited for.
    """
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, _FILE_MODE)


def require_not_planted(path: Path) -> None:
    """Raise Misconfigured if a part of `path` below a shared folder was made by a user who is not trusted.

    A hard link counts as such: where fs.protected_hardlinks is 0, every user can link to a file of ours.
    """
    is_shared = False
    for part, status in _parts(path):
        is_hard_link = stat.S_ISREG(status.st_mode) and status.st_nlink > 1
        if is_shared and (is_hard_link or not _is_trusted(status.st_uid)):
            kind = "hard link" if is_hard_link else "link" if stat.S_ISLNK(status.st_mode) else "file or folder"
            whose = "to another file" if is_hard_link else f"of {_name(status.st_uid)}"
            raise Misconfigured(
                f"{part} is a {kind} {whose} in a folder that every user can write to; "
                f"wanted one of {_name(os.geteuid())}: remove it, or set another path such as a folder below /run"
            )
        is_shared |= stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_IWOTH)


def require_unwritable(path: Path) -> None:
    """Raise Misconfigured if a user who is not trusted can change the file at `path`, or put another one there."""
    for part, status in _parts(path):
        if not _is_trusted(status.st_uid):
            raise Misconfigured(f"{part} belongs to {_name(status.st_uid)}, who is neither root nor this user")
        # In a folder with the sticky bit, such as /tmp, only owners can rename and remove.
        is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
        if not is_sticky and not stat.S_ISLNK(status.st_mode) and _others_write(status):
            raise Misconfigured(f"{part} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")


def _parts(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields each part of a path that exists, from the top down, and the status of links themselves.

    After a link come the parts of where the whole path leads. Raises Misconfigured if a part cannot be looked at.
    """
    whole = Path(os.path.abspath(path))
    has_link = False
    for part in (*reversed(whole.parents), whole):
        try:
            status = part.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise Misconfigured(f"cannot look at {part}: {error.strerror}") from error
        has_link |= stat.S_ISLNK(status.st_mode)
        yield part, status
    if has_link:
        # Path.resolve raises RuntimeError for a link that leads back to itself; realpath returns the link.
        target = Path(os.path.realpath(whole))
        if target == whole:
            raise Misconfigured(f"{whole} is a link that leads back to itself: make it a file or a folder")
        yield from _parts(target)


def _take_from_others(entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode) or not _is_trusted(status.st_uid):
        raise Misconfigured(
            f"{entry.path} is a link or belongs to another user; wanted a file of {_name(os.geteuid())}"
        )
    if status.st_uid == os.geteuid() and status.st_mode & _OF_OTHERS:
        os.chmod(entry.path, _FOLDER_MODE if stat.S_ISDIR(status.st_mode) else _FILE_MODE, follow_symlinks=True)


def _others_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and status.st_gid != 0 and not _is_group_of_one(status.st_gid)


def _is_group_of_one(gid: int) -> bool:
    """Whether a group is the private group of this process's user: many systems make one for each user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
