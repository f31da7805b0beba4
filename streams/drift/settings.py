"""How decisions are watched for drift: the section [drift]."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class DriftSettings:
    """What is counted of decisions, and how often it is saved."""

    # Folders of the bundles whose models are watched; empty takes those of [serve].
    bundles: tuple[str, ...] = ()
    # Files that `paywarden drift reference` made of live decisions: each in place of what its model's bundle has.
    references: tuple[str, ...] = ()
    # What only live decisions tell (actions, flags, profile ages) is held against the past after so many whole days.
    learning_days: int = 7
    # Counts are saved this often, or as soon as so many decisions have been read.
    save_every_ms: int = 2000
    save_decisions: int = 10_000
    # With so many decisions read and not saved no more are fetched.
    unsaved_max: int = 50_000
    # How long after it was made a decision may take onto its topic: blocks are complete so long after their end.
    grace_ms: int = 60_000
    # A decision dated further ahead of this clock than that is counted as such and nowhere else.
    future_ms_max: int = 60_000
    # Model versions counted apart at a time, in each partition; of more, all that come late are one.
    versions_max: int = 4

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not 2 <= self.learning_days <= 28:
            raise Misconfigured(f"drift.learning_days: wanted 2 to 28, got {self.learning_days}")
