"""Any table in: rows of CSV converted a second, and the memory that takes, beside the same sort in DuckDB and polars.

    python -m perf.tables [--rows N] [--shuffled] [--folder DIR] [--with duckdb,polars] [--memory 2GB] [--keep DIR]
                          [--json FILE]

A generator writes a CSV file of payments (70 bytes a row: ids, local times, decimal amounts, a channel, a label),
in order of time as exports mostly are, or shuffled. Then, each in a process of its own:

    paywarden    `paywarden convert table`: reads, checks and converts every cell, makes outcomes with delays, looks for
                 ids that are used twice, sorts payments and outcomes by time, writes two Parquet files (zstd)
    duckdb       reads the same columns with its CSV reader, sorts by time, writes one Parquet file (zstd)
    polars       the same, with its streaming engine

The two others check nothing and make no outcomes: they are the price of the sort alone. DuckDB may take `--memory` for
its buffers; the other two have no limit. Memory is the largest resident set of the process (VmHWM), CPU the time of all
its threads, which a busy machine hardly changes. Disk is the most that the folder held besides the CSV file and what
was there before, looked at once a second. The last lines are our time, CPU and memory over those of the others. Nothing
is stubbed. The number of payments of all three must be that of the rows. A converter that fails is named, and the next
one runs.

With `--keep` the CSV file and the figures of each converter stay in a folder. The same command, interrupted or with
more in `--with`, goes on there: it writes no table and runs no converter a second time. Remove the folder when you are
done.

    100 million rows:  python -m perf.tables --rows 100e6 --shuffled --with duckdb --keep /var/tmp/tables

This needs about 9 GB for the CSV file and 14 GB while sorting. The program says so if the folder has less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

_PART_ROWS = 500_000
_START_MS = 1_704_067_200_000
_DAYS = 180
_MAPPING = """
[fields]
payment_id = "transaction"
event_time_ms = { column = "local_time", format = "%Y-%m-%d %H:%M:%S", zone = "Asia/Kolkata" }
card_id = "card"
merchant_id = "merchant"
amount_minor = "amount"
currency = "currency"
channel = { column = "entry", values = { W = "ecom", C = "pos" }, other = "refuse" }
[label]
column = "fraud"
fraud = ["1"]
genuine = ["0"]
fraud_delay = { median = "10d", sigma = 0.8 }
genuine_delay = "60d"
"""
_RUNS = {
    "paywarden": """
import sys
from paywarden.ops.cli import cli
cli.main(["convert", "table", "--input", {table!r}, "--map", {mapping!r}, "--out", {out!r}], standalone_mode=False)
""",
    "duckdb": """
