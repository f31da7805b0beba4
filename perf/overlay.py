"""The overlay: does a payment see the one before it, what does that cost, and is any bit ever wrong?

Measured:
- `seen_share`: pairs of payments of a new card over HTTP to `paywarden serve --workers 2`. The second leaves one
  millisecond after the first was answered, on another connection. It has seen the first if it lacks the flag
  unknown_card. `other_worker_share` says how many pairs had two workers. The marks are those of a companion whose
  stream has brought nothing yet.
- `KIND_N_added_us`: the CPU time that the overlay adds to a payment in chunks of N, by traffic, bytes to record.
  Two scorers of one process, one with an overlay, decide in turns; the least of the rounds. The stream lags half a
  second behind 500 payments a second: `none` with nothing pending, `typical` with one payment in 50 of a hot merchant,
  `hot` with all of it, half of a second of which is pending. `added_us_p50` is `typical_1_added_us`.
- `hot_RATE_LAG_VERSIONS_us`: the CPU time of the call that fills a vector, look-up apart, where one merchant gets RATE
  payments a second, and the mirror gets VERSIONS new profiles of it a second, LAG ms old: mean, as `…_p99_us`, and as
  `…_first_us` the median of payments that are the first ones after a new profile. With `newest` for hot only the newest
  16 pending payments count. `…_pending` says how many there are at most.
- `wrong_bits`: random steps of answers, a stream that lags, late, repeated and lost payments, kills, older streams and
  companions, and `forget`; every second world has another host that reports its payments over a bad network, and every
  second pair of worlds keeps folds of all entities with two pending payments. Each vector is compared with an oracle's
  (tests/worlds/stream/overlay_world.py).
Used for: whether the overlay may be on.

    python -m perf.overlay [--pairs N] [--steps N] [--only hot] [--json FILE]
"""

from __future__ import annotations

import http.client
import itertools
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.bundle import load_bundle
from paywarden.models.policy.policy import Policy, PolicySettings, flags_of
from paywarden.models.training.settings import TrainingSettings
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine import chunk_frame
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import ScoringMetrics
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state import mirror, overlay
from paywarden.scoring.state.overlay import Overlay, OverlaySettings, prepare
from paywarden.scoring.state.overlay_marks import OverlayMarks
from perf.tools.measuring import arguments_of, finish
from perf.tools.servers import pin_load, running, server_core
from perf.worlds.scoring_world import World, WorldSize, built_world
from tests.worlds.stream.overlay_world import START_MS, OverlayWorld, TwoHosts

# The model takes its time with and without an overlay: a small one is trained in seconds.
_SIZE = WorldSize(
    cards=2000,
    days=20,
    training_cards=1000,
    training_days=5,
    training=TrainingSettings(trees=50, leaves=15, early_stopping_rounds=0, threads=1),
)
_LIFETIME_MS = 2000
# The stream lags so far behind the scorers that are timed: a pending payment lives as long.
_LAG_MS = 500
# Payments a second.
_RATE = 500
_CHUNKS = (1, 8, 32)
_ROUNDS = 9
# More transactions than the mirror will ever have: the marks are complete, since no profile gets a payment.
_ALL_TRANSACTIONS = 1 << 60
_CONNECTIONS = 16
_STEPS_EACH = 2000
_FOLDED = {"singly_max": 1, "events_max": 300}
# Payments a second of one merchant; how far its profile lags in ms, and how many new profiles come in a second.
_HOT_RATES, _HOT_LAGS = (200, 1000), ((150, 20), (500, 5), (500, 20), (1000, 2), (3000, 2))
_HOT_PAYMENTS = 6000


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--pairs", {"type": int, "default": 10_000, "help": "of payments"}),
        ("--steps", {"type": int, "default": 1_000_000, "help": "of the oracle's worlds"}),
        ("--entities", {"type": int, "default": 30_000, "help": "in the mirror, at least"}),
        (
            "--payments",
            {"type": int, "default": 20_000, "help": "of each kind and chunk, for the time a payment takes"},
        ),
        ("--only", {"choices": ("hot",), "help": "what is measured, everything by default"}),
    )
    if arguments.only == "hot":
        finish(_hot_merchants(), arguments.json)
        return
    figures = _against_oracle(arguments.steps) | _hot_merchants()
    pin_load()
    with built_world(arguments.entities, _SIZE) as world:
        figures |= _pairs(world, arguments.pairs) | _times(world, arguments.payments)
    finish(figures, arguments.json)


