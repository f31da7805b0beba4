"""A chunk that one compiled call scores has the answers, records, claims and metrics of decoder and scorer."""

from __future__ import annotations

import ctypes
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paywarden.features.profiles.engine import Events
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.payment_tags import MARK_DTYPE, PaymentTags
from paywarden.models.policy.exploration import Exploration, ExplorationSettings, FileLedger
from paywarden.models.policy.policy import FLAGS, OVERLAY_ABSENT, ConfiguredRule, Policy, PolicySettings
from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine import chunk_frame, served_model
from paywarden.scoring.engine import scorer as scorer_module
from paywarden.scoring.engine import vectors as vectors_module
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, Chunk, MicroBatcher, Refusal
from paywarden.scoring.engine.chunk_frame import ChunkFrame
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheMetrics, DecisionCacheSettings
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics, StageTimes
from paywarden.scoring.requests.trace_context import TRACE_BYTES
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay import OverlayMetrics
from paywarden.scoring.state.overlay.overlay_files import MARKS_FILE, monotonic_ms, prepare
from paywarden.scoring.state.shards import CardShards
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.overlay_marks import OverlayMarks
from tests.oracles.step_decoder import StepDecoder
from tests.oracles.step_overlay import StepOverlay
from tests.oracles.step_scorer import StepScorer
from tests.worlds.endpoint.requests import requests_of
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

PLAN = small_world.engine().plan
NOW_MS = int(small_world.history().event_time_ms[-1]) + 1000
# A profile that nobody can read, and one of a card that no history has.
DAMAGED, STRANGER = b"card:damaged", "nobody"
# What usual chunks do not need.
RARE = ("_score_unread", "_score_claimed", "_fill", "_look_at_cards", "_give_tails")
# A table that a few chunks fill.
OVERLAY = OverlaySettings(enabled=True, lifetime_ms=10_000, payments_max=150, events_max=4, marks_max=512)
TAGS = PaymentTags(PLAN.key)


class Side:
    """One worker's way from bytes to answers: in one compiled call, or step by step."""

    def __init__(
        self, folder: Path, mirror: MirrorSettings, *, in_one_call: bool, overlay_clock_ms: Callable[[], int] | None
    ) -> None:
        """With a clock it has an overlay."""
        self.where = OutboxSettings(directory=str(folder / "outbox"), fsync="never")
        self.table = DecisionCacheSettings(path=str(folder / "answered"), payments_max=512)
        decision_cache.prepare(self.table)
        self.registry = registry = MetricsRegistry()
        self.stages = StageTimes(MetricsRegistry())
        self.outbox = OutboxWriter(self.where, "worker-0")
        self.boot_ms = 90_000
        self.cache = DecisionCache(
            self.table, self.where, 0, DecisionCacheMetrics.declare(registry), clock_ms=lambda: self.boot_ms
        )
        bundle = small_world.loaded_bundle()
        assert bundle.predictor.native
        # Thresholds that a good share of the payments reaches.
        review_at, decline_at = bundle.manifest.review_at / 4, bundle.manifest.decline_at
        self.models = ModelChain((bundle,), metrics=ModelMetrics.declare(registry))
        self.overlay_settings = replace(OVERLAY, path=str(folder / "overlay"))
        self.overlay: StepOverlay | None = None
        if overlay_clock_ms is not None:
            prepare(self.overlay_settings, PLAN)
            self.overlay = StepOverlay(
                self.overlay_settings,
                small_world.engine().clone_for_thread(),
                rows_max=ROWS_MAX,
                metrics=OverlayMetrics.declare(registry),
                clock_ms=overlay_clock_ms,
            )
        self.intake = StepDecoder(PLAN, small_world.rates(), RequestLimits())
        self.scorer = (PaymentScorer if in_one_call else StepScorer)(
            engine=small_world.engine(),
            intake=self.intake,
            models=self.models,
            policy=Policy(PolicySettings(on_unknown_device="review"), review_at=review_at, decline_at=decline_at),
            mirror=mirror,
            outbox=self.outbox,
            metrics=ScoringMetrics.declare(registry, flags=FLAGS, entities=PLAN.entity_names),
            options=ScorerOptions(
                answered=self.cache,
                stages=self.stages,
                overlay=self.overlay,
                origins=(Origin("ab" * 32, "cd" * 32), Origin("", "cd" * 32)),
            ),
        )
        self.now_ms = NOW_MS
        self.batcher = MicroBatcher(
            self.scorer,
            intake=self.intake,
            settings=AdmissionSettings(),
            stages=self.stages,
            now_ms=lambda: self.now_ms,
        )

    def ask(
        self,
        requests: Sequence[bytes],
        batches: Sequence[range] = (),
        callers: Sequence[bytes] = (),
        traces: Sequence[bytes] = (),
        arrivals: Sequence[float] = (),
    ) -> list[bytes | Refusal]:
        """Score a chunk. Requests that arrive after they are decided have a latency of 0 in their records."""
        arrivals = arrivals or [1e12] * len(requests)
        return [*self.batcher._results(Chunk(requests, batches, arrivals, callers, traces))]

    def serve(self, policy: Policy) -> None:
        self.scorer.take_up(self.scorer.served(self.models, policy, self.scorer.serving.origins))

    def records(self) -> bytes:
        return OutboxReader(self.where, "worker-0").raw(0, self.outbox.position)

    def claims(self) -> bytes:
        return Path(self.table.path).read_bytes()

    def pending(self) -> bytes:
        return b"" if self.overlay is None else Path(self.overlay_settings.path).read_bytes()

    def counts(self) -> dict[Any, list[int]]:
        return {key: handle._slots.tolist() for key, (_, handle) in self.registry._declared.items()}

    def close(self) -> None:
        self.cache.close()
        self.outbox.close()


