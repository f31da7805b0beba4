"""Does the promise on later days hold? Worlds that no constant was tuned on, and the month after each training.

Measured: in how many forward months frauds / sum of scores was inside the promised interval, and how wide that was
(its upper end divided by its lower one). Bundle and month are apart: the model and its calibration are made of 240 days
as `paywarden train` makes them, with fewer trees; the month begins when their labels are known. Only the vectors are
made up (tests/worlds/small/forward_worlds.py). Used for: the claim that at least 93 of 100 promises hold.

    python -m perf.promise [--months N] [--first-seed N] [--payments N] [--json FILE]
"""

from __future__ import annotations

import time

import numpy as np

from perf.tools.measuring import arguments_of, finish
from tests.worlds.small.forward_worlds import KINDS, PAYMENTS_A_DAY, forward_month


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--months", {"type": int, "default": 100, "help": "forward months, over all worlds"}),
        ("--first-seed", {"type": int, "default": 1000, "help": "the seed of each world's first month"}),
        ("--payments", {"type": int, "default": PAYMENTS_A_DAY, "help": "payments a day"}),
    )
    figures: dict[str, float] = {}
    held, widths, shifts, started = [], [], 0, time.perf_counter()
    for kind in KINDS:
        of_kind = []
        for number in range(arguments.months // len(KINDS)):
            promise, ratio = forward_month(kind, arguments.first_seed + number, payments_a_day=arguments.payments)
            assert promise.low is not None, promise.not_promised
            assert promise.high is not None
            of_kind.append(promise.low <= ratio <= promise.high)
            widths.append(promise.high / promise.low)
            shifts += promise.shift is not None
            print(f"{kind}: {ratio:.2f} in {promise.low:.2f} to {promise.high:.2f}: {of_kind[-1]}", flush=True)
        figures[f"{kind}_held"] = sum(of_kind)
        held += of_kind
    figures |= {
        "months": len(held),
        "held": sum(held),
        "shifts_named": shifts,
        "width_median": float(np.median(widths)),
        "width_max": max(widths),
        "seconds_a_month": (time.perf_counter() - started) / len(held),
    }
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
