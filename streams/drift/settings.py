"""How decisions are watched for drift: the section [drift]."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class DriftSettings:
    """How decisions are counted and saved, and the references their counts are compared with."""

    # Folders of the bundles whose models are watched. If empty, the bundles of [serve] are watched.
    bundles: tuple[str, ...] = ()
    # Files that `paywarden drift reference` made of live decisions. Each replaces its model's reference in the bundle.
    references: tuple[str, ...] = ()
    # Actions, flags and profile ages are learnt from live decisions; they are compared after this many whole days.
    learning_days: int = 7
    # Counts are saved this often, or as soon as `save_decisions` decisions have been read.
    save_every_ms: int = 2000
    save_decisions: int = 10_000
    # With this many decisions read and not saved, no more are fetched.
    unsaved_max: int = 50_000
    # How long a decision may take onto its topic. A block is complete this long after its end.
    grace_ms: int = 60_000
    # A decision dated further ahead of the clock is counted as `future` and nowhere else.
    future_ms_max: int = 60_000
    # The most model versions counted apart at a time, in each partition. Later versions are counted together.
    versions_max: int = 4

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not 2 <= self.learning_days <= 28:
            raise Misconfigured(f"drift.learning_days: wanted 2 to 28, got {self.learning_days}")
