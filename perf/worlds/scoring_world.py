"""The world of the scoring benchmarks: seeded, with any number of entities.

    simulated history ─┬─ training ─► a bundle of 300 trees with 63 leaves, compiled     kept in .perf/, takes a minute
                       ├─ features ─► profiles of some 10,000 entities ─ copied under new keys ─► mirror
                       └─ its last days ─► requests over those entities, a few of them with unknown cards or devices

Copies are whole parallel worlds: card 7 of world 3 pays merchants of world 3 with devices of world 3, and a request's
profiles differ as much as in the simulation. The history ends now, so that windows are as full as in production.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import lightgbm
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.datasets.simulator import DEFAULT_START_MS, simulate
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import SEPARATOR
from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.bundle import build_native
from paywarden.models.metrics.evaluation import DAY_MS, Days
from paywarden.models.training.table import LabelRules, TrainingTable, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, workers
from paywarden.streams.companion.mirror_writer import MirrorWriter

CACHE = Path(".perf")
FASTAPI_FEATURES = 48
_LABEL_DELAY_DAYS = 7
# Days before the first training day, so that profiles are not empty.
_WARM_DAYS = 20
_UNKNOWN_SHARE = 0.02
# Profiles, keys and slots. An upper bound: memory is taken only as it is used.
_MIRROR_BYTES_PER_ENTITY = 1500
_APPLY_AT_ONCE = 100_000
_FRESH_EVERY_S = 1.0

_CONFIG = """\
[mirror]
path = "{memory}/mirror"
size_mb = {mirror_mb}
[outbox]
directory = "{outbox}"
total_bytes_max = 8_589_934_592
[serve]
bundle = "{bundle}"
metrics = "{memory}/metrics"
[answered]
path = "{memory}/answered"
[http]
port = 0
[grpc]
port = 0
"""


# The most leaves there may be, and bins as coarse as LightGBM's default. One thread: on a busy machine two threads
# would wait for each other most of the time.
TRAINING = TrainingSettings(
    trees=300,
    leaves=63,
    max_depth=-1,
    max_bin=255,
    folds=2,
    learning_rate=0.03,
    threads=1,
    label_delay_days=_LABEL_DELAY_DAYS,
    # The figures are for this many trees.
    early_stopping_rounds=0,
)


@dataclass(frozen=True)
class WorldSize:
    """How large a world is. The defaults are those of the published figures."""

    # Some 17,000 cards, merchants and devices; beyond them, copies.
    cards: int = 3000
    days: int = 60
    # Days of training: half a day's payments of a large issuer, for a minute of training.
    training_cards: int = 3000
    training_days: int = 10
    training: TrainingSettings = TRAINING
    requests: int = 20_000
    seed: int = 1


@dataclass(frozen=True)
class World:
    """The parts of a world that benchmarks use. `config` is a configuration file of `paywarden serve`."""

    config: Path
    bundle: Path
    fastapi_model: Path
    mirror: MirrorSettings
    outbox: OutboxSettings
    # Profiles in the mirror.
    entities: int
    requests: list[ScoreRequest]


@dataclass(frozen=True)
class Past:
    """A history that ends now, and a bundle that can score the payments after it."""

    engine: FeatureEngine
    payments: pa.Table
    history: History
    bundle: Path


def make_past(size: WorldSize) -> Past:
    """Simulate the history; train and compile the bundle if there is none yet."""
    engine = FeatureEngine()
    engine.warm_up()
    payments, outcomes = simulate(cards=size.cards, days=size.days, seed=size.seed, end_time_ms=now_ms())
    return Past(engine, payments, history_of_tables(payments, outcomes), bundle_of(engine, size))


def vectors_of(past: Past, count: int) -> NDArray[np.float32]:
    """Returns the vectors of the history's last payments at their time, in a seeded order."""
    last = len(past.history)
    chunks = PointInTimeReplay(past.history, past.engine, load_rates()).chunks(first=last - count, last=last)
    vectors = np.concatenate([chunk.vectors.copy() for chunk in chunks])
    return np.ascontiguousarray(vectors[np.random.default_rng(1).permutation(len(vectors))])


@contextmanager
def built_world(entities: int, size: WorldSize | None = None) -> Iterator[World]:
    """Give a world with at least this many entities; keep its mirror fresh and read its outbox until the block ends.

    Raises Misconfigured when the mirror finds no room.
    """
    size = size or WorldSize()
    past = make_past(size)
    memory_root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="paywarden-perf-", dir=memory_root) as memory,
        tempfile.TemporaryDirectory(prefix="paywarden-perf-") as folder,
    ):
        mirror_mb = 64 + (entities + 50_000) * _MIRROR_BYTES_PER_ENTITY // 2**20
        _require_room(Path(memory), mirror_mb)
        mirror = MirrorSettings(path=f"{memory}/mirror", size_mb=mirror_mb)
        settings = OutboxSettings(directory=str(Path(folder) / "outbox"))
        config = Path(folder) / "paywarden.toml"
        text = _CONFIG.format(
            memory=memory, mirror_mb=mirror_mb, outbox=settings.directory, bundle=past.bundle.resolve()
        )
        config.write_text(text, encoding="utf-8")
        writer = MirrorWriter(mirror)
        copies, count = _fill(writer, past.history, past.engine, entities)
        requests = requests_over(past.payments, copies, size)
        world = World(config, past.bundle, past.bundle.parent / "fastapi.txt", mirror, settings, count, requests)
        with _kept_fresh(writer, settings):
            yield world


