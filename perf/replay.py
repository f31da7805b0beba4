"""Replay: payments a second with features, score, policy and decisions.parquet, and its memory.

    python -m perf.replay [--rounds N] [--json FILE]

A simulated history of half a million payments in its two files is replayed on one core with the large bundle of
perf/worlds/scoring_world.py (300 trees of 63 leaves) and with one of the default size (200 trees), then with rules, and
then on all cores, each by `paywarden replay` in a process of its own. Nothing is stubbed. A rate is that of
metrics.json: payments replayed, over the time until the last decision is written. `…_seconds` are those of the whole
command. With all cores the decisions must be the same bytes. `resident_megabytes` is the most resident memory of the
process, with the pages of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import write_history
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.replay.files import DECISIONS
from paywarden.models.replay.replay import METRICS
from paywarden.models.training.training_settings import TrainingSettings
from perf.tools.measuring import arguments_of, finish, print_rounds
from perf.tools.processes import memory_kib
from perf.worlds.scoring_world import WorldSize, bundle_of

_CARDS, _DAYS, _SEED = 5000, 60, 1
_DEFAULT = WorldSize(training=TrainingSettings(folds=2, threads=1, early_stopping_rounds=0))
_RULES = """\
[[policy.rules]]
name = "busy"
when = "card_count_1h >= 4 and amount > 100_00"
action = "review"
[[policy.rules]]
name = "large"
when = 'amount > 2_000_00 and country != "DE"'
action = "review"
[[policy.rules]]
name = "no_device"
when = 'missing(device_id) and channel == "ecom"'
action = "review"
"""
_LOOK_S = 0.02


def main() -> None:
    arguments = arguments_of(__doc__, ("--rounds", {"type": int, "default": 3, "help": "of each rate (default: 3)"}))
    engine = FeatureEngine()
    engine.warm_up()
    bundles = {"large": bundle_of(engine, WorldSize()), "default": bundle_of(engine, _DEFAULT)}
    figures: dict[str, Any] = {}
    # Next to the bundles, on a disk: a memory file system would hide the cost of writing.
    with tempfile.TemporaryDirectory(dir=bundles["large"].parent, prefix="replay-") as name:
        folder = Path(name)
        payments, outcomes = simulate(cards=_CARDS, days=_DAYS, seed=_SEED)
        write_history(folder, payments, outcomes)
        (folder / "rules.toml").write_text(_RULES, encoding="utf-8")
        (folder / "plain.toml").write_text("", encoding="utf-8")
        figures |= {"payments": len(payments), "cores": len(os.sched_getaffinity(0))}
        for bundle_name, bundle in bundles.items():
            figures |= _rates(bundle_name, folder, bundle.resolve(), len(payments), arguments.rounds)
    finish(figures, arguments.json)


def _rates(name: str, folder: Path, bundle: Path, payments: int, rounds: int) -> dict[str, float]:
    """Return payments a second on one core, with rules, and on all cores, in turns."""
    cores = len(os.sched_getaffinity(0))
    kinds = {"": ("plain", 1), "_rules": ("rules", 1), "_all_cores": ("plain", cores)}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (config, threads) in kinds.items():
            found[kind].append(_replayed(folder, bundle, config, threads))
    assert all(one["payments"] == payments for row in found.values() for one in row)
    digests = {one["decisions"] for one in found[""] + found["_all_cores"]}
    assert len(digests) == 1, "decisions differ between one core and all cores"
    rates = {f"{name}{kind}": [one["payments_per_second"] for one in row] for kind, row in found.items()}
    print_rounds(f"{name}: payments a second", "1/s", rates)
    return {f"payments_per_second_{kind}": statistics.median(row) for kind, row in rates.items()} | {
        f"{part}_{name}": statistics.median(one[part] for one in found[""])
        for part in ("seconds", "resident_megabytes")
    }


def _replayed(folder: Path, bundle: Path, config: str, threads: int) -> dict[str, Any]:
    """Replay once on as many cores as threads."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-P", "-m", "paywarden", "--config", str(folder / f"{config}.toml"), "replay"]
        command += ["--data", str(folder), "--bundle", str(bundle), "--out", out, "--lag=0", f"--threads={threads}"]
        started, resident_kib = time.perf_counter(), 0
        process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        while process.poll() is None:
            # The process may end while it is looked at.
            with suppress(OSError, AssertionError):
                resident_kib = max(resident_kib, memory_kib("VmHWM", process.pid))
            time.sleep(_LOOK_S)
        assert process.returncode == 0, "the replay has failed"
        metrics = json.loads((Path(out) / METRICS).read_text(encoding="utf-8"))
        return {
            "payments": metrics["payments_replayed"],
            "payments_per_second": metrics["payments_per_second"],
            "seconds": time.perf_counter() - started,
            "resident_megabytes": resident_kib / 1024,
            "decisions": hashlib.sha256((Path(out) / DECISIONS).read_bytes()).hexdigest(),
        }


if __name__ == "__main__":
    main()
