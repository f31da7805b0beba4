"""Workers that only claim and append, for a test that kills them: python -m tests.unit.scoring.idempotency.claimant
FOLDER COUNT.

A parent forks them, and forks a dead one again, until SIGTERM. In the folder are the table, the outboxes, and
`notes`: a line "payment decision ." for each answer, written when a caller would have it. What a killed worker had
half written is a line without the dot: each write begins a line.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.idempotency import decision_cache as answered
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheSettings, worker_name
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from tests.oracles.claims import claim_all, place_all
from tests.unit.scoring.state.outboxes import append_all, starts

# Payments that are repeated until other payments replace them.
ALIVE_PAYMENTS = 40
PLACE_EVERY_S = 0.002


def table_of(folder: Path) -> DecisionCacheSettings:
    return DecisionCacheSettings(path=str(folder / "answered"), payments_max=50_000)


def outboxes_of(folder: Path) -> OutboxSettings:
    return OutboxSettings(directory=str(folder / "outbox"))


def main(folder: Path, count: int) -> NoReturn:
    answered.warm_up()
    answered.prepare(table_of(folder))
    running: dict[int, int] = {}

    def stop(_: int, __: FrameType | None) -> NoReturn:
        for pid in running:
            # The signal may arrive after a child has ended and before it was noted.
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    ended = list(range(count))
    for started in range(1_000_000):
        worker = ended.pop()
        # A signal between the fork and storing the pid would miss the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        pid = os.fork()
        if pid == 0:
            try:
                work(folder, worker, started)
            finally:
                os._exit(1)
        running[pid] = worker
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        while not ended:
            pid, status = os.wait()
            if os.WIFSIGNALED(status):
                ended.append(running.pop(pid))
            else:
                sys.exit("a worker ended by itself")
    raise AssertionError


def work(folder: Path, worker: int, seed: int) -> NoReturn:
    rng = random.Random(seed)
    outbox = OutboxWriter(outboxes_of(folder), worker_name(worker))
    table = DecisionCache(table_of(folder), outboxes_of(folder), worker)
    noted = os.open(folder / "notes", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    decision = 0
    while True:
        # All workers use the same payments at the same time, so that their claims collide.
        newest = int(time.monotonic() / PLACE_EVERY_S)
        ids = [f"p{newest - rng.randrange(ALIVE_PAYMENTS)}" for _ in range(rng.choice((1, 1, 4, 16)))]
        requests = [ScoreRequest(payment_id=i, card_id="c", merchant_id="m", currency="EUR") for i in ids]
        bodies = [request.SerializeToString() for request in requests]
        asked = CheckedPayments(bodies, [i.encode() for i in ids], [], np.zeros((len(ids), 0), dtype=np.int64))
        claims = claim_all(table, asked)
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
            place_all(table, slots, starts(outbox, payloads))
            append_all(outbox, payloads)
            table.settle(slots)
            answers += [entry for _, entry in won]
        lines = "".join(f"\n{entry.request.payment_id} {entry.response.decision_id} ." for entry in answers)
        os.write(noted, lines.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
