"""Numbers and times in columns of text, in compiled code.

A decimal number becomes a whole number of units of its last digit, exactly: "12.34" with 2 digits is 1234, and never
1233 as a float may say. A time becomes milliseconds of its own clock, and the offset that it names.

    time format      "%d/%m/%Y %H:%M"       steps: day / month / year blank hour : minute
    ISO 8601         2026-05-01T12:00:00.250+02:00, 2026-05-01 12:00, 20260501T120000Z, 2026-05-01
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.jit import compiled, inlined

# These say why a text cannot be read. A missing one has status RIGHT and counts for nothing.
RIGHT, NO_NUMBER, TOO_FINE, TOO_LARGE, NO_TIME = 0, 1, 2, 3, 4
# The offset of a time that names none.
NO_OFFSET = -(2**31)
# Digits of a fraction of a second.
_DIGITS_MAX = 18
# The largest number that can take one more digit: ten times this and nine fits 63 bits.
_BEFORE_MAX = (2**63 - 10) // 10
_LITERAL = 256
# English names, whatever the language of the machine.
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH_NAMES = np.array([[ord(letter) for letter in name[:3]] for name in _MONTHS], np.int64)
_FULL_SIZES = np.array([len(name) for name in _MONTHS], np.int64)
_FULL_NAMES = np.array([[ord(letter) for letter in name.ljust(9)] for name in _MONTHS], np.int64)


def steps_of_format(form: str) -> NDArray[np.int64]:
    """Returns a format as steps: a directive's letter, or 256 + the byte that must stand there."""
    steps: list[int] = []
    place = 0
    while place < len(form):
        if form[place] == "%" and form[place + 1] == "T":
            steps += [ord("H"), _LITERAL + ord(":"), ord("M"), _LITERAL + ord(":"), ord("S")]
        elif form[place] == "%" and form[place + 1] != "%":
            steps.append(ord(form[place + 1]))
        else:
            place -= form[place] != "%"
            steps += [_LITERAL + byte for byte in form[place + 1].encode()]
        place += 2
    return np.array(steps, dtype=np.int64)


@compiled(releases_gil=True)
def read_decimals(
    content: NDArray[np.uint8],
    offsets: NDArray[np.int32],
    digits: NDArray[np.int8],
    point: int,
    thousands: int,
    rounds: bool,
    values: NDArray[np.int64],
    status: NDArray[np.int8],
) -> None:
    """Read texts such as -1,234.50 as whole numbers of units of digit `digits` after the point.

    `thousands` is -1 if no byte stands between thousands. Three digits follow the last of these bytes, and two or three
    each other (1,00,000 in India): where the point is a comma, 12.50 is no number rather than 1250. No thousands are
    counted from 0: there, 0.855 is no number rather than 855. Digits beyond are refused unless they are 0, or with
    `rounds` rounded half to even. An empty text is 0.
    """
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        values[row], status[row] = 0, RIGHT
        if at == end:
            continue
        is_negative = content[at] == 45
        if is_negative or content[at] == 43:
            at += 1
        value, wanted, seen = np.int64(0), np.int64(digits[row]), 0
        is_fraction, fraction = False, np.int64(0)
        # Digits behind the last byte between thousands, -1 before the first.
        group = -1
        # The part that is cut off: 0 nothing, 1 less than half, 2 half, 3 more.
        cut = 0
        state = RIGHT
        while at < end:
            byte = content[at]
            if byte == point and not is_fraction:
                if group >= 0 and group != 3:
                    state = NO_NUMBER
                    break
                is_fraction = True
            elif 48 <= byte <= 57:
                digit = np.int64(byte) - 48
                seen += 1
                if is_fraction and fraction >= wanted:
                    if fraction == wanted:
                        cut = 0 if digit == 0 else 1 if digit < 5 else 2 if digit == 5 else 3
                    elif digit and (cut == 0 or cut == 2):
                        cut += 1
                    fraction += 1
                else:
                    if value > _BEFORE_MAX:
                        state = TOO_LARGE
                        break
                    value = 10 * value + digit
                    fraction += is_fraction
                    group += group >= 0 and not is_fraction
            elif byte != thousands or is_fraction or (not 2 <= group <= 3 if group >= 0 else seen > 3 or value == 0):
                state = NO_NUMBER
                break
            else:
                group = 0
            at += 1
        if state == RIGHT and (not seen or (not is_fraction and group >= 0 and group != 3)):
            state = NO_NUMBER
        if state == RIGHT:
            missing = wanted - min(fraction, wanted)
            for _ in range(missing):
                if value > _BEFORE_MAX:
                    state = TOO_LARGE
                    break
                value *= 10
        if state == RIGHT and cut:
            if not rounds:
                state = TOO_FINE
            elif cut == 3 or (cut == 2 and value & 1):
                value += 1
        values[row], status[row] = -value if is_negative else value, state


