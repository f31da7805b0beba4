"""Exploration from the worker to the weights of training: what a scorer approved by its coin weighs 1 / propensity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from paywarden.models.policy.exploration import Exploration, ExplorationSettings, FileLedger
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.ops.recomputation import decide_again, outcome_of
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.streams.archive.propensities import COLUMNS, with_propensities
from paywarden.streams.companion.shipping import decision_of
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP, TopicRows, rows_schema
from tests.unit.scoring.engine.test_scorer import Host, requests, score_many
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

SHARE = 0.25


def test_a_payment_that_a_worker_approved_by_the_coin_weighs_more_in_training(tmp_path: Path) -> None:
    bundle, host = small_world.loaded_bundle(), Host(tmp_path)
    host.fill(profiles())
    policy = Policy(PolicySettings(), review_at=0.005, decline_at=0.01)
    settings = ExplorationSettings(share=SHARE, budget_minor_a_day=1 << 40, payment_minor_max=1 << 30)
    host.scorer._exploration = Exploration(settings, key=bytes(16), ledger=FileLedger(tmp_path / "spent"))
    models = ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry()))
    origins = tuple(Origin(digest, policy.digest) for digest in (bundle.manifest.digest, ""))
    host.scorer.take_up(host.scorer.served(models, policy, origins))
    score_many(host.scorer, requests())
    decisions = [decision_of(entry) for entry in host.outbox.entries]
    host.close()
    for decision in decisions:
        # The same again, although the coin is not tossed again.
        assert outcome_of(decision).is_equal(decide_again(decision, bundle, policy, small_world.rates()))
    rows = [
        {name: decision[name] for name in COLUMNS if name in decision} | {PARTITION: 0, OFFSET: number, TIMESTAMP: 0}
        for number, decision in enumerate(decisions)
    ]
    schema = pa.schema([rows_schema("decisions").field(name) for name in COLUMNS])
    # The history has the payments under their own ids.
    for row in rows:
        row["payment_id"] = row["payment_id"].removeprefix("live-")
    history = with_propensities(small_world.history(), TopicRows(pa.Table.from_pylist(rows, schema), ()))
    assert history.propensity is not None
    explored = {row["payment_id"] for row in rows if row["action"] == "approve" and row["propensity"] == SHARE}
    declined = sum(row["action"] == "decline" for row in rows)
    assert 5 < len(explored) < declined
    found = {history.payment_id[row].as_py() for row in np.flatnonzero(history.propensity < 1)}
    # Nothing was learnt from a payment that the issuer declined after us.
    others = {row["payment_id"] for row in small_world.tables()[0].to_pylist() if row["declined"]}
    assert found == explored - others
    assert set(history.propensity.tolist()) == {1.0, SHARE}