def _require_room(folder: Path, megabytes: int) -> None:
    free_mb = shutil.disk_usage(folder).free >> 20
    if free_mb < megabytes:
        raise Misconfigured(f"the mirror may need {megabytes} MB in {folder}, there are {free_mb}")


# The bundle


def bundle_of(engine: FeatureEngine, size: WorldSize) -> Path:
    """Returns the bundle of this catalogue and size with FastAPI's model; trains and compiles it if it is not there.

    Its history has fixed days, so that it is always the same bundle.
    """
    training = size.training
    settings = hashlib.sha256(repr((size.training_cards, size.training_days, size.seed, training)).encode())
    folder = CACHE / f"{engine.plan.digest[:12]}-{training.trees}x{training.leaves}-{settings.hexdigest()[:12]}"
    if (folder / "fastapi.txt").is_file():
        # Training takes minutes, so the model is kept. The library is compiled again by the current code.
        build_native(folder / "bundle")
        return folder / "bundle"
    print(f"training and compiling {training.trees} trees of {training.leaves} leaves, once", flush=True)
    days = size.training_days + _LABEL_DELAY_DAYS + _WARM_DAYS
    history = history_of_tables(*simulate(cards=size.training_cards, days=days, seed=size.seed))
    first = DEFAULT_START_MS // DAY_MS + _WARM_DAYS
    window = Days(first, first + size.training_days - 1)
    table = training_table(
        history, window, engine=engine, rates=load_rates(), labels=LabelRules(training.label_delay_days)
    )
    folder.mkdir(parents=True, exist_ok=True)
    train_bundle(table, window, folder / "bundle", engine=engine, settings=training)
    _train_for_fastapi(table, training, folder / "fastapi.txt")
    return folder / "bundle"


def _train_for_fastapi(table: TrainingTable, training: TrainingSettings, destination: Path) -> None:
    """Train a model of the same size on the first 48 features, for the service without profiles of its own."""
    vectors = np.nan_to_num(table.vectors[:, :FASTAPI_FEATURES])
    data = lightgbm.Dataset(vectors, table.label)
    model = lightgbm.train(training.lightgbm_parameters(), data, num_boost_round=training.trees)
    # Written last and at once: this file says that the folder is complete.
    unfinished = destination.with_suffix(".unfinished")
    unfinished.write_text(model.model_to_string(), encoding="utf-8")
    unfinished.replace(destination)


# The mirror


def _fill(writer: MirrorWriter, history: History, engine: FeatureEngine, entities: int) -> tuple[int, int]:
    """Put copies of the history's profiles into the mirror; returns the number of copies and of profiles."""
    base = profiles_of(history, engine)
    copies = max(1, -(-entities // len(base)))
    profiles = ((copied(key, copy).encode(), base[key]) for key in sorted(base) for copy in range(copies))
    while some := dict(islice(profiles, _APPLY_AT_ONCE)):
        writer.apply(dict(some), {})
    writer.apply({}, {0: 1}, now_ms())
    return copies, len(base) * copies


def profiles_of(history: History, engine: FeatureEngine) -> dict[str, bytes]:
    """Returns the profiles of a history by their keys."""
    passage = PointInTimeReplay(history, engine, load_rates())
    for _ in passage.chunks():
        pass
    return {
        key.decode(): state
        for column, states in zip(passage.entities, passage.profiles, strict=True)
        for key, state in zip(column.store_keys(), states, strict=True)
        if state is not None
    }


def copied(ids: str, copy: int | str) -> str:
    """Returns the key or id of the same entity in another world. A combination has each of its ids changed."""
    ending = f".{copy:05}" if isinstance(copy, int) else f".{copy}"
    return ids.replace(SEPARATOR, ending + SEPARATOR) + ending


@contextmanager
def _kept_fresh(writer: MirrorWriter, outbox: OutboxSettings) -> Iterator[None]:
    """Do the companion's work, so that the host is whole: keep the mirror complete up to now, and take segments out of
    the outbox."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(_FRESH_EVERY_S):
            writer.apply({}, {}, now_ms())
            for worker in workers(outbox):
                reader = OutboxReader(outbox, worker)
                reader.release(reader.end())

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        writer.close()


# Requests


def requests_over(payments: pa.Table, copies: int, size: WorldSize) -> list[ScoreRequest]:
    """Returns payments of the history's last week, each in a random world; a few have unknown cards and devices."""
    rng = np.random.default_rng(size.seed)
    newest = min(len(payments), max(100, len(payments) * 7 // size.days))
    rows = len(payments) - newest + rng.integers(0, newest, size.requests)
    requests = requests_of(payments.take(rows), id_prefix="")
    worlds = rng.integers(0, copies, size.requests).tolist()
    strangers = (rng.random(size.requests) < _UNKNOWN_SHARE).tolist()
    for request, world, is_stranger in zip(requests, worlds, strangers, strict=True):
        copy = "unknown" if is_stranger else world
        request.card_id = copied(request.card_id, copy)
        request.merchant_id = copied(request.merchant_id, world)
        if request.device_id:
            request.device_id = copied(request.device_id, copy)
    return requests