@inlined
def _days_from_civil(year: int, month: int, day: int) -> int:
    """Returns the days since 1970 of a date (H. Hinnant, "chrono-compatible low-level date algorithms")."""
    years = year - 1 if month <= 2 else year
    era = years // 400
    year_of_era = years - era * 400
    day_of_year = (153 * (month + (9 if month <= 2 else -3)) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


@inlined
def _days_in_month(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


@inlined
def _digits_at(content: NDArray[np.uint8], at: int, end: int) -> int:
    """Returns how many digits stand from `at` on."""
    count = 0
    while at + count < end and 48 <= content[at + count] <= 57:
        count += 1
    return count


@inlined
def _number(content: NDArray[np.uint8], at: int, count: int) -> int:
    value = np.int64(0)
    for place in range(at, at + count):
        value = 10 * value + np.int64(content[place]) - 48
    return int(value)


@compiled()
def _offset_at(content: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """Returns (minutes, where it ends) of Z, +02, +0200 or +02:00; (NO_OFFSET, -1) for anything else."""
    if at < end and (content[at] == 90 or content[at] == 122):
        return 0, at + 1
    if at + 3 > end or (content[at] != 43 and content[at] != 45) or _digits_at(content, at + 1, at + 3) != 2:
        return NO_OFFSET, -1
    sign = -1 if content[at] == 45 else 1
    minutes = 60 * _number(content, at + 1, 2)
    at += 3
    rest = at + 1 if at < end and content[at] == 58 else at
    if _digits_at(content, rest, min(end, rest + 2)) == 2:
        if _number(content, rest, 2) > 59:
            return NO_OFFSET, -1
        minutes += _number(content, rest, 2)
        at = rest + 2
    return (sign * minutes, at) if minutes < 1440 else (NO_OFFSET, -1)


@compiled()
def _month_at(content: NDArray[np.uint8], at: int, end: int, is_full: bool) -> tuple[int, int]:
    """Returns (month, where its English name ends), (0, -1) if none stands there."""
    for month in range(12):
        size = _FULL_SIZES[month] if is_full else 3
        if at + size > end:
            continue
        is_same = True
        for place in range(size):
            letter = np.int64(content[at + place]) | 32
            if letter != (_FULL_NAMES[month, place] if is_full else _MONTH_NAMES[month, place]):
                is_same = False
                break
        if is_same:
            return month + 1, at + size
    return 0, -1


@compiled(releases_gil=True)
def read_times(
    content: NDArray[np.uint8],
    offsets: NDArray[np.int32],
    steps: NDArray[np.int64],
    local_ms: NDArray[np.int64],
    offset_minutes: NDArray[np.int64],
    status: NDArray[np.int8],
) -> None:
    """Read times by the steps of a format; without steps they are ISO 8601.

    A row gets the milliseconds of its own clock since 1970-01-01 00:00, smaller units cut off, and the offset that
    the text names, else NO_OFFSET. An empty text is 0.
    """
    for row in range(len(offsets) - 1):
        at, end = int(offsets[row]), int(offsets[row + 1])
        local_ms[row], offset_minutes[row], status[row] = 0, NO_OFFSET, RIGHT
        if at == end:
            continue
        year, month, day, hour, minute, second, ms = -1, 1, 1, 0, 0, 0, 0
        day_of_year, afternoon, offset = 0, -1, NO_OFFSET
        is_right = True
        if len(steps) == 0:
            count = _digits_at(content, at, end)
            if (
                count == 4
                and at + 10 <= end
                and content[at + 4] == 45
                and content[at + 7] == 45
                and _digits_at(content, at + 5, at + 7) == 2
                and _digits_at(content, at + 8, at + 10) == 2
            ):
                year, month, day = _number(content, at, 4), _number(content, at + 5, 2), _number(content, at + 8, 2)
                at += 10
            elif count == 8:
                year, month, day = _number(content, at, 4), _number(content, at + 4, 2), _number(content, at + 6, 2)
                at += 8
            else:
                is_right = False
            if is_right and at < end:
                is_right = content[at] == 84 or content[at] == 116 or content[at] == 32
                at += 1
                count = _digits_at(content, at, min(end, at + 7))
                if count == 2:
                    hour = _number(content, at, 2)
                    at += 2
                    if at < end and content[at] == 58:
                        is_right &= _digits_at(content, at + 1, min(end, at + 3)) == 2
                        minute = _number(content, at + 1, 2) if is_right else 0
                        at += 3
                        if at < end and content[at] == 58:
                            is_right &= _digits_at(content, at + 1, min(end, at + 3)) == 2
                            second = _number(content, at + 1, 2) if is_right else 0
                            at += 3
                    else:
                        is_right = False
                elif count == 4 or count == 6:
                    hour, minute = _number(content, at, 2), _number(content, at + 2, 2)
                    second = _number(content, at + 4, 2) if count == 6 else 0
                    at += count
                else:
                    is_right = False
                if is_right and at < end and (content[at] == 46 or content[at] == 44):
                    count = _digits_at(content, at + 1, end)
                    is_right = 1 <= count <= _DIGITS_MAX
                    for place in range(3):
                        ms = 10 * ms + (int(content[at + 1 + place]) - 48 if place < count else 0)
                    at += 1 + count
                if is_right and at < end and content[at] == 32 and at + 1 < end:
                    at += 1
                if is_right and at < end:
                    offset, at = _offset_at(content, at, end)
                    is_right = at == end
        else:
            for step in steps:
                if step >= _LITERAL:
                    if at >= end or content[at] != step - _LITERAL:
                        is_right = False
                        break
                    at += 1
                elif step == 98 or step == 66:  # b B
                    month, at = _month_at(content, at, end, step == 66)
                elif step == 112:  # p
                    if at + 2 > end or np.int64(content[at + 1]) | 32 != 109:
                        is_right = False
                        break
                    letter = np.int64(content[at]) | 32
                    afternoon = 1 if letter == 112 else 0 if letter == 97 else -2
                    at += 2
                elif step == 122:  # z
                    offset, at = _offset_at(content, at, end)
                else:
                    most = 4 if step == 89 else 9 if step == 102 else 3 if step == 106 else 2  # Y f j
                    count = _digits_at(content, at, min(end, at + most))
                    if count == 0 or (step == 89 and count != 4):
                        is_right = False
                        break
                    value = _number(content, at, count)
                    at += count
                    if step == 89:
                        year = value
                    elif step == 121:  # y, as POSIX reads it
                        year = value + (2000 if value < 69 else 1900)
                        is_right &= count == 2
                    elif step == 109:  # m
                        month = value
                    elif step == 100:  # d
                        day = value
                    elif step == 72:  # H
                        hour = value
                    elif step == 73:  # I
                        hour = value
                        is_right &= 1 <= value <= 12
                    elif step == 77:  # M
                        minute = value
                    elif step == 83:  # S
                        second = value
                    elif step == 106:  # j
                        day_of_year = value
                        is_right &= value >= 1
                    else:  # f
                        for _ in range(count, 3):
                            value *= 10
                        for _ in range(3, count):
                            value //= 10
                        ms = value
                if at < 0 or afternoon == -2:
                    is_right = False
                    break
            is_right &= at == end
            if afternoon >= 0:
                hour = hour % 12 + 12 * afternoon
        # A leap second is the second after it, as in POSIX.
        is_right &= 1 <= month <= 12 and year >= 1900 and hour <= 23 and minute <= 59 and second <= 60
        if is_right:
            is_right = 1 <= day <= _days_in_month(year, month)
        if not is_right:
            status[row] = NO_TIME
            continue
        days = _days_from_civil(year, month, day)
        if day_of_year:
            days = _days_from_civil(year, 1, 1) + day_of_year - 1
            if days >= _days_from_civil(year + 1, 1, 1):
                status[row] = NO_TIME
                continue
        local_ms[row] = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms
        offset_minutes[row] = offset