class Pair:
    """Both ways over one mirror. They share its reader.

    With an overlay each way has a table of its own, and both have the same marks.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, has_overlay: bool = False) -> None:
        self.mirror = mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=64)
        self.clock_ms, self.changes = 50_000, list[Callable[[Side, Path], None]]()
        self.marks: OverlayMarks | None = None
        clock = (lambda: self.clock_ms) if has_overlay else None
        writer = MirrorWriter(mirror)
        writer.apply({**profiles(), **known_cards(), DAMAGED: b"\x06 no profile"}, {0: 1}, NOW_MS)
        if has_overlay:
            self.open_marks(writer.newest_transaction())
        writer.close()
        # Decisions count up from the same prefix on both sides.
        monkeypatch.setattr(served_model, "os", SimpleNamespace(urandom=bytes))
        self.steps = Side(folder / "steps", mirror, in_one_call=False, overlay_clock_ms=clock)
        reader = self.steps.scorer._features.mirror
        assert isinstance(reader, MirrorReader)
        monkeypatch.setattr(vectors_module, "MirrorReader", lambda *_, **__: reader)
        self.quick = Side(folder / "quick", mirror, in_one_call=True, overlay_clock_ms=clock)
        self.reader = reader

    def open_marks(self, transaction: int) -> None:
        """Let the companion mark what the mirror contains, and a lifetime pass."""
        self.marks = marks = OverlayMarks(OVERLAY, PLAN, self.mirror.path, clock_ms=lambda: self.clock_ms)
        marks.open_mirror(transaction)
        self.clock_ms += OVERLAY.doubt_ms + 1

    def on_tables(self, change: Callable[[Any, Any], object]) -> None:
        """Do something with the tables of both: `change` gets a table and its shape."""
        for side in (self.steps, self.quick):
            assert side.overlay is not None
            change(side.overlay._table, side.overlay._shape)

    def upset(self, event: str, place: int) -> None:
        """Let something happen to the overlay between two chunks."""
        assert self.marks is not None
        if event == "wait":
            self.clock_ms += (1, 400, 6_000, 11_000)[place % 4]
        elif event == "arrive":
            # The payment is in the profile of its card, and in no other one.
            marks = [(TAGS.of(f"p{number}".encode()), 3, 0) for number in range(place, place + 50)]
            self.marks.note([np.array(marks, dtype=MARK_DTYPE).tobytes()])
        elif event == "unnamed":
            self.marks.note_unnamed()
        elif event == "forget":
            key = b"card:" + KNOWN[place % 60].card_id.encode()
            self.on_tables(lambda table, shape: tables.erase(table, shape, 0, TAGS.hash_of_key(key)))
        elif event == "killed":
            self.on_tables(lambda table, shape: tables._take_row(table, shape, self.clock_ms, OVERLAY.lifetime_ms))
        elif event == "torn":
            self.on_tables(lambda table, shape: tear(table, shape, place))
        elif event == "elsewhere":
            self.on_tables(lambda table, shape: self._add_elsewhere(table, shape, place % 60))

    def _add_elsewhere(self, table: Any, shape: Any, place: int) -> None:
        payments, _ = self.steps.intake.read([body(place)], NOW_MS)
        hashes = np.array(TAGS.hashes_of_keys(payments.keys), dtype=np.int64)
        numbers = np.zeros(tables.NUMBER_COUNT, dtype=np.int64)
        numbers[tables.LIFE_MS] = OVERLAY.lifetime_ms
        tags = np.array([TAGS.of(b"elsewhere")], dtype=np.int64)
        rows = payments.rows.copy()
        tables.add_all(table, shape, rows, hashes, tags, numbers, self.clock_ms, 0, 2**62)

    def ask(self, requests: Sequence[bytes], now_ms: int = NOW_MS, **more: Any) -> list[bytes | Refusal]:
        """Ask both, and compare everything they leave behind."""
        self.steps.now_ms = self.quick.now_ms = now_ms
        expected, found = self.steps.ask(requests, **more), self.quick.ask(requests, **more)
        assert found == expected
        assert self.quick.claims() == self.steps.claims()
        assert self.quick.counts() == self.steps.counts()
        assert self.quick.records() == self.steps.records()
        assert self.quick.pending() == self.steps.pending()
        return found

    def close(self) -> None:
        self.steps.close()
        self.quick.close()
        self.reader.close()


@pytest.fixture(params=[False, True], ids=["mirror", "overlay"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    made = Pair(tmp_path, monkeypatch, has_overlay=request.param)
    yield made
    made.close()


@pytest.fixture
def overlaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    made = Pair(tmp_path, monkeypatch, has_overlay=True)
    yield made
    made.close()


KNOWN = requests_of(small_world.tables()[0].slice(0, 200), id_prefix="live-")


def body(place: int, **changes: Any) -> bytes:
    request = ScoreRequest()
    request.CopyFrom(KNOWN[place])
    request.event_time_ms = NOW_MS
    for name, value in changes.items():
        setattr(request, name, value)
    return request.SerializeToString()


@cache
def known_cards() -> dict[bytes, bytes]:
    """Returns profiles of cards. Each contains the source partition 0 up to offset 9."""
    rows, keys = [], []
    intake = StepDecoder(PLAN, small_world.rates(), RequestLimits())
    for place in range(60):
        payments, _ = intake.read([body(place)], NOW_MS)
        rows.append(payments.rows[0].copy())
        keys.append(payments.keys[0])
    count = len(rows)
    events = Events(
        groups=np.arange(count + 1),
        kind=np.zeros(count, dtype=np.uint8),
        payment=np.arange(count),
        weight=np.ones(count, dtype=np.int64),
        source=np.zeros(count, dtype=np.int64),
        offset=np.full(count, 9),
        row=np.full(count, -1),
    )
    engine, held = small_world.engine(), [profiles().get(key) for key in keys]
    states = engine.apply(0, events, np.array(rows), held, engine.new_slots(0)).states
    return dict(zip(keys, states, strict=True))


def tear(table: Any, shape: Any, place: int) -> None:
    """Flip a bit in one of the newest rows."""
    number = int(table[tables.NEXT_AT]) - place % 4
    if number > 0:
        at = tables.row_at(shape, number) + tables.ROW_HEAD + 3 * PLAN.entity_count
        table[at + 1] ^= 1 << 40


USUAL = st.builds(
    lambda place, identity, card: body(place, payment_id=identity, **({"card_id": card} if card else {})),
    st.integers(0, len(KNOWN) - 1),
    st.integers(0, 400).map("p{}".format),
    st.sampled_from(["", "", "", "", STRANGER]),
)
HOSTILE = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 60).map(lambda place: body(place)[:-3]),
    st.integers(0, 60).map(lambda place: body(place, merchant_id="Bäckerei")),
    st.integers(0, 60).map(lambda place: body(place, currency="XXX")),
    st.integers(0, 60).map(lambda place: body(place, currency="NGN")),
    st.integers(0, 60).map(lambda place: body(place, card_id="damaged")),
    st.integers(0, 60).map(lambda place: body(place, payment_id="i" * 65)),
)


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.one_of(st.just(1), st.integers(1, 8), st.integers(1, 64)))
    is_hostile = draw(st.integers(0, 3)) == 0
    requests = draw(st.lists(st.one_of(USUAL, HOSTILE) if is_hostile else USUAL, min_size=size, max_size=size))
    chunk: dict[str, Any] = {"requests": requests, "now_ms": NOW_MS + draw(st.sampled_from([0, 0, 7, 60_000]))}
    if draw(st.integers(0, 3)) == 0:
        chunk["callers"] = draw(st.lists(st.sampled_from([b"", b"shop", b"bank"]), min_size=size, max_size=size))
    if draw(st.integers(0, 3)) == 0:
        chunk["traces"] = draw(st.lists(st.sampled_from([b"", b"t" * TRACE_BYTES]), min_size=size, max_size=size))
    if size > 2 and draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, size - 2))
        chunk["batches"] = [range(start, draw(st.integers(start + 2, size)))]
    return chunk


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(chunks(), min_size=1, max_size=4))
def test_one_call_leaves_the_answers_records_claims_and_counts_of_the_steps(
    pair: Pair, asked: list[dict[str, Any]]
) -> None:
    for chunk in asked:
        pair.ask(**chunk)


EVENTS = st.sampled_from(["wait", "wait", "arrive", "arrive", "unnamed", "forget", "killed", "torn", "elsewhere"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(chunks(), EVENTS, st.integers(0, 400)), min_size=1, max_size=8))
def test_one_call_leaves_what_the_steps_leave_whatever_is_pending(
    overlaid: Pair, steps: list[tuple[dict[str, Any], str, int]]
) -> None:
    for chunk, event, place in steps:
        overlaid.ask(**chunk)
        overlaid.upset(event, place)


# Releases and hosts that are not as usual


def decide_by_rules(side: Side, _: Path) -> None:
    rules = (
        ConfiguredRule("large", "amount > 50_00 and card_count_30d > 2", "review"),
        ConfiguredRule("unseen", 'missing(amount) or "unknown_card" in flags', "decline"),
    )
    side.serve(Policy(PolicySettings(rules=rules), review_at=0.2, decline_at=0.4))


def explore(side: Side, folder: Path) -> None:
    budget = ExplorationSettings(share=0.25, budget_minor_a_day=1 << 40, payment_minor_max=1 << 30)
    side.scorer._exploration = Exploration(budget, key=bytes(range(16)), ledger=FileLedger(folder / "spent"))
    side.serve(Policy(PolicySettings(), review_at=1e-9, decline_at=0.05))


def hold_half_of_the_cards(side: Side, _: Path) -> None:
    shards = CardShards(4, b"a route key of the tests", {"card": 1})
    held = HeldCards(shards, PLAN.entity_keys, PLAN.entity_names)
    held._held = [True, False, True, False]
    side.scorer._held_cards = side.scorer._features._held_cards = held
    held.look = lambda mirror: None  # type: ignore[method-assign]  # noqa: ARG005


def fail_now_and_then(side: Side, _: Path) -> None:
    """The model raises about some payments, and gives no number about others. The fallback cannot score all of them."""

    def margins_of(odd: int, fallback: float) -> Callable[[Any], Any]:
        def margins(vectors: Any) -> Any:
            signs = [zlib.crc32(vector.tobytes()) for vector in vectors]
            if any(sign % 16 == odd for sign in signs):
                raise ValueError("a bug of the model")
            return np.array([math.nan if sign % 16 == odd + 1 else fallback - sign % 5 for sign in signs])

        return margins

    bundles = [
        SimpleNamespace(
            manifest=SimpleNamespace(model_version=version, calibration_slope=1.0, calibration_intercept=0.0),
            predictor=SimpleNamespace(margins=margins_of(odd, 0.5)),
            explainer=SimpleNamespace(reasons=lambda vector, count: [f"{vector[0]:g}"] * count),
        )
        for version, odd in (("first", 3), ("second", 4))
    ]
    side.models = ModelChain(cast(Any, bundles), metrics=ModelMetrics.declare(MetricsRegistry()))
    origin = Origin("ab" * 32, "cd" * 32)
    policy = Policy(PolicySettings(on_model_error="review"), review_at=0.5, decline_at=0.9)
    side.scorer.take_up(
        side.scorer.served(side.models, policy, (origin, replace(origin, bundle_digest="12" * 32), Origin()))
    )


@pytest.mark.parametrize("change", [decide_by_rules, explore, hold_half_of_the_cards, fail_now_and_then])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(asked=st.lists(chunks(), min_size=1, max_size=4))
def test_whatever_decides_one_call_leaves_what_the_steps_leave(
    pair: Pair, tmp_path: Path, change: Callable[[Side, Path], None], asked: list[dict[str, Any]]
) -> None:
    if change not in pair.changes:
        pair.changes.append(change)
        for name, side in (("steps", pair.steps), ("quick", pair.quick)):
            change(side, tmp_path / name)
    for chunk in asked:
        pair.ask(**chunk)


def test_usual_chunks_do_go_through_the_one_call(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a usual chunk was scored in steps")

    found = pair.ask([body(place) for place in range(64)])
    for rare in RARE:
        monkeypatch.setattr(pair.quick.scorer, rare, never)
    for first in range(64, 128):
        found += pair.ask([body(first)])
    actions = [ScoreResponse.FromString(each).action for each in found if isinstance(each, bytes)]
    assert len(actions) == 128
    assert {*actions} >= {"approve", "review"}, "some answers must need the policy"


@pytest.mark.parametrize("places", [[0], [*range(20)]])
def test_what_the_outbox_refuses_is_refused_and_can_be_asked_again(
    pair: Pair, places: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: bytes) -> int:
        raise TemporaryFailure("the outbox is full")

    requests = [body(place) for place in places]
    with monkeypatch.context() as broken:
        for side in (pair.steps, pair.quick):
            broken.setattr(side.outbox, "append_frames", refuse)
            results = side.ask(requests)
            assert all(isinstance(each, Refusal) for each in results)
            assert not side.records()
    assert all(isinstance(each, bytes) for each in pair.quick.ask(requests))
    assert [each.payment_id for each in map(ScoreResponse.FromString, pair.steps.ask(requests))]  # type: ignore[arg-type]


def test_a_model_that_gives_no_number_is_asked_again_in_steps(pair: Pair) -> None:
    def no_number(_: int, count: int, margins: Any) -> None:
        margins[count - 1] = math.nan

    pair.ask([body(0)])
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_double))
    function = kind(no_number)
    pair.quick.scorer._frame._margins = ctypes.cast(function, ctypes.c_void_p).value or 0
    pair.ask([body(place) for place in range(1, 9)])


def test_a_caller_with_a_name_of_any_length_gets_its_own_decisions(pair: Pair) -> None:
    for size in (chunk_frame._CALLER_BYTES, chunk_frame._CALLER_BYTES + 1, 3000):
        names = [b"n" * size, b"n" * (size - 1) + b"o"]
        answers = pair.ask([body(0), body(0)], callers=names)
        assert len({ScoreResponse.FromString(each).decision_id for each in answers if isinstance(each, bytes)}) == 2


def test_without_a_mirror_both_ways_say_so(pair: Pair) -> None:
    pair.ask([body(0)])
    pair.reader.close()
    (answer,) = pair.ask([body(1)])
    assert isinstance(answer, bytes)
    assert [*ScoreResponse.FromString(answer).flags] == ["mirror_absent"]


def test_a_model_and_a_policy_that_are_taken_up_decide_from_the_next_chunk_on(pair: Pair) -> None:
    pair.ask([body(place) for place in range(9)])
    strict = Policy(PolicySettings(), review_at=1e-9, decline_at=1.0)
    other = small_world.other_loaded_bundle()
    for side in (pair.steps, pair.quick):
        models = ModelChain((other,), metrics=ModelMetrics.declare(MetricsRegistry()))
        side.scorer.take_up(side.scorer.served(models, strict))
    found = pair.ask([body(place) for place in range(9, 20)])
    assert {ScoreResponse.FromString(each).action for each in found if isinstance(each, bytes)} == {"review"}


def test_a_record_has_the_latency_since_its_arrival_and_stages_are_timed(pair: Pair) -> None:
    side = pair.quick
    for number in range(16):
        side.stages.begin(time.perf_counter())
        (answer,) = side.ask([body(number)], arrivals=[time.perf_counter() - 1.5])
        assert isinstance(answer, bytes)
    assert all(side.stages.seconds[stage].count == 1 for stage, _ in scorer_module._LAPS)
    assert side.stages.seconds["append"].count == 1
    payloads = OutboxReader(side.where, "worker-0").read(0, 100)
    latencies = [OutboxEntry.FromString(payload).latency_us for _, payload in payloads]
    assert len(latencies) == 16
    assert min(latencies) >= 1_500_000


def test_a_chunk_sees_what_the_one_before_has_answered_in_the_one_call(
    overlaid: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a usual chunk was scored in steps")

    for rare in RARE:
        monkeypatch.setattr(overlaid.quick.scorer, rare, never)
    flags = [
        [*ScoreResponse.FromString(answer).flags]
        for name in ("first", "second")
        for answer in overlaid.ask([body(0, payment_id=name, card_id=STRANGER)])
        if isinstance(answer, bytes)
    ]
    assert ["unknown_card" in found for found in flags] == [True, False]


def test_the_policy_hears_of_what_is_pending_and_of_marks_that_nobody_trusts(overlaid: Pair) -> None:
    assert overlaid.marks is not None
    strict = Policy(PolicySettings(), review_at=1e-9, decline_at=1.0)
    for side in (overlaid.steps, overlaid.quick):
        side.scorer.take_up(side.scorer.served(side.models, strict))
    told = []
    for name in ("first", "second", "third"):
        if name == "third":
            overlaid.marks.note_unnamed()
        (answer,) = overlaid.ask([body(0, payment_id=name, card_id=STRANGER)])
        assert isinstance(answer, bytes)
        response = ScoreResponse.FromString(answer)
        told.append((response.action, "unknown_card" in response.flags, OVERLAY_ABSENT in response.flags))
    assert told == [("review", True, False), ("review", False, False), ("review", True, True)]


def test_without_marks_the_one_call_says_that_the_last_seconds_were_not_seen(
    overlaid: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(overlaid.mirror.path) / MARKS_FILE
    kept = path.rename(path.with_suffix(".gone"))

    def answer(place: int, now_ms: int = NOW_MS) -> list[str]:
        for side in (overlaid.steps, overlaid.quick):
            side.scorer.open_mirror()
        (found,) = overlaid.ask([body(place)], now_ms=now_ms)
        assert isinstance(found, bytes)
        return [*ScoreResponse.FromString(found).flags]

    with monkeypatch.context() as quick:
        quick.setattr(overlaid.quick.scorer, "_fill", None)
        assert OVERLAY_ABSENT in answer(0)
        assert answer(1, NOW_MS + 60_000)[-2:] == [OVERLAY_ABSENT, "mirror_stale"]
        kept.rename(path)
        assert OVERLAY_ABSENT not in answer(2)
    # A table that is not there at all: the scorer says so.
    for side in (overlaid.steps, overlaid.quick):
        assert side.overlay is not None
        side.overlay.close()
        Path(side.overlay_settings.path).rename(side.overlay_settings.path + ".gone")
    monkeypatch.setattr(Side, "pending", lambda _: b"")
    assert OVERLAY_ABSENT in answer(3)


def test_a_payment_is_pending_once_its_record_is_appended_and_not_before(
    overlaid: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, append, at_append = overlaid.quick, overlaid.quick.outbox.append_frames, list[int]()
    assert side.overlay is not None
    assert side.overlay._table is not None
    table = side.overlay._table

    def noted(frames: bytes) -> int:
        at_append.append(int(table[tables.NEXT_AT]))
        return append(frames)

    monkeypatch.setattr(side.outbox, "append_frames", noted)
    side.ask([body(place) for place in range(3)])
    assert (at_append, int(table[tables.NEXT_AT])) == ([0], 3)


def test_a_leap_of_the_time_of_day_does_not_end_the_window(pair: Pair) -> None:
    (decided,) = pair.ask([body(0)])
    assert pair.ask([body(0)], NOW_MS + 3_600_000) == [decided]
    for side in (pair.steps, pair.quick):
        side.boot_ms += 1000 * (side.table.window_s + 1)
    assert pair.ask([body(0)]) != [decided]


def test_the_one_call_reads_the_hosts_own_clock_for_the_overlay(overlaid: Pair) -> None:
    side = overlaid.quick
    assert side.overlay is not None
    assert side.overlay._table is not None
    side.overlay.clock_ms = monotonic_ms
    frame = ChunkFrame(
        small_world.engine(), side.intake, side.scorer._features, side.scorer._metrics, side.cache, side.overlay
    )
    side.scorer._frame, side.scorer._numbers, before_ms = frame, frame.numbers, monotonic_ms()
    side.ask([body(0)])
    moment_ms = side.overlay._table[tables.row_at(side.overlay._shape, 1) + tables.MOMENT]
    assert before_ms <= moment_ms <= monotonic_ms()
