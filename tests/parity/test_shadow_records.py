"""The compiled way to shadow records against the obvious one: protobuf, challenger, policy, fastavro, one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.policy.policy import (
    ACTIONS,
    FLAGS,
    MODEL_ABSENT,
    ConfiguredRule,
    ConfiguredSegment,
    Policy,
    PolicySettings,
)
from paywarden.models.rollout.shadow import SHADOW_TOPIC
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.challenger import CHAMPION, OTHER_BUNDLE, VectorChallenger
from paywarden.scoring.state.outbox import Frames, framed
from paywarden.streams.shadow import record_loop
from paywarden.streams.shadow.fast_records import FastRecords, FastRecordWriter, warm_up
from tests.worlds.small import small_world

ENCODER = Encoder(SHADOW_TOPIC, LocalSchemaIds().id_of(SHADOW_TOPIC))
CATALOGUE = "c" * 64
SETTINGS = PolicySettings(
    on_unknown_card="review", on_mirror_stale="decline", stale_after_ms=100, on_model_error="review"
)
NEUTRAL = PolicySettings()
RULES = PolicySettings(
    on_unknown_card="review",
    on_mirror_stale="review",
    stale_after_ms=100,
    rules=(
        ConfiguredRule("large", "amount > 100_00", "review"),
        ConfiguredRule("flagged", '"unknown_merchant" in flags', "decline"),
        ConfiguredRule("known", 'merchant_id == "m"', "approve", override=True),
    ),
    segments=(ConfiguredSegment("stale", '"mirror_stale" in flags', review_at=0.001),),
)
# Ids around 64 bytes, where a size takes a second byte, and letters of several bytes.
TEXTS = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=70),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
WHOLE = st.integers(-(2**63), 2**63 - 1)
DIGESTS = (b"", b"\1" * 32, b"\2" * 32)


@cache
def vectors() -> np.ndarray[Any, Any]:
    """Returns vectors: the model approves most of them, and declines some."""
    return np.ascontiguousarray(small_world.table().vectors[:400], dtype=np.float32)


@st.composite
def entries(draw: st.DrawFn) -> OutboxEntry:
    request = ScoreRequest(
        payment_id=draw(TEXTS),
        card_id=draw(TEXTS),
        merchant_id=draw(st.one_of(TEXTS, st.just("m"))),
        event_time_ms=draw(WHOLE),
        currency=draw(st.sampled_from(["EUR"] * 5 + ["XXX"])),
    )
    if draw(st.booleans()):
        request.device_id, request.amount_minor, request.utc_offset_minutes = draw(TEXTS), draw(WHOLE), -60
    response = ScoreResponse(
        payment_id=request.payment_id,
        decision_id=draw(TEXTS),
        score=draw(st.floats(0, 1)),
        action=draw(st.sampled_from(ACTIONS)),
        reasons=draw(st.lists(st.sampled_from(["rule:a", "feature:x=1 (+0.10)"]), max_size=2)),
        model_version="m-1",
        flags=draw(st.lists(st.sampled_from([*FLAGS, "unknown_shop"]), max_size=2)),
    )
    if draw(st.booleans()):
        response.profile_age_ms = draw(st.sampled_from([0, 100, 101, 2**40]))
    vector = vectors()[draw(st.integers(0, 399))]
    entry = OutboxEntry(
        request=request,
        response=response,
        decided_time_ms=draw(WHOLE),
        vector=draw(st.sampled_from([vector.tobytes()] * 9 + [vector.tobytes()[4:]])),
        catalogue_digest=draw(st.sampled_from([CATALOGUE] * 9 + ["d" * 64, ""])),
        bundle_digest=draw(st.sampled_from(DIGESTS)),
        policy_digest=draw(st.sampled_from(DIGESTS)),
        rollout=draw(st.sampled_from(["", "r-1"])),
    )
    if draw(st.booleans()):
        entry.caller, entry.profile_set, entry.trace = draw(TEXTS), "main", b"\xff" * 25
        entry.propensity, entry.latency_us = 0.5, draw(st.integers(0, 2**40))
    return entry


def challenger(settings: PolicySettings, *, is_policy_alone: bool) -> VectorChallenger:
    bundle = small_world.loaded_bundle()
    policy = Policy(settings, review_at=0.02, decline_at=0.2)
    return VectorChallenger(
        "b-42",
        bundle,
        policy,
        catalogue_digest=CATALOGUE,
        rates=small_world.rates(),
        is_policy_alone=is_policy_alone,
    )


def frames_of(payloads: Sequence[bytes]) -> Frames:
    records = [framed(payload) for payload in payloads]
    return Frames(b"".join(records), np.cumsum([len(record) for record in records], dtype=np.int64), 0)


def check(own: VectorChallenger, fast: FastRecordWriter, payloads: Sequence[bytes]) -> FastRecords:
    """Compare with the obvious way; returns what the fast one has written."""
    written = fast.write(frames_of(payloads))
    rest = list(written.rest)
    values, keys, left_out = [], [], Counter[str]()
    for payload in payloads:
        if rest and payload == rest[0]:
            rest.pop(0)
            continue
        entry = OutboxEntry.FromString(payload)
        found = own.evaluate([entry])
        left_out.update(found.left_out)
        for record in found.records:
            values.append(ENCODER.encode(record.value()))
            keys.append(record.payment_id.encode())
    assert not rest, "the rest is in order"
    assert (written.values, written.keys, written.left_out) == (values, keys, left_out)
    return written


@pytest.mark.parametrize("settings", [SETTINGS, NEUTRAL, RULES])
@pytest.mark.parametrize("is_policy_alone", [False, True])
@given(st.lists(entries(), min_size=1, max_size=6), st.integers(0, 2**32))
def test_usual_records_are_those_of_the_obvious_way_to_the_bit(
    settings: PolicySettings, is_policy_alone: bool, decided: list[OutboxEntry], seed: int
) -> None:
    own = challenger(settings, is_policy_alone=is_policy_alone)
    for entry in decided[1:]:
        if seed % 2:
            entry.bundle_digest = bytes.fromhex(own.version.bundle)
        if seed % 3:
            entry.policy_digest = bytes.fromhex(own.version.policy)
    fast = FastRecordWriter(own, ENCODER.header)
    payloads = [entry.SerializeToString() for entry in decided]
    assert check(own, fast, payloads).rest == payloads, "nothing is known yet"
    fast.learn(decided)
    check(own, fast, payloads)
    # Damaged entries, and such as no writer of ours makes: what it takes for usual is what protobuf reads.
    damage = random.Random(seed)
    damaged = []
    for payload in payloads:
        data = bytearray(payload)
        for _ in range(damage.randint(1, 3)):
            data[damage.randrange(len(data))] = damage.randrange(256)
        cut = bytes(data[: damage.randint(1, len(data))]) if damage.random() < 0.2 else bytes(data)
        damaged.append(cut + (payload[:8] if damage.random() < 0.1 else b""))
    try:
        check(own, fast, damaged)
    except DecodeError as error:
        raise AssertionError("it took an entry for usual that protobuf cannot read") from error


def plain(**changes: Any) -> OutboxEntry:
    fields: dict[str, Any] = {
        "request": ScoreRequest(payment_id="p-1", card_id="c-1"),
        "response": ScoreResponse(decision_id="d-1", score=0.01, action="approve", flags=["unknown_device"]),
        "decided_time_ms": 1_700_000_000_000,
        "vector": vectors()[approved_row()].tobytes(),
        "catalogue_digest": CATALOGUE,
        "bundle_digest": DIGESTS[1],
        "policy_digest": DIGESTS[2],
    }
    return OutboxEntry(**(fields | changes))


@cache
def approved_row() -> int:
    return int(np.argmin(small_world.loaded_bundle().score(vectors())))


def test_with_rules_a_payment_that_is_simply_approved_is_written_in_compiled_code() -> None:
    own = challenger(RULES, is_policy_alone=False)
    approved, large = plain(), plain()
    for entry, amount in ((approved, 1), (large, 1_000_00)):
        entry.request.amount_minor, entry.request.currency = amount, "EUR"
    fast = FastRecordWriter(own, ENCODER.header)
    fast.learn([approved])
    written = check(own, fast, [one.SerializeToString() for one in (approved, large, approved)])
    assert (len(written.values), written.rest) == (2, [large.SerializeToString()])


@pytest.mark.parametrize("is_policy_alone", [False, True])
def test_payments_that_are_approved_without_a_question_take_the_compiled_way(is_policy_alone: bool) -> None:
    own = challenger(SETTINGS, is_policy_alone=is_policy_alone)
    digest = bytes.fromhex(own.version.bundle) if is_policy_alone else DIGESTS[1]
    decided = [plain(bundle_digest=digest) for _ in range(100)]
    asked = plain(bundle_digest=digest)
    asked.response.flags.append("unknown_card")
    fast = FastRecordWriter(own, ENCODER.header)
    fast.learn(decided[:1])
    written = check(own, fast, [one.SerializeToString() for one in [*decided, asked, *decided]])
    assert (len(written.values), written.rest) == (200, [asked.SerializeToString()])


def test_a_decision_with_a_champion_that_is_left_out_costs_no_look() -> None:
    own = challenger(NEUTRAL, is_policy_alone=True)
    bundle, policy = map(bytes.fromhex, (own.version.bundle, own.version.policy))
    champion, other = plain(bundle_digest=bundle, policy_digest=policy), plain(bundle_digest=DIGESTS[1])
    fast = FastRecordWriter(own, ENCODER.header)
    fast.learn([champion, other])
    written = check(own, fast, [one.SerializeToString() for one in (champion, other, champion)])
    assert (written.left_out, written.rest) == ({CHAMPION: 2, OTHER_BUNDLE: 1}, [])


def test_many_champions_and_flags_stay_bounded() -> None:
    own = challenger(NEUTRAL, is_policy_alone=False)
    fast = FastRecordWriter(own, ENCODER.header)
    for number in range(300):
        entry = plain(bundle_digest=number.to_bytes(32, "little"))
        entry.response.flags.append(f"unknown_{number}")
        fast.learn([entry])
        entry.response.flags.pop()
        assert check(own, fast, [entry.SerializeToString()]).rest == []
    assert len(fast._origins) <= 16
    assert len(fast._flags) <= 64


def test_a_decision_without_a_score_is_left_to_the_policy() -> None:
    own = challenger(PolicySettings(on_model_absent="approve"), is_policy_alone=True)
    entry = plain(bundle_digest=b"")
    entry.response.flags.append(MODEL_ABSENT)
    fast = FastRecordWriter(own, ENCODER.header)
    fast.learn([entry])
    assert len(check(own, fast, [entry.SerializeToString()]).rest) == 1


def test_nothing_is_compiled_in_the_middle_of_a_batch() -> None:
    """Beside full cores that took the first minute of a challenger, which paired 30 of 100 decisions in it."""
    loops: list[Any] = [record_loop.read_entries, record_loop.write_records]
    warm_up()
    compiled = [list(loop.signatures) for loop in loops]
    assert all(compiled)
    FastRecordWriter(challenger(NEUTRAL, is_policy_alone=True), ENCODER.header).write(frames_of([b"x"]))
    assert [list(loop.signatures) for loop in loops] == compiled
