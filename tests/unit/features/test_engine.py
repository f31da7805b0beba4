"""The engine: warm once and for all, within its limits, and clear about profiles it cannot read."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features import kernel
from features.declare import Catalogue, Entity
from features.engine import FeatureEngine, UnreadableProfile
from features.money import load_rates
from features.passage import Passage
from features.store import RECORD_BYTES_MAX
from schemas.errors import Misconfigured
from schemas.scoring_pb2 import ScoreRequest
from tests.unit.features.profiles import apply, events_of, payment, profile, vector

NOON_MS = 1_530_446_400_000
# What Python calls; the rest of the kernel is compiled into these.
ENTRANCES = ("apply_events", "assemble_rows", "fill_vectors")


@cache
def engine() -> FeatureEngine:
    return FeatureEngine()


def test_groups_are_worked_on_each_by_itself() -> None:
    groups = [[payment(NOON_MS, 1)], [], [payment(NOON_MS, 2), payment(NOON_MS, 3)]]
    known = profile(engine(), "card", [payment(NOON_MS, 9)])
    states = [None, known, known]
    together = engine().apply(0, events_of(groups), states, engine().new_slots(0))
    singly = [profile(engine(), "card", group, state) for group, state in zip(groups, states, strict=True)]
    assert together.states == singly
    assert together.applied.tolist() == [1, 1, 1]


def test_an_entity_of_no_events_is_as_good_as_unknown() -> None:
    empty = profile(engine(), "card", [])
    left = vector(engine(), NOON_MS, 5, {"card": empty})
    np.testing.assert_array_equal(left, vector(engine(), NOON_MS, 5, {"card": None}))


def test_new_slots_are_all_missing() -> None:
    slots = engine().new_slots(3)
    assert slots.shape == (3, engine().plan.slot_count)
    assert np.isnan(slots).all()


BROKEN = {
    "it is not of layout version 1": lambda state: bytes([0]) + state[1:],
    "it belongs to another feature catalogue": lambda state: state[:1] + bytes(4) + state[5:],
    "it is damaged": lambda state: state[:-1],
    "it has more than 128 source partitions": lambda state: state[:5] + b"\x81\x01" + state[6:],
}


@pytest.mark.parametrize("reason", list(BROKEN))
@pytest.mark.parametrize("entity", ["card", "merchant", "device"])
def test_an_unreadable_profile_says_which_kind_and_why_but_not_whose(reason: str, entity: str) -> None:
    good = profile(engine(), entity, [payment(NOON_MS, 4711)])
    states = {"card": None, "merchant": None, "device": None, entity: BROKEN[reason](good)}
    with pytest.raises(UnreadableProfile) as seen:
        vector(engine(), NOON_MS, 5, states)
    with pytest.raises(UnreadableProfile) as applied:
        apply(engine(), entity, [payment(NOON_MS, 4711)], states[entity])
    assert str(seen.value) == str(applied.value) == f"a stored {entity} profile cannot be read: {reason}"


def test_an_unreadable_profile_is_a_matter_of_configuration() -> None:
    assert issubclass(UnreadableProfile, Misconfigured)


def test_the_129th_source_is_refused() -> None:
    state = profile(engine(), "card", [payment(NOON_MS, source=n) for n in range(kernel.SOURCES_MAX)])
    assert apply(engine(), "card", [payment(NOON_MS, source=3, offset=1)], state).applied.tolist() == [1]
    with pytest.raises(UnreadableProfile, match="a stored card profile cannot be read: it has more than 128 source"):
        apply(engine(), "card", [payment(NOON_MS, source=kernel.SOURCES_MAX)], state)


def test_an_engine_works_on_after_a_profile_it_could_not_read() -> None:
    good = profile(engine(), "card", [payment(NOON_MS, 1)])
    with pytest.raises(UnreadableProfile):
        vector(engine(), NOON_MS, 5, {"card": good[:-1]})
    assert profile(engine(), "card", [], good) == good


def test_the_largest_profile_fits_a_store() -> None:
    assert engine().profile_bytes_max <= RECORD_BYTES_MAX


def test_a_catalogue_whose_profiles_might_not_fit_a_store_is_refused() -> None:
    # A month of minutes; found at start, not when the first busy card cannot be written any more.
    card = Entity("card", key="card_id")
    with pytest.raises(Misconfigured, match="a store takes 1000000: longer hops or shorter windows"):
        FeatureEngine(Catalogue((card,), (card.amount_mean("x", "30d", hop="1m"),)))


# Warmth. In a process of its own: compiled code is shared by all tests of this one.


def compiled() -> dict[str, int]:
    """How many kinds of arguments each entrance has been compiled, or loaded, for."""
    return {name: len(getattr(kernel, name).signatures) for name in ENTRANCES}


def score_through_a_mirror(warm: FeatureEngine, state: bytes, folder: Path) -> None:
    """As a scoring worker does: with the mirror, without it, and with a profile that cannot be read."""
    from scoring.metrics import Registry, ScoringMetrics
    from scoring.mirror import MirrorSettings, MirrorWriter
    from scoring.policy import FLAGS, Policy, PolicySettings
    from scoring.scorer import PaymentScorer

    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(model_version="m"), score=lambda _: np.array([0.1]))
    request = ScoreRequest(payment_id="p", event_time_ms=NOON_MS, card_id="c", merchant_id="m", amount_minor=5)
    request.currency = "EUR"

    def score(number: int, profiles: dict[bytes, bytes | None]) -> list[str]:
        # LMDB does not let one process open one mirror twice: each has a folder, and its writer goes first.
        settings = MirrorSettings(path=str(folder / str(number)), size_mb=8)
        if profiles:
            writer = MirrorWriter(settings)
            writer.apply(profiles, {}, NOON_MS)
            writer.close()
        scorer = PaymentScorer(
            engine=warm,
            rates=load_rates(),
            bundle=bundle,
            policy=Policy(PolicySettings(), review_at=0.5, decline_at=0.9),
            mirror=settings,
            outbox=SimpleNamespace(append=lambda _: 0),
            metrics=ScoringMetrics.declare(Registry(), flags=FLAGS, entities=warm.plan.entity_names),
        )
        return list(scorer.score(request, NOON_MS).flags)

    assert score(0, {}) == ["mirror_absent"]
    assert score(1, {b"card:c": state, b"merchant:m": state}) == ["profile_unreadable"]
    assert score(2, {b"card:c": state}) == ["unknown_merchant"]


def work_through_a_stream(warm: FeatureEngine) -> bytes:
    """As the stream does: a payment, its outcome, and both again. Returns the card's profile."""
    from streams import batch
    from streams.batch import OutcomeEvent, PaymentEvent, Position

    paid = PaymentEvent(Position(0, 1), "p", NOON_MS, 5, (b"card:c", b"merchant:m", b""))
    told = OutcomeEvent(Position(1, 1), "p", is_fraud=True)
    records: dict[bytes, bytes] = {}
    profiles: dict[bytes, bytes] = {}
    for _ in range(2):
        joined = batch.join([paid], [told], records, warm.plan.entity_count)
        records |= joined.records
        profiles |= batch.apply(joined, profiles, warm).profiles
    return profiles[b"card:c"]


