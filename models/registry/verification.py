"""Look for anything that was changed in a log, removed from it or moved in it."""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.models.registry.entries import FIRST, Entry
from paywarden.models.registry.log import RegistryLog, log_of
from paywarden.models.registry.people import People
from paywarden.schemas.errors import RegistryRefused


def problems_of(
    content: bytes,
    people: People,
    *,
    heads: Sequence[str] = (),
    elsewhere: Sequence[Entry] = (),
    where: str = "the log",
) -> list[str]:
    """Returns everything that is wrong with the bytes of a log; empty if every byte is as it was written.

    `heads`: heads that somebody remembers; they must be in the log. `elsewhere`: the entries of another copy, which
    must all be in the log. Without both nobody can tell whether entries were cut off at the end. An entry that breaks
    a rule is no damage: `state_of` ignores it and says why.
    """
    try:
        log = log_of(content, where)
        log.check_signatures(people)
    except RegistryRefused as error:
        return [str(error)]
    found = [
        f"{where}, line {number}: the key {entry.key} belongs to nobody in the file of people: it cannot be checked"
        for number, entry in enumerate(log.entries, 1)
        if people.owner(entry.key) is None
    ]
    if log.torn_bytes:
        found.append(
            f"{where} ends with {log.torn_bytes} bytes of an unfinished entry: "
            "its writer was killed, or the file was cut"
        )
    if not log.is_ended:
        found.append(f"{where} lacks the end of its last line: its writer was killed, or the file was cut")
    return found + _missing(log, heads, elsewhere, where)


def _missing(log: RegistryLog, heads: Sequence[str], elsewhere: Sequence[Entry], where: str) -> list[str]:
    known = {FIRST, *(entry.digest for entry in log.entries)}
    found = [
        f"{where} lacks the remembered head {head}: entries were cut off, or it is another log"
        for head in dict.fromkeys(heads)
        if head not in known
    ]
    absent = [entry for entry in elsewhere if entry.digest not in known]
    if absent:
        found.append(
            f"{where} lacks {len(absent)} entries of the other copy, the first is {absent[0].kind} by {absent[0].by}"
        )
    return found
