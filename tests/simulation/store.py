"""A profile store that fails as real ones do: away, slow, an answer that is lost, a part that is written, a late write.

All processes share one store in memory (features/stores/memory.py). Each gets a view of its own, whose calls are seams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from paywarden.features.stores.base import ScanProgress, StoreConflict, StoreHealth, TtlS, Versioned
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import InvalidEvent, StoreUnavailable
from tests.simulation.world import World

# A payment's record may not be larger. The real limit is 1 MB; this one is reached by a few dozen changes of a label.
PAYMENT_BYTES_MAX = 700
# The client gives up a call after this.
_TIMEOUT_S = 5.0
KINDS = ("refused", "lost", "partial", "late", "slow")


@dataclass
class StoreState:
    """The present faults of the store. Until `flaky_until` a call fails with `flaky_share` in one of `kinds`."""

    away_until: float = 0.0
    hangs_until: float = 0.0
    flaky_until: float = 0.0
    flaky_share: float = 0.0
    kinds: tuple[str, ...] = KINDS

    def heal(self) -> None:
        self.away_until = self.hangs_until = self.flaky_until = 0.0


class SimulatedStore:
    """One process's view of the store."""

    def __init__(self, world: World, shared: MemoryStore, state: StoreState) -> None:
        self._world, self._shared, self._state = world, shared, state

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [value for value, _ in self.read_versioned(keys)]

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        if self._call(f"read {len(keys)}") not in ("", "slow"):
            raise StoreUnavailable("the store does not answer")
        return self._shared.read_versioned(keys)

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        for key, value in values.items():
            if key.startswith(b"payment:") and len(value) > PAYMENT_BYTES_MAX:
                raise InvalidEvent("a payment's record is too large")
        kind = self._call(f"write {len(values)}")
        if kind == "refused":
            raise StoreUnavailable("the store refuses")
        if kind == "late":
            self._world.after(self._world.random.random() * 3, lambda: self._late(dict(values), ttl_s, versions))
            raise StoreUnavailable("the store does not answer")
        if kind == "partial":
            keys = sorted(values)
            chosen = set(self._world.random.sample(keys, self._world.random.randrange(len(keys) + 1)))
            self._shared.write({k: v for k, v in values.items() if k in chosen}, ttl_s=ttl_s, versions=versions)
            raise StoreUnavailable("the store took a part")
        self._shared.write(values, ttl_s=ttl_s, versions=versions)
        self._world.seam("stored")
        if kind == "lost":
            raise StoreUnavailable("the store's answer is lost")

    def _late(self, values: Mapping[bytes, bytes], ttl_s: TtlS, versions: Mapping[bytes, int] | None) -> None:
        """Write each record, unless another process has written it meanwhile."""
        for key, value in values.items():
            try:
                self._shared.write({key: value}, ttl_s=ttl_s, versions=versions)
            except StoreConflict:
                continue

    def delete(self, keys: Sequence[bytes]) -> None:
        self._call("delete")
        self._shared.delete(keys)

    def scan(self, entity: str, *, progress: ScanProgress | None = None) -> Iterator[tuple[bytes, bytes]]:
        for index, pair in enumerate(self._shared.scan(entity, progress=progress)):
            if index % 8 == 0 and self._call("scan") not in ("", "slow"):
                raise StoreUnavailable("the scan was lost")
            yield pair

    def health(self) -> StoreHealth:
        return StoreHealth("away" if self._world.now < self._state.away_until else "")

    def close(self) -> None:
        """The others go on."""

    def _call(self, what: str) -> str:
        """Returns the kind of the fault that this call meets; empty for none. Raises StoreUnavailable."""
        world, state = self._world, self._state
        world.seam(f"store {what}")
        if world.now < state.away_until:
            world.pause(0.2)
            raise StoreUnavailable("the store is away")
        if world.now < state.hangs_until:
            # It took the question, and the client gives up at its own limit.
            world.pause(_TIMEOUT_S)
            raise StoreUnavailable("the store does not answer")
        if world.now >= state.flaky_until or world.random.random() >= state.flaky_share:
            return ""
        kind = world.random.choice(state.kinds)
        world.faults[f"store_{kind}"] += 1
        world.note(f"fault store {kind}")
        if kind == "slow":
            world.pause(world.random.random() * 2)
        return kind