def pass_through_histories(warm: FeatureEngine) -> None:
    """As training and replay do, down to an empty history and chunks of one payment."""
    from tests.unit.features.test_passage import RATES, history

    for times_ms in ([], [NOON_MS], [NOON_MS, NOON_MS + 1, NOON_MS + 2]):
        for rows in (1, 2, 1000):
            passage = Passage(history(times_ms, [(0, NOON_MS + 1, True)] if times_ms else ()), warm, RATES)
            assert len(list(passage.chunks(rows=rows))) == -(-len(times_ms) // rows)
            passage.finish()


def run_after_warming_up(folder: str) -> None:
    """Fails when anything is compiled, or loaded, after `warm_up`."""
    warm = FeatureEngine()
    warm.warm_up()
    assert compiled() == dict.fromkeys(ENTRANCES, 1)
    state = work_through_a_stream(warm)
    pass_through_histories(warm)
    score_through_a_mirror(warm, state, Path(folder))
    assert compiled() == dict.fromkeys(ENTRANCES, 1)


def test_nothing_is_left_to_compile_after_warming_up(tmp_path: Path) -> None:
    # Profiles came from read-only memory when warming up and from writable memory when scoring: to numba two
    # types, so a worker's first payment used to wait for a compilation.
    code = f"from tests.unit.features import test_engine; test_engine.run_after_warming_up({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ),
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
