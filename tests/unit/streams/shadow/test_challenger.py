"""A challenger decides from the vector of a decision as it would have in the worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import Bundle
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, Policy, PolicySettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.streams.shadow.challenger import (
    CHAMPION,
    FAILED,
    OTHER_BUNDLE,
    OTHER_CATALOGUE,
    VectorChallenger,
)
from tests.unit.scoring.engine.test_scorer import NOW_MS, PLAN, STRANGER, Host, requests, score_many
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

CHAMPION_POLICY = Policy(PolicySettings(), review_at=0.5, decline_at=0.9)
STRICT = PolicySettings(
    review_at=0.01,
    decline_at=0.05,
    on_unknown_card="review",
    on_mirror_stale="review",
    stale_after_ms=100,
    rules=(
        ConfiguredRule("large", "amount > 50_00 and card_count_30d >= 1", "review"),
        ConfiguredRule("shop", 'merchant_id == "nowhere"', "decline"),
    ),
    segments=(ConfiguredSegment("online", 'channel == "ecom"', decline_at=0.02),),
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    made.fill(profiles())
    yield made
    made.close()


def challenger(bundle: Bundle, policy: Policy, **more: Any) -> VectorChallenger:
    return VectorChallenger("b-42", bundle, policy, catalogue_digest=PLAN.digest, rates=small_world.rates(), **more)


def decide(host: Host, bundle: Bundle, policy: Policy) -> list[OutboxEntry]:
    """Returns the decisions of this model and policy about the same payments, a stale mirror included."""
    models = ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry()))
    origins = tuple(Origin(digest, policy.digest) for digest in (bundle.manifest.digest, ""))
    host.scorer.take_up(host.scorer.served(models, policy, origins))
    host.outbox.entries.clear()
    score_many(host.scorer, [*requests()[:60], STRANGER])
    score_many(host.scorer, [replaced(one, "late-") for one in requests()[:60]], NOW_MS + 250)
    return list(host.outbox.entries)


def replaced(request: Any, prefix: str) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    copy.payment_id = prefix + request.payment_id
    return copy


@pytest.mark.parametrize("is_policy_alone", [False, True])
def test_it_decides_as_it_would_in_the_worker_to_the_bit(host: Host, is_policy_alone: bool) -> None:
    first, other = small_world.loaded_bundle(), small_world.other_loaded_bundle()
    bundle = first if is_policy_alone else other
    manifest = bundle.manifest
    policy = Policy(STRICT, review_at=manifest.review_at, decline_at=manifest.decline_at)
    champions = decide(host, first, CHAMPION_POLICY)
    own = decide(host, bundle, policy)
    found = challenger(bundle, policy, is_policy_alone=is_policy_alone).evaluate(champions)
    assert found.left_out == {}
    assert len(found.records) == len(own) == len(champions)
    for record, champion, expected in zip(found.records, champions, own, strict=True):
        assert champion.vector == expected.vector
        assert (record.challenger.score, record.challenger.action) == (
            expected.response.score,
            expected.response.action,
        )
        assert list(record.challenger_reasons) == list(expected.response.reasons)
        assert (record.champion.score, record.champion.action) == (champion.response.score, champion.response.action)
        assert record.decision_id == champion.response.decision_id
        assert record.champion.version.bundle == first.manifest.digest
        assert record.challenger.version.bundle == manifest.digest
        assert record.challenger.version.policy == policy.digest
    assert {one.challenger.action for one in found.records} == {"approve", "review", "decline"}


def test_what_cannot_be_compared_is_left_out_and_counted(host: Host) -> None:
    bundle = small_world.loaded_bundle()
    entries = decide(host, bundle, CHAMPION_POLICY)[:4]
    entries[0].catalogue_digest = "another"
    entries[1].vector = entries[1].vector[4:]
    entries[2].bundle_digest = b"x" * 32
    policy = Policy(PolicySettings(review_at=0.02), review_at=0.5, decline_at=0.9)
    found = challenger(bundle, policy, is_policy_alone=True).evaluate(entries)
    assert (len(found.records), found.left_out) == (1, {OTHER_CATALOGUE: 2, OTHER_BUNDLE: 1})
    itself = challenger(bundle, CHAMPION_POLICY).evaluate(entries)
    assert (len(itself.records), itself.left_out) == (1, {OTHER_CATALOGUE: 2, CHAMPION: 1})
    assert challenger(bundle, policy).evaluate([]).records == []


def test_a_decision_without_a_score_is_decided_by_the_policy_alone(host: Host) -> None:
    bundle = small_world.loaded_bundle()
    (entry,) = decide(host, bundle, CHAMPION_POLICY)[:1]
    entry.bundle_digest, entry.response.score = b"", 0.0
    entry.response.flags[:] = ["model_error", "model_absent"]
    policy = Policy(PolicySettings(on_model_absent="decline"), review_at=0.5, decline_at=0.9)
    (record,) = challenger(bundle, policy, is_policy_alone=True).evaluate([entry]).records
    assert (record.challenger.action, record.challenger_reasons) == ("decline", ("model_absent",))
    assert record.challenger.version.bundle == ""
    # A challenger with a model of its own has scored it.
    (own,) = challenger(bundle, policy).evaluate([entry]).records
    assert (own.challenger.score, own.challenger.action) == (requests_score(entry), "approve")


def test_a_decision_without_an_action_fails_alone(host: Host) -> None:
    """No worker writes one. It would have ended the challenger's process again and again."""
    bundle, other = small_world.loaded_bundle(), small_world.other_loaded_bundle()
    first, second = decide(host, bundle, CHAMPION_POLICY)[:2]
    first.response.action = ""
    found = challenger(other, CHAMPION_POLICY).evaluate([first, second])
    assert (len(found.records), found.left_out) == (1, {FAILED: 1})


def requests_score(entry: OutboxEntry) -> float:
    vector = np.frombuffer(entry.vector, dtype=np.float32).reshape(1, -1)
    return float(small_world.loaded_bundle().score(vector)[0])


@pytest.mark.parametrize("raises", [False, True])
def test_a_model_that_fails_on_one_payment_fails_on_no_other(host: Host, raises: bool) -> None:
    other = small_world.other_loaded_bundle()
    entries = decide(host, small_world.loaded_bundle(), CHAMPION_POLICY)[:8]
    bad = np.frombuffer(entries[3].vector, dtype=np.float32)

    class Failing:
        native = False

        def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
            is_bad = np.array([vector.tobytes() == bad.tobytes() for vector in vectors])
            if raises and is_bad.any():
                raise RuntimeError
            margins = other.predictor.margins(np.ascontiguousarray(vectors))
            margins[is_bad] = np.inf
            return margins

    failing = cast(Bundle, SimpleNamespace(manifest=other.manifest, predictor=Failing(), explainer=other.explainer))
    found = challenger(failing, CHAMPION_POLICY).evaluate(entries)
    whole = challenger(other, CHAMPION_POLICY).evaluate(entries)
    assert found.left_out == {FAILED: 1}
    assert found.records == [one for place, one in enumerate(whole.records) if place != 3]


def test_a_policy_that_reads_what_no_decision_holds_is_refused() -> None:
    policy = Policy(PolicySettings(), review_at=0.5, decline_at=0.9)
    reading = cast(Policy, SimpleNamespace(fields=frozenset({"customer_id", "mcc"}), digest=policy.digest))
    with pytest.raises(Misconfigured, match=r"challenger b-42: .* no decision holds: customer_id"):
        challenger(small_world.loaded_bundle(), reading)
