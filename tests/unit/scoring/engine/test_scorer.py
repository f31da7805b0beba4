from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import row_of
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.keys import entity_key
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.policy.policy import FLAGS, ConfiguredRule, Policy, PolicySettings, flags_of
from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine import scorer as scorer_module
from paywarden.scoring.engine.arms import ArmSplit
from paywarden.scoring.engine.batching.batcher import IN_PROGRESS, Chunk, Refusal
from paywarden.scoring.engine.model_chain import ModelChain, Scored
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.engine.scorer import NO_OPTIONS, PaymentScorer
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.idempotency import decision_cache as answered_payments
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheSettings
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings, OutboxUnsynced, OutboxWriter, framed
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.oracles.claims import claim_all
from tests.oracles.step_decoder import StepDecoder
from tests.worlds.endpoint import payments
from tests.worlds.endpoint.requests import requests_of
from tests.worlds.small import small_world
from tests.worlds.small.certain_bundle import CertainBundle
from tests.worlds.small.small_history import profiles

PLAN = small_world.engine().plan
NOW_MS = int(small_world.history().event_time_ms[-1]) + 1000
STRANGER = ScoreRequest(
    payment_id="new", event_time_ms=NOW_MS, card_id="nobody", merchant_id="nowhere", amount_minor=1050, currency="EUR"
)


class FakeOutbox:
    """An outbox in a list. A test can make it refuse."""

    def __init__(self) -> None:
        self.entries: list[OutboxEntry] = []
        self.fails = False

    @property
    def position(self) -> int:
        return len(self.entries)

    def trouble(self) -> str:
        return "the outbox is full" if self.fails else ""

    def append_frames(self, frames: bytes) -> int:
        if self.fails:
            raise TemporaryFailure("the outbox is full")
        while frames:
            size = int.from_bytes(frames[:4], "little")
            self.entries.append(OutboxEntry.FromString(frames[8 : 8 + size]))
            assert frames[: 8 + size] == framed(frames[8 : 8 + size])
            frames = frames[8 + size :]
        return len(self.entries)


