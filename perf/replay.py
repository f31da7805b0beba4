"""Replay: payments a second with features, score, policy and decisions.parquet, and its memory.

    python -m perf.replay [--rounds N] [--json FILE]

A simulated history of half a million payments in its two files is replayed on one core with the large bundle of
perf/worlds/scoring_world.py (300 trees of 63 leaves) and with one of the default size (200 trees), and then on all
cores. Nothing is stubbed. A rate is that of metrics.json: payments replayed, over the time until the last decision is
written. Opening the files and computing measures are separate figures, and so are the stages. With all cores the
decisions must be the same bytes.

Memory has two figures: the most private memory of a process (looked at every 5 ms), and the most resident memory,
with the pages of mapped files, which the system takes back when it needs them. Both are taken for the same cards over
two and eight times the history, measuring the last week, and over the longer one measuring everything. Each figure
comes from a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.columns import MmapAllocator
from paywarden.features.history.history import final_labels, numbered_ids, write_history
from paywarden.features.history.mapped_history import open_history
from paywarden.features.history.point_in_time import Chunk, PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.bundle import load_bundle
from paywarden.models.metrics.evaluation import DAY_MS, Days
from paywarden.models.policy.policy import ConfiguredRule, Policy, PolicySettings
from paywarden.models.replay.files import DECISIONS, ReplayFiles
from paywarden.models.replay.measures import Contestant
from paywarden.models.replay.replay import METRICS, ReplayOptions, replay
from paywarden.models.replay.replayed_policy import ReplayedPolicy
from paywarden.models.training.settings import TrainingSettings
from perf.tools.measuring import arguments_of, finish, print_rounds
from perf.worlds.scoring_world import WorldSize, bundle_of

CARDS, DAYS, SEED = 5000, 60, 1
# The history this many times, one after the other: longer, with the same cards, merchants and devices.
# From twice on, reading and looking up ids take their full memory.
SHORTER, LONGER = 2, 8
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
    with tempfile.TemporaryDirectory(dir=bundles["large"].parent, prefix="replay-") as folder:
        usual, shorter, longer = (Path(folder, name) for name in ("usual", "shorter", "longer"))
        payments, outcomes = simulate(cards=CARDS, days=DAYS, seed=SEED)
        write_history(usual, payments, outcomes)
        figures |= {"payments": len(payments), "cores": len(os.sched_getaffinity(0))}
        for name, bundle in bundles.items():
            figures |= _rates(name, usual, bundle, arguments.rounds)
        figures |= _alone(_stages, usual, bundles["large"])
        write_history(shorter, *_repeated(payments, outcomes, SHORTER))
        write_history(longer, *_repeated(payments, outcomes, LONGER))
        figures |= _memory(shorter, longer, bundles["default"], len(payments))
    finish(figures, arguments.json)


def _rates(name: str, data: Path, bundle: Path, rounds: int) -> dict[str, float]:
    """Returns payments a second on one core, with rules, and on all cores, in turns."""
    cores = len(os.sched_getaffinity(0))
    kinds: dict[str, dict[str, Any]] = {"": {}, "_rules": {"rules": _RULES}, "_all_cores": {"cores": cores}}
    rounds_of: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, options in kinds.items():
            rounds_of[kind].append(_alone(_replayed, data, bundle, **options))
    for kind in ("", "_all_cores"):
        digests = {one["decisions"] for one in rounds_of[""] + rounds_of[kind]}
        assert len(digests) == 1, "decisions differ between one core and all cores"
    rates = {kind: [one["payments_per_second"] for one in found] for kind, found in rounds_of.items()}
    print_rounds(f"{name}: payments a second", "1/s", {f"{name}{kind}": row for kind, row in rates.items()})
    alone = rounds_of[""]
    return {f"payments_per_second_{name}{kind}": statistics.median(row) for kind, row in rates.items()} | {
        f"seconds_{name}_{part}": statistics.median(one[part] for one in alone) for part in ("opening", "whole")
    }


def _memory(shorter: Path, longer: Path, bundle: Path, payments: int) -> dict[str, float]:
    """Returns the most memory at two lengths of history, and the memory of measures for each payment."""
    week, long_week, whole = (
        _alone(_replayed, data, bundle, last_days=days) for data, days in ((shorter, 7), (longer, 7), (longer, None))
    )
    figures = {
        f"{kind}_megabytes{which}": run[f"{kind}_bytes"] / 1e6
        for which, run in ((f"_{SHORTER}", week), (f"_{LONGER}", long_week), (f"_{LONGER}_all_measured", whole))
        for kind in ("own", "resident")
    }
    measured_more = payments * LONGER * (1 - 7 / (DAYS * LONGER))
    return figures | {
        "own_bytes_a_payment": (long_week["own_bytes"] - week["own_bytes"]) / (payments * (LONGER - SHORTER)),
        "own_bytes_a_payment_measured": (whole["own_bytes"] - long_week["own_bytes"]) / measured_more,
    }


def _repeated(payments: pa.Table, outcomes: pa.Table, times: int) -> tuple[pa.Table, pa.Table]:
    """Write the history several times, one after the other, with payment ids of their own."""
    count, span_ms = len(payments), DAYS * DAY_MS
    of_payment = pc.index_in(outcomes["payment_id"], value_set=payments["payment_id"].combine_chunks()).to_numpy()
    all_payments, all_outcomes = [], []
    for turn in range(times):
        first = turn * count
        ids = numbered_ids("r", np.arange(first, first + count), width=10)
        told = numbered_ids("r", first + of_payment, width=10)
        all_payments.append(_moved(payments, "event_time_ms", turn * span_ms, ids))
        all_outcomes.append(_moved(outcomes, "outcome_time_ms", turn * span_ms, told))
    return pa.concat_tables(all_payments), pa.concat_tables(all_outcomes).sort_by("outcome_time_ms")


def _moved(table: pa.Table, time: str, by_ms: int, ids: pa.Array) -> pa.Table:
    later = pc.add(table[time], by_ms)
    moved = table.set_column(table.column_names.index(time), time, later)
    return moved.set_column(table.column_names.index("payment_id"), "payment_id", ids)


# In a process of its own


def _alone(work: Callable[..., dict[str, Any]], *arguments: object, **options: object) -> dict[str, Any]:
    """Returns the result of a function that runs in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments, options)


