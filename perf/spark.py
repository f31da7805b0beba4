"""Replay on engines: payments a second, memory and shuffled bytes of one process, of spilling processes, of Spark.

    python -m perf.spark [--payments N …] [--engines one,processes,spark,windows,hot] [--master URL] [--json FILE]

A simulated history of N payments (default: one million) is replayed by `paywarden replay`, each engine in a process of
its own on all cores: the last week is scored with a bundle of 200 trees, all payments before it fill profiles. A rate
is payments replayed over the seconds of the whole command, with the start of a JVM. `peak_mb` is the most memory that
the command and its children have for themselves together. `equal` is 1 if the measures, the report and every decision
are the same.

`windows` is what a team would write in Spark SQL: eight features of counts, sums, means and extremes over windows of an
hour, a day and a week, and nothing else. `hot` is Spark with one merchant of a fifth of all payments.

`one` needs the history in one file and its columns on this disk: it is left out above 20 million payments.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import last_event_time_ms
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.metrics.evaluation import DAY_MS, date_of_day
from paywarden.models.training.training_settings import TrainingSettings
from perf.tools.measuring import arguments_of, finish
from perf.worlds.scoring_world import WorldSize, bundle_of

_DAYS, _SEED = 60, 1
# A simulated card pays 1.6 times a day. A world of more cards than this would take more memory than the rest.
_PAYMENTS_PER_CARD, _CARDS_MAX = 97, 100_000
_ONE_MAX = 20_000_000
_LOOK_S = 0.2
_HOT_EVERY = 5
_COMPARED = ["payment_id", "score", "action", "amount_reference_minor"]
_ENGINES = "one,processes,spark,windows,hot"


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--payments", {"type": int, "nargs": "+", "default": [1_000_000], "help": "sizes (default: a million)"}),
        ("--engines", {"default": _ENGINES, "help": f"some of {_ENGINES}"}),
        ("--master", {"default": f"local[{os.cpu_count()}]", "help": "Spark's master (default: all cores here)"}),
        ("--windows-of", {"default": "", "help": "run the Spark SQL of this folder, and nothing else"}),
    )
    if arguments.windows_of:
        windows(Path(arguments.windows_of), arguments.master)
        return
    engine = FeatureEngine()
    engine.warm_up()
    bundle = bundle_of(engine, WorldSize(training=TrainingSettings(folds=2, threads=1, early_stopping_rounds=0)))
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(dir=bundle.parent, prefix="spark-") as name:
        for payments in arguments.payments:
            folder = Path(name) / str(payments)
            measured = _measured(folder, bundle.resolve(), payments, arguments.engines.split(","), arguments.master)
            # One size with a difference is a difference.
            figures |= measured | {"equal": min(figures.get("equal", 1), measured["equal"])}
            # The next size needs the disk. A JVM that ends may remove its own files meanwhile.
            shutil.rmtree(folder, ignore_errors=True)
    finish(figures, arguments.json)


def _measured(folder: Path, bundle: Path, payments: int, engines: list[str], master: str) -> dict[str, Any]:
    (folder / "data").mkdir(parents=True)
    made = _write(folder / "data", payments)
    last_day = last_event_time_ms_of(folder / "data") // DAY_MS
    replay = ["replay", "--bundle", str(bundle), "--lag", "0", "--from", date_of_day(last_day - 6)]
    partitions = str(max(8, made // 250_000))
    on_spark = ["--engine", "spark", "--master", master, "--partitions", partitions]
    kinds = {
        "one": [],
        "processes": ["--engine", "processes", "--partitions", partitions],
        "spark": on_spark,
        "hot": on_spark,
    }
    figures: dict[str, Any] = {f"payments_{payments}": made}
    digests = set()
    seconds: dict[str, float] = {}
    for kind, options in kinds.items():
        if kind not in engines or (kind == "one" and made > _ONE_MAX):
            continue
        data = folder / "data"
        if kind == "hot":
            data = _with_hot_merchant(data, folder / "hot-data")
        out = folder / kind
        command = [sys.executable, "-P", "-m", "paywarden", *replay, "--data", str(data), "--out", str(out), *options]
        seconds[kind], figures[f"peak_mb_{kind}_{payments}"], shuffled = _run(command, folder)
        figures[f"payments_per_second_{kind}_{payments}"] = made / seconds[kind]
        if kind == "spark":
            figures["shuffle_bytes_per_payment"] = shuffled / made
        if kind != "hot":
            digests.add(_digest(out))
    if {"spark", "hot"} <= seconds.keys():
        figures["hot_merchant_ratio"] = seconds["hot"] / seconds["spark"]
    if "windows" in engines:
        command = [sys.executable, "-m", "perf.spark", "--windows-of", str(folder / "data"), "--master", master]
        took, figures[f"peak_mb_windows_{payments}"], _ = _run(command, folder)
        figures[f"payments_per_second_windows_{payments}"] = made / took
    return figures | {"equal": int(len(digests) < 2)}


def _write(folder: Path, payments: int) -> int:
    """Write about N simulated payments and their outcomes; returns how many. Several worlds are files of their own."""
    cards = max(100, payments // _PAYMENTS_PER_CARD)
    worlds = -(-cards // _CARDS_MAX)
    if worlds > 1:
        for name in ("payments.parquet", "outcomes.parquet"):
            (folder / name).mkdir()
    count = 0
    for world in range(worlds):
        tables = simulate(cards=cards // worlds, days=_DAYS, seed=_SEED + world)
        count += len(tables[0])
        for name, table in zip(("payments.parquet", "outcomes.parquet"), tables, strict=True):
            path = folder / name
            if worlds > 1:
                path /= f"world-{world:04d}.parquet"
                table = _of_world(table, world)
            pq.write_table(table, path, compression="zstd")
    return count


def _of_world(table: pa.Table, world: int) -> pa.Table:
    """Returns a table whose ids are of this world alone."""
    for name in ("payment_id", "card_id", "merchant_id", "device_id"):
        if name in table.column_names:
            column = table[name].cast(pa.string())
            texts = [None if text is None else f"{text}w{world}" for text in column.to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return table


def last_event_time_ms_of(folder: Path) -> int:
    """Returns the time of the last payment of a history of one file or several."""
    path = folder / "payments.parquet"
    if path.is_file():
        return last_event_time_ms(folder)
    return max(
        int(pq.read_table(file, columns=["event_time_ms"])["event_time_ms"][-1].as_py()) for file in path.iterdir()
    )


def _with_hot_merchant(data: Path, target: Path) -> Path:
    """Copy a history; one merchant gets a fifth of its payments."""
    target.mkdir()
    (target / "outcomes.parquet").symlink_to((data / "outcomes.parquet").absolute())
    source = data / "payments.parquet"
    files = [source] if source.is_file() else sorted(source.iterdir())
    if source.is_dir():
        (target / "payments.parquet").mkdir()
    for file in files:
        table = pq.read_table(file)
        merchants = np.array(table["merchant_id"].cast(pa.string()).to_pylist(), dtype=object)
        merchants[::_HOT_EVERY] = "hot"
        table = table.set_column(
            table.column_names.index("merchant_id"), "merchant_id", pa.array(merchants, pa.string())
        )
        pq.write_table(table, target / file.relative_to(data), compression="zstd")
    return target


def _run(command: list[str], folder: Path) -> tuple[float, float, int]:
    """Run a command; returns its seconds, its peak of memory in MB, and the bytes that Spark has shuffled."""
    conf, events = folder / "conf", folder / "events"
    for path in (conf, events):
        path.mkdir(exist_ok=True)
    memory = max(2, psutil.virtual_memory().total // 2**31)
    (conf / "spark-defaults.conf").write_text(
        f"spark.eventLog.enabled true\nspark.eventLog.compress false\nspark.eventLog.dir {events.absolute().as_uri()}\n"
        f"spark.driver.memory {memory}g\nspark.ui.enabled false\nspark.ui.showConsoleProgress false\n"
        f"spark.local.dir {folder.absolute()}\n",
        encoding="utf-8",
    )
    known = set(events.rglob("*"))
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, env={**os.environ, "SPARK_CONF_DIR": str(conf)}, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _memory_of(process.pid))
        time.sleep(_LOOK_S)
    assert process.returncode == 0, f"{command[3]} has failed"
    seconds = time.perf_counter() - started
    logs = [path for path in events.rglob("*") if path.is_file() and path not in known]
    return seconds, peak / 1e6, sum(map(_shuffled, logs))


def _memory_of(pid: int) -> int:
    """Returns the private memory of a process and its children in bytes. The process may end meanwhile."""
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                memory = each.memory_info()
                total += memory.rss - memory.shared
    return total


def _shuffled(log: Path) -> int:
    total = 0
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            if '"SparkListenerTaskEnd"' in line:
                metrics = json.loads(line).get("Task Metrics") or {}
                total += metrics.get("Shuffle Write Metrics", {}).get("Shuffle Bytes Written", 0)
    return total


def _digest(out: Path) -> str:
    """Returns the digest of a replay's results, whether its decisions are one file or a folder."""
    digest = hashlib.sha256((out / "report.html").read_bytes())
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    del metrics["payments_per_second"]
    digest.update(json.dumps(metrics).encode())
    # Row by row: the files of two engines end at different rows, and all rows as texts may not fit into memory.
    for batch in ds.dataset(out / "decisions.parquet").to_batches(columns=_COMPARED):
        digest.update("".join(f"{row}\n" for row in zip(*batch.to_pydict().values(), strict=True)).encode())
    return digest.hexdigest()


