"""The settings of the overlay (scoring/state/overlay), which replay and training follow, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal


@dataclass(frozen=True)
class OverlaySettings:
    """Answered payments that count before the stream has them. The same for serve, companion and stream."""

    # False: a payment sees the profiles in the mirror, and nothing later.
    enabled: bool = False
    path: str = "/dev/shm/paywarden/overlay" if Path("/dev/shm").is_dir() else ".paywarden/overlay"
    # How long an answered payment is pending at most: fifteen sixteenths of this to all of it. The stream has most of
    # them in their profiles within a second.
    lifetime_ms: int = 10_000
    # A row is used again after two lifetimes: 100,000 allow 5,000 payments a second on this host. About 0.4 KB each.
    payments_max: int = 100_000
    # The most pending payments that count in one profile: the newest. Each costs a third of a microsecond.
    events_max: int = internal(16)
    # Payments of all hosts within three lifetimes, 48 bytes each.
    marks_max: int = 1_000_000

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        limits = {"lifetime_ms": (100, 600_000), "payments_max": (64, 1 << 26), "marks_max": (64, 1 << 30)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise Misconfigured(f"[overlay] {name}: wanted {least} to {most}, got {getattr(self, name)}")

    @property
    def marks_keep_ms(self) -> int:
        """The lifetime of a mark. A payment may be on Kafka before it is answered, and clocks differ."""
        return 3 * self.lifetime_ms

    @property
    def doubt_ms(self) -> int:
        """The time in which nobody trusts the marks after a change whose payments are not named.

        A host may answer such a payment up to a lifetime after the change. The payment is pending for another lifetime.
        A payment that was made two lifetimes ago is therefore not pending any more.
        """
        return 2 * self.lifetime_ms