import duckdb
connection = duckdb.connect()
connection.execute("SET memory_limit = '{memory}'; SET temp_directory = '{out}.spill'")
connection.execute("SET preserve_insertion_order = false")
connection.execute(\"\"\"COPY (SELECT * EXCLUDE note FROM read_csv({table!r}, header = true) ORDER BY local_time)
    TO '{out}.parquet' (FORMAT parquet, COMPRESSION zstd)\"\"\")
""",
    "polars": """
import polars
frame = polars.scan_csv({table!r}, try_parse_dates=True).drop("note").sort("local_time")
frame.sink_parquet("{out}.parquet", compression="zstd")
""",
}
_PEAK = """
import resource, json
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss, which begins with the memory of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([int(peak.split()[1]), used.ru_utime + used.ru_stime]))
"""
# The CSV file, and the most that one of the three has on disk at once.
_BYTES_A_ROW = 90 + 140


_TABLE, _RESULTS = "table.csv", "results.json"


class ConverterFailed(Exception):
    """A converter did not end well. The message is its last line."""


def write_table(path: Path, rows: int, *, shuffled: bool, seed: int = 1) -> None:
    """Write a CSV file of payments. The same seed gives the same bytes."""
    random = np.random.default_rng(seed)
    step_ms = _DAYS * 86_400_000 / rows
    with path.open("wb") as file:
        for first in range(0, rows, _PART_ROWS):
            numbers = np.arange(first, min(rows, first + _PART_ROWS))
            count = len(numbers)
            # A linear map over all rows: every number once, far from its neighbours.
            place = numbers * _coprime(rows) % rows if shuffled else numbers
            moment = pa.array((_START_MS + place * step_ms).astype("datetime64[ms]").astype("datetime64[s]"))
            cents = np.minimum(np.exp(random.normal(8.2, 1.1, count)), 10**7).astype(np.int64) + 1
            euros = pc.binary_join_element_wise(
                pa.array(cents // 100).cast(pa.string()),
                pc.utf8_lpad(pa.array(cents % 100).cast(pa.string()), 2, "0"),
                ".",
            )
            is_web = random.random(count) < 0.4
            table = pa.table(
                {
                    "transaction": pc.binary_join_element_wise("tx", pa.array(place).cast(pa.string()), "-"),
                    "local_time": pc.strftime(moment, "%Y-%m-%d %H:%M:%S"),
                    "card": pc.binary_join_element_wise(
                        "card",
                        pa.array((random.random(count) ** 2 * rows / 60).astype(np.int64)).cast(pa.string()),
                        "-",
                    ),
                    "merchant": pc.binary_join_element_wise(
                        "m", pa.array((random.random(count) ** 3 * 50_000).astype(np.int64)).cast(pa.string()), "-"
                    ),
                    "amount": euros,
                    "currency": pa.array(["EUR", "USD", "JPY"]).take(pa.array(random.choice(2, count))),
                    "entry": pc.if_else(pa.array(is_web), "W", "C"),
                    "fraud": pc.if_else(pa.array(random.random(count) < 0.004), "1", "0"),
                    "note": pa.array(["", "recurring", "first payment"]).take(pa.array(random.choice(3, count))),
                }
            )
            options = pa_csv.WriteOptions(include_header=first == 0, quoting_style="needed")
            pa_csv.write_csv(table, file, options)


def kept_table(folder: Path, rows: int, *, shuffled: bool) -> tuple[Path, dict[str, dict[str, float]]]:
    """Returns the CSV file in a folder, which is written if it is not there, and the figures of earlier runs.

    Raises SystemExit for a folder of another table.
    """
    table, results, wanted = folder / _TABLE, folder / _RESULTS, {"rows": rows, "shuffled": shuffled}
    if results.exists():
        kept = json.loads(results.read_text())
        if kept["table"] != wanted:
            raise SystemExit(f"{folder}: holds the table {kept['table']}, wanted {wanted}: name another --keep")
        return table, kept["converters"]
    require_room(folder, rows)
    write_table(table, rows, shuffled=shuffled)
    keep_results(folder, rows, shuffled=shuffled, converters={})
    return table, {}


def keep_results(folder: Path, rows: int, *, shuffled: bool, converters: Mapping[str, Mapping[str, float]]) -> None:
    """Write the figures, whole or not at all. The file says that the table is whole, too."""
    unfinished = folder / f"{_RESULTS}.unfinished"
    kept = {"table": {"rows": rows, "shuffled": shuffled}, "converters": converters}
    unfinished.write_text(json.dumps(kept, indent=2) + "\n")
    unfinished.replace(folder / _RESULTS)


def measure(name: str, table: Path, mapping: Path, folder: Path, memory: str = "2GB") -> dict[str, float]:
    """Returns seconds, CPU seconds, peak megabytes and rows of one converter, in a process of its own.

    The files of the converter, and those of one that was killed, are removed.
    """
    out = folder / name
    _remove_outputs(folder, name)
    program = _RUNS[name].format(table=str(table), mapping=str(mapping), out=str(out), memory=memory) + _PEAK
    before, disk, start = _bytes_in(folder), 0, time.perf_counter()
    with (folder / "said").open("w+") as said, (folder / "wrong").open("w+") as wrong:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=said, stderr=wrong)
        while process.poll() is None:
            disk = max(disk, _bytes_in(folder))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
        seconds = time.perf_counter() - start
        disk = max(disk, _bytes_in(folder))
        said.seek(0)
        wrong.seek(0)
        if process.returncode:
            raise ConverterFailed(
                f"{name}: {(wrong.read().strip().splitlines() or [f'exit {process.returncode}'])[-1]}"
            )
        peak_kb, cpu_seconds = json.loads(said.read().strip().splitlines()[-1])
    made = out / "payments.parquet" if name == "paywarden" else folder / f"{name}.parquet"
    rows = pq.ParquetFile(made).metadata.num_rows
    _remove_outputs(folder, name)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak_kb / 1024,
        "disk_mb": (disk - before) / 1e6,
        "rows": rows,
    }


def _remove_outputs(folder: Path, name: str) -> None:
    for path in (folder / name, folder / f"{name}.spill"):
        shutil.rmtree(path, ignore_errors=True)
    (folder / f"{name}.parquet").unlink(missing_ok=True)


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # A converter takes its files away while we look.
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def ratios(ours: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Returns our time, CPU and memory over those of another converter."""
    return {f"{name}_ratio": ours[name] / other[name] for name in ("seconds", "cpu_seconds", "peak_mb")}


