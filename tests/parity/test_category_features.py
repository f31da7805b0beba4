"""Categorical features end to end: declared, trained and compiled. Live vectors and scores equal those of a replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paywarden.features.catalogue.attributes import channel, country, mcc
from paywarden.features.catalogue.entity import CATEGORIES_MAX, Catalogue, Entity, request
from paywarden.features.datasets.simulator import split_at
from paywarden.features.history.history import history_of_tables
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.stores.memory import MemoryStore
from paywarden.models.bundle.bundle import MODEL_TEXT, Bundle, load_bundle, native_library
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.explanations import CATEGORICAL, DECISION, FEATURE, read_trees
from paywarden.models.metrics.evaluation import Days
from paywarden.models.policy.policy import FLAGS, Policy, PolicySettings
from paywarden.models.replay.measures import Contestant
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.models.training.table import LabelRules, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import CATEGORY_MAX
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.maintenance.backfill import backfill
from tests.worlds.endpoint.payments import score_many
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS

CHANNELS = ("pos", "ecom", "contactless")
MCCS = ("5999", "5732", "5411", "4814")
COUNTRIES = ("DE", "FR", "GB", "US")
CATEGORIES = ("channel", "mcc", "country")
LAST_DAY = small_world.FIRST_DAY + small_world.DAYS - 1
card = Entity("card", key="card_id")


@cache
def engine() -> FeatureEngine:
    made = FeatureEngine(
        Catalogue(
            entities=(card,),
            features=(
                request.amount("amount"),
                request.category("channel", channel, CHANNELS),
                request.category("mcc", mcc, MCCS),
                request.category("country", country, COUNTRIES),
                card.count("card_count_1d", "1d"),
            ),
        )
    )
    made.warm_up()
    return made


@cache
def tables() -> tuple[pa.Table, pa.Table]:
    """The small world's tables. A tenth of the payments lack the channel, a tenth the mcc, a tenth the country."""
    payments, outcomes = small_world.tables()
    random = np.random.default_rng(3)
    for name in CATEGORIES:
        texts = payments[name].cast(pa.string()).to_pylist()
        lacks = random.random(len(texts)) < 0.1
        column = pa.array([None if none else text for text, none in zip(texts, lacks.tolist(), strict=True)])
        place = payments.schema.get_field_index(name)
        payments = payments.set_column(place, name, column.dictionary_encode())
    return payments, outcomes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that passed the parity gate if there is a compiler. `train_bundle` refuses any other."""
    folder = tmp_path_factory.mktemp("categories") / "bundle"
    table = training_table(
        history_of_tables(*tables()),
        small_world.TRAINING_DAYS,
        engine=engine(),
        rates=small_world.rates(),
        labels=LabelRules(small_world.LABEL_DELAY_DAYS),
    )
    settings = replace(small_world.SETTINGS, categorical=CATEGORIES)
    train_bundle(table, small_world.TRAINING_DAYS, folder, engine=engine(), settings=settings)
    return folder


def policy_of(bundle: Bundle) -> Policy:
    return Policy(PolicySettings(), review_at=bundle.manifest.review_at, decline_at=bundle.manifest.decline_at)


def decided_by_replay(bundle: Bundle, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the last day's decisions by payment id."""
    replay(
        history_of_tables(*tables()),
        engine=engine(),
        rates=small_world.rates(),
        champion=Contestant(bundle, policy_of(bundle), "of the test"),
        destination=folder,
        options=ReplayOptions(
            window=Days(LAST_DAY, LAST_DAY), label_delay_days=small_world.LABEL_DELAY_DAYS, with_vectors=True
        ),
    )
    return {row["payment_id"]: row for row in pq.read_table(folder / "decisions.parquet").to_pylist()}


