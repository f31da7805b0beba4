"""The measured cost of one payment and of one profile.

    python -m perf.whole --json whole.json         cores of each process at several rates, Kafka's bytes
    python -m perf.companion --json companion.json CPU that a companion takes to apply a profile
    paywarden capacity … --measured whole.json --measured companion.json

`measured_costs.py` beside this file holds the figures of the machine that docs/benchmarks.md names. Cores of another
kind are faster or slower: measure on your own before you order hosts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular

PARTS = ("serve", "companion", "stream", "kafka")
_CORES = re.compile(rf"cores_(\d+)_({'|'.join(PARTS)})")

FULL_SHARE = 0.75
"""At rates that fill more of the machine, processes wait for each other and take less than they would."""


@dataclass(frozen=True)
class Coefficients:
    """The costs of a payment and of a profile, as the benchmarks measured them."""

    curves: Mapping[str, tuple[tuple[float, float], ...]]
    """By part: (payments a second, busy cores), rates ascending, the first one 0. One payment in ten has an outcome."""
    cpu_us_per_profile: float
    """The companion's CPU for one profile of the changelog. A payment changes one of each kind."""
    cpu_us_per_skipped_profile: float
    """The companion's CPU for a profile of the changelog that other hosts hold."""
    kafka_bytes_in_per_payment: float
    """Kafka's traffic of a payment, by all topics together, compressed, one replica and one host."""
    kafka_bytes_out_per_payment: float

    def busy(self, part: str, rate: float) -> float:
        """Returns the cores that a process keeps busy: on lines between the measured points, and beyond the last."""
        rates, cores = np.array(self.curves[part]).T
        if rate <= rates[-1]:
            return float(np.interp(rate, rates, cores))
        slope = (cores[-1] - cores[-2]) / (rates[-1] - rates[-2])
        return float(cores[-1] + max(0.0, slope) * (rate - rates[-1]))

    @classmethod
    def read(cls, files: Sequence[Path], base: Coefficients) -> Coefficients:
        """Returns `base` with the figures that files of benchmarks hold. Raises Misconfigured."""
        for file in files:
            base = base.with_figures(_figures_in(file), str(file))
        return base

    def with_figures(self, figures: Mapping[str, Any], name: str) -> Coefficients:
        """Returns these with the figures of one benchmark, called `name` in errors. Raises Misconfigured."""
        known = {each.name for each in fields(self)} & figures.keys() - {"curves"}
        points = {match: key for key in figures if (match := _CORES.fullmatch(key))}
        if not known and not points:
            raise Misconfigured(f"{name}: it has none of the figures that perf.whole or perf.companion write")
        for key in (*known, *points.values()):
            value = figures[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise Misconfigured(f"{name}: {key}: wanted a number of at least 0, got {value!r}")
        found: dict[str, Any] = {key: float(figures[key]) for key in known}
        if points:
            cores = {(int(match[1]), match[2]): float(figures[key]) for match, key in points.items()}
            found["curves"] = _curves(cores, float(figures.get("machine_cores", math.inf)), name)
        return replace(self, **found)


def _curves(
    points: Mapping[tuple[int, str], float], machine_cores: float, name: str
) -> dict[str, tuple[tuple[float, float], ...]]:
    rates = sorted({rate for rate, _ in points})
    if missing := [f"cores_{rate}_{part}" for rate in rates for part in PARTS if (rate, part) not in points]:
        raise Misconfigured(f"{name}: {missing[0]} is missing")
    rates = [rate for rate in rates if sum(points[rate, part] for part in PARTS) <= FULL_SHARE * machine_cores]
    if len(rates) < 2 or rates[0] != 0:
        raise Misconfigured(f"{name}: wanted cores at 0 and at further payments a second, has {rates}")
    return {part: tuple((float(rate), points[rate, part]) for rate in rates) for part in PARTS}


def _figures_in(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_regular(file))
    except OSError as error:
        raise Misconfigured(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"{file}: it is no JSON of a benchmark: {error}") from error
    if not isinstance(found, dict):
        raise Misconfigured(f"{file}: it is no JSON object of a benchmark")
    return found


@dataclass(frozen=True)
class Sizes:
    """Sizes in bytes that neither Kafka nor settings give. Measured with the packaged catalogue."""

    # A profile with its key and slot in the mirror (a million entities).
    mirror_profile: int = 410
    # A profile in the store, with the 64 bytes of Aerospike's index.
    store_profile: int = 460
    # A payment's record in the store, kept for [stream] outcome_days, with its index.
    store_payment: int = 230
    # A marker of an erased record on an Aerospike Community server, with its index.
    store_marker: int = 164
    # A decision in an outbox.
    outbox_decision: int = 700
    # A slot of the table of answered payments.
    answered_slot: int = 24
    # Private memory of a working process, without the parts that are counted apart.
    process: Mapping[str, int] = field(
        default_factory=lambda: {"serve": 130 << 20, "companion": 150 << 20, "stream": 400 << 20}
    )


SIZES = Sizes()
