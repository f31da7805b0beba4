"""List the models that decided lately, and how far the stream watches each.

It reads the counts of the stream. A head says which versions were seen, and when each was seen last. The tile of this
moment says in which binning the version was counted: that of its reference, or the grid for versions without a
reference (streams/drift/drift_counts.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paywarden.features.stores.base import ProfileStore
from paywarden.streams.drift.drift_counts import KEPT_MS, OTHER_VERSION, unknown_binning
from paywarden.streams.drift.drift_state import FIVE_MS, read_heads, read_tile


@dataclass(frozen=True)
class SeenModel:
    """A version as decisions name it ("VERSION/VARIANT" for hosts with a variant), and when it decided last.

    `has_reference`: the stream compares it with its bundle's reference. Otherwise the stream counts no features of it.
    """

    version: str
    newest_ms: int
    has_reference: bool

    @property
    def is_several(self) -> bool:
        """Whether it stands for all versions beyond `versions_max`."""
        return self.version == OTHER_VERSION


def models_seen(store: ProfileStore, partitions: Iterable[int]) -> list[SeenModel]:
    """Return the models that decided in the two days before the newest decision, by version. Raises StoreUnavailable.

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
            # The head does not name OTHER_VERSION, because it is no version.
            others = [cell.minute_ms for cell in cells if cell.model.version == OTHER_VERSION]
            if others:
                newest_ms[OTHER_VERSION] = max(newest_ms.get(OTHER_VERSION, 0), *others)
    return [SeenModel(version, newest_ms[version], version in referenced) for version in sorted(newest_ms)]
