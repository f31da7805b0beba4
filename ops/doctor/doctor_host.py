"""Checks of this host: open files, the processor, memory file systems, disks, the owners of paths, ports, the clock."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding

from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.models.bundle.bitvectors import LANES
from paywarden.ops import wiring
from paywarden.ops.doctor.results import ERROR, OK, SKIPPED, WARNING, CheckResult
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import require_not_planted
from paywarden.schemas.settings import Source
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
from paywarden.scoring.net.tls import TlsSettings
from paywarden.scoring.server.context import connections_of
from paywarden.scoring.server.descriptors import FILES_RESERVE
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorAbsent, MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.scoring.state.shards import ShardSettings
from paywarden.streams.companion.companion import CompanionSettings

_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_MIB = 1024 * 1024
# With less than that on its file system a process stops sooner or later, even below its own limit.
_FULL_BYTES = 16 * _MIB
# The state of a listening socket in /proc/net/tcp, and a word in the command lines of our processes.
_LISTENS, _OURS = "0A", "paywarden"
# The result of adjtimex while the clock is not synchronised, and the size of the kernel's struct timex.
_TIME_ERROR, _TIMEX_BYTES = 5, 256


def check_files(source: Source) -> Iterator[CheckResult]:
    """Yields whether a worker may open as many files as its connections need."""
    counts = connections_of(
        source.section("http", HttpSettings), source.section("grpc", GrpcSettings), source.section("tls", TlsSettings)
    )
    needed = sum(counts.values()) + FILES_RESERVE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < needed:
        yield CheckResult(
            "host",
            ERROR,
            f"a worker needs {needed} open files, and the limit is {hard}",
            "raise it (ulimit -Hn, LimitNOFILE=), or lower [http] and [grpc] connections_max",
        )
    else:
        yield CheckResult("host", OK, f"a worker may open the {needed} files that its connections need")


def check_processor(_: Source) -> Iterator[CheckResult]:
    """Yields how many rows the processor lets a model score together. A virtual machine may hide its features."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        yield CheckResult("host", OK, f"a model scores 2 rows together on {machine}")
        return
    has = processor_features()
    lanes, feature = next((lanes, name) for lanes, name in LANES.items() if not name or has.get(name, False))
    if feature:
        yield CheckResult("host", OK, f"a model scores {lanes} rows together, as the processor has {feature}")
    else:
        helpful = ", ".join(filter(None, dict.fromkeys(LANES.values())))
        yield CheckResult(
            "host",
            WARNING,
            f"the processor has none of {helpful}, so a model scores {lanes} rows together and takes longer",
            "let the hypervisor show all features, or plan with more cores (`paywarden capacity --measured`)",
        )


def processor_features() -> Mapping[str, bool]:
    """Returns the processor's features, by LLVM's names; none where LLVM does not know them."""
    try:
        return dict(llvmlite.binding.get_host_cpu_features())
    except RuntimeError:
        return {}


def check_paths(source: Source) -> Iterator[CheckResult]:
    """Yields results about the folders of mirror, decision cache, metrics, outbox and embedded store."""
    mirror, outbox = source.section("mirror", MirrorSettings), source.section("outbox", OutboxSettings)
    serve = source.section("serve", wiring.ServeSettings)
    answered = source.section("answered", DecisionCacheSettings)
    in_memory = {"[mirror] path": mirror.path, "[answered] path": answered.path, "[serve] metrics": serve.metrics}
    overlay = source.section("overlay", OverlaySettings)
    if overlay.enabled:
        in_memory["[overlay] path"] = overlay.path
    for setting, path in in_memory.items():
        yield from _owner(setting, Path(path))
        kind = _file_system(Path(path))
        if kind and kind not in _IN_MEMORY:
            yield CheckResult(
                "host",
                WARNING,
                f"{setting}: {path} is on {kind}, and a page that is written back can stop a look-up for milliseconds",
                "use a folder on a memory file system, such as /dev/shm or /run",
            )
    for setting, path in (("[mirror] path", mirror.path), ("[outbox] directory", outbox.directory)):
        yield from _folder(setting, Path(path))
    yield from _room("[mirror] size_mb", Path(mirror.path), mirror.size_mb * _MIB)
    yield from _owner("[outbox] directory", Path(outbox.directory))
    yield from _room("[outbox] total_bytes_max", Path(outbox.directory), outbox.total_bytes_max)
    if wiring.store_kind(source) == "lmdb":
        store = Path(source.section("lmdb", LmdbSettings).path)
        yield from _writable("[lmdb] path", store)
        if (left := shutil.disk_usage(_existing(store)).free) < _FULL_BYTES:
            yield _full("[lmdb] path", _existing(store), left)


