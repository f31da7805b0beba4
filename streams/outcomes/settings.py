"""Settings of the join of outcomes and of the measures: the section [outcomes]."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured

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
    save_every_ms: int = 5000
    save_records: int = 10_000
    # The most versions and variants counted apart at a time, in each partition. Later ones are counted together.
    arms_max: int = 8
    # The first days with mature labels are the reference for later days. It needs at least this many frauds.
    reference_days: int = 14
    reference_frauds_min: int = 30
    # Days are looked at together until they have this many frauds (for precision: this many flagged payments).
    frauds_min: int = 20
    # The expected time between false alarms of one version and variant, in addition to those of [drift].
    false_alarm_days: float = 365.0
    # The relative drop of precision, recall or average precision that may raise an alert, is a warning, is critical.
    drop_min: float = 0.1
    drop_warning: float = 0.2
    drop_critical: float = 0.4

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        for name in (
            "label_delay_days", "save_every_ms", "save_records", "arms_max", "reference_days", "reference_frauds_min",
            "frauds_min",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise Misconfigured(f"[outcomes] {name}: wanted at least 1, got {getattr(self, name)}")
        if not self.label_delay_days <= self.window_days <= _WINDOW_DAYS_MAX:
            raise Misconfigured(
                f"[outcomes] window_days: wanted label_delay_days to {_WINDOW_DAYS_MAX}, got {self.window_days}"
            )
        if not self.false_alarm_days > 0:
            raise Misconfigured(f"[outcomes] false_alarm_days: wanted more than 0, got {self.false_alarm_days:g}")
        if not 0 < self.drop_min <= self.drop_warning <= self.drop_critical < 1:
            raise Misconfigured("[outcomes] drop_min, drop_warning, drop_critical: wanted above 0, rising, below 1")
