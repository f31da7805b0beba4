"""Stop the worker when too large a share of records becomes dead letters.

window 1000, share 0.2    60 of the last 250 records refused    stop: 60 ≥ 50, and 24 % > 20 %
window 1000, share 0.2    40 of the last  60 records refused    go on: fewer than 50 are single records
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from paywarden.schemas.errors import Misconfigured

# Fewer refusals than this count as single bad records, even at a large share in a quiet hour.
COUNT_MIN = 50


class RefusalLimit:
    """Counts records and refusals over a sliding window of at least `window` records."""

    def __init__(self, window: int, share_max: float, what: str = "records") -> None:
        """`what` names the counted records, in the plural."""
        self._window, self._share_max, self._what = window, share_max, what
        self._batches: deque[tuple[int, int]] = deque()
        self._records = self._refused = 0

    def note(self, records: int, refused: int, reasons: Iterable[str] = ()) -> None:
        """Count a decoded batch, before anything of it is committed. `reasons`: why records of it were refused.

        Raises Misconfigured when more than the allowed share is refused. Otherwise the whole topic would drain into the
        dead letters, because its writers changed the format or this release is too old to read it.
        """
        self._batches.append((records, refused))
        self._records += records
        self._refused += refused
        while self._records - self._batches[0][0] >= self._window:
            oldest_records, oldest_refused = self._batches.popleft()
            self._records -= oldest_records
            self._refused -= oldest_refused
        if self._refused >= COUNT_MIN and self._refused > self._share_max * self._records:
            raise Misconfigured(
                f"{self._refused} of the last {self._records} {self._what} cannot be used, more than the share of "
                f"{self._share_max:g} that [stream] dead_letter_share_max allows{_commonest(reasons)}: nothing of this "
                "batch is committed"
            )


def _commonest(reasons: Iterable[str]) -> str:
    """Returns the field that most reasons name, with one of them. Such a reason holds nothing of a record's text."""
    of_fields: dict[str, list[str]] = {}
    for reason in reasons:
        field, _, problem = reason.partition(": ")
        if field.isidentifier() and "; wanted " in problem:
            of_fields.setdefault(field, []).append(reason)
    if not of_fields:
        return ""
    most = max(of_fields.values(), key=len)
    return f", {len(most)} of them in this batch such as `{most[0]}`"
