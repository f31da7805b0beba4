"""Real processes that claim the same payments at the same time, stopped and killed at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from schemas.outbox_pb2 import OutboxEntry
from scoring import answered
from scoring.answered import AnsweredSettings
from scoring.outbox import OutboxReader, OutboxSettings, workers
from tests.processes import ROOT

WORKERS = 4
# More for a soak.
SECONDS = float(os.environ.get("PAYWARDEN_CLAIM_SECONDS", "12"))


class Workers:
    """Started again whenever they are killed. `with` ends them all."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder, self._rng, self._started = folder, rng, 0
        self.notes = folder / "notes"
        self._running = [self._start(number) for number in range(WORKERS)]
        self.kills = 0

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        self._started += 1
        where = [str(self._folder / "answered"), str(self._folder / "outbox"), str(number), str(self._started)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.unit.scoring.claimant", *where, str(self.notes)], cwd=ROOT
        )

    def kill_one(self) -> None:
        """Stopped for a moment before, at times: others go on without it."""
        number = self._rng.randrange(WORKERS)
        worker = self._running[number]
        assert worker.poll() is None, "it ended by itself"
        if self._rng.random() < 0.3:
            worker.send_signal(signal.SIGSTOP)
            time.sleep(self._rng.uniform(0, 0.1))
            if self._rng.random() < 0.5:
                worker.send_signal(signal.SIGCONT)
                return
        worker.kill()
        worker.wait()
        self.kills += 1
        self._running[number] = self._start(number)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._running:
            worker.kill()
            worker.wait()


def test_no_payment_gets_two_decisions_whoever_asks_and_dies(tmp_path: Path) -> None:
    answered.warm_up()
    answered.prepare(AnsweredSettings(path=str(tmp_path / "answered"), payments_max=50_000))
    rng = random.Random(3)
    with Workers(tmp_path, rng) as running:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(rng.uniform(0.02, 0.3))
            running.kill_one()
        kills = running.kills
    made: dict[str, list[str]] = {}
    settings = OutboxSettings(directory=str(tmp_path / "outbox"))
    for worker in workers(settings):
        for _, payload in OutboxReader(settings, worker).read(0, 10_000_000):
            entry = OutboxEntry.FromString(payload)
            made.setdefault(entry.request.payment_id, []).append(entry.response.decision_id)
    twice = {payment: decisions for payment, decisions in made.items() if len(decisions) > 1}
    assert not twice
    answers = [line.split() for line in running.notes.read_text(encoding="ascii").splitlines()]
    differing = [(payment, decision) for payment, decision in answers if made.get(payment) != [decision]]
    assert not differing
    # It would show nothing if they had not met.
    assert kills >= SECONDS
    assert len(answers) > 2 * len(made) > 200
