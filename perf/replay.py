"""Replay: payments a second with features, score, policy and decisions.parquet, and its memory.

    python -m perf.replay [--rounds N] [--json FILE]

A simulated history of half a million payments in its two files is replayed on one core with the large bundle of
perf/worlds/scoring_world.py (300 trees of 63 leaves) and with one of the default size (200 trees), and then on all
cores. Nothing is stubbed. A rate is that of metrics.json: payments replayed, over the time until the last decision is
written. Opening the files is a separate figure. With all cores the decisions must be the same bytes.
`resident_megabytes` is the most resident memory of a replay, with the pages of mapped files, which the system takes
back when it needs them. Each replay has a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.columns import MmapAllocator
from paywarden.features.history.history import write_history
from paywarden.features.history.mapped_history import open_history
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.bundle import load_bundle
from paywarden.models.metrics.evaluation import DAY_MS, Days
from paywarden.models.policy.policy import ConfiguredRule, Policy, PolicySettings
from paywarden.models.replay.files import DECISIONS
from paywarden.models.replay.measures import Contestant
from paywarden.models.replay.replay import METRICS, ReplayOptions, replay
from paywarden.models.training.settings import TrainingSettings
from perf.tools.measuring import arguments_of, finish, print_rounds
from perf.tools.processes import alone, memory_kib
from perf.worlds.scoring_world import WorldSize, bundle_of

CARDS, DAYS, SEED = 5000, 60, 1
_LABEL_DELAY_DAYS = 7
_DEFAULT = WorldSize(training=TrainingSettings(folds=2, threads=1, early_stopping_rounds=0))
_RULES = (
    ConfiguredRule("busy", "card_count_1h >= 4 and amount > 100_00", "review"),
    ConfiguredRule("large", 'amount > 2_000_00 and country != "DE"', "review"),
    ConfiguredRule("no_device", 'missing(device_id) and channel == "ecom"', "review"),
)


def main() -> None:
    arguments = arguments_of(__doc__, ("--rounds", {"type": int, "default": 3, "help": "of each rate (default: 3)"}))
    engine = FeatureEngine()
    engine.warm_up()
    bundles = {"large": bundle_of(engine, WorldSize()), "default": bundle_of(engine, _DEFAULT)}
    figures: dict[str, Any] = {}
    # Next to the bundles, on a disk: a memory file system would hide the cost of writing.
    with tempfile.TemporaryDirectory(dir=bundles["large"].parent, prefix="replay-") as name:
        folder = Path(name)
        payments, outcomes = simulate(cards=CARDS, days=DAYS, seed=SEED)
        write_history(folder, payments, outcomes)
        figures |= {"payments": len(payments), "cores": len(os.sched_getaffinity(0))}
        for bundle_name, bundle in bundles.items():
            figures |= _rates(bundle_name, folder, bundle, arguments.rounds)
    finish(figures, arguments.json)


def _rates(name: str, data: Path, bundle: Path, rounds: int) -> dict[str, float]:
    """Return payments a second on one core, with rules, and on all cores, in turns."""
    cores = len(os.sched_getaffinity(0))
    kinds: dict[str, dict[str, Any]] = {"": {}, "_rules": {"rules": _RULES}, "_all_cores": {"cores": cores}}
    rounds_of: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, options in kinds.items():
            rounds_of[kind].append(alone(_replayed, data, bundle, **options))
    for kind in ("", "_all_cores"):
        digests = {one["decisions"] for one in rounds_of[""] + rounds_of[kind]}
        assert len(digests) == 1, "decisions differ between one core and all cores"
    rates = {kind: [one["payments_per_second"] for one in found] for kind, found in rounds_of.items()}
    print_rounds(f"{name}: payments a second", "1/s", {f"{name}{kind}": row for kind, row in rates.items()})
    parts = {"opening": "seconds", "whole": "seconds", "resident": "megabytes"}
    return {f"payments_per_second_{name}{kind}": statistics.median(row) for kind, row in rates.items()} | {
        f"{part}_{unit}_{name}": statistics.median(one[part] for one in rounds_of[""]) for part, unit in parts.items()
    }


# In a process of its own


def _contestant(bundle: Path, rules: tuple[ConfiguredRule, ...] = ()) -> tuple[FeatureEngine, Contestant]:
    engine = FeatureEngine()
    engine.warm_up()
    loaded = load_bundle(bundle, catalogue_digest=engine.plan.digest)
    manifest = loaded.manifest
    policy = Policy(PolicySettings(rules=rules), review_at=manifest.review_at, decline_at=manifest.decline_at)
    return engine, Contestant(loaded, policy, "of the benchmark")


def _replayed(
    data: Path,
    bundle: Path,
    *,
    cores: int = 1,
    rules: tuple[ConfiguredRule, ...] = (),
) -> dict[str, Any]:
    """Replay once, as `paywarden replay` does."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    engine, contestant = _contestant(bundle, rules)
    with tempfile.TemporaryDirectory(dir=data) as folder:
        destination, started = Path(folder), time.perf_counter()
        room = MmapAllocator(destination)
        history = open_history(data, room)
        opening = time.perf_counter() - started
        first, last = (history.event_time_ms[[0, -1]] // DAY_MS).tolist()
        replay(
            history,
            engine=engine,
            rates=load_rates(),
            champion=contestant,
            destination=destination,
            options=ReplayOptions(
                window=Days(first, last),
                label_delay_days=_LABEL_DELAY_DAYS,
                threads=cores,
                room=room,
            ),
        )
        whole = time.perf_counter() - started
        metrics = json.loads((destination / METRICS).read_text(encoding="utf-8"))
        digest = hashlib.sha256((destination / DECISIONS).read_bytes()).hexdigest()
    assert metrics["payments_replayed"] == len(history)
    return {
        "payments_per_second": metrics["payments_per_second"],
        "opening": opening,
        "whole": whole,
        # getrusage is of no use here: its peak begins with that of the parent process.
        "resident": memory_kib("VmHWM") / 1024,
        "decisions": digest,
    }


if __name__ == "__main__":
    main()
