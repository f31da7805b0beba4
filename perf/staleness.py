"""The cost of profiles that lag behind: a replay of the same payments at several lags.

Measured, for each lag: the average precision, the share of frauds that are stopped, the net value by the default costs,
and how many payments of a burst of fraud are approved before the first is stopped. The worlds:

    shop          a shop's made payments with enumeration bursts (`paywarden simulate --world shop`), its own catalogue
    plain         the plain simulator's payments, the packaged catalogue
    enumeration   the same with bursts that only counts of the last seconds show; each lag has a second line, with an
                  overlay of one host
    handbook      the handbook's table, with `--handbook`

Used for: whether fresher profiles are worth their price.

    python -m perf.staleness [--cards N] [--days N] [--lags 0,150ms,1s] [--worlds shop,plain] [--handbook FILE]

The model is trained once, on profiles without a lag. The commands are those that a data scientist types.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from perf.tools.measuring import arguments_of, finish

# Behind a lag: with an overlay.
_OVERLAY = "+overlay"
_LAGS = "0,150ms,1s,10s,1m,1h,1d"
# The first day of the simulator's payments, and of the handbook's.
_FIRST_DAY, _HANDBOOK_FIRST_DAY = date(2024, 1, 1), date(2018, 4, 1)
_HANDBOOK_DAYS = 183


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--cards", {"type": int, "default": 2000, "help": "of each simulation"}),
        ("--days", {"type": int, "default": 90, "help": "of each simulation"}),
        ("--lags", {"default": _LAGS, "help": "with commas between them"}),
        ("--worlds", {"default": "shop,plain,enumeration", "help": "which of the made worlds"}),
        ("--handbook", {"help": "the handbook's table, a Parquet file"}),
    )
    lags = arguments.lags.split(",")
    with tempfile.TemporaryDirectory(prefix="paywarden-staleness-") as folder:
        figures: dict[str, float] = {}
        for world in arguments.worlds.split(","):
            own = Path(folder) / world
            if world == "shop":
                _run(Path(folder), "init", "shop")
            own.mkdir(exist_ok=True)
            simulated = ("--cards", arguments.cards, "--days", arguments.days, "--seed", 1, "--out", "data")
            _run(own, "simulate", "--world", "cards" if world == "plain" else world, *simulated)
            asked = [name for lag in lags for name in (lag, f"{lag}{_OVERLAY}") if name != f"0{_OVERLAY}"]
            figures |= _measure(world, own, _FIRST_DAY, arguments.days, asked if world == "enumeration" else lags)
        if arguments.handbook:
            own = Path(folder) / "handbook"
            own.mkdir()
            _run(own, "convert", "handbook", "--input", Path(arguments.handbook).resolve(), "--out", "data")
            figures |= _measure("handbook", own, _HANDBOOK_FIRST_DAY, _HANDBOOK_DAYS, lags)
    finish(figures, arguments.json)


def _measure(name: str, folder: Path, first: date, days: int, lags: list[str]) -> dict[str, float]:
    """Train on the first half of the days, replay the last quarter but a week at each lag, and print a table."""
    to = first + timedelta(days=days // 2)
    begin, end = first + timedelta(days=days * 3 // 4 - 7), first + timedelta(days=days - 8)
    _run(
        folder,
        *("train", "--data", "data", "--train-from", first + timedelta(days=days // 10), "--train-to", to),
        *("--out", "bundle"),
    )
    figures: dict[str, float] = {}
    print(f"{name}, {begin} to {end}")
    print(
        f"{'lag':>14}  {'avg. prec.':>10}  {'recall':>7}  {'net value':>12}  approved before the first stop, by burst"
    )
    for lag in lags:
        out = f"replayed-{lag}"
        _run(
            folder,
            *("replay", "--data", "data", "--bundle", "bundle", "--from", begin, "--to", end),
            *("--lag", lag.removesuffix(_OVERLAY), "--overlay", int(lag.endswith(_OVERLAY)), "--out", out),
        )
        found = json.loads((folder / out / "metrics.json").read_text(encoding="utf-8"))
        bursts = {entity: of for entity, of in found["bursts"].items() if of["bursts"]}
        told = ", ".join(
            f"{entity} {of['approved_before_stop']:.2f} of {of['payments'] / of['bursts']:.1f} ({of['bursts']} bursts)"
            for entity, of in bursts.items()
        )
        whole = found["whole"]
        net = whole["money"]["net_minor"] / 100
        print(
            f"{lag:>14}  {found['average_precision']:>10.4f}  {whole['recall']:>7.3f}  {net:>12,.0f}  {told}",
            flush=True,
        )
        key = f"{name}_{lag}"
        figures |= {f"{key}_average_precision": found["average_precision"], f"{key}_recall": whole["recall"]}
        figures |= {f"{key}_net": net}
        figures |= {f"{key}_{entity}_before_stop": of["approved_before_stop"] for entity, of in bursts.items()}
    return figures


def _run(folder: Path, *arguments: Any) -> None:
    """Run a command of Paywarden in a folder. If it fails, show its output and end."""
    command = [sys.executable, "-m", "paywarden", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")


if __name__ == "__main__":
    main()
