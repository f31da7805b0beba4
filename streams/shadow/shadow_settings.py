"""The settings `[shadow]`: which challengers there are, and how much of the host they may use."""

from __future__ import annotations

import re
from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ConfiguredChallenger:
    """One of `[[shadow.challengers]]`. At least one of bundle, policy and config.

    Without a bundle it is a policy alone, for the bundle that is served. Without a policy it has that of `[policy]`.
    With a config it is a shadow host: catalogue, mirror, bundle and policy come from that configuration file.
    """

    name: str
    bundle: str = ""
    # A file with a section [policy].
    policy: str = ""
    # A configuration file with a catalogue and a mirror of its own.
    config: str = ""


@dataclass(frozen=True)
class ShadowSettings:
    """Challengers, each in a process of its own."""

    # Challengers, [[shadow.challengers]] each.
    challengers: tuple[ConfiguredChallenger, ...] = ()
    # Decisions of one worker that may wait for a challenger: about 300,000. It leaves out the older half of more.
    waiting_bytes_max: int = internal(256 * 1024 * 1024)
    # The most of one core that a challenger may use.
    cpu_share_max: float = 0.5
    # "idle": the time that all others leave, by the kernel's class SCHED_IDLE, and a small share of a core while more
    # than a sixteenth of `waiting_bytes_max` waits; "low": nice 10; "normal".
    priority: str = internal("idle")
    # Decisions are evaluated together, this far apart: fewer, larger batches cost less.
    batch_wait_ms: int = internal(100)
    # The most decisions in a batch.
    batch_max: int = internal(2000)
    # How records are compressed: none, gzip, snappy, lz4 or zstd. With gzip they take nearly half more CPU time.
    compression: str = internal("lz4")
    # A challenger that says nothing for this long is ended and started again.
    hang_timeout_s: int = internal(60)
    # The address of /livez, /readyz and /metrics. Port 0 takes a free port; the first line on stdout tells it.
    http_host: str = "127.0.0.1"
    http_port: int = 0

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting."""
        names = [challenger.name for challenger in self.challengers]
        for challenger in self.challengers:
            if _NAME.fullmatch(challenger.name) is None:
                raise Misconfigured(
                    "[shadow] challengers: wanted a name of at most 64 of a to z, 0 to 9, dot, dash and _, "
                    f"got {challenger.name!r}"
                )
            if names.count(challenger.name) > 1:
                raise Misconfigured(f"[shadow] challengers: two have the name {challenger.name!r}")
            if not (challenger.bundle or challenger.policy or challenger.config):
                raise Misconfigured(f'[shadow] challengers "{challenger.name}": wanted a bundle, a policy or a config')
        if not 0 < self.cpu_share_max <= 1:
            raise Misconfigured(f"[shadow] cpu_share_max: wanted above 0 and at most 1, got {self.cpu_share_max:g}")

    def challenger(self, name: str) -> ConfiguredChallenger | None:
        """Returns a challenger by its name; None if the settings have none."""
        return next((challenger for challenger in self.challengers if challenger.name == name), None)
