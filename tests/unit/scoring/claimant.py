"""A worker process that only claims and appends, for tests that kill it: python -m tests.unit.scoring.claimant.

Takes the table, the outboxes' directory, its worker number, a seed and where it notes what it has answered: a line
"payment decision" for each, written when a caller would have the answer.
"""

from __future__ import annotations

import os
import random
import sys
import time

from schemas.outbox_pb2 import OutboxEntry
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.answered import Answered, AnsweredSettings, worker_name
from scoring.outbox import OutboxSettings, OutboxWriter

# Payments that are asked for over and over until others take their place.
ALIVE_PAYMENTS = 40
PLACE_EVERY_S = 0.002


def main(table: str, outboxes: str, worker: int, seed: int, notes: str) -> None:
    rng = random.Random(seed)
    outbox_settings = OutboxSettings(directory=outboxes)
    outbox = OutboxWriter(outbox_settings, worker_name(worker))
    answered = Answered(AnsweredSettings(path=table, payments_max=50_000), outbox_settings, worker)
    noted = os.open(notes, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    decision = 0
    while True:
        # The same payments for all workers at one time: they meet.
        newest = int(time.monotonic() / PLACE_EVERY_S)
        ids = [f"p{newest - rng.randrange(ALIVE_PAYMENTS)}" for _ in range(rng.choice((1, 1, 4, 16)))]
        requests = [ScoreRequest(payment_id=i, card_id="c", merchant_id="m", currency="EUR") for i in ids]
        claims = answered.claim(requests, time.time_ns() // 1_000_000)
        won: list[tuple[int, OutboxEntry]] = []
        answers: list[OutboxEntry] = []
        for request, claim in zip(requests, claims, strict=True):
            if isinstance(claim, OutboxEntry):
                answers.append(claim)
            elif isinstance(claim, int):
                assert claim >= 0, "there is room for all"
                decision += 1
                response = ScoreResponse(payment_id=request.payment_id, decision_id=f"{worker}-{seed}-{decision}")
                won.append((claim, OutboxEntry(request=request, response=response)))
        if won:
            slots, payloads = [slot for slot, _ in won], [entry.SerializeToString() for _, entry in won]
            answered.place(slots, outbox.starts(payloads))
            outbox.append_many(payloads)
            answered.settle(slots)
            answers += [entry for _, entry in won]
        lines = "".join(f"{entry.request.payment_id} {entry.response.decision_id}\n" for entry in answers)
        os.write(noted, lines.encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