def require_room(folder: Path, rows: int) -> None:
    """Raises SystemExit unless the folder has room for a table of this many rows."""
    free = shutil.disk_usage(folder).free
    if free < rows * _BYTES_A_ROW:
        wanted = rows * _BYTES_A_ROW / 1e9
        raise SystemExit(f"{folder}: {rows:,} rows need {wanted:,.0f} GB, got {free / 1e9:,.0f}: name another --folder")


def _coprime(rows: int) -> int:
    step = int(rows * 0.618) | 1
    while np.gcd(step, rows) != 1:
        step += 2
    return step


def main() -> None:
    """Measure, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=lambda text: int(float(text)), default=1_000_000, help="such as 1000000 or 100e6"
    )
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--with", dest="others", default="duckdb,polars")
    parser.add_argument("--memory", default="2GB", help="DuckDB's limit for its buffers (default: 2GB)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep table and figures there, and go on with them")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
        folder.mkdir(parents=True, exist_ok=True)
        mapping = folder / "mapping.toml"
        mapping.write_text(_MAPPING)
        table, kept = kept_table(folder, arguments.rows, shuffled=arguments.shuffled)
        results: dict[str, dict[str, float]] = {}
        print(f"{arguments.rows:,} rows, {table.stat().st_size / 1e6:,.0f} MB of CSV", flush=True)
        for one in ("paywarden", *filter(None, arguments.others.split(","))):
            try:
                results[one] = found = kept.get(one) or measure(one, table, mapping, folder, arguments.memory)
            except ConverterFailed as error:
                print(error, flush=True)
                continue
            assert found["rows"] == arguments.rows, f"{one} made {found['rows']} of {arguments.rows} rows"
            kept[one] = found
            keep_results(folder, arguments.rows, shuffled=arguments.shuffled, converters=kept)
            rate = arguments.rows / found["seconds"]
            cpu = f"{found['cpu_seconds']:8.1f} s of CPU"
            room = f"{found['peak_mb']:9,.0f} MB of memory {found['disk_mb']:9,.0f} MB of disk"
            print(f"{one:<10} {found['seconds']:8.1f} s {rate:12,.0f} rows/s {cpu} {room}", flush=True)
    for other in [name for name in results if name != "paywarden" and "paywarden" in results]:
        beside = ratios(results["paywarden"], results[other])
        results[other] |= beside
        said = f"{beside['seconds_ratio']:.1f} times the time, {beside['cpu_seconds_ratio']:.1f} times the CPU"
        print(f"paywarden takes {said} and {beside['peak_mb_ratio']:.1f} times the memory of {other}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": arguments.rows, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
