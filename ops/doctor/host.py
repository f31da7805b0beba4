"""Checks of this host: open files, memory file systems, disks, the owners of paths, the clock."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.ops import wiring
from paywarden.ops.doctor.results import ERROR, OK, SKIPPED, WARNING, Result
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import require_not_planted
from paywarden.schemas.settings import Source
from paywarden.scoring.grpc.settings import GrpcSettings
from paywarden.scoring.http.settings import HttpSettings
from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
from paywarden.scoring.net.tls import TlsSettings
from paywarden.scoring.server.context import connections_of
from paywarden.scoring.server.descriptors import FILES_RESERVE
from paywarden.scoring.state.mirror import MirrorAbsent, MirrorReader, MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.scoring.state.overlay import OverlaySettings
from paywarden.scoring.state.shards import ShardSettings

_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_MIB = 1024 * 1024
# What adjtimex returns while the clock is not synchronised, and the size of the kernel's struct timex.
_TIME_ERROR, _TIMEX_BYTES = 5, 256


def check_files(source: Source) -> Iterator[Result]:
    """Yields whether a worker may open as many files as its connections need."""
    counts = connections_of(
        source.section("http", HttpSettings), source.section("grpc", GrpcSettings), source.section("tls", TlsSettings)
    )
    needed = sum(counts.values()) + FILES_RESERVE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < needed:
        yield Result(
            "host",
            ERROR,
            f"a worker needs {needed} open files, and the limit is {hard}",
            "raise it (ulimit -Hn, LimitNOFILE=), or lower [http] and [grpc] connections_max",
        )
    else:
        yield Result("host", OK, f"a worker may open the {needed} files that its connections need")


def check_paths(source: Source) -> Iterator[Result]:
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
            yield Result(
                "host",
                WARNING,
                f"{setting}: {path} is on {kind}, and a page that is written back can stop a look-up for milliseconds",
                "use a folder on a memory file system, such as /dev/shm or /run",
            )
    yield from _room("[mirror] size_mb", Path(mirror.path), mirror.size_mb * _MIB)
    yield from _owner("[outbox] directory", Path(outbox.directory))
    yield from _room("[outbox] total_bytes_max", Path(outbox.directory), outbox.total_bytes_max)
    if wiring.store_kind(source) == "lmdb":
        yield from _writable("[lmdb] path", Path(source.section("lmdb", LmdbSettings).path))


def _owner(setting: str, path: Path) -> Iterator[Result]:
    try:
        require_not_planted(path)
    except Misconfigured as error:
        yield Result("host", ERROR, f"{setting}: {error}")
    else:
        yield from _writable(setting, path)


def _writable(setting: str, path: Path) -> Iterator[Result]:
    place = _existing(path)
    # The decision cache of a host that runs is a file.
    wanted = os.W_OK | os.X_OK if place.is_dir() else os.W_OK
    if not os.access(place, wanted):
        yield Result("host", ERROR, f"{setting}: this user cannot write to {place}", "change its owner, or the setting")


def _room(setting: str, path: Path, needed: int) -> Iterator[Result]:
    """Yields a warning if the file system has less room than the setting allows; what is used already counts."""
    folder = _existing(path)
    used = sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    free = shutil.disk_usage(folder).free + used
    if free < needed:
        yield Result(
            "host",
            WARNING,
            f"{setting} allows {needed // _MIB} MiB, and {folder} has {free // _MIB} MiB",
            "give it more room, or lower the setting",
        )
    else:
        yield Result("host", OK, f"{setting}: {folder} has room for {needed // _MIB} MiB")


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


def check_shards(source: Source, gateway: Path | None = None) -> Iterator[Result]:
    """Yields whether mirror, settings and the gateway's description agree on the cards of this host."""
    settings = source.section("shards", ShardSettings)
    cards = wiring.card_shards(source)
    if cards is None:
        return
    wanted = settings.wanted()
    yield Result(
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
        yield Result("host", SKIPPED, f"[shards]: {error}")
        return
    try:
        held = mirror.shards()
    finally:
        mirror.close()
    if held is None or held.digest != cards.digest:
        yield Result(
            "host",
            WARNING,
            "[shards]: the mirror was not made with this count, these entities and this route key",
            "restart the companion, which sees to it",
        )
    elif missing := wanted - held.complete:
        yield Result(
            "host", WARNING, f"[shards]: the mirror lacks {len(missing)} shards", "wait for the companion's copy"
        )
    else:
        yield Result("host", OK, "[shards]: the mirror has all shards of this host")


def _gateway_agrees(settings: ShardSettings, gateway: Path) -> Iterator[Result]:
    from paywarden.ops.gateway.description import read_description

    described = read_description(gateway, looks_for_files=False)
    names, mend = sorted(host.name for host in described.hosts), "the two files must say the same"
    if described.shards.count != settings.count:
        text = f"[shards] count is {settings.count}, and {described.shards.count} in {gateway}"
        yield Result("host", ERROR, text, mend)
    elif names not in (sorted(settings.hosts), sorted(settings.next_hosts)):
        text = f"[shards] hosts are {', '.join(sorted(settings.hosts))}, and in {gateway} {', '.join(names)}"
        yield Result("host", ERROR, text, mend)
    else:
        yield Result("host", OK, f"[shards]: {gateway} sends cards by the same table")


def check_clock(source: Source) -> Iterator[Result]:  # noqa: ARG001 - all checks are called alike
    """Yields whether the kernel says that its clock is synchronised."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        yield Result("host", SKIPPED, "the kernel does not say whether the clock is synchronised")
    elif state == _TIME_ERROR:
        yield Result(
            "host",
            WARNING,
            "the clock is not synchronised, and a payment's age and deadline go by it",
            "run an NTP client (chrony, systemd-timesyncd)",
        )
    else:
        yield Result("host", OK, "the clock is synchronised")
