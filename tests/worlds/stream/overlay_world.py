"""A host with an overlay, a stream and a companion, in one process and by hand: each step is taken when a test says so.

    world = OverlayWorld(folder, seed=1)
    world.run(500)          random steps; each score is held against the oracle, to the bit
    world.scores, world.folded

Worker 0 scores in steps. Worker 1 has the overlay's part of the compiled call of whole chunks.

The oracle knows what is published, in which profile, in the mirror, answered and when. For each score it makes a
profile of all payments that must count, from nothing, and asks the kernel for the vector. It knows nothing of tags,
marks and tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import row_of
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.keys import entity_key
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.payment_tags import MARK_DTYPE, PaymentTags
from paywarden.scoring.engine.chunk_frame import seeded_hash_address
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.overlay import overlay_reader
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay_files import prepare
from paywarden.streams.companion.overlay_marks import OverlayMarks
from tests.oracles.step_overlay import StepOverlay
from tests.worlds.small import small_history

START_MS = 1_767_866_400_000
CARDS, MERCHANTS, DEVICES, PARTITIONS = 4, 2, 3, 2
WORKERS = 2
_FIELDS = ("card_id", "merchant_id", "device_id")


@dataclass
class Made:
    """A payment: its row, the key of each of its entities, and the record on Kafka, once it is published."""

    name: bytes
    row: list[int]
    keys: list[bytes]
    source: int = -1
    offset: int = -1
    # The record that the stream reads, if it has more than the request.
    row_on_kafka: list[int] | None = None


@dataclass
class Answered:
    """A row of the table as the oracle knows it, for one of its entities. `row` tells rows apart."""

    payment: int
    moment_ms: int
    row: int


@dataclass
class Change:
    """A record of the changelog. `named` is None where the stream does not say which payments it has added."""

    key: bytes
    state: bytes
    contains: frozenset[int]
    named: bytes | None


@dataclass
class Topic:
    """One partition of `payments`, and how far each kind of entity has read it."""

    records: list[int] = field(default_factory=list)
    read: dict[int, int] = field(default_factory=dict)


class ChunkWorker:
    """The overlay's part of the compiled call that scores whole chunks, for one payment at a time."""

    def __init__(self, overlay: StepOverlay, reader: SimpleNamespace) -> None:
        self._overlay, self._reader = overlay, reader
        self._files: object = None
        self._filled: tuple[list[bytes], bytes] | None = None
        self._texts = np.zeros(1000, dtype=np.uint8)

    def fill(self, keys: list[bytes], name: bytes, snapshot: int) -> bool:
        """Do as `StepOverlay.fill`."""
        overlay, texts = self._overlay, b"".join((*keys, name))
        if self._files is not overlay.files:
            reader = self._reader
            self._frame = overlay.frame_for(cast(MirrorReader, reader), reader.attributes, reader.out)
            self._files = overlay.files
        self._texts[: len(texts)] = np.frombuffer(texts, dtype=np.uint8)
        ends = np.array([list(accumulate(map(len, (*keys, name))))])
        hash_at, now_ms = seeded_hash_address(), overlay.clock_ms()
        assert hash_at is not None
        overlay_reader.hash_texts(self._frame.address, 1, self._texts.ctypes.data, ends, hash_at, overlay.hash_seed)
        status = overlay_reader.fill_hashed(self._frame.address, 1, now_ms, snapshot)
        assert status == kernel.OK
        self._filled = keys, name
        return overlay._count(1)

    def add(self, keys: list[bytes], name: bytes, row: list[int], now_ms: int) -> None:
        """Do as `StepOverlay.add`. Other payments than that of the last `fill` take the scorer's way."""
        overlay = self._overlay
        if self._filled != (keys, name) or self._files is not overlay.files:
            overlay.add(keys, [name], np.array([row], dtype=np.int64), now_ms)
            return
        self._reader.attributes[0] = row
        life_ms = overlay._settings.lifetime_ms
        tables.add_bound(self._frame.address, 1, overlay.clock_ms(), now_ms - life_ms, now_ms + life_ms)
        overlay._count_added()


