"""The costs that the benchmarks measured on the machine that docs/benchmarks.md names.

`python -m perf.coefficients` writes this file (docs/operate/capacity.md). Do not edit it.
"""

from paywarden.ops.capacity.coefficients import Coefficients

MEASURED = Coefficients(
    curves={
        "serve": (
            (0, 0.0028),
            (20, 0.0145),
            (200, 0.0736),
            (500, 0.1195),
            (1000, 0.1925),
            (3000, 0.2745),
        ),
        "companion": (
            (0, 0.0094),
            (20, 0.0181),
            (200, 0.0336),
            (500, 0.0507),
            (1000, 0.0785),
            (3000, 0.1896),
        ),
        "stream": (
            (0, 0.0197),
            (20, 0.0853),
            (200, 0.1726),
            (500, 0.2426),
            (1000, 0.3458),
            (3000, 0.5887),
        ),
        "kafka": (
            (0, 0.0431),
            (20, 0.1143),
            (200, 0.1898),
            (500, 0.239),
            (1000, 0.2929),
            (3000, 0.3341),
        ),
    },
    cpu_us_per_profile=13.4,
    cpu_us_per_skipped_profile=8.6,
    kafka_bytes_in_per_payment=1443,
    kafka_bytes_out_per_payment=1446,
)
