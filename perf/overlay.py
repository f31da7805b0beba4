"""The overlay: does a payment see the one before it, what does that cost, and is any bit ever wrong?

Measured:
- `seen_share`: pairs of payments of a new card over HTTP to `paywarden serve --workers 2`. The second leaves one
  millisecond after the first was answered, on another connection. It has seen the first if it lacks the flag
  unknown_card. `other_worker_share` says how many pairs had two workers. The marks are those of a companion whose
  stream has brought nothing yet.
- `added_us_N`: the CPU time that the overlay adds to a payment in chunks of N, from bytes to record. Two scorers of one
  process, one with an overlay, decide in turns; the least of the rounds. The stream lags half a second behind 500
  payments a second, one in 50 of them of a hot merchant. `added_us_p50` is `added_us_1`.
- `wrong_bits`: random steps of answers, a stream that lags, late, repeated and lost payments, kills, older streams and
  companions, and `forget`; in every second world few payments of an entity count, the newest. Each vector is compared
  with an oracle's (tests/worlds/stream/overlay_world.py).
Used for: whether the overlay may be on.

    python -m perf.overlay [--pairs N] [--steps N] [--payments N] [--json FILE]
"""

from __future__ import annotations

import http.client
import itertools
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.state.overlay.overlay import Overlay
from paywarden.scoring.state.overlay.overlay_files import prepare
from paywarden.streams.companion.overlay_marks import OverlayMarks
from perf.tools.measuring import arguments_of, finish
from perf.tools.servers import pin_load, running
from perf.worlds.scoring_host import ScorerInProcess, open_host, scorer_of
from perf.worlds.scoring_world import World, WorldSize, built_world
from tests.worlds.stream.overlay_world import OverlayWorld

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


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--pairs", {"type": int, "default": 10_000, "help": "of payments"}),
        ("--steps", {"type": int, "default": 1_000_000, "help": "of the oracle's worlds"}),
        ("--entities", {"type": int, "default": 30_000, "help": "in the mirror, at least"}),
        ("--payments", {"type": int, "default": 20_000, "help": "of each size of chunks that are timed"}),
    )
    figures = _against_oracle(arguments.steps)
    pin_load()
    with built_world(arguments.entities, _SIZE) as world:
        figures |= _pairs(world, arguments.pairs) | _times(world, arguments.payments)
    finish(figures, arguments.json)


def _against_oracle(steps: int) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for seed in range(max(1, steps // _STEPS_EACH)):
        with tempfile.TemporaryDirectory(prefix="paywarden-overlay-") as folder:
            world = OverlayWorld(Path(folder), seed=seed, events_max=64 if seed % 2 else 6)
            world.run(min(steps, _STEPS_EACH))
        counts += Counter(scores=world.scores, folded=world.folded, wrong_bits=world.wrong, unsure=world.unsure)
    names = ("scores", "folded", "wrong_bits")
    return {name: counts[name] for name in names} | {"unsure_share": counts["unsure"] / counts["scores"]}


@contextmanager
def _marked(world: World, engine: FeatureEngine, lifetime_ms: int) -> Iterator[OverlaySettings]:
    """Give the settings of an overlay whose marks are trusted."""
    with tempfile.TemporaryDirectory(prefix="paywarden-overlay-", dir=Path(world.mirror.path).parent) as folder:
        settings = OverlaySettings(enabled=True, path=f"{folder}/overlay", lifetime_ms=lifetime_ms, marks_max=10_000)
        marks = OverlayMarks(settings, engine.plan, world.mirror.path)
        marks.open_mirror(_ALL_TRANSACTIONS)
        while marks.is_unsure:
            time.sleep(0.1)
        yield settings


def _pairs(world: World, count: int) -> dict[str, float]:
    with ExitStack() as stack:
        settings = stack.enter_context(_marked(world, FeatureEngine(), _LIFETIME_MS))
        environment = {
            "PAYWARDEN_OVERLAY_ENABLED": "true",
            "PAYWARDEN_OVERLAY_PATH": settings.path,
            "PAYWARDEN_OVERLAY_LIFETIME_MS": str(settings.lifetime_ms),
            "PAYWARDEN_OVERLAY_MARKS_MAX": str(settings.marks_max),
        }
        arguments = ("--config", str(world.config), "serve", "--workers", "2")
        server = stack.enter_context(running("paywarden", *arguments, ready_path="/readyz", environment=environment))
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


def _times(world: World, count: int) -> dict[str, float]:
    host = open_host(world.config)
    with _marked(world, host.engine, _LAG_MS) as settings:
        prepare(settings, host.engine.plan)
        clock, scorers = _Clock(), dict[str, ScorerInProcess]()
        for name in ("plain", "overlay"):
            own = replace(host, engine=host.engine.clone_for_thread())
            pending = None
            if name == "overlay":
                pending = Overlay(settings, host.engine.clone_for_thread(), rows_max=ROWS_MAX, clock_ms=clock.now_ms)
            scorers[name] = scorer_of(own, name, pending)
        traffic = _Traffic(world)
        figures: dict[str, float] = {}
        for size in _CHUNKS:
            chunks = max(20, count // (_ROUNDS * size))
            taken: dict[str, list[float]] = defaultdict(list)
            # The first round touches memory for the first time.
            for number in range(_ROUNDS + 1):
                for name in ("plain", "overlay") if number % 2 else ("overlay", "plain"):
                    clock.pass_ms(10 * _LAG_MS)
                    taken[name].append(_cpu_us(scorers[name], traffic, clock, size, chunks))
            plain, added = (min(taken[name][1:]) for name in ("plain", "overlay"))
            figures |= {f"plain_us_{size}": plain, f"added_us_{size}": added - plain}
        for each in scorers.values():
            each.scorer.close_mirror()
    return figures | {"added_us_p50": figures["added_us_1"]}


class _Clock:
    """The overlay's clock, which the benchmark moves: as much time passes as the traffic takes."""

    def __init__(self) -> None:
        self._passed_ms = 0.0

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000 + int(self._passed_ms)

    def pass_ms(self, duration_ms: float) -> None:
        self._passed_ms += duration_ms


class _Traffic:
    """Makes chunks of new payments. One in 50 is of a hot merchant."""

    def __init__(self, world: World) -> None:
        self._requests, self._made = world.requests, 0
        self._merchants = [request.merchant_id for request in world.requests]

    def chunk(self, size: int, now_ms: int) -> list[bytes]:
        bodies = []
        for _ in range(size):
            self._made += 1
            place = self._made * 7 % len(self._requests)
            request = self._requests[place]
            request.merchant_id = self._merchants[place if self._made % 50 else 0]
            request.payment_id, request.event_time_ms = f"timed-{self._made}", now_ms
            bodies.append(request.SerializeToString())
        return bodies


def _cpu_us(scorer: ScorerInProcess, traffic: _Traffic, clock: _Clock, size: int, chunks: int) -> float:
    """Return the CPU time of a payment in chunks of this size, in µs."""
    now_ms = time.time_ns() // 1_000_000
    made = [traffic.chunk(size, now_ms) for _ in range(chunks)]
    began = time.thread_time_ns()
    for bodies in made:
        clock.pass_ms(size * 1000 / _RATE)
        scorer.score(bodies, now_ms)
    return (time.thread_time_ns() - began) / 1000 / (size * chunks)


if __name__ == "__main__":
    main()
