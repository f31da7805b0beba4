"""The overlay: does a payment see the one before it, what does that cost, and is any bit ever wrong?

Measured:
- `seen_share`: pairs of payments of a new card over HTTP to `paywarden serve --workers 2`. The second leaves one
  millisecond after the first was answered, on another connection. It has seen the first if it lacks the flag
  unknown_card. `other_worker_share` says how many pairs had two workers. The marks are those of a companion whose
  stream has brought nothing yet.
- `added_us_p50`: the CPU time of a worker for an answer in a closed loop of single payments, with an overlay less
  without one: two workers on one core take turns, medians of the rounds. Payments are pending for a tenth of a second:
  about two thousand at a time, over all entities.
- `wrong_bits`: random steps of answers, a stream that lags, late, repeated and lost payments, kills, older streams and
  companions, and `forget`; every second world has another host that reports its payments over a bad network, and every
  second pair of worlds keeps folds of all entities with two pending payments. Each vector is compared with an oracle's
  (tests/worlds/stream/overlay_world.py).
Used for: whether the overlay may be on.

    python -m perf.overlay [--pairs N] [--steps N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import http.client
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.training.settings import TrainingSettings
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.overlay import OverlaySettings
from paywarden.scoring.state.overlay_marks import OverlayMarks
from perf.tools.measuring import Scenario, arguments_of, finish, in_turns, median_of
from perf.tools.servers import pin_load, running, serving
from perf.worlds.scoring_world import World, WorldSize, built_world
from tests.worlds.stream.overlay_world import OverlayWorld, TwoHosts

# The model takes its time with and without an overlay: a small one is trained in seconds.
_SIZE = WorldSize(
    cards=2000,
    days=20,
    training_cards=1000,
    training_days=5,
    training=TrainingSettings(trees=50, leaves=15, early_stopping_rounds=0, threads=1),
)
_LIFETIME_MS = 2000
# How long a payment is pending where CPU time is measured, and how long each load is.
_PENDING_MS, _ADDED_S = 100, 2.0
# A busy machine makes no worker refuse.
_PATIENT = {"PAYWARDEN_ADMISSION_DEADLINE_MS": "2000", "PAYWARDEN_ADMISSION_WAIT_MS_MAX": "1000"}
_CLOSED = LoadOptions(connections=64, connections_max=64)
# More transactions than the mirror will ever have: the marks are complete, since no profile gets a payment.
_ALL_TRANSACTIONS = 1 << 60
_CONNECTIONS = 16
_STEPS_EACH = 2000
_FOLDED = {"singly_max": 1, "events_max": 300}


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--pairs", {"type": int, "default": 10_000, "help": "of payments"}),
        ("--steps", {"type": int, "default": 1_000_000, "help": "of the oracle's worlds"}),
        ("--entities", {"type": int, "default": 200_000, "help": "in the mirror, at least"}),
        ("--rounds", {"type": int, "default": 9, "help": "in which CPU time is measured"}),
    )
    figures = _against_oracle(arguments.steps)
    pin_load()
    with built_world(arguments.entities, _SIZE) as world:
        figures |= _pairs(world, arguments.pairs) | _added(world, arguments.rounds)
    finish(figures, arguments.json)


def _against_oracle(steps: int) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for seed in range(max(1, steps // _STEPS_EACH)):
        with tempfile.TemporaryDirectory(prefix="paywarden-overlay-") as folder:
            # Every second world hears of another host's payments, and every second pair of worlds keeps folds.
            kind, kept = TwoHosts if seed % 2 else OverlayWorld, _FOLDED if seed % 4 >= 2 else {}
            world = kind(Path(folder), seed=seed, **kept)
            world.run(min(steps, _STEPS_EACH))
        counts += Counter(scores=world.scores, folded=world.folded, wrong_bits=world.wrong, unsure=world.unsure)
        counts["rows_received"] += world.received if isinstance(world, TwoHosts) else 0
    names = ("scores", "folded", "rows_received", "wrong_bits")
    return {name: counts[name] for name in names} | {"unsure_share": counts["unsure"] / counts["scores"]}


@contextmanager
def _with_overlay(world: World, lifetime_ms: int) -> Iterator[dict[str, str]]:
    """Give the environment of a worker with an overlay whose marks are trusted."""
    with tempfile.TemporaryDirectory(prefix="paywarden-overlay-", dir=Path(world.mirror.path).parent) as folder:
        settings = OverlaySettings(enabled=True, path=f"{folder}/overlay", lifetime_ms=lifetime_ms, marks_max=10_000)
        marks = OverlayMarks(settings, FeatureEngine().plan, world.mirror.path)
        marks.open_mirror(_ALL_TRANSACTIONS)
        while marks.is_unsure:
            time.sleep(0.1)
        yield {
            "PAYWARDEN_OVERLAY_ENABLED": "true",
            "PAYWARDEN_OVERLAY_PATH": settings.path,
            "PAYWARDEN_OVERLAY_LIFETIME_MS": str(settings.lifetime_ms),
            "PAYWARDEN_OVERLAY_MARKS_MAX": str(settings.marks_max),
        }


def _pairs(world: World, count: int) -> dict[str, float]:
    with ExitStack() as stack:
        environment = stack.enter_context(_with_overlay(world, _LIFETIME_MS))
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


def _added(world: World, rounds: int) -> dict[str, float]:
    """Measure two workers in turns, one with an overlay. The second has outbox, metrics and answers of its own."""
    with ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-overlay-"))
        environment = stack.enter_context(_with_overlay(world, _PENDING_MS)) | _PATIENT
        for name in ("OUTBOX_DIRECTORY", "ANSWERED_PATH", "SERVE_METRICS", "SERVE_RUNTIME"):
            environment[f"PAYWARDEN_{name}"] = f"{own}/{name}"
        servers = {
            "plain": stack.enter_context(serving(world.config, environment=_PATIENT)),
            "overlay": stack.enter_context(serving(world.config, environment=environment)),
        }
        bodies = stamped_bodies(world.requests, id_prefix="added")
        found = in_turns(
            [Scenario(name, one, one.http, bodies, _CLOSED, _ADDED_S) for name, one in servers.items()], rounds
        )
    cpu_us = {name: median_of(row, lambda one: one.server_cpu_us) for name, row in found.items()}
    return {f"{name}_cpu_us": value for name, value in cpu_us.items()} | {
        "added_us_p50": cpu_us["overlay"] - cpu_us["plain"]
    }


if __name__ == "__main__":
    main()