def _against_oracle(steps: int) -> dict[str, float]:
    scores = folded = wrong = unsure = received = 0
    rounds = max(1, steps // _STEPS_EACH)
    for seed in range(rounds):
        with tempfile.TemporaryDirectory(prefix="paywarden-overlay-") as folder:
            # Every second world hears of another host's payments, and every second pair of worlds keeps folds.
            kind, kept = TwoHosts if seed % 2 else OverlayWorld, _FOLDED if seed % 4 >= 2 else {}
            world = kind(Path(folder), seed=seed, **kept)
            world.run(min(steps, _STEPS_EACH))
        scores, folded = scores + world.scores, folded + world.folded
        wrong, unsure = wrong + world.wrong, unsure + world.unsure
        received += world.received if isinstance(world, TwoHosts) else 0
        if seed % 50 == 49 or seed == rounds - 1:
            print(
                f"oracle: {(seed + 1) * min(steps, _STEPS_EACH):,} steps, {scores:,} scores, {folded:,} pending "
                f"payments added, {received:,} rows of another host, {unsure:,} without the overlay, {wrong} wrong",
                flush=True,
            )
    return {
        "rows_received": received,
        "scores": scores,
        "folded": folded,
        "unsure_share": unsure / scores,
        "wrong_bits": wrong,
    }


def _hot_merchants() -> dict[str, float]:
    figures: dict[str, float] = {}
    for rate, (lag_ms, versions) in itertools.product(_HOT_RATES, _HOT_LAGS):
        for name, events_max in (("newest", 16), ("hot", 4096)):
            taken, is_first, pending = _hot_merchant(rate, lag_ms, versions, events_max)
            case, first = f"{name}_{rate}_{lag_ms}_{versions}", float(np.median(taken[is_first]))
            figures |= {f"{case}_us": float(taken.mean()), f"{case}_p99_us": float(np.percentile(taken, 99))}
            figures |= {f"{case}_first_us": first, f"{case}_pending": pending}
            print(
                f"{case:20}: {taken.mean():5.1f} µs, p50 {np.median(taken):5.1f}, p99 {np.percentile(taken, 99):6.1f}, "
                f"after a new profile {first:6.1f}, at most {taken.max():6.1f}; up to {pending} pending",
                flush=True,
            )
    return figures


def _hot_merchant(
    rate: int, lag_ms: int, versions: int, events_max: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Returns the µs of each call after the first two thirds, whether it had a new profile, and how many were pending.

    That is the most payments at any time.
    """
    with tempfile.TemporaryDirectory(prefix="paywarden-overlay-", dir=_memory()) as folder:
        world = OverlayWorld(
            Path(folder), seed=1, events_max=events_max, payments_max=50_000, marks_max=200_000, lifetime_ms=10_000
        )
        world.now_ms += world.settings.doubt_ms + 1
        topic, merchant, began_ms = world.topics[0], world.plan.entity_names.index("merchant"), world.now_ms
        taken, is_first, due_ms, pending = [], [], 0.0, 0
        for place in range(_HOT_PAYMENTS):
            passed_ms = place * 1000 / rate
            world.now_ms = began_ms + int(passed_ms)
            made = world.payments[number := world.make()]
            made.keys = [b"merchant:hot" if entity == merchant else b"" for entity in range(world.plan.entity_count)]
            made.row[kernel.TIME_MS] = START_MS + world.now_ms
            made.source, made.offset = 0, place
            topic.records.append(number)
            is_first.append(passed_ms >= due_ms)
            if passed_ms >= due_ms:
                due_ms += 1000 / versions
                pending = max(pending, place - topic.read[merchant])
                world.read(merchant, topic, max(topic.read[merchant], int((passed_ms - lag_ms) * rate / 1000)))
                world.apply(len(world.changelog))
            taken.append(world.fill_ns(number) / 1000)
            world.answer(number, worker=0)
        # The warm-up of caches is over, and profiles have come.
        last = 2 * _HOT_PAYMENTS // 3
        return np.array(taken[last:]), np.array(is_first[last:]), pending


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def _marked(world: World, engine: FeatureEngine, name: str, lifetime_ms: int) -> Iterator[OverlaySettings]:
    """Give the settings of an overlay whose marks are trusted."""
    with tempfile.TemporaryDirectory(prefix="paywarden-overlay-", dir=Path(world.mirror.path).parent) as folder:
        settings = OverlaySettings(enabled=True, path=f"{folder}/{name}", lifetime_ms=lifetime_ms, marks_max=10_000)
        marks = OverlayMarks(settings, engine.plan, world.mirror.path)
        marks.open_mirror(_ALL_TRANSACTIONS)
        while marks.is_unsure:
            time.sleep(0.1)
        yield settings


def _pairs(world: World, count: int) -> dict[str, float]:
    with ExitStack() as stack:
        settings = stack.enter_context(_marked(world, FeatureEngine(), "served", _LIFETIME_MS))
        environment = {
            "PAYWARDEN_OVERLAY_ENABLED": "true",
            "PAYWARDEN_OVERLAY_PATH": settings.path,
            "PAYWARDEN_OVERLAY_LIFETIME_MS": str(settings.lifetime_ms),
            "PAYWARDEN_OVERLAY_MARKS_MAX": str(settings.marks_max),
        }
        arguments = ("--config", str(world.config), "serve", "--workers", "2")
        server = stack.enter_context(
            running("paywarden", *arguments, ready_path="/readyz", environment=environment, core=server_core())
        )
        address = urlsplit(server.http).netloc
        connections = [http.client.HTTPConnection(address) for _ in range(_CONNECTIONS)]
        turns = itertools.cycle(connections)
        like = world.requests[0]
        seen = other = 0
        for number in range(count):
            first = _ask(next(turns), like, number, 0)
            time.sleep(0.001)
            second = _ask(next(turns), like, number, 1)
            assert "unknown_card" in first.flags
            seen += "unknown_card" not in second.flags and "overlay_absent" not in second.flags
            # The ids of a worker's decisions begin alike.
            other += first.decision_id[:16] != second.decision_id[:16]
        for connection in connections:
            connection.close()
    print(f"{seen:,} of {count:,} second payments saw the first; {other:,} pairs had two workers")
    return {"seen_share": seen / count, "other_worker_share": other / count}


def _ask(connection: http.client.HTTPConnection, like: ScoreRequest, number: int, place: int) -> ScoreResponse:
    request = ScoreRequest()
    request.CopyFrom(like)
    request.payment_id, request.card_id = f"pair-{number}-{place}", f"pair-{number}"
    request.event_time_ms = time.time_ns() // 1_000_000
    connection.request("POST", "/v1/score", request.SerializeToString(), {"content-type": "application/x-protobuf"})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return ScoreResponse.FromString(body)


class _Nowhere:
    """An outbox that keeps nothing."""

    position = 0

    def append_frames(self, frames: bytes) -> int:
        return len(frames)

    def trouble(self) -> str:
        return ""


def _times(world: World, count: int) -> dict[str, float]:
    engine = FeatureEngine()
    engine.warm_up()
    for module in (fast_requests, mirror, chunk_frame):
        module.warm_up()
    overlay.warm_up(engine)
    bundle = load_bundle(world.bundle, catalogue_digest=engine.plan.digest, identity_digest=engine.plan.key.digest)
    with _marked(world, engine, "timed", _LAG_MS) as settings:
        prepare(settings, engine.plan)
        # LMDB may be open once in a process.
        copies = [replace(world.mirror, path=f"{settings.path}-mirror-{number}") for number in range(2)]
        for copy in copies:
            shutil.copytree(world.mirror.path, copy.path)

        def scorer(pending: Overlay | None) -> PaymentScorer:
            entities, registry = engine.plan.entity_names, MetricsRegistry()
            return PaymentScorer(
                engine=engine.clone_for_thread(),
                intake=RequestDecoder(engine.plan, load_rates(), RequestLimits()),
                models=ModelChain((bundle,), metrics=ModelMetrics.declare(registry)),
                policy=Policy(PolicySettings(), review_at=1.0, decline_at=1.0),
                mirror=copies[pending is not None],
                outbox=_Nowhere(),
                metrics=ScoringMetrics.declare(registry, flags=flags_of(entities), entities=entities),
                options=ScorerOptions(overlay=pending),
            )

        clock = _Clock()
        pending = Overlay(settings, engine.clone_for_thread(), rows_max=ROWS_MAX, clock_ms=clock.now_ms)
        scorers = {"plain": scorer(None), "overlay": scorer(pending)}
        traffic = _Traffic(world)
        figures: dict[str, float] = {}
        for kind, size in itertools.product(("none", "typical", "hot"), _CHUNKS):
            chunks = max(20, count // (_ROUNDS * size))
            taken: dict[str, list[float]] = defaultdict(list)
            # The first round touches memory for the first time.
            for number in range(_ROUNDS + 1):
                for name in ("plain", "overlay") if number % 2 else ("overlay", "plain"):
                    clock.pass_ms(10 * _LAG_MS)
                    taken[name].append(_cpu_us(scorers[name].score, traffic, clock, kind, size, chunks))
            plain, added = (min(taken[name][1:]) for name in ("plain", "overlay"))
            case = f"{kind}_{size}"
            figures |= {f"{case}_plain_us": plain, f"{case}_added_us": added - plain}
            print(f"{case:16}: {plain:5.1f} µs without an overlay, {added - plain:+.1f} with one")
        for each in scorers.values():
            each.close_mirror()
    return figures | {"added_us_p50": figures["typical_1_added_us"]}


class _Clock:
    """The overlay's clock, which the benchmark moves: as much time passes as the traffic takes."""

    def __init__(self) -> None:
        self._passed_ms = 0.0

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000 + int(self._passed_ms)

    def pass_ms(self, duration_ms: float) -> None:
        self._passed_ms += duration_ms


class _Traffic:
    """Makes chunks of new payments: `none` with long pauses, `hot` all of one merchant, `typical` one in 50 of it."""

    def __init__(self, world: World) -> None:
        self._requests, self._made = world.requests, 0
        self._merchants = [request.merchant_id for request in world.requests]

    def chunk(self, kind: str, size: int, now_ms: int) -> list[bytes]:
        bodies = []
        for _ in range(size):
            self._made += 1
            place = self._made * 7 % len(self._requests)
            request = self._requests[place]
            is_hot = kind == "hot" or (kind == "typical" and self._made % 50 == 0)
            request.merchant_id = self._merchants[0 if is_hot else place]
            request.payment_id, request.event_time_ms = f"timed-{self._made}", now_ms
            bodies.append(request.SerializeToString())
        return bodies


def _cpu_us(
    score: Callable[[Chunk, int], object], traffic: _Traffic, clock: _Clock, kind: str, size: int, chunks: int
) -> float:
    """Returns the CPU time of a payment in chunks of this size, in µs."""
    now_ms = time.time_ns() // 1_000_000
    made = [traffic.chunk(kind, size, now_ms) for _ in range(chunks)]
    pause_ms = 2 * _LAG_MS if kind == "none" else size * 1000 / _RATE
    began = time.thread_time_ns()
    for bodies in made:
        clock.pass_ms(pause_ms)
        score(Chunk(bodies), now_ms)
    return (time.thread_time_ns() - began) / 1000 / (size * chunks)


if __name__ == "__main__":
    main()
