"""Where a payment's microseconds go: each stage of the scoring path alone, over the same requests.

The parts are called as a worker calls them, one payment at a time, without a batch's savings; `score_16` is all of them
for sixteen payments together. What is left to a worker's whole time is its front, the event loop and the kernel. Run in
a process of its own, because a mirror is opened once in a process.

    python -m perf.scoring_stages CONFIG          prints JSON: microseconds a payment by stage
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.kernel import AMOUNT, AMOUNT_MINOR, ATTRIBUTE_COUNT, TIME_MS
from features.keys import entity_key
from perf.scoring_host import ScorerInProcess, open_scorer
from schemas.outbox_pb2 import OutboxRecord
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring import wire
from scoring.mirror import MirrorReader
from scoring.policy import Facts
from scoring.turns import Refusal

_ROUNDS = 5


def stage_us(made: ScorerInProcess, bodies: Sequence[bytes]) -> dict[str, float]:
    """Microseconds a payment of each stage, the best of rounds, and of `score` as a whole."""
    host, scorer = made.host, made.scorer
    now_ms = time.time_ns() // 1_000_000
    requests = [wire.PROTOBUF.parse(body) for body in bodies]
    responses = [_response(scorer.score_many([request], now_ms)[0]) for request in requests]
    figures = {
        "decode": _us(wire.PROTOBUF.parse, bodies),
        "validate": _us(
            lambda each: wire.validate(each, now_ms=now_ms, limits=host.limits, currencies=host.rates.currencies),
            requests,
        ),
        "score_1": _us(lambda each: scorer.score_many([each], now_ms), requests),
        "score_16": _us(lambda each: scorer.score_many(each, now_ms), _batches(requests, 16)) / 16,
        "render": _us(wire.PROTOBUF.render, responses),
    }
    # The scorer has the mirror open, and in one process nobody else may.
    assert scorer._mirror is not None
    return figures | _parts(made, scorer._mirror, requests, responses, now_ms)


def _parts(
    made: ScorerInProcess,
    mirror: MirrorReader,
    requests: Sequence[ScoreRequest],
    responses: Sequence[ScoreResponse],
    now_ms: int,
) -> dict[str, float]:
    host = made.host
    plan = host.engine.plan
    names = list(zip(plan.entity_names, plan.entity_keys, strict=True))
    keys = [[_key(request, *entity) for entity in names] for request in requests]
    attributes = np.zeros((1, ATTRIBUTE_COUNT), dtype=np.int64)
    vector = np.empty((1, plan.feature_count), dtype=np.float32)
    fill = host.engine.bind(attributes, mirror.presence, mirror.states, mirror.bounds, vector)

    def look_up_and_fill(number: int) -> None:
        request = requests[number]
        attributes[0, TIME_MS], attributes[0, AMOUNT_MINOR] = request.event_time_ms, request.amount_minor
        attributes[0, AMOUNT] = request.amount_minor
        mirror.look_up(keys[number])
        fill(1)

    def append(number: int) -> None:
        record = OutboxRecord(
            request=requests[number].SerializeToString(),
            response=responses[number].SerializeToString(),
            decided_time_ms=now_ms,
            vector=vector.tobytes(),
            catalogue_digest=plan.digest,
        )
        made.outbox.append_many([record.SerializeToString()])

    numbers = range(len(requests))
    look_up = _us(lambda number: mirror.look_up(keys[number]), numbers)
    # Each payment's own: the same again and again, the processor would know every branch of the trees.
    vectors = []
    for number in numbers:
        look_up_and_fill(number)
        vectors.append(vector.copy())
    facts = [
        Facts(request, request.amount_minor, each[0], response.score, list(response.flags))
        for request, each, response in zip(requests, vectors, responses, strict=True)
    ]
    return {
        "look_up": look_up,
        "vector": _us(look_up_and_fill, numbers) - look_up,
        "model": _us(host.bundles[0].score, vectors),
        "policy": _us(host.policy.decide, facts),
        "outbox": _us(append, numbers),
    }


def _batches(requests: Sequence[ScoreRequest], size: int) -> list[Sequence[ScoreRequest]]:
    return [requests[first : first + size] for first in range(0, len(requests) - size + 1, size)]


def _response(result: ScoreResponse | Refusal) -> ScoreResponse:
    assert isinstance(result, ScoreResponse), "every request of a world can be answered"
    return result


def _key(request: ScoreRequest, entity: str, fields: Sequence[str]) -> bytes | None:
    ids = [getattr(request, name) for name in fields]
    return entity_key(entity, ids) if all(ids) else None


def _us(call: Callable[[Any], object], over: Sequence[Any]) -> float:
    rounds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for each in over:
            call(each)
        rounds.append((time.perf_counter() - started) / len(over) * 1e6)
    return min(rounds)


def main() -> None:
    config = Path(sys.argv[1])
    made = open_scorer(config, "stages")
    bodies = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    print(json.dumps(stage_us(made, bodies)), flush=True)


if __name__ == "__main__":
    main()