class OverlayWorld:
    """See the module. `wrong` counts scores whose bits differ from the oracle's."""

    def __init__(self, folder: Path, *, seed: int, **settings: Any) -> None:
        chosen = {"payments_max": 256, "marks_max": 4096, "lifetime_ms": 1000, "events_max": 6, **settings}
        self.settings = OverlaySettings(enabled=True, path=str(folder / "overlay"), **chosen)
        self.engine: FeatureEngine = small_history.engine()
        self.plan = self.engine.plan
        self.random = random.Random(seed)
        self.now_ms, self.transaction = 5_000, 1
        (folder / "mirror").mkdir()
        prepare(self.settings, self.plan)
        self.marks = self._companion(folder)
        self.tags = PaymentTags(self.plan.key)
        self.payments: list[Made] = []
        self.topics = [Topic(read=dict.fromkeys(range(self.plan.entity_count), 0)) for _ in range(PARTITIONS)]
        self.store: dict[bytes, tuple[bytes, frozenset[int]]] = {}
        self.mirror: dict[bytes, tuple[bytes, frozenset[int]]] = {}
        self.changelog: list[Change] = []
        self.answered: dict[bytes, list[Answered]] = {}
        self.unsure_until_ms, self.is_foreign = self.now_ms + self.settings.doubt_ms, False
        self.scores = self.folded = self.wrong = self.unsure = self.rows_made = 0
        self._folder = folder
        self._readers = [self._reader() for _ in range(WORKERS)]
        self.workers = [self._worker(reader) for reader in self._readers]
        self.chunk_worker = ChunkWorker(self.workers[1], self._readers[1])

    def _companion(self, folder: Path) -> OverlayMarks:
        marks = OverlayMarks(self.settings, self.plan, str(folder / "mirror"), clock_ms=lambda: self.now_ms)
        marks.open_mirror(self.transaction)
        return marks

    def _reader(self) -> SimpleNamespace:
        entities, size = self.plan.entity_count, self.engine.profile_bytes_max
        return SimpleNamespace(
            presence=np.zeros(entities, dtype=np.uint8),
            states=np.zeros(entities * size, dtype=np.uint8),
            bounds=np.zeros(entities + 1, dtype=np.int64),
            attributes=np.zeros((1, self.plan.row_width), dtype=np.int64),
            out=np.zeros((1, self.plan.feature_count), dtype=np.float32),
        )

    def _worker(self, reader: SimpleNamespace) -> StepOverlay:
        worker = StepOverlay(
            self.settings,
            self.engine.clone_for_thread(),
            rows_max=1,
            clock_ms=lambda: self.now_ms,
        )
        return self._look(worker, reader)

    def _look(self, worker: StepOverlay, reader: SimpleNamespace) -> StepOverlay:
        worker.look_beside(cast(MirrorReader, reader), str(self._folder / "mirror"), reader.attributes, reader.out)
        assert worker.is_open
        return worker

    # Acts of a test, or of `run`.

    def run(self, steps: int) -> None:
        """Take random steps."""
        kinds, weights = self.steps()
        for _ in range(steps):
            self.random.choices(kinds, weights)[0]()

    def steps(self) -> tuple[list[Callable[[], object]], list[int]]:
        """Returns the kinds of steps, and how often each is taken."""
        kinds = [self.make, self.score, self.publish, self.stream, self.companion, self.wait, self.upset]
        return list(kinds), [20, 40, 16, 30, 25, 12, 1]

    def make(self) -> int:
        """Make a payment of now; returns its number."""
        entities = {
            name: self.random.randrange(count) for name, count in zip(_FIELDS, (CARDS, MERCHANTS, DEVICES), strict=True)
        }
        fields: dict[str, object] = {name: f"{name[0]}{number}" for name, number in entities.items()}
        if self.random.random() < 0.2:
            fields["device_id"] = None
        fields |= {"currency": "EUR", "country": self.random.choice(("DE", "FR")), "channel": "ecom"}
        amount = self.random.choice((100, 999, 25_000))
        time_ms = START_MS + self.now_ms + self.random.randrange(-300, 300)
        row = row_of(fields, event_time_ms=time_ms, amount=amount, amount_minor=amount, key=self.plan.key)
        keys = []
        for name, needed in zip(self.plan.entity_names, self.plan.entity_keys, strict=True):
            ids = [cast(str, fields[one]) for one in needed]
            keys.append(entity_key(name, ids) if all(ids) else b"")
        self.payments.append(Made(f"p{len(self.payments)}".encode(), row, keys))
        return len(self.payments) - 1

    def score(self) -> None:
        """Score a new payment or a recent one again, by any worker, and answer it more often than not."""
        recent = self.recent()
        number = self.random.choice(recent) if recent and self.random.random() < 0.5 else self.make()
        worker = self.random.randrange(WORKERS)
        self.check(number, worker)
        chance = self.random.random()
        if chance < 0.9:
            self.answer(number, worker)
        elif chance < 0.95:
            # A worker is killed after it has linked the row to the first entity.
            self.answer(number, worker, entities=1)

    def recent(self) -> range:
        """Returns the payments that may be scored again."""
        return range(max(0, len(self.payments) - 8), len(self.payments))

    def publish(self) -> None:
        """Put a payment on Kafka, answered or not; once."""
        waiting = [
            number
            for number in range(max(0, len(self.payments) - 20), len(self.payments))
            if self.payments[number].source < 0
        ]
        if not waiting:
            return
        made = self.payments[number := self.random.choice(waiting)]
        partition = self.random.randrange(PARTITIONS)
        topic = self.topics[partition]
        last = self.payments[topic.records[-1]].offset if topic.records else 0
        made.source, made.offset = 2 * partition, last + self.random.choice((1, 1, 3))
        topic.records.append(number)

    def stream(self) -> None:
        """Let one kind of entity take some records of a partition into its profiles."""
        entity, topic = self.random.randrange(self.plan.entity_count), self.random.choice(self.topics)
        self.read(entity, topic, min(len(topic.records), topic.read[entity] + self.random.choice((1, 2, 8))))

    def read(self, entity: int, topic: Topic, end: int) -> None:
        """Let a kind of entity take the records of a partition up to `end` into its profiles."""
        begin, topic.read[entity] = topic.read[entity], end
        groups: dict[bytes, list[int]] = {}
        for number in topic.records[begin:end]:
            if key := self.payments[number].keys[entity]:
                groups.setdefault(key, []).append(number)
        for key, numbers in groups.items():
            state, contains = self.store.get(key, (None, frozenset[int]()))
            made = self._applied(entity, state, numbers, with_sources=True)
            self.store[key] = made, contains | frozenset(numbers)
            named = np.array(
                [
                    (self.tags.of(self.payments[one].name), self.payments[one].offset, self.payments[one].source)
                    for one in numbers
                ],
                dtype=MARK_DTYPE,
            )
            self.changelog.append(Change(key, made, self.store[key][1], named.tobytes()))

    def companion(self) -> None:
        """Bring some changes to the mirror."""
        self.apply(self.random.choice((1, 3, 10)))

    def apply(self, count: int) -> None:
        """Bring the next changes to the mirror."""
        changes, self.changelog = self.changelog[:count], self.changelog[count:]
        if not changes:
            return
        if self.is_foreign:
            self.marks.open_mirror(self.transaction)
            self.is_foreign, self.unsure_until_ms = False, self.now_ms + self.settings.doubt_ms
        self.marks.note([change.named for change in changes if change.named is not None])
        if any(change.named is None for change in changes):
            self.marks.note_unnamed()
            self.unsure_until_ms = self.now_ms + self.settings.doubt_ms
        self.transaction += 1
        self.marks.begin(self.transaction)
        for change in changes:
            self.mirror[change.key] = change.state, change.contains

    def wait(self) -> None:
        """Let time pass."""
        self.now_ms += self.random.choice((1, 20, 100, 100, 400, 1100))

    def upset(self) -> None:
        """Let something go wrong."""
        what = self.random.randrange(5)
        if what == 0:
            # An older stream, a replay or a rebuild does not name payments.
            for change in self.changelog:
                change.named = None
        elif what == 1 and self.changelog:
            # An older companion writes the mirror.
            for change in self.changelog:
                self.mirror[change.key] = change.state, change.contains
            self.changelog, self.is_foreign = [], True
            self.transaction += 1
        elif what == 2:
            # A worker is killed while it writes a row.
            table = self.workers[0]._table
            assert table is not None
            tables._take_row(table, self.workers[0]._shape, self.now_ms, self.settings.lifetime_ms)
        elif what == 3:
            # A worker is started again.
            self.restart(self.random.randrange(WORKERS))
        elif what == 4 and self.answered:
            self.forget(self.random.choice(sorted(self.answered)))

    def restart(self, worker: int) -> None:
        """Let a worker start again."""
        self._readers[worker] = self._reader()
        self.workers[worker] = self._worker(self._readers[worker])
        self.chunk_worker = ChunkWorker(self.workers[1], self._readers[1])

    def forget(self, key: bytes) -> None:
        """Forget an entity: from the store, the mirror and the overlay."""
        entity = self.plan.entity_names.index(key.split(b":")[0].decode())
        # A worker that was killed may have left another row of the same payment, which knows nothing of this entity.
        gone = {row.row for row in self.answered.get(key, ())}
        self.marks.erase([key])
        for rows in self.answered.values():
            rows[:] = [replace(row, payment=-1) if row.row in gone else row for row in rows]
        # Records read from the topic are in no profile again: a forgotten entity starts empty.
        self.store.pop(key, None)
        self.changelog = [change for change in self.changelog if change.key != key]
        if self.is_foreign:
            self.marks.open_mirror(self.transaction)
            self.is_foreign, self.unsure_until_ms = False, self.now_ms + self.settings.doubt_ms
        self.transaction += 1
        self.marks.begin(self.transaction)
        self.mirror.pop(key, None)
        assert entity >= 0

    def answer(self, number: int, worker: int, entities: int | None = None) -> None:
        """Add a payment to the overlay; to its first `entities` only, if a worker dies in between."""
        made = self.payments[number]
        keys = [key if entities is None or place < entities else b"" for place, key in enumerate(made.keys)]
        full = self.workers[worker].metrics.full.value
        if worker == 1:
            self.chunk_worker.add(keys, made.name, made.row, START_MS + self.now_ms)
        else:
            self.workers[worker].add(keys, [made.name], np.array([made.row], dtype=np.int64), START_MS + self.now_ms)
        assert self.workers[worker].metrics.full.value == full
        if abs(made.row[kernel.TIME_MS] - START_MS - self.now_ms) > self.settings.lifetime_ms:
            return
        self.note_row(number, keys)

    def note_row(self, number: int, keys: list[bytes]) -> None:
        """Let the oracle know of a row of the table."""
        self.rows_made += 1
        for key in filter(None, keys):
            self.answered.setdefault(key, []).append(Answered(number, self.now_ms, self.rows_made))

    def check(self, number: int, worker: int) -> None:
        """Score a payment, and hold its vector against the oracle's."""
        made, reader = self.payments[number], self._readers[worker]
        states = self._look_up(made, reader)
        if worker == 1:
            is_sure = self.chunk_worker.fill(made.keys, made.name, self.transaction)
        else:
            is_sure = self.workers[worker].fill(made.keys, [made.name], self.transaction)
        assert is_sure == (not self.is_foreign and self.now_ms > self.unsure_until_ms)
        counted = [
            contains | (self._pending(number, key, contains) if is_sure else frozenset[int]())
            for key, (_, contains) in zip(made.keys, states, strict=True)
        ]
        self.scores += 1
        self.unsure += not is_sure
        self.folded += sum(map(len, counted)) - sum(len(contains) for _, contains in states)
        self.wrong += reader.out.tobytes() != self._vector(made, counted).tobytes()

    def _look_up(self, made: Made, reader: SimpleNamespace) -> list[tuple[bytes, frozenset[int]]]:
        """Give a reader what the mirror has of a payment's entities; returns it, with what it contains."""
        states = [self.mirror.get(key, (b"", frozenset[int]())) for key in made.keys]
        packed = b"".join(state for state, _ in states)
        reader.states[: len(packed)] = np.frombuffer(packed, dtype=np.uint8)
        reader.bounds[1:] = np.cumsum([len(state) for state, _ in states])
        reader.presence[:] = [
            kernel.KNOWN if state else kernel.UNKNOWN if key else kernel.ABSENT
            for key, (state, _) in zip(made.keys, states, strict=True)
        ]
        reader.attributes[0] = made.row
        reader.out[:] = -1
        return states

    # The oracle.

    def _pending(self, number: int, key: bytes, contains: frozenset[int]) -> frozenset[int]:
        """Returns the payments that must count for an entity beside those in its profile in the mirror."""
        found: list[int] = []
        # A lifetime has sixteen steps, and a payment is pending until the step that it was answered in is sixteen old.
        life_ms, now_step = self.settings.lifetime_ms, self.now_ms * 16 // self.settings.lifetime_ms
        visits_max = self.settings.events_max + overlay_reader.VISITS_BEYOND
        for visits, row in enumerate(reversed(self.answered.get(key, ()) if key else ())):
            if now_step - row.moment_ms * 16 // life_ms >= 16 or row.moment_ms > self.now_ms + life_ms:
                break
            if visits == visits_max or len(found) == self.settings.events_max:
                break
            if row.payment >= 0 and row.payment != number and row.payment not in contains and row.payment not in found:
                found.append(row.payment)
        return frozenset(found)

    def _vector(self, made: Made, counted: list[frozenset[int]]) -> NDArray[np.float32]:
        presence, packed, bounds = [], b"", [0]
        for entity, (key, numbers) in enumerate(zip(made.keys, counted, strict=True)):
            state = self._applied(entity, None, sorted(numbers), with_sources=False) if numbers else b""
            presence.append(kernel.ABSENT if not key else kernel.KNOWN if state else kernel.UNKNOWN)
            packed += state
            bounds.append(len(packed))
        out = np.empty((1, self.plan.feature_count), dtype=np.float32)
        self.engine.fill_vectors(
            np.array([made.row]),
            np.array(presence, dtype=np.uint8),
            np.frombuffer(bytearray(packed), dtype=np.uint8),
            np.array(bounds, dtype=np.int64),
            out,
        )
        return out

    def _applied(self, entity: int, state: bytes | None, numbers: list[int], *, with_sources: bool) -> bytes:
        """Returns a profile with these payments, as the stream makes it."""
        chosen, count = [self.payments[number] for number in numbers], len(numbers)
        none = np.full(count, -1, dtype=np.int64)
        events = Events(
            groups=np.array([0, count], dtype=np.int64),
            kind=np.zeros(count, dtype=np.uint8),
            payment=np.arange(count),
            weight=np.ones(count, dtype=np.int64),
            source=np.array([made.source for made in chosen]) if with_sources else none,
            offset=np.array([made.offset for made in chosen]),
            row=none,
        )
        rows = np.array(
            [made.row_on_kafka if with_sources and made.row_on_kafka else made.row for made in chosen], dtype=np.int64
        )
        return self.engine.apply(entity, events, rows, [state], self.engine.new_slots(0)).states[0]


