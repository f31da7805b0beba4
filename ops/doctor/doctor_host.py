"""Checks of this host that no start makes: processor, memory file systems, room on disks, shards, the clock."""

from __future__ import annotations

import ctypes
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import llvmlite.binding

from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.models.bundle.bitvectors import LANES
from paywarden.ops import wiring
from paywarden.ops.doctor.results import ERROR, OK, SKIPPED, WARNING, CheckResult
from paywarden.schemas.settings import Source
from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorAbsent, MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.scoring.state.shards import ShardSettings

_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_MIB = 1024 * 1024
# With less than that on its file system a process stops sooner or later, even below its own limit.
_FULL_BYTES = 16 * _MIB
# The result of adjtimex while the clock is not synchronised, and the size of the kernel's struct timex.
_TIME_ERROR, _TIMEX_BYTES = 5, 256


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
    """Yields the file systems and the room of mirror, decision cache, metrics, outbox and embedded store."""
    mirror, outbox = source.section("mirror", MirrorSettings), source.section("outbox", OutboxSettings)
    serve = source.section("serve", wiring.ServeSettings)
    answered = source.section("answered", DecisionCacheSettings)
    in_memory = {"[mirror] path": mirror.path, "[answered] path": answered.path, "[serve] metrics": serve.metrics}
    overlay = source.section("overlay", OverlaySettings)
    if overlay.enabled:
        in_memory["[overlay] path"] = overlay.path
    for setting, path in in_memory.items():
        kind = _file_system(Path(path))
        if kind and kind not in _IN_MEMORY:
            yield CheckResult(
                "host",
                WARNING,
                f"{setting}: {path} is on {kind}, and a page that is written back can stop a look-up for milliseconds",
                "use a folder on a memory file system, such as /dev/shm or /run",
            )
    yield from _room("[mirror] size_mb", Path(mirror.path), mirror.size_mb * _MIB)
    yield from _room("[outbox] total_bytes_max", Path(outbox.directory), outbox.total_bytes_max)
    if wiring.store_kind(source) == "lmdb":
        store = Path(source.section("lmdb", LmdbSettings).path)
        if (left := shutil.disk_usage(_existing(store)).free) < _FULL_BYTES:
            yield _full("[lmdb] path", _existing(store), left)


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
            "restart the companion, which sees to it",
        )
    elif missing := wanted - held.complete:
        yield CheckResult(
            "host", WARNING, f"[shards]: the mirror lacks {len(missing)} shards", "wait for the companion's copy"
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
