"""How far a backfill has come: the record of it in the store.

It stands apart from the backfill, which imports pyarrow: who erases a card only asks whether one has begun.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from paywarden.features.stores.base import ProfileStore, entity_of
from paywarden.streams.profiles.events import record_key
from paywarden.streams.profiles.watermarks import PREFIX

# Beside the keys that progress has on the changelog, which end in a partition's number and are in no store.
PROGRESS_KEY = PREFIX + b"backfill"

PAYMENT_PHASE, FINISHED = entity_of(record_key("any")), "finished"


@dataclass(frozen=True)
class Origin:
    """What a backfill writes follows from this alone. `digest` covers the history, its rates and what is kept of it."""

    payments: int
    first_time_ms: int
    last_time_ms: int
    digest: str
    catalogue: str


@dataclass(frozen=True)
class BackfillProgress:
    """The record in the store: so many records of `phase`, in its order, and all of the phases before are written."""

    origin: Origin
    phase: str
    position: int

    def encode(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


def read_progress(store: ProfileStore) -> BackfillProgress | None:
    """How far the store's last backfill has come; None when there was none. Raises StoreUnavailable."""
    (value,) = store.read([PROGRESS_KEY])
    if value is None:
        return None
    try:
        fields = json.loads(value)
        return BackfillProgress(Origin(**fields["origin"]), fields["phase"], fields["position"])
    except (ValueError, KeyError, TypeError):
        # Written by another release: of something else, as far as this one can tell.
        return None
