"""Known breaks: each undoes one fix, and the simulator has to find it within a stated number of seeds.

A mutation replaces one function of the product by one that behaves as before the fix. While a fix is not there yet, its
mutation replaces nothing, and the product itself has to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# What a mutation replaces: the owner of a name, the name, and the function that takes its place.
Patch = tuple[Any, str, Any]


def _nothing() -> list[Patch]:
    return []


@dataclass(frozen=True)
class Mutation:
    """A fix undone. `faults`: kinds of faults that meet it. `seeds`: it is found within this many."""

    item: str
    what: str
    faults: tuple[str, ...]
    seeds: int
    kinds: frozenset[str]
    patches: Callable[[], list[Patch]] = _nothing

    @contextmanager
    def undone(self) -> Iterator[None]:
        before = []
        for owner, name, value in self.patches():
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in reversed(before):
                setattr(owner, name, value)


MUTATIONS = {
    "poisoned_outbox": Mutation(
        "1", "a record that cannot be read ends the companion", ("poisoned_request",), 10, frozenset({"stuck"})
    ),
    "poisoned_topic": Mutation(
        "1",
        "a header name that is not UTF-8 ends every stream worker",
        ("header_name",),
        10,
        frozenset({"bug", "stuck"}),
    ),
    "descriptors": Mutation(
        "2",
        "a segment that could not be begun is never tried again",
        ("emfile", "enospc"),
        200,
        frozenset({"readiness_lied", "stuck"}),
    ),
    "reader_check": Mutation(
        "3", "slots of dead readers are never freed", ("stale_reader",), 20, frozenset({"stuck", "mirror"})
    ),
    "source_identity": Mutation(
        "5",
        "payments of a topic made anew are taken for replays",
        ("topic_recreated",),
        20,
        frozenset({"profiles", "stuck"}),
    ),
    "batches": Mutation(
        "7", "a refused batch leaves decisions", ("hostile_batch",), 10, frozenset({"refused_and_decided"})
    ),
    "quarantine_outbox": Mutation(
        "9", "one damaged outbox ends all shipping", ("damaged_outbox",), 30, frozenset({"stuck", "bug"})
    ),
    "quarantine_profile": Mutation(
        "9", "one unreadable profile ends the stream", ("damaged_profile",), 20, frozenset({"stuck", "bug"})
    ),
    "quarantine_labels": Mutation(
        "9",
        "one payment with too many label changes ends the stream",
        ("label_changes",),
        20,
        frozenset({"stuck", "bug"}),
    ),
    "foreign_directory": Mutation(
        "9",
        "a directory that is no worker's ends the companion",
        ("foreign_directory",),
        20,
        frozenset({"stuck", "bug"}),
    ),
}
