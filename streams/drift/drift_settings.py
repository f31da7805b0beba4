"""Settings of drift detection: the sections [drift] and [drift_training]."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal


@dataclass(frozen=True)
class DriftSettings:
    """Settings for counting and saving decisions, and the references of their counts."""

    # Folders of the bundles whose models are watched. If empty, the bundles of [serve] are watched.
    bundles: tuple[str, ...] = ()
    # Folders of bundles. If decisions name a version of no known bundle, it is looked for there and in `bundles`.
    bundle_folders: tuple[str, ...] = ()
    # Files that `paywarden drift reference` made of live decisions. Each replaces its model's reference in the bundle.
    references: tuple[str, ...] = ()
    # Actions, flags and profile ages are learnt from live decisions; they are compared after this many whole days.
    learning_days: int = internal(7)
    # Counts are saved this often, or as soon as `save_decisions` decisions have been read.
    save_every_ms: int = internal(5000)
    save_decisions: int = internal(10_000)
    # How long a decision may take onto its topic. A block is complete this long after its end.
    grace_ms: int = 60_000
    # A decision dated further ahead of the clock is counted as `future` and nowhere else.
    future_ms_max: int = internal(60_000)
    # The most model versions counted apart at a time, in each partition. Later versions are counted together.
    versions_max: int = internal(4)


@dataclass(frozen=True)
class TrainingComparisonSettings:
    """Limits of a week's distance from the training window: the section [drift_training].

    Distances are PSI beyond the natural distance between weeks (models/drift/training_distance.py).
    """

    # Limits of an alert's severities: from `psi_info` on an alert is raised.
    psi_info: float = internal(0.1)
    psi_warning: float = 0.25
    psi_critical: float = 0.5
    # An alert needs at least this share of payments that would have to move to be distributed as in training; a warning
    # needs twice, a critical alert four times as many. For a number, twice as many must have passed one value.
    outside_min: float = internal(0.05)
    # A week with fewer payments of a subject says nothing.
    payments_min: int = internal(1000)
    # An open alert is sent again after this many days, then after twice as many, and so on, at most `reminders_max`
    # times.
    remind_days: int = internal(7)
    reminders_max: int = internal(4)

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not self.psi_info <= self.psi_warning <= self.psi_critical:
            raise Misconfigured(
                f"drift_training.psi_warning, psi_critical: wanted at least {self.psi_info:g}, rising, got "
                f"{self.psi_warning:g}, {self.psi_critical:g}"
            )