def _owner(setting: str, path: Path) -> Iterator[CheckResult]:
    try:
        require_not_planted(path)
    except Misconfigured as error:
        yield CheckResult("host", ERROR, f"{setting}: {error}")
    else:
        yield from _writable(setting, path)


def _folder(setting: str, path: Path) -> Iterator[CheckResult]:
    """Yields an error if something that is no folder stands in its place."""
    if path.exists() and not path.is_dir():
        yield CheckResult(
            "host", ERROR, f"{setting}: wanted a folder, and {path} is a file", "move it, or set another path"
        )
    elif path.is_symlink() and not path.exists():
        target = path.readlink()
        yield CheckResult(
            "host", ERROR, f"{setting}: {path} is a link to {target}, which does not exist", f"make {target}"
        )


def check_ports(source: Source) -> Iterator[CheckResult]:
    """Yields whether the ports of a scoring host differ from each other, and are free or used by a process of ours."""
    wanted = _ports(source)
    users: dict[int, list[str]] = {}
    for setting, (_, port) in wanted.items():
        users.setdefault(port, []).append(setting)
    for port, settings in users.items():
        if len(settings) > 1:
            yield CheckResult("host", ERROR, f"{' and '.join(settings)} are both {port}", "give each a port of its own")
    in_use = {setting: where for setting, where in wanted.items() if _is_in_use(*where)}
    for setting, (host, port) in in_use.items():
        holder = _holder(port)
        if not holder.is_ours:
            yield CheckResult(
                "host",
                ERROR,
                f"{setting}: {host}:{port} is taken by {holder.name}",
                "stop that process, or set another port",
            )
    if wanted and not in_use:
        yield CheckResult("host", OK, f"the ports {', '.join(map(str, sorted(users)))} are free")


def _ports(source: Source) -> dict[str, tuple[str, int]]:
    """Returns the addresses of a scoring host's processes by setting. A port of 0 is a free one, and left out."""
    http, grpc = source.section("http", HttpSettings), source.section("grpc", GrpcSettings)
    serve, companion = source.section("serve", wiring.ServeSettings), source.section("companion", CompanionSettings)
    ports = {
        "[http] port": (http.host, http.port),
        "[grpc] port": (grpc.host, grpc.port if grpc.enabled else 0),
        "[serve] admin_port": (serve.admin_host, serve.admin_port),
        "[companion] http_port": (companion.http_host, companion.http_port),
    }
    return {setting: where for setting, where in ports.items() if where[1]}