class NewHost(OverlayWorld):
    """A world whose mirror is filled from a store with a past, while payments are answered, published and streamed.

    The payments of the past may come again.
    """

    def __init__(self, folder: Path, *, seed: int, **settings: Any) -> None:
        super().__init__(folder, seed=seed, **settings)
        life_ms = self.settings.lifetime_ms
        for _ in range(self.random.choice((0, 12, 40))):
            self.make()
            self.publish()
            self.wait()
            self.stream()
        for entity in range(self.plan.entity_count):
            for topic in self.topics:
                self.read(entity, topic, len(topic.records))
        self.now_ms += self.random.choice((0, life_ms, 2 * life_ms, 4 * life_ms))
        # The companion follows the changelog from where it ends now.
        self.changelog = []
        self.unsure_until_ms = -1
        self.marks.begin_anew(mirror_is_empty=True)
        self._commit()
        keys = sorted(self.store)
        self.random.shuffle(keys)
        while keys:
            size = self.random.randrange(1, 6)
            batch, keys = keys[:size], keys[size:]
            self.fill(batch)
            for _ in range(self.random.randrange(4)):
                self.random.choice((self.score, self.score, self.publish, self.stream, self.wait))()

    def _companion(self, folder: Path) -> OverlayMarks:
        marks = OverlayMarks(self.settings, self.plan, str(folder / "mirror"), clock_ms=lambda: self.now_ms)
        # A new mirror has no transaction yet.
        marks.open_mirror(0)
        return marks

    def fill(self, keys: list[bytes]) -> None:
        """Bring profiles of the store to the mirror."""
        found = {key: self.store[key] for key in keys}
        self.marks.note_filled([state for state, _ in found.values()], START_MS + self.now_ms)
        times = [self._time_of(number) for _, contains in found.values() for number in contains]
        if times and max(times) > START_MS + self.now_ms - 2 * self.settings.lifetime_ms:
            self.unsure_until_ms = self.now_ms + self.settings.doubt_ms
        self._commit()
        self.mirror.update(found)

    def _commit(self) -> None:
        self.transaction += 1
        self.marks.begin(self.transaction)

    def _time_of(self, number: int) -> int:
        return self.payments[number].row[kernel.TIME_MS]
