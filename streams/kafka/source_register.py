"""The register of sources: which topics the records in a store were made from.

Profiles remember the offsets that they contain, and take a smaller offset for a replay. That is right for one topic
only. A topic that was deleted and created again, or that lost its end, gives old offsets to new records: these would be
dropped as replays, without a word. The register therefore keeps the id of each topic beside the offsets:

    progress:sources    {"payments": {"id": "nKpDTVrsRo-MnxKRDDJ8pA", "generation": 0}, …}

1. At the first start the worker enters the ids that it finds.
2. Before it reads, and now and then while it reads, it compares. Another id, or a partition that ends before the last
   record that was read, stops the worker.
3. An operator accepts the topic as it is now (`paywarden admin source --accept`). The register gets the new id and the
   next *generation*, and the group reads the topic from its beginning.

Stored offsets never go back: an offset in a store is Kafka's offset plus `base_of(generation)`.

    generation 0    offset 1041 is stored as               1041
    generation 1    offset    0 is stored as    281474976710656    larger than all of generation 0
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from paywarden.features.stores.base import ProfileStore, update_records
from paywarden.schemas.errors import Misconfigured

# The entity `progress` is beside profiles in every store (features/catalogue/checks.py).
SOURCES_KEY = b"progress:sources"
# The same for data that belongs to no profile set: counts of decisions and the join of outcomes.
BESIDE_SOURCES_KEY = b"drift:sources"
_FORMAT = 1
# A partition with 100,000 records a second has this many offsets after 89 years.
_GENERATION_BITS = 48
GENERATION_MAX = (1 << 63 - _GENERATION_BITS) - 1


class SourceChanged(Misconfigured):
    """The store's offsets belong to another topic of the same name. An operator decides how to go on."""


@dataclass(frozen=True)
class SourceEntry:
    """One topic. `cut` says which records of it are gone since they were read; empty if none are."""

    id: str
    generation: int = 0
    cut: str = ""


def base_of(generation: int) -> int:
    """Returns the number added to a topic's offsets before they are stored."""
    return generation << _GENERATION_BITS


def split_offset(stored: int) -> tuple[int, int]:
    """Returns the generation and Kafka's offset of a stored offset."""
    return stored >> _GENERATION_BITS, stored & ((1 << _GENERATION_BITS) - 1)


