"""Any table in: rows of CSV converted a second, and the memory that takes, beside the same sort in DuckDB and polars.

    python -m perf.tables [--rows N] [--shuffled] [--folder DIR] [--with duckdb,polars] [--memory 2GB] [--json FILE]

A generator writes a CSV file of payments (70 bytes a row: ids, local times, decimal amounts, a channel, a label),
in order of time as exports mostly are, or shuffled. Then, each in a process of its own:

    paywarden    `paywarden convert table`: reads, checks and converts every cell, makes outcomes with delays, looks for
                 ids that are used twice, sorts payments and outcomes by time, writes two Parquet files (zstd)
    duckdb       reads the same columns with its CSV reader, sorts by time, writes one Parquet file (zstd)
    polars       the same, with its streaming engine

The two others check nothing and make no outcomes: they are the price of the sort alone. DuckDB may take `--memory` for
its buffers, and 512 MB within `paywarden`; polars has no limit. Memory is the largest resident set of the process
(VmHWM), CPU the time of all its threads, which a busy machine hardly changes. `…_ratio` is our time, CPU or memory over
that of another converter. Nothing is stubbed. The number of payments of all three must be that of the rows.

    100 million rows:  python -m perf.tables --rows 100e6 --shuffled --with duckdb --folder /var/tmp

At 4 million rows `paywarden` takes as much of the disk as the CSV file.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from perf.tools.measuring import arguments_of, finish

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


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rows", {"type": lambda text: int(float(text)), "default": 1_000_000, "help": "such as 1000000 or 100e6"}),
        ("--shuffled", {"action": "store_true", "help": "write the table in no order"}),
        ("--folder", {"help": "of the files (default: the system's temporary folder)"}),
        ("--with", {"dest": "others", "default": "duckdb,polars", "help": "other converters, with commas"}),
        ("--memory", {"default": "2GB", "help": "DuckDB's limit for its buffers (default: 2GB)"}),
    )
    figures: dict[str, float] = {"rows": arguments.rows}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        mapping, table = folder / "mapping.toml", folder / "table.csv"
        mapping.write_text(_MAPPING, encoding="utf-8")
        _write_table(table, arguments.rows, shuffled=arguments.shuffled)
        print(f"{arguments.rows:,} rows, {table.stat().st_size / 1e6:,.0f} MB of CSV", flush=True)
        for one in ("paywarden", *filter(None, arguments.others.split(","))):
            found = measure(one, table, mapping, folder, arguments.memory)
            assert found["rows"] == arguments.rows, f"{one} made {found['rows']} of {arguments.rows} rows"
            figures |= {f"{one}_{key}": value for key, value in found.items()}
            figures[f"{one}_rows_per_second"] = arguments.rows / found["seconds"]
            if one != "paywarden":
                for key in ("seconds", "cpu_seconds", "peak_mb"):
                    figures[f"{one}_{key}_ratio"] = figures[f"paywarden_{key}"] / found[key]
    finish(figures, arguments.json)


_TABLE = """
COPY (SELECT 'tx-' || place AS transaction,
    strftime(epoch_ms((1704067200000 + place * {step_ms})::BIGINT), '%Y-%m-%d %H:%M:%S') AS local_time,
    'card-' || (pow(random(), 2) * {rows} / 60)::BIGINT AS card,
    'm-' || (pow(random(), 3) * 50000)::BIGINT AS merchant,
    printf('%.2f', exp(8.2 + 1.1 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())) / 100) AS amount,
    CASE WHEN random() < 0.5 THEN 'EUR' ELSE 'USD' END AS currency,
    CASE WHEN random() < 0.4 THEN 'W' ELSE 'C' END AS entry,
    CASE WHEN random() < 0.004 THEN '1' ELSE '0' END AS fraud,
    CASE WHEN random() < 0.3 THEN 'recurring' ELSE '' END AS note
    FROM (SELECT i * {stride} % {rows} AS place FROM range({rows}) rows(i)))
TO '{table}' (FORMAT csv, HEADER)
"""


def _write_table(table: Path, rows: int, *, shuffled: bool) -> None:
    """Write a CSV file of payments of 180 days."""
    # A linear map over all rows: every number once, far from its neighbours.
    stride = next(step for step in range(int(rows * 0.618) | 1, 2 * rows, 2) if math.gcd(step, rows) == 1)
    step_ms = _DAYS * 86_400_000 / rows
    with duckdb.connect() as connection:
        connection.execute("SELECT setseed(0.5)")
        connection.execute(_TABLE.format(rows=rows, step_ms=step_ms, stride=stride if shuffled else 1, table=table))


def measure(name: str, table: Path, mapping: Path, folder: Path, memory: str) -> dict[str, float]:
    """Return seconds, CPU seconds, peak memory and rows of one converter, in a process of its own."""
    out = folder / name
    program = _RUNS[name].format(table=str(table), mapping=str(mapping), out=str(out), memory=memory) + _PEAK
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{name}: ended with {done.returncode}")
    peak_kib, cpu_seconds = json.loads(done.stdout.strip().splitlines()[-1])
    made = out / "payments.parquet" if name == "paywarden" else folder / f"{name}.parquet"
    rows = pq.ParquetFile(made).metadata.num_rows
    for path in (out, folder / f"{name}.spill"):
        shutil.rmtree(path, ignore_errors=True)
    (folder / f"{name}.parquet").unlink(missing_ok=True)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_kib / 1024, "rows": rows}


if __name__ == "__main__":
    main()
