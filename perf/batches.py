"""The cost of a payment when several are scored together: batches of 1 to 64 through the scorer, in this process.

Measured: a worker's work on a chunk (`PaymentScorer`), with mirror, model, policy and outbox, without a front. The
figures are CPU microseconds a payment by batch size, best and median of rounds in turns. Checked: each answer has the
same bits as when the payment is scored alone (but for the decision's id and the mirror's age). Used for: how many
payments a turn of the event loop should take together.

    python -m perf.batches [--entities N] [--json FILE]
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine.batching.batcher import Refusal
from perf.tools.measuring import arguments_of, finish
from perf.tools.servers import pin_load
from perf.worlds.scoring_host import ScorerInProcess, open_scorer
from perf.worlds.scoring_world import built_world

SIZES = (1, 2, 4, 8, 16, 32, 64)
_PAYMENTS = 4096
_ROUNDS = 7


def main() -> None:
    if sys.argv[1:2] == ["--scorer"]:
        _score_here(Path(sys.argv[2]))
        return
    arguments = arguments_of(
        __doc__, ("--entities", {"type": int, "default": 100_000, "help": "in the mirror, at least"})
    )
    pin_load()
    with built_world(arguments.entities) as world:
        bodies = itertools.islice(stamped_bodies(world.requests, id_prefix="batch"), _PAYMENTS)
        # The mirror is open for writing in this process, and LMDB can be opened only once in a process.
        command = [sys.executable, "-m", "perf.batches", "--scorer", str(world.config)]
        text = "\n".join(body.hex() for body in bodies)
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    finish(json.loads(done.stdout.splitlines()[-1]), arguments.json)


def _score_here(config: Path) -> None:
    made = open_scorer(config, "batches")
    bodies = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    print(json.dumps(batch_figures(made, bodies)), flush=True)


def batch_figures(made: ScorerInProcess, bodies: Sequence[bytes], rounds: int = _ROUNDS) -> dict[str, float]:
    """Returns microseconds a payment by batch size. Raises AssertionError when a batch changes an answer."""
    now_ms = time.time_ns() // 1_000_000
    alone = [_told(answer) for body in bodies for answer in made.score([body], now_ms)]
    taken: dict[str, list[float]] = {f"us_{size}": [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            batches = [bodies[first : first + size] for first in range(0, len(bodies), size)]
            started = time.process_time()
            answers = [made.score(batch, now_ms) for batch in batches]
            taken[f"us_{size}"].append((time.process_time() - started) / len(bodies) * 1e6)
            assert [_told(answer) for batch in answers for answer in batch] == alone, f"batches of {size} differ"
    return {key: statistics.median(each) for key, each in taken.items()} | {
        f"{key}_best": min(each) for key, each in taken.items()
    }


def _told(answer: bytes | Refusal) -> bytes:
    """Returns the answer without the decision's id and the mirror's age, which differ each time."""
    assert isinstance(answer, bytes), "every request of a world can be answered"
    told = ScoreResponse.FromString(answer)
    told.ClearField("decision_id")
    told.ClearField("profile_age_ms")
    return told.SerializeToString(deterministic=True)


if __name__ == "__main__":
    main()
