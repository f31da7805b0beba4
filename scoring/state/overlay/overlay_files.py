"""The overlay's files: the table of answered payments, and the marks beside the mirror.

    /dev/shm/paywarden/overlay                 the table: `prepare` makes it, workers open it
    /dev/shm/paywarden/mirror/overlay-marks    the marks: the companion makes them, workers open them

overlay_table.py has the layout of both.
"""

from __future__ import annotations

import mmap
import os
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.plan import Plan
from paywarden.schemas.durability import boot_id
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import open_private, require_not_planted
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.shared_table import prepare_file

# "PWOVER" and the layout's version.
_MAGIC = int.from_bytes(b"PWOVER05", "little")
MARKS_MAGIC = int.from_bytes(b"PWMARK01", "little")
MARKS_FILE = "overlay-marks"
"""The file of the marks, in the mirror's folder."""
# A directory is sparsely filled: its slots are at most half in use.
_SLOTS_PER_ENTITY = 2
# Behind the sizes: a hash of the id of the boot.
_BOOT_AT = tables.BUCKETS_AT + 1


def monotonic_ms() -> int:
    """Returns the host's own clock, which all its processes share: milliseconds since its start."""
    return time.monotonic_ns() // 1_000_000


def shape_of(settings: OverlaySettings, plan: Plan) -> NDArray[np.int64]:
    """Returns the sizes of a table of this catalogue, as compiled code takes them."""
    entities = plan.entity_count
    shape = np.zeros(tables.SHAPE_COUNT, dtype=np.int64)
    shape[tables.SHAPE_ENTITIES], shape[tables.SHAPE_WIDTH] = entities, plan.row_width
    shape[tables.SHAPE_ROWS] = settings.payments_max
    slots = settings.payments_max * entities * _SLOTS_PER_ENTITY
    shape[tables.SHAPE_BUCKETS] = max(2, -(-slots // tables.BUCKET_SLOTS))
    shape[tables.SHAPE_MARK_BUCKETS] = max(2, -(-2 * settings.marks_max // tables.BUCKET_SLOTS))
    return shape


def prepare(settings: OverlaySettings, plan: Plan) -> None:
    """Create the table, unless one of this catalogue, size and boot exists. The parent calls it before any worker.

    A process that still has another table open keeps that one. A table on a disk outlives its host's clock: payments of
    another boot would be pending again when that time comes. Raises Misconfigured when the path cannot be used, or
    there is no room.
    """
    prepare_file(Path(settings.path), *table_head(settings, plan), f"overlay: cannot use {settings.path}")


def mapped(path: Path, head: NDArray[np.int64], size: int) -> NDArray[np.int64] | None:
    """Returns a file's content, shared; None if it is no such file. Raises OSError, Misconfigured."""
    require_not_planted(path)
    with os.fdopen(open_private(path, os.O_RDWR), "r+b") as file:
        if os.fstat(file.fileno()).st_size != size:
            return None
        found = np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.int64)
    return found if found[: len(head)].tobytes() == head.tobytes() else None


def marks_head(shape: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Returns how a file of marks begins, and its size in bytes."""
    head = np.array([MARKS_MAGIC, shape[tables.SHAPE_MARK_BUCKETS]], dtype=np.int64)
    return head, 8 * int(tables.MARK_HEAD_SIZE + shape[tables.SHAPE_MARK_BUCKETS] * tables.MARK_BUCKET_SIZE)


def table_head(settings: OverlaySettings, plan: Plan) -> tuple[NDArray[np.int64], int]:
    """Returns how a table of this catalogue begins, and its size in bytes."""
    shape = shape_of(settings, plan)
    head = np.zeros(_BOOT_AT + 1, dtype=np.int64)
    head[tables.MAGIC_AT], head[tables.DIGEST_AT] = _MAGIC, int(plan.digest[:15], 16)
    head[tables.ENTITIES_AT], head[tables.WIDTH_AT] = plan.entity_count, plan.row_width
    head[tables.ROWS_AT], head[tables.BUCKETS_AT] = shape[tables.SHAPE_ROWS], shape[tables.SHAPE_BUCKETS]
    head[_BOOT_AT] = int.from_bytes(sha256(boot_id().encode()).digest()[:7], "little")
    row = tables.row_size(plan.entity_count, plan.row_width)
    words = tables.HEAD_SIZE + int(shape[tables.SHAPE_BUCKETS]) * tables.BUCKET_SIZE + settings.payments_max * row
    return head, 8 * words


def open_table(settings: OverlaySettings, plan: Plan) -> NDArray[np.int64] | None:
    """Returns the host's table; None if it is missing, or of another catalogue or size."""
    try:
        return mapped(Path(settings.path), *table_head(settings, plan))
    except (OSError, Misconfigured):
        return None