def windows(data: Path, master: str) -> None:
    """Compute eight features of windows with Spark SQL, as Parquet beside the data."""
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master(master).appName("windows").getOrCreate()
    session.read.parquet((data / "payments.parquet").absolute().as_uri()).createOrReplaceTempView("payments")
    hour = 3_600_000
    spans = {"h": hour, "d": 24 * hour, "w": 7 * 24 * hour}
    over = [
        f"{name}_{span} AS (PARTITION BY {name}_id ORDER BY event_time_ms RANGE BETWEEN {ms} PRECEDING AND 1 PRECEDING)"
        for name, span, ms in [("card", one, ms) for one, ms in spans.items()] + [("merchant", "d", spans["d"])]
    ]
    made = session.sql(
        "SELECT payment_id, count(*) OVER card_h AS c1, count(*) OVER card_d AS c2, count(*) OVER card_w AS c3, "
        "sum(amount_minor) OVER card_d AS c4, avg(amount_minor) OVER card_w AS c5, "
        "max(amount_minor) OVER card_w AS c6, "
        "count(*) OVER merchant_d AS m1, avg(amount_minor) OVER merchant_d AS m2 "
        f"FROM payments WINDOW {', '.join(over)}"
    )
    made.write.mode("overwrite").parquet((data / "windows").absolute().as_uri())
    session.stop()


if __name__ == "__main__":
    main()