def decided_live(bundle: Bundle, folder: Path, payments: pa.Table) -> tuple[list[ScoreResponse], list[OutboxEntry]]:
    """Returns the answers and records of a scorer whose mirror holds everything before the last day."""
    past, _ = split_at(*tables(), LAST_DAY * DAY_MS)
    store = MemoryStore()
    backfill(history_of_tables(*past), store, engine=engine(), rates=small_world.rates(), outcome_days=120)
    keys = [f"card:{name}".encode() for name in payments["card_id"].to_pylist()]
    mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=64)
    writer = MirrorWriter(mirror)
    writer.apply(dict(zip(keys, store.read(keys), strict=True)), {0: 1}, LAST_DAY * DAY_MS)
    writer.close()
    at = OutboxSettings(directory=str(folder / "outbox"))
    outbox = OutboxWriter(at, "0")
    scorer = PaymentScorer(
        engine=engine(),
        intake=RequestDecoder(engine().plan, small_world.rates(), RequestLimits()),
        models=ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry())),
        policy=policy_of(bundle),
        mirror=mirror,
        outbox=outbox,
        metrics=ScoringMetrics.declare(MetricsRegistry(), flags=FLAGS, entities=("card",)),
    )
    now_ms = (LAST_DAY + 1) * DAY_MS
    requests = requests_of(payments, id_prefix="")
    answers: list[ScoreResponse] = []
    for first in range(0, len(requests), 32):
        for answer in score_many(scorer, requests[first : first + 32], now_ms):
            assert isinstance(answer, ScoreResponse)
            answers.append(answer)
    outbox.close()
    return answers, [OutboxEntry.FromString(record) for _, record in OutboxReader(at, "0").read(0, len(requests))]


def first_of_each_card(payments: pa.Table) -> pa.Table:
    """Returns the first payment of each card, so that no payment of the day changes the features of another."""
    seen: set[str] = set()
    rows = []
    for row, name in enumerate(payments["card_id"].to_pylist()):
        if name not in seen:
            seen.add(name)
            rows.append(row)
    return payments.take(rows)


def test_live_vectors_and_scores_equal_a_replays_to_the_bit(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle, catalogue_digest=engine().plan.digest)
    _, (today, _) = split_at(*tables(), LAST_DAY * DAY_MS)
    payments = first_of_each_card(today)
    wanted = decided_by_replay(loaded, tmp_path / "replay")
    answers, entries = decided_live(loaded, tmp_path, payments)
    assert len(answers) == len(entries) == len(payments) > 100
    for answer, entry in zip(answers, entries, strict=True):
        row = wanted[answer.payment_id]
        assert entry.vector == row["vector"]
        assert (answer.score, answer.action) == (row["score"], row["action"])
    # Listed categories, unlisted ones and missing ones all occur.
    vectors = np.array([np.frombuffer(entry.vector, "<f4") for entry in entries])
    for place, (name, among) in enumerate(zip(CATEGORIES, (CHANNELS, MCCS, COUNTRIES), strict=True), start=1):
        expected = [category(text, among) for text in payments[name].to_pylist()]
        assert np.array_equal(vectors[:, place], np.array(expected, dtype=np.float32), equal_nan=True)
        assert set(range(len(among) + 1)) <= set(vectors[:, place].tolist())
        assert np.isnan(vectors[:, place]).any()


def category(text: str | None, among: Sequence[str]) -> float:
    if text is None:
        return float("nan")
    return among.index(text) if text in among else len(among)


def test_compiled_trees_split_on_categories_as_lightgbm_does(bundle: Path) -> None:
    trees = read_trees(bundle / MODEL_TEXT, engine().plan.feature_count)
    asks_sets = (trees.nodes[:, DECISION] & CATEGORICAL) != 0
    assert set(trees.nodes[asks_sets, FEATURE].tolist()) == {1, 2, 3}
    # `load_bundle` has compared it with LightGBM's margins of the golden vectors.
    if compiler_name() is not None:
        assert native_library(bundle).exists()
        assert load_bundle(bundle, catalogue_digest=engine().plan.digest).predictor.native


def test_training_accepts_the_longest_list_of_categories() -> None:
    assert CATEGORIES_MAX == CATEGORY_MAX
