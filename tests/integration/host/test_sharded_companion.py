"""Companions of two hosts that share the cards between them, on a real Kafka, while profiles change all the time.

The oracle is the changelog itself: a mirror says how far it is applied, and which shards of cards are complete in it.
It must then hold the newest state before that place of each profile of these shards, and of everything but cards.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView, has_mirror
from paywarden.scoring.state.shards import CardShards, HeldShards, held_by
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.changelog import Changelog
from paywarden.streams.profiles.progress.watermarks import Claim
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, is_ready, wait_until
from tests.worlds.stream.topics import ENTITIES, read_topic

COUNT = 16
ROUTE_KEY = "5d" * 32
CARDS = CardShards(COUNT, bytes.fromhex(ROUTE_KEY), {"card": 1})
_MIRROR_MB = 256
# A copy from the changelog then takes longer than the test needs to see that it has begun.
_CARDS, _MERCHANTS, _DEVICES = 20_000, 300, 100


class Stream:
    """Writes the changelog as a stream does: new states of random profiles, some erased, and its progress."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings, self._random = settings, random.Random(1)
        self._sender = Sender(settings, linger_ms=5)
        self._changelog = Changelog(self._sender, KafkaClients.of(settings), LocalSchemaIds(), ENTITIES)
        self._keys = {
            "card": [b"card:c%d" % number for number in range(_CARDS)],
            "merchant": [b"merchant:m%d" % number for number in range(_MERCHANTS)],
            "device": [b"device:d%d" % number for number in range(_DEVICES)],
        }
        self._version = 0

    def write_all(self) -> None:
        """Write a state of every profile."""
        for entity, keys in self._keys.items():
            self._write(entity, keys)
        self.flush()

    def write_some(self) -> None:
        """Change some profiles, and say that all is written."""
        for entity, keys in self._keys.items():
            self._write(entity, self._random.choices(keys, k=20))
        self._changelog.erase(self._random.choices(self._keys["card"], k=2))
        self.say_progress()

    def say_progress(self) -> None:
        """Say that everything up to now is written."""
        now_ms = time.time_ns() // 1_000_000
        self._changelog.send_claim(Claim(now_ms, {}), now_ms)

    def write(self, entity: str, states: Mapping[bytes, bytes], named: Mapping[bytes, bytes]) -> None:
        """Write these states, which name these payments."""
        self._changelog.send(entity, states, time.time_ns() // 1_000_000, named=named)

    def send(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
        """Write anything, to the partition of its key: what a key gets has one order."""
        self._sender.send(self._settings.topic("profiles"), value, key=key, headers=headers)

    def flush(self) -> None:
        self._sender.flush(PATIENCE_S)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Go on changing profiles until the block ends."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.02):
                self.write_some()
                self.flush()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _write(self, entity: str, keys: Iterable[bytes]) -> None:
        states = {}
        for key in keys:
            self._version += 1
            states[key] = b"%d of %b " % (self._version, key) + bytes(self._random.randrange(200))
        self._changelog.send(entity, states, time.time_ns() // 1_000_000)


@dataclass(frozen=True)
class Snapshot:
    """The content of a mirror at a moment: its profiles, how far it was applied, and the states of its shards."""

    when: str
    profiles: dict[bytes, bytes | None]
    positions: dict[int, int]
    note: HeldShards


class Host:
    """A scoring host's companion, and the mirror that it leaves behind."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.name, self._deployment = name, deployment
        self._folder = deployment.folder / name
        self._folder.mkdir()
        self.process: PaywardenProcess | None = None
        self.address = ""
        self._settings = MirrorSettings(path=str(self._folder / "mirror"), size_mb=_MIRROR_MB)
        self._view: MirrorView | None = None

    @property
    def mirror(self) -> MirrorView:
        """The mirror, which the companion makes."""
        if self._view is None:
            wait_until(lambda: has_mirror(self._settings), f"{self.name} has a mirror")
            self._view = MirrorView(self._settings)
        return self._view

    def start(self, *, hosts: str, next_hosts: str = "", **settings: str) -> None:
        """Start the companion with these hosts."""
        named = {
            "SHARDS_COUNT": str(COUNT),
            "SHARDS_COPIES": "1",
            "SHARDS_HOST": self.name,
            "SHARDS_HOSTS": hosts,
            "SHARDS_NEXT_HOSTS": next_hosts,
            "SHARDS_ROUTE_KEY_FILE": str(self._deployment.folder / "route-key"),
            "MIRROR_PATH": str(self._folder / "mirror"),
            "OUTBOX_DIRECTORY": str(self._folder / "outbox"),
            "COMPANION_FILL_FROM_STORE": "false",
            **settings,
        }
        wanted = [held_by(self.name, COUNT, names.split(","), 1) for names in (hosts, next_hosts) if names]
        self.wanted = frozenset[int]().union(*wanted)
        environment = {f"PAYWARDEN_{name}": value for name, value in named.items()}
        self.process = self._deployment.start("companion", environment=environment)
        self.address = self.process.first_line()

    def kill(self) -> None:
        """Kill the companion, as a crash would end it."""
        assert self.process is not None
        self.process.kill()

    def stop(self) -> None:
        assert self.process is not None
        assert self.process.stop() == 0

    def is_settled(self) -> bool:
        return self.mirror.held_shards() == HeldShards(CARDS.digest, self.wanted)

    def wait_until_settled(self) -> None:
        """Wait until the mirror holds what it is to hold, and the companion tells its operator so."""
        wait_until(self.is_settled, f"{self.name} holds its shards")
        wait_until(lambda: is_ready(self.address), f"{self.name} is ready")

    def wait_until_applied(self, ends: Mapping[int, int]) -> None:
        def is_applied() -> bool:
            positions = self.mirror.positions()
            return all(positions.get(partition, 0) >= end for partition, end in ends.items())

        wait_until(is_applied, f"{self.name} has applied the changelog")

    def snapshot(self, when: str) -> Snapshot:
        """Returns what the mirror holds. Only while no companion writes it, or none changes it."""
        keys = [key for key in self.mirror.all_keys() if not key.startswith(b"\0")]
        note = self.mirror.held_shards()
        assert note is not None
        return Snapshot(f"{self.name}, {when}", self.mirror.read(keys), self.mirror.positions(), note)

    def close(self) -> None:
        if self._view is not None:
            self._view.close()


@pytest.fixture
def hosts(deployment: Deployment) -> Iterator[tuple[Host, Host]]:
    (deployment.folder / "route-key").write_text(ROUTE_KEY, encoding="ascii")
    both = Host(deployment, "a"), Host(deployment, "b")
    yield both
    for host in both:
        host.close()


def ends_of(records: Iterable[Record]) -> dict[int, int]:
    ends: dict[int, int] = {}
    for record in records:
        ends[record.partition] = max(ends.get(record.partition, 0), record.offset + 1)
    return ends


def whole_mirror(records: Iterable[Record], positions: Mapping[int, int]) -> dict[bytes, bytes]:
    """Returns what a mirror of everything holds once it is applied up to these places."""
    decoder = Decoder("profiles", LocalSchemaIds())
    states: dict[bytes, bytes] = {}
    for record in records:
        if record.offset >= positions[record.partition] or not record.key or record.key.startswith(b"progress:"):
            continue
        if record.key.startswith(b"\0") or len(record.key) > KEY_BYTES_MAX:
            continue
        if record.value is None:
            states.pop(record.key, None)
            continue
        try:
            states[record.key] = decoder.decode(record.value)["state"]
        except InvalidEvent:
            continue
    return states


def check(snapshot: Snapshot, records: list[Record]) -> None:
    """Hold a mirror against the changelog."""
    whole = whole_mirror(records, snapshot.positions)
    keys = sorted(whole.keys() | snapshot.profiles.keys())
    own, shards = CARDS.of_keys(keys)
    shard_of = dict(zip(own, shards.tolist(), strict=True))
    complete = snapshot.note.complete
    told = [key for key in keys if key not in shard_of or shard_of[key] in complete]
    wrong = [key for key in told if snapshot.profiles.get(key) != whole.get(key)]
    assert wrong == [], (snapshot.when, len(wrong))
    foreign = [key for key in snapshot.profiles if key in shard_of and shard_of[key] not in complete]
    assert foreign == [], (snapshot.when, len(foreign))


def test_a_host_takes_the_cards_of_one_that_goes_and_gives_them_back(
    hosts: tuple[Host, Host], settings: KafkaSettings
) -> None:
    """The changes of hosts of docs/operate/shards.md, with companions killed in the middle of each."""
    a, b = hosts
    stream, snapshots = Stream(settings), []
    stream.write_all()
    stream.write_all()
    with stream.writing():
        for host in hosts:
            host.start(hosts="a,b")
        for host in hosts:
            host.wait_until_settled()
        assert a.wanted | b.wanted == set(range(COUNT))
        assert not a.wanted & b.wanted
        a.kill()
        b.kill()
        snapshots += [a.snapshot("filled"), b.snapshot("filled")]

        # b is to go: first a gains what b has, then b leaves both lists. a is killed on its way.
        a.start(hosts="a,b", next_hosts="a")
        wait_until(lambda: a.mirror.complete_to_ms() is None or a.is_settled(), "a fills its mirror", every_s=0.001)
        a.kill()
        a.start(hosts="a,b", next_hosts="a")
        a.wait_until_settled()
        assert a.wanted == set(range(COUNT))
        a.stop()
        snapshots.append(a.snapshot("has taken over"))
        a.start(hosts="a")
        a.wait_until_settled()

        # b comes back with the mirror that it left. Then a gives up what b has.
        b.start(hosts="a", next_hosts="a,b")
        b.wait_until_settled()
        a.stop()
        a.start(hosts="a,b")
        a.wait_until_settled()
    stream.say_progress()
    stream.flush()
    records = read_topic(settings, "profiles")
    for host in hosts:
        host.wait_until_applied(ends_of(records))
        host.stop()
        snapshots.append(host.snapshot("at the end"))
    for snapshot in snapshots:
        check(snapshot, records)
    # Nothing is on no host, and no card on both.
    ours, theirs = snapshots[-2].profiles.keys(), snapshots[-1].profiles.keys()
    assert ours | theirs == whole_mirror(records, ends_of(records)).keys()
    assert {key.partition(b":")[0] for key in ours & theirs} == {b"merchant", b"device"}
