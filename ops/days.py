"""Days as the options of `train` and `replay` name them.

    --from 2026-10-01     that UTC day
    --from -14d           14 days before the last day of the data; -0d is the last day itself

The last day of two files is the day of their last payment. The last day of an archive is the newest `date=` folder of
its payments. The last day of topics is today.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.schemas.errors import Misconfigured

if TYPE_CHECKING:
    from paywarden.features.history.history import History
    from paywarden.ops.histories import HistoryAsked

_RELATIVE = re.compile(r"-([0-9]{1,5})d")


def day_option(option: str, text: str | None, asked: HistoryAsked | int) -> int | None:
    """Returns the UTC day number of an option's text; None without a text. Raises Misconfigured naming the option.

    `asked`: the history, or the day of its last payment.
    """
    from paywarden.models.metrics.evaluation import day_of_date

    if text is None:
        return None
    relative = _RELATIVE.fullmatch(text)
    if relative is not None:
        return (asked if isinstance(asked, int) else _last_day(asked)) - int(relative[1])
    try:
        return day_of_date(text)
    except Misconfigured:
        raise Misconfigured(
            f"{option}: wanted a date such as 2026-10-01, or -14d for 14 days before the data's last, got {text!r}"
        ) from None


def require_within(history: History, first: tuple[str, int | None], last: tuple[str, int | None]) -> None:
    """Refuse a first day after the data's last, and a last day before the data's first.

    `first` and `last` are an option's name and its day. The history holds at least one payment. Raises Misconfigured.
    """
    from paywarden.models.metrics.evaluation import DAY_MS, date_of_day

    data_first, data_last = (int(history.event_time_ms[row] // DAY_MS) for row in (0, -1))
    option, day = first
    if day is not None and day > data_last:
        raise Misconfigured(f"{option} {date_of_day(day)}: the data ends on {date_of_day(data_last)}")
    option, day = last
    if day is not None and day < data_first:
        raise Misconfigured(f"{option} {date_of_day(day)}: the data starts on {date_of_day(data_first)}")


def _last_day(asked: HistoryAsked) -> int:
    from paywarden.features.history.history import last_event_time_ms
    from paywarden.models.metrics.evaluation import DAY_MS, day_of_date
    from paywarden.ops.times import now_ms

    if asked.data is None:
        return now_ms() // DAY_MS
    if asked.is_archive:
        dates = sorted(folder.name for folder in (Path(asked.data) / "payments").glob("date=*"))
        if not dates:
            raise Misconfigured(f"{asked.data} holds no payments: no day can be counted back from its last")
        return day_of_date(dates[-1].removeprefix("date="))
    return last_event_time_ms(asked.data) // DAY_MS
