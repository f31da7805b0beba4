"""Settings of the join of outcomes and of the measures: the section [outcomes]."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal

# The longest window. Tallies are kept longer: a window of four weeks that ends with a final day must still be there.
_WINDOW_DAYS_MAX = 365


@dataclass(frozen=True)
class OutcomeSettings:
    """Days are UTC days of decisions, except where a setting is the time that an outcome takes."""

    # How long after its decision an outcome still counts: as long as chargebacks take.
    window_days: int = 90
    # After this many days labels are mature: a payment without an outcome counts as genuine. [training] has it, too.
    label_delay_days: int = 7
    # Records are processed and saved this often, or as soon as `save_records` records have been read.
    save_every_ms: int = internal(5000)
    save_records: int = internal(10_000)
    # The most versions and variants counted apart at a time, in each partition. Later ones are counted together.
    arms_max: int = internal(8)
    # The first days with mature labels are the reference for later days. It needs at least this many frauds.
    reference_days: int = internal(14)
    reference_frauds_min: int = internal(30)
    # Days are looked at together until they have this many frauds (for precision: this many flagged payments).
    frauds_min: int = internal(20)
    # The expected time between false alarms of one version and variant, in addition to those of [drift].
    false_alarm_days: float = internal(365.0)
    # The relative drop of precision, recall or average precision that may raise an alert, is a warning, is critical.
    drop_min: float = internal(0.1)
    drop_warning: float = 0.2
    drop_critical: float = 0.4

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if self.label_delay_days < 1:
            raise Misconfigured(f"[outcomes] label_delay_days: wanted at least 1, got {self.label_delay_days}")
        if not self.label_delay_days <= self.window_days <= _WINDOW_DAYS_MAX:
            raise Misconfigured(
                f"[outcomes] window_days: wanted label_delay_days to {_WINDOW_DAYS_MAX}, got {self.window_days}"
            )
        if not self.drop_min <= self.drop_warning <= self.drop_critical < 1:
            raise Misconfigured(
                f"[outcomes] drop_warning, drop_critical: wanted at least {self.drop_min:g}, rising, below 1"
            )
