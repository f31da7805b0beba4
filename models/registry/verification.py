"""Look for anything that was changed in a log, removed from it or moved in it."""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.models.registry.entries import Entry
from paywarden.models.registry.model_log import RegistryLog, log_of
from paywarden.models.registry.people import RegistryPeople
from paywarden.schemas.errors import RegistryRefused
from paywarden.schemas.signed_lines import FIRST


def problems_of(
    content: bytes,
    people: RegistryPeople,
    *,
    heads: Sequence[str] = (),
    noted: tuple[str, str] = ("", ""),
    elsewhere: Sequence[Entry] = (),
    where: str = "the log",
) -> list[str]:
    """Returns everything that is wrong with the bytes of a log; empty if every byte is as it was written.

    `heads`: heads that somebody remembers; they must be in the log. `noted`: a head, and the sha256 of the lines up to
    it (`LogFile.remembered`). `elsewhere`: the entries of another copy, which must all be in the log in the same order.
    Without them nobody can tell whether entries were cut off at the end. An entry that breaks a rule is no damage:
    `state_of` ignores it and says why.
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
    heads = [*heads, *filter(None, noted[:1])]
    return found + _moved(log, noted, where) + _missing(log, heads, elsewhere, where)


def _moved(log: RegistryLog, noted: tuple[str, str], where: str) -> list[str]:
    # A missing head is reported as missing.
    if log.has_noted(noted) or not log.has_noted((noted[0], "")):
        return []
    return [
        f"{where} has other lines up to the remembered head {noted[0]} than when it was written: a rollback or abort "
        "without Kafka was removed or moved"
    ]


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
    places = {entry.digest: place for place, entry in enumerate(log.entries)}
    order = [places[entry.digest] for entry in elsewhere if entry.digest in places]
    if order != sorted(order):
        found.append(f"{where} has entries in another order than the other copy")
    return found
