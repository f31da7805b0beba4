"""The costs that the benchmarks measured on the machine that docs/benchmarks.md names.

The figures are those of `perf.whole`, `perf.companion` and `perf.companion --skipped`, on a quiet machine.
"""

from paywarden.ops.capacity.coefficients import Coefficients

MEASURED = Coefficients(
    curves={
        "serve": (
            (0, 0.0028),
            (20, 0.0093),
            (200, 0.0323),
            (500, 0.0401),
            (1000, 0.0772),
            (3000, 0.1573),
        ),
        "companion": (
            (0, 0.0038),
            (20, 0.0074),
            (200, 0.0185),
            (500, 0.027),
            (1000, 0.0539),
            (3000, 0.1396),
        ),
        "stream": (
            (0, 0.0075),
            (20, 0.0316),
            (200, 0.0545),
            (500, 0.0709),
            (1000, 0.132),
            (3000, 0.3379),
        ),
        "kafka": (
            (0, 0.0235),
            (20, 0.0613),
            (200, 0.1006),
            (500, 0.1035),
            (1000, 0.1274),
            (3000, 0.189),
        ),
    },
    cpu_us_per_profile=7.232,
    cpu_us_per_skipped_profile=2.377,
    kafka_bytes_in_per_payment=1525,
    kafka_bytes_out_per_payment=1526,
)
