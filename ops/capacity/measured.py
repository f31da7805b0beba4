"""The costs that the benchmarks measured on the machine that docs/benchmarks.md names.

`python -m perf.coefficients` writes this file (docs/operate/capacity.md). Do not edit it.
"""

from paywarden.ops.capacity.coefficients import Coefficients

MEASURED = Coefficients(
    curves={
        "serve": (
            (0, 0.0029),
            (20, 0.0103),
            (200, 0.0374),
            (500, 0.0651),
            (1000, 0.1046),
            (3000, 0.2346),
        ),
        "companion": (
            (0, 0.0029),
            (20, 0.0065),
            (200, 0.0177),
            (500, 0.0298),
            (1000, 0.0458),
            (3000, 0.144),
        ),
        "stream": (
            (0, 0.0086),
            (20, 0.0308),
            (200, 0.0532),
            (500, 0.0725),
            (1000, 0.1139),
            (3000, 0.3356),
        ),
        "kafka": (
            (0, 0.0324),
            (20, 0.0495),
            (200, 0.0887),
            (500, 0.1023),
            (1000, 0.1055),
            (3000, 0.1991),
        ),
    },
    cpu_us_per_profile=7.232,
    cpu_us_per_skipped_profile=2.377,
    kafka_bytes_in_per_payment=1515,
    kafka_bytes_out_per_payment=1518,
)
