"""Windows of a catalogue: how long, in which hops, how far back; and where in the catalogue something is wrong."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import PurePath

from paywarden.schemas.errors import Misconfigured

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
# Shorter ones are rate limits, longer ones are other features (the first payment is never forgotten).
WINDOW_MS_MIN, WINDOW_MS_MAX = MINUTE_MS, 90 * DAY_MS
# Chargebacks take up to 90 days.
DELAY_MS_MAX = 90 * DAY_MS
# A table of more tiles than this is larger than what it describes.
TILES_MAX = 4096

_UNITS_MS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_OWN_FILES = ("entity.py", "attributes.py", "windows.py", "<string>")


@dataclass(frozen=True)
class Window:
    """A sawtooth window in whole hops: tiles of age `newest_age` to `oldest_age`, the current tile being 0."""

    length_ms: int
    hop_ms: int
    delay_ms: int

    @property
    def newest_age(self) -> int:
        return self.delay_ms // self.hop_ms + 1 if self.delay_ms else 0

    @property
    def oldest_age(self) -> int:
        return (self.delay_ms + self.length_ms) // self.hop_ms


def window_of(name: str, length: str, delay: str, hop: str) -> Window:
    length_ms, delay_ms = duration_ms(name, length), duration_ms(name, delay) if delay else 0
    if not WINDOW_MS_MIN <= length_ms <= WINDOW_MS_MAX:
        raise wrong(name, f"the window {length!r} is not from {in_units(WINDOW_MS_MIN)} to {in_units(WINDOW_MS_MAX)}")
    if delay_ms > DELAY_MS_MAX:
        raise wrong(name, f"the delay {delay!r} is over {in_units(DELAY_MS_MAX)}")
    hop_ms = duration_ms(name, hop) if hop else _default_hop_ms(length_ms, delay_ms)
    if length_ms % hop_ms or delay_ms % hop_ms:
        delayed = f" and delay {delay!r}" if delay else ""
        raise wrong(name, f"window {length!r}{delayed} must be whole hops of {in_units(hop_ms)}")
    if (length_ms + delay_ms) // hop_ms >= TILES_MAX:
        raise wrong(name, f"a hop of {in_units(hop_ms)} makes more than {TILES_MAX} tiles of window {length!r}")
    return Window(length_ms, hop_ms, delay_ms)


def _default_hop_ms(length_ms: int, delay_ms: int) -> int:
    """At most a quarter of the window, of few distinct hops, so that features share their tiles.

    With a delay never under six hours: a table reaches over the delay too.
    """
    if delay_ms:
        return 6 * HOUR_MS if length_ms <= 7 * DAY_MS else DAY_MS
    hops = (15 * SECOND_MS, MINUTE_MS, HOUR_MS, 6 * HOUR_MS, DAY_MS)
    limits = (4 * MINUTE_MS, 4 * HOUR_MS, DAY_MS + 1, 4 * DAY_MS)
    for hop_ms, limit_ms in zip(hops, limits, strict=False):
        if length_ms < limit_ms:
            return hop_ms
    return hops[-1]


def duration_ms(name: str, text: str) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"[1-9][0-9]{0,3}[smhd]", text):
        raise wrong(name, f"{text!r} is not a duration such as 30s, 10m, 1h or 30d")
    return int(text[:-1]) * _UNITS_MS[text[-1]]


def in_units(duration_ms: int) -> str:
    unit = next(unit for unit in "dhms" if duration_ms % _UNITS_MS[unit] == 0)
    return f"{duration_ms // _UNITS_MS[unit]}{unit}"


def line_of_caller() -> str:
    """Where the catalogue says what is being declared: the nearest caller outside the language's own files."""
    frame = sys._getframe(1)
    # A dataclass's own __init__ has no file.
    while PurePath(frame.f_code.co_filename).name in _OWN_FILES and frame.f_back is not None:
        frame = frame.f_back
    return f"{PurePath(frame.f_code.co_filename).name}:{frame.f_lineno}"


def wrong_at(line: str, what: str) -> Misconfigured:
    return Misconfigured(f"feature catalogue, {line}: {what}")


def wrong(name: str, what: str) -> Misconfigured:
    return wrong_at(line_of_caller(), f"{name!r}: {what}")
