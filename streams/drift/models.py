"""Which models decided of late, and how far the stream watches each: read from what it has counted.

A head says which versions were seen, and when each was seen last. The tile of that time says in which binning the
version was counted: in that of its reference, or in the grid of versions without one (streams/drift/counts.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paywarden.features.stores.base import ProfileStore
from paywarden.streams.drift.counts import KEPT_MS, OTHER_VERSION, unknown_binning
from paywarden.streams.drift.state import FIVE_MS, read_heads, read_tile


@dataclass(frozen=True)
class SeenModel:
    """A version as decisions name it ("VERSION/VARIANT" of hosts with a variant), and when it decided last.

    `has_reference`: the stream holds it against its bundle's reference. Without, the stream counts no features of it.
    """

    version: str
    newest_ms: int
    has_reference: bool

    @property
    def is_several(self) -> bool:
        """Whether it stands for all versions beyond `[drift] versions_max`."""
        return self.version == OTHER_VERSION


def models_seen(store: ProfileStore, partitions: Iterable[int]) -> list[SeenModel]:
    """Those that decided in the two days before the newest decision, by version. Raises StoreUnavailable.

    `store` belongs to no profile set.
    """
    grid = unknown_binning().digest_text
    newest_ms: dict[str, int] = {}
    referenced: set[str] = set()
    heads = read_heads(store, partitions)
    since_ms = max((head.progress.newest_ms for head in heads.values()), default=0) - KEPT_MS
    for partition, head in heads.items():
        for version, seen_ms in head.progress.versions.items():
            if seen_ms < since_ms:
                continue
            newest_ms[version] = max(newest_ms.get(version, 0), seen_ms)
            cells = [cell for part in read_tile(store, partition, head, seen_ms - seen_ms % FIVE_MS) for cell in part]
            if any(cell.model.version == version and cell.model.binning != grid for cell in cells):
                referenced.add(version)
            # No version of its own, so the head does not name it.
            others = [cell.minute_ms for cell in cells if cell.model.version == OTHER_VERSION]
            if others:
                newest_ms[OTHER_VERSION] = max(newest_ms.get(OTHER_VERSION, 0), *others)
    return [SeenModel(version, newest_ms[version], version in referenced) for version in sorted(newest_ms)]
