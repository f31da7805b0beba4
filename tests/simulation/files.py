"""The file system of the simulated machines: real files, through an `os` and a `Path` that can fail.

The modules of the scoring host get these in place of the real ones (patches.py). A fault belongs to one process:

    emfile    no file can be opened            enospc   a write is refused or cut short
    torn      a write stops in the middle, and the process dies there
    slow      every call takes a while          eio     a read or a sync fails
    torn_file a small file is written in part: the process dies there, or the disk is full

Process ids, and /proc/PID/stat with them, are those of the simulated processes. Times of files are virtual.
"""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any

from tests.simulation.world import World

_READ_ONLY = "r"
# The supervisor's pipe: nothing is written to it.
_PIPE = (1 << 20, (1 << 20) + 1)
BOOT_ID = "boot-1"


@dataclass
class FileFault:
    """A fault of one process's files. `until`: moment at which it ends; `left`: how often it can still happen."""

    kind: str
    until: float
    left: int
    random: random.Random


class Files:
    """The faults of files, and what the shims share."""

    def __init__(self, world: World, root: Path) -> None:
        self.world, self.root = world, root
        self.faults: dict[str, list[FileFault]] = {}
        self.mtimes: dict[str, float] = {}
        self._paths: dict[int, str] = {}
        self.descriptors_most = 0
        # Whether room can be reserved on this disk; up to which byte it is, by descriptor.
        self.can_reserve = random.Random(f"disk {world.seed}").random() < 0.5
        self.reserved: dict[int, int] = {}
        # Parts of writes that a full disk cut short, until their writer removes them.
        self.cut_short: list[bytes] = []
        # Workers that die in their next look-up.
        self.dies_reading: set[str] = set()

    def add(self, process: str, fault: FileFault) -> None:
        self.faults.setdefault(process, []).append(fault)

    def heal(self) -> None:
        self.faults.clear()

    def fault(self, *kinds: str) -> FileFault | None:
        """Returns a fault of these kinds that the running process has now."""
        world = self.world
        actor = world.current
        if actor is None or not self.faults:
            return None
        for fault in self.faults.get(actor.name, ()):
            if fault.kind in kinds and fault.left > 0 and world.now < fault.until:
                fault.left -= 1
                world.faults[fault.kind] += 1
                world.note(f"fault {fault.kind}")
                return fault
        return None

    def seam(self, what: str) -> None:
        self.world.seam(what)
        if (fault := self.fault("slow")) is not None:
            self.world.pause(fault.random.random() * 0.4)

    def opened(self, fd: int, path: str) -> None:
        actor = self.world.current
        self._paths[fd] = path
        self.reserved.pop(fd, None)
        if actor is not None:
            actor.life.fds.add(fd)
            self.descriptors_most = max(self.descriptors_most, len(actor.life.fds))

    def closed(self, fd: int) -> bool:
        """Returns whether the descriptor is still open."""
        actor = self.world.current
        if actor is None:
            return True
        if fd not in actor.life.fds:
            return not actor.is_dead
        actor.life.fds.discard(fd)
        return True

    def written(self, fd: int) -> None:
        if (path := self._paths.get(fd)) is not None:
            self.mtimes[path] = self.world.wall_s()


FILES: Files | None = None


def files() -> Files:
    assert FILES is not None
    return FILES


@contextmanager
def using(own: Files) -> Iterator[Files]:
    """Let the shims use these files."""
    global FILES
    FILES = own
    try:
        yield own
    finally:
        FILES = None