def _keep_to(cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


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
    last_days: int | None = None,
    rules: tuple[ConfiguredRule, ...] = (),
) -> dict[str, Any]:
    """Replay once, as `paywarden replay` does, and measure the last days or all."""
    _keep_to(cores)
    engine, contestant = _contestant(bundle, rules)
    with tempfile.TemporaryDirectory(dir=data) as folder, _watched_memory() as own_bytes:
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
                window=Days(first if last_days is None else last - last_days + 1, last),
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
        "own_bytes": max(own_bytes),
        # getrusage is of no use here: its peak begins with that of the parent process.
        "resident_bytes": _memory_bytes("VmHWM"),
        "decisions": digest,
    }


@contextmanager
def _watched_memory() -> Iterator[list[int]]:
    """Looks at the private memory of this process every few milliseconds."""
    over, seen = threading.Event(), [_memory_bytes("RssAnon")]

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(_memory_bytes("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _memory_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def _stages(data: Path, bundle: Path) -> dict[str, float]:
    """Returns the microseconds of each stage for a payment on one core."""
    _keep_to(1)
    engine, contestant = _contestant(bundle)
    spent = dict.fromkeys(("features", "score", "policy", "write"), 0.0)
    with tempfile.TemporaryDirectory(dir=data) as folder:
        room = MmapAllocator(Path(folder))
        history = open_history(data, room)
        passage = PointInTimeReplay(history, engine, load_rates(), room=room)
        policy = ReplayedPolicy(contestant.policy, history, passage.amounts)
        files = ReplayFiles(
            Path(folder),
            history,
            labels=final_labels(history),
            amounts=passage.amounts,
            model_version=contestant.bundle.manifest.model_version,
            with_vectors=False,
            with_differences=False,
        )
        with files:
            for chunk in _timed(passage.chunks(), spent):
                started = time.perf_counter()
                score = contestant.bundle.score(chunk.vectors)
                scored = time.perf_counter()
                decided = policy.decide(chunk, score)
                made = time.perf_counter()
                files.write(chunk, [decided], policy.causes)
                ended = time.perf_counter()
                spent["score"] += scored - started
                spent["policy"] += made - scored
                spent["write"] += ended - made
    return {f"{stage}_us": seconds / len(history) * 1e6 for stage, seconds in spent.items()}


def _timed(chunks: Iterable[Chunk], spent: dict[str, float]) -> Iterator[Chunk]:
    started = time.perf_counter()
    for chunk in chunks:
        spent["features"] += time.perf_counter() - started
        yield chunk
        started = time.perf_counter()


if __name__ == "__main__":
    main()
