"""Put the figures of benchmarks into the package, for `paywarden capacity`.

Measured: nothing. It reads the JSON of `perf.whole`, `perf.companion` and `perf.companion --skipped`, checks it as
`paywarden capacity --measured` does, and writes `ops/capacity/measured_costs.py`. Figures that no file has stay as
they are.

    python -m perf.whole --json whole.json
    python -m perf.companion --json companion.json
    python -m perf.companion --skipped --json skipped.json
    python -m perf.coefficients whole.json companion.json skipped.json [--out FILE]

The figures have to be of a quiet machine, and docs/benchmarks.md names which.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paywarden.ops.capacity import measured_costs
from paywarden.ops.capacity.coefficients import PARTS, Coefficients
from paywarden.schemas.errors import Misconfigured

_HEAD = '''"""The costs that the benchmarks measured on the machine that docs/benchmarks.md names.

`python -m perf.coefficients` writes this file (docs/operate/capacity.md). Do not edit it.
"""

from paywarden.ops.capacity.coefficients import Coefficients

'''
# Digits that a measurement can tell.
_DIGITS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON of benchmarks")
    parser.add_argument("--out", type=Path, default=Path(measured_costs.__file__), help="the module to write")
    arguments = parser.parse_args()
    try:
        found = Coefficients.read(arguments.files, measured_costs.MEASURED)
    except Misconfigured as error:
        raise SystemExit(f"perf.coefficients: {error}") from error
    arguments.out.write_text(module_of(found), encoding="utf-8")
    print(f"{arguments.out} has the figures of {', '.join(map(str, arguments.files))}")


def module_of(costs: Coefficients) -> str:
    """Returns the module that holds these costs, as ruff formats it."""
    lines = ["MEASURED = Coefficients(", "    curves={"]
    for part in PARTS:
        points = "".join(f"            ({rate:g}, {round(cores, _DIGITS):g}),\n" for rate, cores in costs.curves[part])
        lines += [f'        "{part}": (', f"{points}        ),"]
    lines.append("    },")
    names = (
        *("cpu_us_per_profile", "cpu_us_per_skipped_profile"),
        *("kafka_bytes_in_per_payment", "kafka_bytes_out_per_payment"),
    )
    lines += [f"    {name}={float(f'{getattr(costs, name):.{_DIGITS}g}'):g}," for name in names]
    return _HEAD + "\n".join([*lines, ")", ""])


if __name__ == "__main__":
    main()
