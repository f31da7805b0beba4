"""Windows of a catalogue: their length, hop and delay. Also: the place in the catalogue's file, for error messages.

window_of("card_count_1d", "1d", "", "")       Window(length 1 day, hop 1 hour, no delay): tiles of age 0 to 24
window_of("fraud_7d", "7d", "7d", "1d")        Window(length 7 days, hop 1 day, delay 7 days): ages 8 to 14
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from types import CodeType

from paywarden.schemas.errors import Misconfigured

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
# A shorter window would be a rate limit. Beyond 90 days, sums of squares of a large merchant could overflow: only words
# for counts, amounts, extremes and frauds go on.
WINDOW_MS_MIN, WINDOW_MS_MAX, LONG_WINDOW_MS_MAX = MINUTE_MS, 90 * DAY_MS, 1095 * DAY_MS
# The window without end is one tile, from 1970 until after the last moment of any clock.
EVER = "ever"
EVER_HOP_MS = (1 << 60) // SECOND_MS * SECOND_MS
# Chargebacks take up to 90 days.
DELAY_MS_MAX = 90 * DAY_MS
# A table with more tiles would be larger than the payments it describes.
TILES_MAX = 4096

_UNITS_MS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
# The files of the language, where no catalogue is written. A dataclass's own __init__ has the file "<string>".
_FOLDER = Path(__file__).parent
_OWN_FILES = {str(_FOLDER / f"{name}.py") for name in ("attributes", "entity", "fields", "request", "windows")}
_OWN_FILES.update(map(str, _FOLDER.glob("entity_words/*.py")))
_OWN_FILES.add("<string>")


@dataclass(frozen=True)
class Window:
    """A sawtooth window: the tiles of age `newest_age` to `oldest_age`, in hops. The current tile has age 0."""

    length_ms: int
    hop_ms: int
    delay_ms: int

    @property
    def newest_age(self) -> int:
        return self.delay_ms // self.hop_ms + 1 if self.delay_ms else 0

    @property
    def is_ever(self) -> bool:
        return self.hop_ms == EVER_HOP_MS

    @property
    def oldest_age(self) -> int:
        return (self.delay_ms + self.length_ms) // self.hop_ms


def window_of(name: str, length: str, delay: str, hop: str, *, is_long: bool = False) -> Window:
    """Returns the window that texts such as "7d", "" and "1h" mean. An empty hop takes the default.

    `is_long` allows windows of up to three years, and "ever". Raises Misconfigured that names the feature `name` and
    its line.
    """
    if length == EVER and is_long and not delay:
        if hop:
            raise wrong(name, "the window 'ever' has no hop")
        # Just short of a hop, so that the tile of age 0 is the only one.
        return Window(EVER_HOP_MS - 1, EVER_HOP_MS, 0)
    most_ms = LONG_WINDOW_MS_MAX if is_long else WINDOW_MS_MAX
    if length == EVER:
        raise wrong(name, f"this word takes a window of at most {in_units(most_ms)}, got 'ever'")
    length_ms, delay_ms = duration_ms(name, length), _delay_ms(name, delay)
    if not WINDOW_MS_MIN <= length_ms <= most_ms:
        also = " or 'ever'" if is_long else ""
        raise wrong(name, f"the window {length!r} is not from {in_units(WINDOW_MS_MIN)} to {in_units(most_ms)}{also}")
    hop_ms = duration_ms(name, hop) if hop else _default_hop_ms(length_ms, delay_ms)
    if length_ms % hop_ms or delay_ms % hop_ms:
        delayed = f" and delay {delay!r}" if delay else ""
        raise wrong(name, f"window {length!r}{delayed} must be whole hops of {in_units(hop_ms)}")
    _check_hops(name, f"window {length!r}", length_ms + delay_ms, hop_ms)
    return Window(length_ms, hop_ms, delay_ms)


def recent_window(name: str, delay: str, hop: str) -> Window:
    """Returns the window of the tiles that a window with this delay leaves out: the last `delay`."""
    delay_ms, hop_ms = _delay_ms(name, delay), duration_ms(name, hop or "1d")
    _check_hops(name, f"delay {delay!r}", delay_ms, hop_ms)
    return Window(delay_ms, hop_ms, 0)


def _delay_ms(name: str, delay: str) -> int:
    delay_ms = duration_ms(name, delay) if delay else 0
    if delay_ms > DELAY_MS_MAX:
        raise wrong(name, f"the delay {delay!r} is over {in_units(DELAY_MS_MAX)}")
    return delay_ms


def _check_hops(name: str, spoken: str, length_ms: int, hop_ms: int) -> None:
    """Raises Misconfigured for a length that is not whole hops, or too many of them."""
    if length_ms % hop_ms:
        raise wrong(name, f"{spoken} must be whole hops of {in_units(hop_ms)}")
    if length_ms // hop_ms >= TILES_MAX:
        raise wrong(name, f"a hop of {in_units(hop_ms)} makes more than {TILES_MAX} tiles of {spoken}")


def _default_hop_ms(length_ms: int, delay_ms: int) -> int:
    """Returns a hop of at most a quarter of the window. Few hops are in use, so that features share their tiles.

    With a delay the hop is at least six hours, since the table must hold the tiles of the delay too.
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
    """Returns the milliseconds that a text such as "10m" means. Raises Misconfigured for any other form."""
    if not isinstance(text, str) or not re.fullmatch(r"[1-9][0-9]{0,3}[smhd]", text):
        raise wrong(name, f"{text!r} is not a duration such as 30s, 10m, 1h or 30d")
    return int(text[:-1]) * _UNITS_MS[text[-1]]


def in_units(duration_ms: int) -> str:
    """Returns a duration in its largest whole unit: "1d" for 86,400,000 ms; "ever" for EVER_HOP_MS."""
    if duration_ms == EVER_HOP_MS:
        return EVER
    unit = next(unit for unit in "dhms" if duration_ms % _UNITS_MS[unit] == 0)
    return f"{duration_ms // _UNITS_MS[unit]}{unit}"


def line_of_caller() -> str:
    """Returns the file, line and column of the nearest caller outside the language's own files: "catalogue.py:31:9"."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in _OWN_FILES and frame.f_back is not None:
        frame = frame.f_back
    columns = _columns(frame.f_code)
    column = columns[frame.f_lasti // 2] if 0 <= frame.f_lasti // 2 < len(columns) else 1
    return f"{PurePath(frame.f_code.co_filename).name}:{frame.f_lineno}:{column}"


@lru_cache(maxsize=4)
def _columns(code: CodeType) -> list[int]:
    """Returns the column of each instruction, from 1. A catalogue calls a word many times from one code."""
    return [1 if column is None else column + 1 for _, _, column, _ in code.co_positions()]


def wrong_at(line: str, what: str) -> Misconfigured:
    """Returns the error about a place in the catalogue's files."""
    return Misconfigured(f"feature catalogue, {line}: {what}")


def wrong(name: str, what: str) -> Misconfigured:
    """Returns the error about the feature `name`, with the place in the catalogue that is being read."""
    return wrong_at(line_of_caller(), f"{name!r}: {what}")