class Host:
    """A scorer with its mirror, outbox and metrics in a folder."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=64)
        self.outbox = FakeOutbox()
        self.answered: DecisionCache | None = None
        self.metrics = ScoringMetrics.declare(MetricsRegistry(), flags=FLAGS, entities=PLAN.entity_names)
        self.bundle = small_world.loaded_bundle()
        self._policy = policy
        self._scorer: PaymentScorer | None = None
        self.options = NO_OPTIONS

    def fill(self, profiles: dict[bytes, bytes | None], complete_to_ms: int | None = NOW_MS) -> None:
        """Write the mirror."""
        writer = MirrorWriter(self.mirror)
        writer.apply(profiles, {0: 1}, complete_to_ms)
        writer.close()

    @property
    def scorer(self) -> PaymentScorer:
        if self._scorer is None:
            manifest = self.bundle.manifest
            self._scorer = PaymentScorer(
                engine=small_world.engine(),
                intake=default_intake(),
                models=ModelChain((self.bundle,), metrics=ModelMetrics.declare(MetricsRegistry())),
                policy=Policy(
                    PolicySettings(**self._policy), review_at=manifest.review_at, decline_at=manifest.decline_at
                ),
                mirror=self.mirror,
                outbox=self.outbox,
                metrics=self.metrics,
                options=replace(
                    self.options,
                    answered=self.answered,
                    origins=(Origin("ab" * 32, "cd" * 32), Origin("", "cd" * 32)),
                ),
            )
        return self._scorer

    def score(self, request: ScoreRequest, now_ms: int = NOW_MS) -> ScoreResponse:
        return answered(self.scorer, request, now_ms)

    def vector(self) -> dict[str, float]:
        """The feature vector of the last decision, by name."""
        values = np.frombuffer(self.outbox.entries[-1].vector, dtype="<f4")
        return dict(zip(PLAN.names, values.tolist(), strict=True))

    def counted(self) -> dict[str, int]:
        """Returns every count that is not zero, by its label."""
        metrics = self.metrics
        counts = {action: counter.value for action, counter in metrics.decisions.items()}
        counts |= {flag: counter.value for flag, counter in metrics.flags.items()}
        counts |= {f"{name} {result}": c.value for (name, result), c in metrics.mirror_lookups.items()}
        return {name: count for name, count in counts.items() if count}

    def close(self) -> None:
        if self._scorer is not None:
            self._scorer.close_mirror()


def score_many(
    scorer: PaymentScorer, requests: Sequence[ScoreRequest], now_ms: int = NOW_MS
) -> list[ScoreResponse | Refusal]:
    """Returns the result of each request."""
    return payments.score_many(scorer, requests, now_ms)


def default_intake() -> StepDecoder:
    return StepDecoder(PLAN, small_world.rates(), RequestLimits())


def answered(scorer: PaymentScorer, request: ScoreRequest, now_ms: int = NOW_MS) -> ScoreResponse:
    """Returns the response to one payment, which must not be refused."""
    (result,) = score_many(scorer, [request], now_ms)
    assert isinstance(result, ScoreResponse)
    return result


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


@cache
def requests() -> list[ScoreRequest]:
    """Returns payments of known entities, some without a device, dated now."""
    found = requests_of(small_world.tables()[0].slice(0, 300), id_prefix="live-")
    for request in found:
        request.event_time_ms = NOW_MS
    return found


def keys_of(request: ScoreRequest) -> list[bytes | None]:
    keys: list[bytes | None] = []
    for name, fields in zip(PLAN.entity_names, PLAN.entity_keys, strict=True):
        ids = [getattr(request, field) for field in fields]
        keys.append(entity_key(name, ids) if all(ids) else None)
    return keys


def attributes_of(request: ScoreRequest) -> list[int]:
    amount = small_world.rates().convert(request.amount_minor, request.currency, request.event_time_ms)
    fields = {field.name: value for field, value in request.ListFields()}
    return row_of(fields, event_time_ms=request.event_time_ms, amount=amount, amount_minor=request.amount_minor)


def vector_by_hand(request: ScoreRequest, states: dict[bytes, bytes | None]) -> bytes:
    """Returns the features that the engine computes for a payment from these profiles."""
    presence, packed, bounds = [], b"", [0]
    for key in keys_of(request):
        state = None if key is None else states.get(key)
        presence.append(kernel.ABSENT if key is None else kernel.UNKNOWN if state is None else kernel.KNOWN)
        packed += state or b""
        bounds.append(len(packed))
    out = np.empty((1, PLAN.feature_count), dtype=np.float32)
    small_world.engine().fill_vectors(
        np.array([attributes_of(request)]),
        np.array(presence, dtype=np.uint8),
        np.frombuffer(bytearray(packed), dtype=np.uint8),
        np.array(bounds, dtype=np.int64),
        out,
    )
    return out.tobytes()


# The decision


def test_a_decision_is_made_of_the_profiles_in_the_mirror(host: Host) -> None:
    host.fill(profiles())
    without_device = 0
    for request in requests():
        response = host.score(request)
        entry = host.outbox.entries[-1]
        assert entry.vector == vector_by_hand(request, profiles())
        vector = np.frombuffer(entry.vector, dtype=np.float32).reshape(1, -1)
        assert response.score == small_world.loaded_bundle().score(vector)[0]
        assert not response.flags
        without_device += not request.device_id
    assert 0 < without_device < len(requests())


def test_each_record_says_what_decided_and_from_which_profile_set(host: Host) -> None:
    host.fill(profiles())
    writer = MirrorWriter(host.mirror)
    writer.note_profile_set("b1")
    writer.close()
    host.score(requests()[0])
    entry = host.outbox.entries[-1]
    assert (entry.bundle_digest.hex(), entry.policy_digest.hex()) == ("ab" * 32, "cd" * 32)
    assert (entry.profile_set, entry.rollout, entry.arm, entry.HasField("propensity")) == ("b1", "", "", False)
    arm = Origin("ef" * 32, "01" * 32, "r-7", "challenger", 0.05)
    # A policy that sends every payment to review: only its tails, which are not kept, name the origin.
    strict = Policy(PolicySettings(), review_at=1e-9, decline_at=1.0)
    host.scorer.take_up(host.scorer.served(host.scorer.serving.models, strict, (arm, arm)))
    assert host.score(requests()[1]).action == "review"
    entry = host.outbox.entries[-1]
    assert (entry.bundle_digest.hex(), entry.policy_digest.hex(), entry.profile_set) == ("ef" * 32, "01" * 32, "b1")
    assert (entry.rollout, entry.arm, entry.propensity) == ("r-7", "challenger", 0.05)


def test_what_decides_is_changed_between_two_chunks_and_changed_back(host: Host) -> None:
    host.fill(profiles())
    first, other = small_world.loaded_bundle(), small_world.other_loaded_bundle()
    host.score(requests()[0])
    models = ModelChain((other,), metrics=ModelMetrics.declare(MetricsRegistry()))
    manifest = other.manifest
    policy = Policy(PolicySettings(), review_at=manifest.review_at, decline_at=manifest.decline_at)
    made = host.scorer.served(models, policy)
    before = host.scorer.take_up(made)
    seen = set()
    for bundle, served in ((other, made), (first, before), (other, made)):
        host.scorer.take_up(served)
        for request in requests()[1:20]:
            response = host.score(request)
            entry = host.outbox.entries[-1]
            vector = np.frombuffer(entry.vector, dtype=np.float32).reshape(1, -1)
            assert response.score == bundle.score(vector)[0]
            assert response.model_version == bundle.manifest.model_version
            seen.add(response.decision_id)
    assert len(seen) == 3 * 19


def test_a_candidate_decides_about_its_share_of_the_cards_and_about_no_other(host: Host) -> None:
    host.fill(profiles())
    alone = [host.score(request).score for request in requests()]
    other = small_world.other_loaded_bundle()
    policy = Policy(PolicySettings(), review_at=0.5, decline_at=0.9)
    arm = Origin("ef" * 32, "01" * 32, "r-7", "candidate", 0.5)
    candidate = host.scorer.served(
        ModelChain((other,), metrics=ModelMetrics.declare(MetricsRegistry())),
        policy,
        (arm, replace(arm, bundle_digest="")),
    )
    split = ArmSplit(bytes(range(16)), 5000)
    host.scorer.divide(candidate, split)
    host.outbox.entries.clear()
    # More than one chunk, so that both arms are cut into parts.
    responses = score_many(host.scorer, requests())
    by_payment = {entry.request.payment_id: entry for entry in host.outbox.entries}
    assert len(by_payment) == len(responses) == len(requests()) > ROWS_MAX
    seen = set()
    for request, response, champion_score in zip(requests(), responses, alone, strict=True):
        assert isinstance(response, ScoreResponse)
        entry = by_payment[request.payment_id]
        vector = np.frombuffer(entry.vector, dtype=np.float32).reshape(1, -1)
        in_arm = split.has(f"card:{request.card_id}".encode())
        assert response.payment_id == request.payment_id
        assert entry.response == response
        assert response.score == (other.score(vector)[0] if in_arm else champion_score)
        assert (entry.arm, entry.rollout) == (("candidate", "r-7") if in_arm else ("", ""))
        seen.add(in_arm)
    assert seen == {True, False}
    host.scorer.divide(None)
    assert [one.score for one in score_many(host.scorer, requests()) if isinstance(one, ScoreResponse)] == alone


def test_a_latency_begins_with_the_arrival_and_holds_nothing_of_the_other_arm(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow candidate must not make the champion look slow, nor the other way round."""
    host.fill(profiles())
    now_s = [7.0]
    monkeypatch.setattr(scorer_module, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    champion, arm = host.scorer.serving, Origin("ef" * 32, "01" * 32, "r-7", "candidate", 0.5)
    candidate = host.scorer.served(_Slow(champion.models, now_s, 5.0), champion.policy, (arm, arm))
    host.scorer.take_up(host.scorer.served(_Slow(champion.models, now_s, 2.0), champion.policy, champion.origins))
    host.scorer.divide(candidate, ArmSplit(bytes(range(16)), 5000))
    begun_s = time.perf_counter() - 100
    arrivals = {request.payment_id: begun_s - place for place, request in enumerate(requests()[:20])}
    bodies = [request.SerializeToString() for request in requests()[:20]]
    host.scorer.score(Chunk(bodies, arrivals=[*arrivals.values()]), NOW_MS)
    # Without the payments' own waits, and the other arm's seconds: what is left is the same for all.
    rest = {True: set[float](), False: set[float]()}
    for entry in host.outbox.entries[-20:]:
        waited_s = begun_s - arrivals[entry.request.payment_id]
        rest[bool(entry.arm)].add(entry.latency_us / 1e6 - waited_s + (2.0 if entry.arm else 5.0))
    both = [*rest[True], *rest[False]]
    assert len(rest[True]) * len(rest[False]) > 0
    assert max(both) - min(both) < 1e-4
    assert min(both) >= 100
    host.score(requests()[30])
    assert not host.outbox.entries[-1].HasField("latency_us"), "nobody said when it arrived"


class _Slow(ModelChain):
    """The models of a chain, whose scores take seconds by a test's clock."""

    def __init__(self, models: ModelChain, now_s: list[float], takes_s: float) -> None:
        self.__dict__ |= models.__dict__
        self._clock, self._takes_s = now_s, takes_s

    def score(self, vectors: Any) -> Scored:
        self._clock[0] += self._takes_s
        return super().score(vectors)


@pytest.mark.parametrize(("card", "first"), [(b"card:C118", 95), (b"card:C1", 5131)])
def test_a_card_is_in_from_its_position_on_and_stays_in(card: bytes, first: int) -> None:
    """The positions are those of rollouts on other hosts and in other languages."""
    salt, shares = bytes(range(16)), range(0, 10_001, 3)
    assert [ArmSplit(salt, share).has(card) for share in shares] == [share >= first for share in shares]
    assert (ArmSplit(salt, first - 1).has(card), ArmSplit(salt, first).has(card)) == (False, True)
    assert not ArmSplit(salt, 10_000).has(b"")


def test_unknown_entities_are_flagged_and_scored(host: Host) -> None:
    host.fill(profiles())
    response = host.score(STRANGER)
    assert list(response.flags) == ["unknown_card", "unknown_merchant"]
    assert 0 < response.score < 1
    assert host.outbox.entries[-1].vector == vector_by_hand(STRANGER, {})
    assert host.vector()["card_count_30d"] == 0
    assert np.isnan(host.vector()["device_count_30d"])


@pytest.mark.parametrize("action", ["", "approve", "decline"])
def test_a_currency_without_a_rate_is_scored_flagged_and_counted(tmp_path: Path, action: str) -> None:
    """A payment in naira was refused, although the page said any currency of ISO 4217."""
    rules = (
        ConfiguredRule("large", "amount >= 0 or amount < 1", "decline"),
        ConfiguredRule("unseen", 'missing(amount) and "unknown_rate" in flags', "review"),
    )
    asked = {"on_unknown_rate": action} if action else {}
    host = Host(tmp_path, rules=rules if not action else (), review_at=1.0, decline_at=1.0, **asked)
    host.fill(profiles())
    request = ScoreRequest()
    request.CopyFrom(requests()[0])
    request.currency = "NGN"
    response = host.score(request)
    assert list(response.flags) == ["unknown_rate"]
    assert (response.action, host.counted()["unknown_rate"]) == (action or "review", 1)
    asked_by = [reason for reason in response.reasons if not reason.startswith("feature:")]
    assert asked_by == {"": ["unknown_rate", "rule:unseen"], "approve": [], "decline": ["unknown_rate"]}[action]
    assert host.outbox.entries[-1].vector == vector_by_hand(request, dict(profiles()))
    vector = host.vector()
    assert np.isnan(vector["amount"])
    assert vector["amount_round_zeros"] >= 0
    assert vector["card_count_30d"] > 0
    host.close()


def varied(draw: st.DataObject) -> list[ScoreRequest]:
    """Draws payments of known and unknown entities, without a rate, or with a broken profile."""
    kinds = draw.draw(st.lists(st.integers(0, 39), min_size=1, max_size=3 * ROWS_MAX))
    found = []
    for number, kind in enumerate(kinds):
        request = ScoreRequest()
        request.CopyFrom(STRANGER if kind == 0 else requests()[kind])
        request.payment_id = str(number)
        if kind == 1:
            request.currency = "XXX"
        if kind == 2:
            request.card_id = "broken"
        if kind == 3:
            request.currency = "NGN"
        found.append(request)
    return found


def told(result: ScoreResponse | Refusal) -> object:
    """Returns a result without the decision's id, which is always unique."""
    if isinstance(result, Refusal):
        return result
    copy = ScoreResponse()
    copy.CopyFrom(result)
    copy.ClearField("decision_id")
    return copy.SerializeToString(deterministic=True)


def test_payments_scored_together_get_the_answers_they_would_get_alone(host: Host) -> None:
    host.fill(profiles() | {b"card:broken": b"\2" + bytes(9)})

    @settings(max_examples=30, deadline=None)
    @given(draw=st.data(), lag_ms=st.sampled_from([0, 100_000]))
    def check(draw: st.DataObject, lag_ms: int) -> None:
        asked, now_ms = varied(draw), NOW_MS + lag_ms
        host.outbox.entries.clear()
        together = score_many(host.scorer, asked, now_ms)
        kept = [(entry.request, entry.vector, told(entry.response)) for entry in host.outbox.entries]
        host.outbox.entries.clear()
        alone = [score_many(host.scorer, [request], now_ms)[0] for request in asked]
        assert [told(result) for result in together] == [told(result) for result in alone]
        assert kept == [(entry.request, entry.vector, told(entry.response)) for entry in host.outbox.entries]

    check()


def test_the_decisions_of_a_chunk_are_appended_in_one_write(host: Host) -> None:
    host.fill(profiles())
    writes: list[int] = []
    keep = host.outbox.append_frames

    def append(frames: bytes) -> int:
        before = len(host.outbox.entries)
        writes.append(keep(frames) - before)
        return len(host.outbox.entries)

    host.outbox.append_frames = append  # type: ignore[method-assign]
    score_many(host.scorer, requests()[: ROWS_MAX + 6])
    assert writes == [ROWS_MAX, 6]


def test_decision_ids_are_unique_over_payments_and_workers(tmp_path: Path) -> None:
    seen = set()
    for name in ("a", "b", "c"):
        host = Host(tmp_path / name)
        seen |= {host.score(STRANGER).decision_id for _ in range(100)}
    assert len(seen) == 300


# Missing, stale and damaged data


@pytest.mark.parametrize("action", ["approve", "review", "decline"])
def test_without_a_mirror_the_answer_is_flagged_and_the_policy_decides(tmp_path: Path, action: str) -> None:
    host = Host(tmp_path, on_mirror_absent=action, review_at=1.0, decline_at=1.0)
    response = host.score(requests()[0])
    assert list(response.flags) == ["mirror_absent"]
    assert response.action == action
    asked = [reason for reason in response.reasons if not reason.startswith("feature:")]
    assert asked == ([] if action == "approve" else ["mirror_absent"])
    assert not response.HasField("profile_age_ms")
    assert host.outbox.entries[-1].vector == vector_by_hand(requests()[0], {})
    # A payment without a device has a missing entity, not an unknown one.
    host.score(STRANGER)
    assert host.outbox.entries[-1].vector == vector_by_hand(STRANGER, {})


def test_an_unreadable_mirror_counts_as_absent_and_its_age_is_cleared(host: Host) -> None:
    host.fill(profiles())
    assert host.score(requests()[0]).HasField("profile_age_ms")
    assert host.scorer._features.mirror is not None
    host.scorer._features.mirror.close()
    response = host.score(requests()[0])
    assert list(response.flags) == ["mirror_absent"]
    assert not response.HasField("profile_age_ms")
    assert host.scorer.readiness() == ["the mirror is not complete yet"]


def test_a_mirror_that_takes_the_place_of_another_is_taken_up(host: Host, tmp_path: Path) -> None:
    """An operator who deletes the mirror and starts the companion again must not have to restart the workers."""
    host.fill({})
    assert "unknown_card" in host.score(requests()[0]).flags
    shutil.move(host.mirror.path, tmp_path / "away")
    Host(tmp_path / "other").fill(profiles())
    shutil.move(tmp_path / "other" / "mirror", host.mirror.path)
    assert host.scorer.open_mirror()
    assert list(host.score(requests()[0]).flags) == []


def test_a_profile_of_another_catalogue_is_migrated_on_the_way(host: Host) -> None:
    request = requests()[0]
    key = f"card:{request.card_id}".encode()
    card = Entity("card", "card_id")
    other = FeatureEngine(Catalogue([card], [card.count("count", "1d"), card.amount_min("other", "3d")]))
    one, none = np.ones(1, dtype=np.int64), np.full(1, -1, dtype=np.int64)
    events = Events(np.array([0, 1]), np.zeros(1, np.uint8), np.zeros(1, np.int64), one, none, one, none)
    state = other.apply(0, events, np.array([attributes_of(request)]), [None], other.new_slots(0)).states[0]
    host.fill({**profiles(), key: state})
    assert list(host.score(request).flags) == []
    vector = host.outbox.entries[-1].vector
    assert vector == vector_by_hand(request, {**profiles(), key: small_world.engine().migrated(0, state)})
    assert np.frombuffer(vector, dtype=np.float32)[PLAN.names.index("card_count_1d")] == 1


@pytest.mark.parametrize("state", [b"", b"\1", b"garbage that is no profile", bytes(100_000)])
def test_damaged_profiles_are_flagged_and_the_next_payment_is_as_ever(host: Host, state: bytes) -> None:
    request, other = requests()[0], next(r for r in requests() if r.card_id != requests()[0].card_id)
    host.fill({**profiles(), f"card:{request.card_id}".encode(): state})
    assert list(host.score(request).flags) == ["profile_unreadable"]
    assert list(host.score(other).flags) == []
    assert host.outbox.entries[-1].vector == vector_by_hand(other, profiles())


def test_a_mirror_of_another_identity_key_is_not_used_until_it_is_replaced(host: Host) -> None:
    request = requests()[0]
    writer = MirrorWriter(host.mirror)
    writer.claim_identity("another")
    writer.apply(profiles(), {0: 1}, NOW_MS)
    writer.close()
    assert list(host.score(request).flags) == ["mirror_absent"]
    (missing,) = host.scorer.readiness()
    assert "was filled for another identity key" in missing
    shutil.rmtree(host.mirror.path)
    writer = MirrorWriter(host.mirror)
    writer.claim_identity(small_world.engine().plan.key.digest)
    writer.apply(profiles(), {0: 1}, NOW_MS)
    writer.close()
    assert host.scorer.readiness() == []
    assert list(host.score(request).flags) == []


def test_the_profile_age_is_how_far_the_mirror_lags_behind(tmp_path: Path) -> None:
    host = Host(tmp_path, stale_after_ms=1000, on_mirror_stale="decline")
    host.fill(profiles(), complete_to_ms=NOW_MS)
    ages = [(-50, 0, False), (0, 0, False), (1000, 1000, False), (1001, 1001, True)]
    for later_ms, age_ms, is_stale in ages:
        response = host.score(requests()[0], NOW_MS + later_ms)
        assert response.profile_age_ms == age_ms
        assert ("mirror_stale" in response.flags) == is_stale
        assert ("mirror_stale" in response.reasons) == is_stale
    host.close()


def test_a_combined_entity_is_looked_up_by_all_its_fields_and_flagged(tmp_path: Path) -> None:
    """A kind of entity is declared in the catalogue and nowhere else."""
    pair = Entity("card_merchant", ("card_id", "merchant_id"))
    engine = FeatureEngine(Catalogue([pair], [pair.count("pair_count_1d", "1d")]))
    mirror = MirrorSettings(path=str(tmp_path / "mirror"), size_mb=16)
    request = requests()[0]
    key = entity_key("card_merchant", (request.card_id, request.merchant_id))
    one, none = np.ones(1, dtype=np.int64), np.full(1, -1, dtype=np.int64)
    events = Events(np.array([0, 1]), np.zeros(1, np.uint8), np.zeros(1, np.int64), one, none, one, none)
    state = engine.apply(0, events, np.array([attributes_of(request)]), [None], engine.new_slots(0)).states[0]
    writer = MirrorWriter(mirror)
    writer.apply({key: state}, {0: 1}, NOW_MS)
    writer.close()
    outbox = FakeOutbox()
    scorer = PaymentScorer(
        engine=engine,
        intake=StepDecoder(engine.plan, small_world.rates(), RequestLimits()),
        models=ModelChain(
            [cast(Bundle, CertainBundle("pair_count_1d", 0))], metrics=ModelMetrics.declare(MetricsRegistry())
        ),
        policy=Policy(PolicySettings(on_unknown_other="review"), review_at=0.1, decline_at=0.2),
        mirror=mirror,
        outbox=outbox,
        metrics=ScoringMetrics.declare(
            MetricsRegistry(), flags=flags_of(["card_merchant"]), entities=["card_merchant"]
        ),
    )
    (known,) = score_many(scorer, [request])
    assert isinstance(known, ScoreResponse)
    assert (known.action, list(known.flags)) == ("approve", [])
    assert np.frombuffer(outbox.entries[-1].vector, dtype=np.float32).tolist() == [1.0]
    elsewhere = ScoreRequest()
    elsewhere.CopyFrom(request)
    elsewhere.merchant_id = "another"
    (unknown,) = score_many(scorer, [elsewhere])
    assert isinstance(unknown, ScoreResponse)
    assert (unknown.action, list(unknown.flags)) == ("review", ["unknown_card_merchant"])


# The policy and the models


def test_rules_see_the_payment_the_converted_amount_and_the_features(tmp_path: Path) -> None:
    request = requests()[0]
    foreign = ScoreRequest()
    foreign.CopyFrom(request)
    foreign.currency, foreign.amount_minor = "USD", 100_000
    amount = small_world.rates().convert(100_000, "USD", NOW_MS)
    assert amount != 100_000
    when = f'currency == "USD" and amount == {amount} and amount_minor == 100000 and merchant_count_30d > 0'
    rule = ConfiguredRule("foreign", when, "decline")
    host = Host(tmp_path, rules=(rule,), review_at=1.0, decline_at=1.0, reason_features_max=0)
    host.fill(profiles())
    assert host.score(request).action == "approve"
    response = host.score(foreign)
    assert (response.action, list(response.reasons)) == ("decline", ["rule:foreign"])
    host.close()


def test_a_payment_that_is_not_approved_has_the_reasons_of_its_score(tmp_path: Path) -> None:
    host = Host(tmp_path, review_at=1e-9, decline_at=1.0, reason_features_max=2)
    host.fill(profiles())
    told = 0
    for request in requests()[:50]:
        response = host.score(request)
        vector = np.frombuffer(host.outbox.entries[-1].vector, dtype="<f4")
        wanted = small_world.loaded_bundle().explainer.reasons(vector, 2)
        assert list(response.reasons) == ["score_at_or_above_review_threshold", *wanted]
        assert list(host.outbox.entries[-1].response.reasons) == list(response.reasons)
        told += len(wanted)
    assert told > 0
    host.close()


class FailingPredictor:
    native = True

    def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.full(len(vectors), np.nan)


@pytest.mark.parametrize("action", ["approve", "decline"])
def test_without_a_score_the_policy_decides_and_the_answer_says_so(tmp_path: Path, action: str) -> None:
    host = Host(tmp_path, on_model_absent=action)
    host.bundle = replace(host.bundle, predictor=FailingPredictor())
    host.fill(profiles())
    response = host.score(requests()[0])
    assert (response.action, response.score, response.model_version) == (action, 0.0, "")
    assert list(response.flags) == ["model_error", "model_absent"]
    assert list(response.reasons) == ([] if action == "approve" else ["model_absent"])
    assert host.outbox.entries[-1].response == response
    counted = host.counted()
    assert counted["model_error"] == counted["model_absent"] == 1
    # A missing score is not a score of 0.
    assert host.metrics.score.count == 0
    host.close()


# Readiness


def test_a_worker_is_not_ready_without_a_mirror(host: Host) -> None:
    assert host.scorer.readiness() == [f"there is no mirror at {host.mirror.path}: is the companion running?"]


def test_a_worker_is_not_ready_while_the_mirror_is_being_filled(host: Host) -> None:
    host.fill(profiles(), complete_to_ms=None)
    assert host.scorer.readiness() == ["the mirror is not complete yet"]


def test_a_worker_is_not_ready_while_decisions_cannot_be_recorded(host: Host) -> None:
    host.fill(profiles())
    host.outbox.fails = True
    assert host.scorer.readiness() == ["the outbox is full"]
    host.outbox.fails = False
    assert host.scorer.readiness() == []


# Repeated payments


class Refusing(OutboxWriter):
    """An outbox that a test can make refuse."""

    fails = False
    syncs = True

    def append_frames(self, frames: bytes) -> int:
        if self.fails:
            raise TemporaryFailure("the outbox is full")
        position = super().append_frames(frames)
        if not self.syncs:
            raise OutboxUnsynced("outbox: sync failed")
        return position


@pytest.fixture
def remembering(tmp_path: Path) -> Iterator[tuple[Refusing, PaymentScorer, DecisionCache]]:
    """A scorer with a decision cache, its outbox, and another worker's access to the same table."""
    where = OutboxSettings(directory=str(tmp_path / "outbox"))
    settings = DecisionCacheSettings(path=str(tmp_path / "answered"), payments_max=1000)
    answered_payments.prepare(settings)
    outbox, other = Refusing(where, "worker-0"), DecisionCache(settings, where, 1)
    host = Host(tmp_path)
    host.answered, host.outbox = DecisionCache(settings, where, 0), outbox  # type: ignore[assignment]
    yield outbox, host.scorer, other
    host.answered.close()
    other.close()
    outbox.close()
    host.close()


def like_stranger(payment_id: str, **values: Any) -> ScoreRequest:
    request = ScoreRequest()
    request.CopyFrom(STRANGER)
    request.payment_id = payment_id
    for name, value in values.items():
        setattr(request, name, value)
    return request


def test_a_payment_twice_among_others_is_decided_once_and_all_are_answered(
    remembering: tuple[Refusing, PaymentScorer, DecisionCache],
) -> None:
    _, scorer, _ = remembering
    before = answered(scorer, like_stranger("before"))
    asked = ["a", "wrong", "b", "a", "before", "b", "c"]
    requests = [like_stranger(name, **({"currency": "XXX"} if name == "wrong" else {})) for name in asked]
    results = score_many(scorer, requests)
    assert [getattr(result, "payment_id", None) for result in results] == ["a", None, "b", "a", "before", "b", "c"]
    assert results[3] == results[0]
    assert results[5] == results[2]
    assert results[4] == before
    # A refused request holds no claim.
    assert answered(scorer, like_stranger("wrong")).payment_id == "wrong"


def test_a_decision_that_could_not_be_synced_is_the_answer_when_it_is_asked_for_again(
    remembering: tuple[Refusing, PaymentScorer, DecisionCache],
) -> None:
    """The companion ships it: a second decision would make two of one payment."""
    outbox, scorer, other = remembering
    outbox.syncs = False
    assert score_many(scorer, [STRANGER]) == [Refusal("unavailable", "outbox: sync failed")]
    outbox.syncs = True
    position = outbox.position
    answer = answered(scorer, STRANGER)
    assert outbox.position == position
    (entry,) = claim_all(other, payments.payments_of([STRANGER], default_intake(), NOW_MS))
    assert isinstance(entry, OutboxEntry)
    assert entry.response == answer


def test_another_worker_may_decide_a_payment_that_the_outbox_refused(
    remembering: tuple[Refusing, PaymentScorer, DecisionCache],
) -> None:
    outbox, scorer, other = remembering
    outbox.fails = True
    assert score_many(scorer, [STRANGER]) == [Refusal("unavailable", "the outbox is full")]
    (slot,) = claim_all(other, payments.payments_of([STRANGER], default_intake(), NOW_MS))
    assert isinstance(slot, int)
    outbox.fails = False
    assert score_many(scorer, [STRANGER])[0] is IN_PROGRESS
    other.release((slot,))
    assert answered(scorer, STRANGER).payment_id == "new"