def _check_open(what: str) -> None:
    own = files()
    own.seam(what)
    if own.fault("emfile") is not None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class SimulatedOs:
    """The functions of `os` that the scoring host uses. Everything else is the real module's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name = os.fspath(path)
        _check_open(f"open {os.path.basename(name)}")
        if flags & os.O_CREAT and not os.path.exists(name) and files().fault("enospc") is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fd = os.open(name, flags, mode, dir_fd=dir_fd)
        files().opened(fd, name)
        return fd

    def dup(self, fd: int) -> int:
        _check_open("dup")
        copy = os.dup(fd)
        files().opened(copy, files()._paths.get(fd, ""))
        return copy

    def close(self, fd: int) -> None:
        if files().closed(fd):
            os.close(fd)

    def write(self, fd: int, data: bytes) -> int:
        own = files()
        own.seam(f"write {len(data)}")
        if (fault := own.fault("torn")) is not None:
            os.write(fd, data[: fault.random.randrange(len(data))])
            own.written(fd)
            own.world.die()
        has_room = os.fstat(fd).st_size + len(data) <= own.reserved.get(fd, 0)
        if not has_room and (fault := own.fault("enospc")) is not None:
            # The end of the first record of several, behind which a reader can stand.
            first = 8 + int.from_bytes(data[:4], "little")
            first = first if 8 < first < len(data) else 0
            if not first and fault.random.random() < 0.5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = os.write(fd, data[: fault.random.randrange(first, len(data))])
            own.written(fd)
            own.cut_short.append(bytes(data[:count]))
            if first or fault.random.random() < 0.5:
                # A reader has time to look before the writer takes it back.
                own.world.pause(fault.random.random() * 1.5)
            return count
        count = os.write(fd, data)
        own.written(fd)
        own.world.seam("written")
        return count

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if files().fault("eio") is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.pread(fd, size, offset)

    def listdir(self, path: Any) -> list[str]:
        _check_open("listdir")
        return sorted(os.listdir(path))

    def scandir(self, path: Any) -> Any:
        _check_open("scandir")
        return os.scandir(path)

    def ftruncate(self, fd: int, length: int) -> None:
        own = files()
        own.seam("ftruncate")
        if own.fault("eio") is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(fd, length)
        own.reserved.pop(fd, None)
        own.written(fd)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        """Give a file memory. A mirror that grows may meet a full file system."""
        own = files()
        own.seam("fallocate")
        if offset and own.fault("enospc") is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(fd, offset, length)

    def truncate(self, path: Any, length: int) -> None:
        files().seam("truncate")
        os.truncate(path, length)

    def fsync(self, fd: int) -> None:
        self._sync(fd)

    def fdatasync(self, fd: int) -> None:
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        # Nothing is synced: no machine loses power here, and the disk is the slowest part of a history.
        del fd
        own = files()
        own.seam("sync")
        if own.fault("eio") is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def getpid(self) -> int:
        actor = files().world.current
        return 1 if actor is None else actor.life.pid

    def getppid(self) -> int:
        actor = files().world.current
        parent = None if actor is None else actor.life.parent
        return 1 if parent is None or parent.is_dead else parent.pid

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        del pid, options
        actor = files().world.current
        assert actor is not None
        return actor.life.ended_children.pop(0) if actor.life.ended_children else (0, 0)

    def kill(self, pid: int, number: int) -> None:
        """Send a signal. A process that does not handle it is killed."""
        world = files().world
        world.seam(f"kill {pid} {number:d}")
        life = world.by_pid[pid]
        if number in life.signals:
            life.signals[number]()
        else:
            world.kill(life)

    def pipe(self) -> tuple[int, int]:
        return _PIPE

    def read(self, fd: int, size: int) -> bytes:
        return b"" if fd in _PIPE else os.read(fd, size)

    def urandom(self, size: int) -> bytes:
        return files().world.random.randbytes(size)


def open_small(path: Any, mode: str = _READ_ONLY, *args: Any, **more: Any) -> Any:
    """Open a file as schemas/durability.py does, whose write may stop in the middle."""
    return _TornFile(open(path, mode, *args, **more))


class _TornFile:
    """A small file that is being written."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        own = files()
        if (fault := own.fault("torn_file")) is not None:
            self._file.write(content[: fault.random.randrange(len(content) + 1)])
            self._file.flush()
            if fault.random.random() < 0.5:
                own.world.die()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(content))

    def __enter__(self) -> _TornFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def reserve(descriptor: int, start: int, size: int) -> bool:
    """Reserve room behind the end of a file, as scoring/state/disk_room.py does."""
    own = files()
    if not own.can_reserve:
        return False
    own.seam("reserve")
    if own.fault("enospc") is not None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    own.reserved[descriptor] = start + size
    return True


class SimulatedPath(PosixPath):
    """A path whose calls are seams."""

    __slots__ = ()

    def open(self, mode: str = _READ_ONLY, *args: Any, **more: Any) -> Any:
        name = str(self)
        if name.startswith("/proc/"):
            return io.StringIO(_proc(name))
        own = files()
        _check_open(f"open {self.name}")
        if mode[0] in "wax":
            if own.fault("enospc") is not None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            own.mtimes[name] = own.world.wall_s()
        return open(name, mode, *args, **more)

    def exists(self) -> bool:
        if str(self).startswith("/proc/"):
            return True
        return os.path.exists(self)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        found = os.stat(self, follow_symlinks=follow_symlinks)
        mtime = files().mtimes.get(str(self))
        if mtime is None:
            mtime = files().world.wall_s()
        fields = list(found)
        fields[8] = int(mtime)
        others = {"st_atime": mtime, "st_mtime": mtime, "st_ctime": mtime, "st_blocks": found.st_blocks}
        return os.stat_result(fields, others)

    def replace(self, target: Any) -> SimulatedPath:
        own = files()
        own.seam(f"replace {self.name}")
        os.replace(self, target)
        own.mtimes[str(target)] = own.mtimes.pop(str(self), own.world.wall_s())
        return SimulatedPath(target)

    def rename(self, target: Any) -> SimulatedPath:
        return self.replace(target)

    def unlink(self, missing_ok: bool = False) -> None:
        files().seam(f"unlink {self.name}")
        super().unlink(missing_ok)

    def iterdir(self) -> Iterator[SimulatedPath]:  # type: ignore[override]
        _check_open("iterdir")
        return iter([self / name for name in sorted(os.listdir(self))])


def _proc(name: str) -> str:
    """Returns the file of /proc with this name: the state of a simulated process, or the id of the boot."""
    if name.endswith("boot_id"):
        return BOOT_ID + "\n"
    pid = name.split("/")[2]
    life = files().world.by_pid.get(int(pid)) if pid.isdecimal() else None
    if life is None or life.is_dead:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return f"{pid} (paywarden) S " + "0 " * 18 + str(int(life.started_at * 100)) + " 0 0\n"
