"""What one payment and one profile cost, as it was measured.

    python -m perf.whole --json whole.json         fixed and marginal cores of each process, Kafka's bytes
    python -m perf.companion --json companion.json what a companion takes to apply a profile
    paywarden capacity … --measured whole.json --measured companion.json

MEASURED holds the figures of the machine that docs/benchmarks.md names. Cores of another kind are faster or slower:
measure on your own before you order hosts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from paywarden.schemas.errors import Misconfigured

PARTS = ("serve", "companion", "stream", "kafka")


@dataclass(frozen=True)
class Coefficients:
    """The costs of a payment and of a profile. The names are those in the benchmarks' JSON."""

    # Cores that each process takes without payments.
    fixed_cores_serve: float = 0.0
    fixed_cores_companion: float = 0.0
    fixed_cores_stream: float = 0.0
    fixed_cores_kafka: float = 0.0
    # CPU time of each process for one more payment a second, in microseconds. One payment in ten has an outcome.
    marginal_us_serve: float = 0.0
    marginal_us_companion: float = 0.0
    marginal_us_stream: float = 0.0
    marginal_us_kafka: float = 0.0
    # What of the companion's is the work on one profile of the changelog. A payment changes one of each kind of entity.
    cpu_us_per_profile: float = 0.0
    # Kafka's traffic of a payment, by all topics together, compressed, one replica and one host.
    kafka_bytes_in_per_payment: float = 0.0
    kafka_bytes_out_per_payment: float = 0.0

    def __post_init__(self) -> None:
        """Raises Misconfigured naming a figure that cannot be."""
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise Misconfigured(f"measured: {each.name}: wanted a number, got {value!r}")

    def fixed(self, part: str) -> float:
        """Returns the cores that a process takes without payments; never below 0, as a fitted line may be."""
        return max(0.0, float(getattr(self, f"fixed_cores_{part}")))

    def marginal_s(self, part: str) -> float:
        """Returns the CPU seconds that a payment takes in a process."""
        return max(0.0, float(getattr(self, f"marginal_us_{part}"))) / 1e6

    @classmethod
    def read(cls, files: Sequence[Path], base: Coefficients) -> Coefficients:
        """Returns `base` with the figures that files of benchmarks hold. Raises Misconfigured."""
        values: dict[str, Any] = {each.name: getattr(base, each.name) for each in fields(cls)}
        for file in files:
            found = _figures_in(file)
            known = {name: found[name] for name in values if name in found}
            if not known:
                raise Misconfigured(f"{file}: it has none of the figures that perf.whole or perf.companion write")
            values |= known
        return cls(**values)


def _figures_in(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Misconfigured(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise Misconfigured(f"{file}: it is no JSON of a benchmark: {error}") from error
    if not isinstance(found, dict):
        raise Misconfigured(f"{file}: it is no JSON object of a benchmark")
    return found


@dataclass(frozen=True)
class Sizes:
    """Bytes that things take, apart from what Kafka and settings say. Measured with the packaged catalogue."""

    # A profile with its key in the mirror, with LMDB's pages (python -m perf.entities).
    mirror_profile: int = 410
    # A profile in the store, with the 64 bytes of Aerospike's index.
    store_profile: int = 460
    # A payment's record in the store, kept for [stream] outcome_days, with its index.
    store_payment: int = 230
    # A decision in an outbox.
    outbox_decision: int = 700
    # A slot of the table of answered payments.
    answered_slot: int = 24
    # Private memory of a process that works, beside what is counted by itself.
    process: Mapping[str, int] = field(
        default_factory=lambda: {"serve": 130 << 20, "companion": 150 << 20, "stream": 400 << 20}
    )


SIZES = Sizes()
MEASURED = Coefficients()