def _is_in_use(host: str, port: int) -> bool:
    """Returns whether a port cannot be bound because another process has it; other errors are left to later checks."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        # Ports of closed connections are in nobody's way.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


@dataclass(frozen=True)
class _Holder:
    """The process that listens at a port, as far as the system shows it to this user."""

    name: str
    is_ours: bool = False


def _holder(port: int) -> _Holder:
    """Returns the process that listens at a port. The system hides another user's processes."""
    inodes = {
        f"socket:[{words[9]}]"
        for table in ("tcp", "tcp6")
        for line in _lines(Path("/proc/net") / table)[1:]
        if (words := line.split())[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port
    }
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            has = any(_target(link) in inodes for link in folder.iterdir())
            command = (folder.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            # It has ended, or is another user's.
            continue
        if has:
            return _Holder(f"{Path(command.partition(' ')[0]).name} (process {folder.parent.name})", _OURS in command)
    return _Holder("a process that this user may not look at")


def _target(link: Path) -> str:
    """Returns the target of a process's open file; "" if it was just closed, as the list of open files itself is."""
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _writable(setting: str, path: Path) -> Iterator[CheckResult]:
    place = _existing(path)
    # The decision cache of a host that runs is a file.
    wanted = os.W_OK | os.X_OK if place.is_dir() else os.W_OK
    if not os.access(place, wanted):
        yield CheckResult(
            "host", ERROR, f"{setting}: this user cannot write to {place}", "change its owner, or the setting"
        )


def _room(setting: str, path: Path, needed: int) -> Iterator[CheckResult]:
    """Yields a warning if the file system has less room than the setting allows. Used room counts as room."""
    folder = _existing(path)
    used = sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    left = shutil.disk_usage(folder).free
    free = left + used
    if free < needed and left < _FULL_BYTES:
        yield _full(setting, folder, left)
    elif free < needed:
        yield CheckResult(
            "host",
            WARNING,
            f"{setting} allows {needed // _MIB} MiB, and {folder} has {free // _MIB} MiB",
            "give it more room, or lower the setting",
        )
    else:
        yield CheckResult("host", OK, f"{setting}: {folder} has room for {needed // _MIB} MiB")


def _full(setting: str, folder: Path, left: int) -> CheckResult:
    return CheckResult(
        "host",
        ERROR,
        f"{setting}: the file system of {folder} is full, with {left // _MIB} MiB left",
        f"make room on it (`df {folder}`), or set another path",
    )


def _existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(part for part in (path, *path.parents) if part.exists())


def _file_system(path: Path) -> str:
    """Returns the kind of file system that a path is on; empty where the system does not tell."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    folder = _existing(path).resolve()
    above = {str(part) for part in (folder, *folder.parents)}
    # A later mount hides an earlier one; the longest path is the nearest.
    found = [(len(at), number, kind) for number, (at, kind) in enumerate(mounts) if at in above]
    return max(found)[2] if found else ""


def check_shards(source: Source, gateway: Path | None = None) -> Iterator[CheckResult]:
    """Yields whether mirror, settings and the gateway's description agree on the cards of this host."""
    settings = source.section("shards", ShardSettings)
    cards = wiring.card_shards(source)
    if cards is None:
        return
    wanted = settings.wanted()
    yield CheckResult(
        "host",
        OK,
        f"[shards]: {settings.host} holds {len(wanted)} of {settings.count} shards by the table {settings.digest}, "
        "which each host must name",
    )
    if gateway is not None:
        yield from _gateway_agrees(settings, gateway)
    try:
        mirror = MirrorReader(source.section("mirror", MirrorSettings), item_max=1, profile_bytes_max=1)
    except MirrorAbsent as error:
        yield CheckResult("host", SKIPPED, f"[shards]: {error}")
        return
    try:
        held = mirror.shards()
    finally:
        mirror.close()
    if held is None or held.digest != cards.digest:
        yield CheckResult(
            "host",
            WARNING,
            "[shards]: the mirror was not made with this count, these entities and this route key",
            "restart the companion, which fills the mirror again",
        )
    elif missing := wanted - held.complete:
        yield CheckResult(
            "host",
            WARNING,
            f"[shards]: the mirror lacks {len(missing)} shards",
            "restart the companion, which fills the mirror again",
        )
    else:
        yield CheckResult("host", OK, "[shards]: the mirror has all shards of this host")


def _gateway_agrees(settings: ShardSettings, gateway: Path) -> Iterator[CheckResult]:
    from paywarden.ops.gateway.description import read_description

    described = read_description(gateway, looks_for_files=False)
    names, fix = sorted(host.name for host in described.hosts), "the two files must say the same"
    if described.shards.count != settings.count:
        text = f"[shards] count is {settings.count}, and {described.shards.count} in {gateway}"
        yield CheckResult("host", ERROR, text, fix)
    elif names not in (sorted(settings.hosts), sorted(settings.next_hosts)):
        text = f"[shards] hosts are {', '.join(sorted(settings.hosts))}, and in {gateway} {', '.join(names)}"
        yield CheckResult("host", ERROR, text, fix)
    else:
        yield CheckResult("host", OK, f"[shards]: {gateway} sends cards by the same table")


def check_clock(source: Source) -> Iterator[CheckResult]:  # noqa: ARG001 - all checks are called alike
    """Yields whether the kernel says that its clock is synchronised."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        yield CheckResult("host", SKIPPED, "the kernel does not say whether the clock is synchronised")
    elif state == _TIME_ERROR:
        yield CheckResult(
            "host",
            WARNING,
            "the clock is not synchronised, and a payment's age and deadline go by it",
            "run an NTP client (chrony, systemd-timesyncd)",
        )
    else:
        yield CheckResult("host", OK, "the clock is synchronised")
