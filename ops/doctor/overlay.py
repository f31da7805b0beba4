"""Checks of the overlay: the room for its files, and whether serve, companion and stream agree on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.plan import compile_plan
from paywarden.ops import wiring
from paywarden.ops.doctor.results import ERROR, OK, SKIPPED, WARNING, CheckResult
from paywarden.schemas.settings import Source
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.overlay.overlay_files import MARKS_FILE, has_form, marks_head, shape_of, table_head
from paywarden.streams.kafka.admin import partitions_of, require_broker, watermarks
from paywarden.streams.kafka.reading import Record, make_consumer, records_between
from paywarden.streams.profiles.changelog import PAYMENTS_HEADER
from paywarden.streams.profiles.progress.watermarks import PREFIX

_MIB = 1024 * 1024
# While there are no payments, the changelog gets only reports of progress, a few a second in each partition.
_NEWEST_MAX = 2_000


def check_overlay(source: Source) -> Iterator[CheckResult]:
    """Yields whether the overlay's files have room, and were made with these settings. Raises Misconfigured."""
    settings = source.section("overlay", OverlaySettings)
    if not settings.enabled:
        return
    plan = compile_plan(wiring.catalogue(source), wiring.identity_key(source))
    table, marks = Path(settings.path), Path(source.section("mirror", MirrorSettings).path) / MARKS_FILE
    forms = {"serve": (table, *table_head(settings, plan)), "companion": (marks, *marks_head(shape_of(settings, plan)))}
    yield from _room(forms)
    for process, (path, head, size) in forms.items():
        if not path.exists():
            yield CheckResult("host", SKIPPED, f"[overlay]: {process} has not made {path} yet")
        elif has_form(path, head, size):
            yield CheckResult("host", OK, f"[overlay]: {path} is that of these settings")
        else:
            yield CheckResult(
                "host",
                WARNING,
                f"[overlay]: {path} was made with other settings, or for another catalogue",
                f"restart {process} with this configuration",
            )


def _room(forms: dict[str, tuple[Path, NDArray[np.int64], int]]) -> Iterator[CheckResult]:
    """Yields an error if the files do not fit: serve and companion reserve them at their start."""
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for path, _, size in forms.values():
        folder = next(part for part in path.absolute().parents if part.exists())
        device = folder.stat().st_dev
        folders.setdefault(device, folder)
        # A file of another size is replaced by a new one, beside which it stands for a moment.
        has_size = path.exists() and path.stat().st_size == size
        needed[device] = needed.get(device, 0) + (0 if has_size else size)
    for device, folder in folders.items():
        free = shutil.disk_usage(folder).free
        size = -(-needed[device] // _MIB)
        if free < needed[device]:
            yield CheckResult(
                "host",
                ERROR,
                f"[overlay] takes {size} MiB from the start, and {folder} has {free // _MIB} MiB",
                "give it more room (--shm-size, sizeLimit), or lower payments_max and marks_max",
            )
        elif size:
            yield CheckResult("host", OK, f"[overlay]: {folder} has room for {size} MiB more")


def check_stream(source: Source) -> Iterator[CheckResult]:
    """Yields whether the newest changes of profiles name their payments, as the overlay needs it.

    Raises BrokerUnavailable, Misconfigured.
    """
    if not source.section("overlay", OverlaySettings).enabled:
        return
    newest = [record for record in _newest_changes(source) if record is not None]
    named = sum(any(name == PAYMENTS_HEADER for name, _ in record.headers or ()) for record in newest)
    if not newest:
        yield CheckResult(
            "kafka", SKIPPED, "[overlay]: no profile has changed of late, so the stream's setting does not show"
        )
    elif named:
        yield CheckResult("kafka", OK, "[overlay]: the stream names the payments that it adds to profiles")
    else:
        yield CheckResult(
            "kafka",
            WARNING,
            "[overlay]: the newest changes of profiles do not name their payments, so answers have the flag "
            "overlay_absent",
            "set [overlay] enabled = true for the stream, too, and restart it",
        )


def _newest_changes(source: Source) -> Iterator[Record | None]:
    """Yields the newest change of a profile in each partition of the changelog; None without a recent change."""
    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    topic = kafka.topic("profiles")
    partitions = partitions_of(kafka, "profiles")
    with closing(make_consumer(kafka, group_id="paywarden-doctor")) as consumer:
        for partition in partitions:
            first, end = watermarks(consumer, topic, partition)
            newest = None
            for records in records_between(consumer, topic, partition, range(max(first, end - _NEWEST_MAX), end)):
                changes = [
                    one for one in records if one.value is not None and one.key and not one.key.startswith(PREFIX)
                ]
                newest = changes[-1] if changes else newest
            yield newest
