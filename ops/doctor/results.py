"""The result of one check of `paywarden doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.settings import Source

OK, WARNING, ERROR, SKIPPED = "ok", "warning", "error", "skipped"
STATES = (OK, WARNING, ERROR, SKIPPED)


@dataclass(frozen=True)
class CheckResult:
    """The result of a check in an area such as "kafka". `fix`: the remedy; empty where nothing is wrong."""

    area: str
    state: str
    seen: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.seen}: {self.fix}" if self.fix else self.seen


Check = Callable[[Source], Iterable[CheckResult]]
"""Raises PaywardenError where it cannot go on; that is an error of its area, too."""


def results_of(area: str, checks: Iterable[Check], source: Source) -> Iterator[CheckResult]:
    """Yields the results of the checks of an area. A check that raises yields an error, and the next one goes on.

    A folder that this user may not even look into ends a check as well (OSError).
    """
    for check in checks:
        try:
            yield from check(source)
        except PaywardenError as error:
            yield CheckResult(area, ERROR, str(error))
        except OSError as error:
            yield CheckResult(
                area,
                ERROR,
                f"cannot look at {error.filename or 'a file'}: {error.strerror or error}",
                "run the doctor as the user of the processes, and give that user the right",
            )