class SourceRegister:
    """The register of one store. Safe to use from several processes: a change is a compare-and-set.

    Every call raises StoreUnavailable as the store does, and Misconfigured for a register that cannot be read.
    """

    def __init__(self, store: ProfileStore, key: bytes, names: Mapping[str, str]) -> None:
        """`key`: where the register is. `names`: the topics that are read, by full name the name without prefix."""
        self._store, self._key, self._names = store, key, dict(names)

    def read(self) -> dict[str, SourceEntry]:
        """Returns the entries by full name, of topics that are in the register."""
        (value,) = self._store.read([self._key])
        entries = _decode(value)
        return {topic: entries[name] for topic, name in self._names.items() if name in entries}

    def check(self, ids: Mapping[str, str]) -> dict[str, SourceEntry]:
        """Compare topics with the register; enter those that are new to it. Returns the entries by full name.

        `ids`: the present ids by full name, "" for a cluster that gives none. Raises SourceChanged.
        """
        known = self.read()
        require_same(known, ids, self._names)
        news = {topic: found for topic, found in ids.items() if topic not in known or (found and not known[topic].id)}
        if news:
            self._change(lambda entries: {**entries, **self._entered(entries, news)})
        return {**{topic: SourceEntry(found) for topic, found in ids.items()}, **known}

    def note_cut(self, topic: str, cut: str) -> SourceEntry:
        """Note that a topic has lost records that were read; returns an entry that says so.

        The note stays until the topic is accepted: by the next start the lost offsets may belong to other records.
        """
        name = self._names[topic]
        self._change(lambda entries: {**entries, name: replace(entries.get(name, SourceEntry("")), cut=cut)})
        return SourceEntry("", cut=cut)

    def accept(self, ids: Mapping[str, str]) -> None:
        """Go on with these topics as they are now, in their next generation. `ids` as in `check`."""

        def next_generation(entries: dict[str, SourceEntry]) -> dict[str, SourceEntry]:
            accepted = {}
            for topic, found in ids.items():
                generation = entries.get(self._names[topic], SourceEntry("")).generation + 1
                if generation > GENERATION_MAX:
                    raise Misconfigured(
                        f"topic {topic} was accepted {GENERATION_MAX} times: run `paywarden admin rebuild`"
                    )
                accepted[self._names[topic]] = SourceEntry(found, generation)
            return {**entries, **accepted}

        self._change(next_generation)

    def _entered(self, entries: Mapping[str, SourceEntry], ids: Mapping[str, str]) -> dict[str, SourceEntry]:
        """Another worker may have entered a topic meanwhile: its entry stays."""
        entered = {}
        for topic, found in ids.items():
            entry = entries.get(self._names[topic], SourceEntry(""))
            entered[self._names[topic]] = entry if entry.id else replace(entry, id=found)
        return entered

    def _change(self, update: Callable[[dict[str, SourceEntry]], dict[str, SourceEntry]]) -> None:
        def change(_: bytes, value: bytes | None) -> bytes | None:
            entries = _decode(value)
            changed = update(entries)
            return None if changed == entries else _encode(changed)

        # It never expires: the offsets that it speaks of may be as old as the oldest profile.
        update_records(self._store, [self._key], change, ttl_s=0)


def problem_of(entry: SourceEntry, found: str) -> str:
    """Returns the problem of the topic that has the id `found`, "" if it is the entry's topic, and whole."""
    if found and entry.id and found != entry.id:
        return (
            f"it was deleted and created again, or is on another cluster: its id is {found}, and the store has offsets "
            f"of {entry.id}"
        )
    return f"it has lost records that were read already: {entry.cut}" if entry.cut else ""


def require_same(entries: Mapping[str, SourceEntry], ids: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Raises SourceChanged unless the topics with these ids are those of the entries, and whole.

    All three are by full name; `names` are those without prefix.
    """
    problems = {topic: problem_of(entries[topic], found) for topic, found in ids.items() if topic in entries}
    problems = {topic: problem for topic, problem in problems.items() if problem}
    if problems:
        raise changed_error(problems, names)


def changed_error(problems: Mapping[str, str], names: Mapping[str, str]) -> SourceChanged:
    """Returns the error for topics with a problem, with the remedy. `names`: see `require_same`."""
    (topic, problem), *others = problems.items()
    more = f" So it is with {', '.join(name for name, _ in others)}." if others else ""
    return SourceChanged(
        f"topic {topic}: {problem}.{more} Nothing of it is read, because its records would count as replays. To go on "
        f"with what is there now, stop all stream workers and run `paywarden admin source --accept "
        f"{' '.join(names[changed] for changed in problems)}` (docs/operate/migrate-cluster.md)"
    )


def _encode(entries: Mapping[str, SourceEntry]) -> bytes:
    topics = {name: asdict(entry) for name, entry in sorted(entries.items())}
    return json.dumps({"format": _FORMAT, "topics": topics}).encode()


def _decode(value: bytes | None) -> dict[str, SourceEntry]:
    if value is None:
        return {}
    try:
        fields = json.loads(value)
        if fields["format"] != _FORMAT:
            raise Misconfigured(f"the register of sources has format {fields['format']}, this release reads {_FORMAT}")
        return {name: SourceEntry(**entry) for name, entry in fields["topics"].items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Misconfigured(
            "the register of sources cannot be read: it is damaged. Without it old offsets look like new ones: "
            "`paywarden admin rebuild` builds profiles again, with a register of their own"
        ) from error
