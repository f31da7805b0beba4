"""Real processes that claim the same payments at the same time, stopped and killed at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.state.outbox import OutboxReader, workers
from tests.patience import PATIENCE_S
from tests.services.product.processes import ROOT, wait_until
from tests.unit.scoring.idempotency.claimant import outboxes_of

WORKERS = 4
# Raise it for a long run. Workers that claim all the time take all cores: the time between two kills is short.
KILLS = int(os.environ.get("PAYWARDEN_CLAIM_KILLS", "50"))
ANSWERS = 1_000


@contextmanager
def claimants(folder: Path) -> Iterator[psutil.Process]:
    """Returns the parent of the workers, once they answer."""
    command = [sys.executable, "-m", "tests.unit.scoring.idempotency.claimant", str(folder), str(WORKERS)]
    with subprocess.Popen(command, cwd=ROOT) as parent:
        try:
            wait_until((folder / "notes").exists, "they answer")
            yield psutil.Process(parent.pid)
        finally:
            parent.send_signal(signal.SIGTERM)


def disturb_one(worker: psutil.Process, rng: random.Random) -> bool:
    """Stop a worker for a moment, kill it, or both. Returns whether it was killed."""
    if rng.random() < 0.3:
        worker.suspend()
        time.sleep(rng.uniform(0, 0.1))
        if rng.random() < 0.5:
            worker.resume()
            return False
    worker.kill()
    return True


def test_no_payment_gets_two_decisions_when_workers_are_killed(tmp_path: Path) -> None:
    rng = random.Random(3)
    kills = 0
    with claimants(tmp_path) as parent:
        until, notes = time.monotonic() + max(PATIENCE_S, KILLS), tmp_path / "notes"

        def is_enough() -> bool:
            """Whether the test proves something: a slow machine needs longer for that."""
            return time.monotonic() > until or (kills >= KILLS and notes.read_bytes().count(b" .") > ANSWERS)

        while not is_enough():
            time.sleep(rng.uniform(0.01, 0.06))
            # A worker that was just killed may be gone by now.
            with suppress(psutil.NoSuchProcess, IndexError):
                kills += disturb_one(rng.choice(parent.children()), rng)
        assert parent.status() != psutil.STATUS_ZOMBIE, "a worker ended by itself"
    made: dict[str, list[str]] = {}
    settings = outboxes_of(tmp_path)
    for worker in workers(settings):
        for _, payload in OutboxReader(settings, worker).read(0, 10_000_000):
            entry = OutboxEntry.FromString(payload)
            made.setdefault(entry.request.payment_id, []).append(entry.response.decision_id)
    assert not {payment: decisions for payment, decisions in made.items() if len(decisions) > 1}
    lines = [line.split() for line in (tmp_path / "notes").read_text(encoding="ascii").splitlines()]
    answers = [(line[0], line[1]) for line in lines if line[2:] == ["."]]
    assert not [(payment, decision) for payment, decision in answers if made.get(payment) != [decision]]
    # The test proves something only if workers claimed the same payments.
    assert len(answers) > ANSWERS
    assert kills >= KILLS
    assert len(answers) > 2 * len(made) > 200
