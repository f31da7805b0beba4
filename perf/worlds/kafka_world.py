"""A real Kafka with Paywarden's topics, and the configuration of processes that use it.

The broker has the settings of the Compose file in ops/deploy/compose, and the heap that Kafka's own scripts give it:

    KAFKA_NUM_IO_THREADS: "4"          → num.io.threads=4
    KAFKA_OPTS: -XX:-UsePerfData       → an option of the JVM
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.ops.demo.demo import prepare_world
from paywarden.ops.demo.live_run import LOCAL_CONFIG, DemoWorld
from paywarden.ops.demo.processes import DemoPart
from paywarden.ops.demo.verdict import MetricsReading
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from perf.tools.processes import cpu_seconds
from tests.services.servers.kafka import PRODUCTION_BROKER, PRODUCTION_JVM, KafkaServer

_COMPOSE_FILE = Path(__file__).parents[2] / "ops/deploy/compose/compose.yaml"
# The broker of a benchmark has addresses and a folder of its own.
_OF_THE_PLACE = ("advertised.", "controller.", "listener", "log.dirs", "node.id", "process.roles")
_OF_THE_JVM = ("KAFKA_HEAP_OPTS", "KAFKA_OPTS")
_BEGIN_SHARE, _TIMEOUT_S = 0.1, 300.0
ENTITIES = tuple(entity.name for entity in CATALOGUE.entities)


@dataclass(frozen=True)
class KafkaWorld:
    """A running Kafka, a folder on disk, and one in memory."""

    kafka: KafkaSettings
    kafka_pid: int
    folder: Path
    memory: str

    def prepare(self, cards: int) -> DemoWorld:
        """Train a bundle and fill a store in the folder; return them with a day of payments of this many cards."""
        rate = cards * 1.5 / 1.2
        return prepare_world(self.folder, CATALOGUE, seconds=1, rate=rate, seed=1, console=Console(stderr=True))

    def write_config(self, *, store: str = "", more: str = "") -> Path:
        """Write paywarden.toml: the local settings, `store` in place of the sections of the store, and `more`."""
        text = LOCAL_CONFIG.format(bootstrap=self.kafka.bootstrap, folder=self.folder, memory=self.memory, answered="")
        if store:
            text = store + text[text.index("[mirror]") :]
        config = self.folder / "paywarden.toml"
        config.write_text(text + more, encoding="utf-8")
        return config


@contextmanager
def kafka_world(jvm: Sequence[str] = ()) -> Iterator[KafkaWorld]:
    """Run a Kafka with all topics, with further options of its JVM."""
    environment = yaml.safe_load(_COMPOSE_FILE.read_text(encoding="utf-8"))["services"]["kafka"]["environment"]
    settings = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment.items()
        if name not in _OF_THE_JVM
    }
    shipped = {name: value for name, value in settings.items() if not name.startswith(_OF_THE_PLACE)}
    options = [*PRODUCTION_JVM, *" ".join(environment.get(name, "") for name in _OF_THE_JVM).split(), *jvm]
    with (
        tempfile.TemporaryDirectory(prefix="paywarden-perf-") as folder,
        tempfile.TemporaryDirectory(prefix="paywarden-perf-", dir="/dev/shm") as memory,
        KafkaServer(Path(folder) / "kafka", settings={**PRODUCTION_BROKER, **shipped}, jvm=options) as kafka,
    ):
        own = KafkaSettings(bootstrap=kafka.bootstrap)
        create_topics(own, TopicSettings(), ENTITIES)
        yield KafkaWorld(own, kafka.pid, Path(folder), memory)


def new_topics(bootstrap: str, entities: Sequence[str] = ENTITIES) -> KafkaSettings:
    """Create all topics under a new prefix; return the settings that name them."""
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=f"p{uuid.uuid4().hex[:8]}-")
    create_topics(kafka, TopicSettings(), entities)
    return kafka


class Work(NamedTuple):
    """Records that a process worked on, its CPU time meanwhile, and how long that took."""

    records: float
    cpu_s: float
    took_s: float


def timed_work(part: DemoPart, done: Callable[[MetricsReading], float], count: int) -> Work:
    """Wait until a process has worked on `count` records. The first of them, in its start, are not in the result."""
    begun: Work | None = None
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        assert time.monotonic() < deadline, part.reading().trouble()
        part.read_address()
        now = Work(done(part.reading()), cpu_seconds(part.pid), time.monotonic())
        if begun is None and now.records >= count * _BEGIN_SHARE:
            begun = now
        if begun is not None and now.records >= count:
            assert now.records > begun.records, "too few records: all were there at the first look"
            return Work(*(after - before for before, after in zip(begun, now, strict=True)))
        time.sleep(0.05)
