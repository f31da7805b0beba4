"""The record in the store that says how far a backfill has come.

This module is separate from the backfill, which imports pyarrow: erasing a card only asks whether a backfill has begun.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from paywarden.features.stores.base import ProfileStore, entity_of
from paywarden.streams.profiles.events import record_key
from paywarden.streams.profiles.progress.watermarks import PREFIX

# Progress keys on the changelog have the same prefix, but they end in a partition's number and are in no store.
PROGRESS_KEY = PREFIX + b"backfill"

PAYMENT_PHASE, FINISHED = entity_of(record_key("any")), "finished"


@dataclass(frozen=True)
class BackfillOrigin:
    """Determines everything a backfill writes. `digest` covers the history, its rates and the days that are kept."""

    payments: int
    first_time_ms: int
    last_time_ms: int
    digest: str
    catalogue: str


@dataclass(frozen=True)
class BackfillProgress:
    """The record in the store: `position` records of `phase` are written, and all records of the phases before it."""

    origin: BackfillOrigin
    phase: str
    position: int

    def encode(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


def read_progress(store: ProfileStore) -> BackfillProgress | None:
    """Returns how far the store's last backfill has come; None if there was none. Raises StoreUnavailable."""
    (value,) = store.read([PROGRESS_KEY])
    if value is None:
        return None
    try:
        fields = json.loads(value)
        return BackfillProgress(BackfillOrigin(**fields["origin"]), fields["phase"], fields["position"])
    except (ValueError, KeyError, TypeError, RecursionError):
        # Another release wrote it: this one must assume a backfill of another history.
        return None
