"""Estimate the memory of a training before the features are computed, which may take hours.

    the vectors    4 bytes for each feature of a row, in memory or in a file
    the trees      8 bytes for each feature of a row: LightGBM's bins in rows and columns
    the rows       400 bytes each: labels, scores and their orders, segments, outcomes

The trees took 5.3 bytes with 100,000 and 400,000 rows of 40 features; the estimate is higher, for measures beside them.

Example: 10 million payments with 80 features take (12 x 80 + 400) x 10 million bytes and 0.5 GB more: 14.1 GB, or
10.9 GB with the vectors in a file.
"""

from __future__ import annotations

from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.memory_bound import free_memory

_BYTES_OF_TABLE, _BYTES_OF_GROWING = 4, 8
_BYTES_OF_ROW = 400
# A smaller share of the genuine payments says little about them.
_SHARE_MIN = 1 / 1024
_BYTES_BESIDE = 500_000_000


def training_bytes(rows: int, features: int, *, is_on_disk: bool = False) -> int:
    """Returns about how many bytes of memory a training takes. `is_on_disk`: the vectors lie in a file."""
    of_value = _BYTES_OF_GROWING + (0 if is_on_disk else _BYTES_OF_TABLE)
    return rows * (features * of_value + _BYTES_OF_ROW) + _BYTES_BESIDE


def require_memory(rows: int, features: int) -> None:
    """Raises Misconfigured if a training takes more memory than there is."""
    free = free_memory()
    wanted = training_bytes(rows, features)
    if free is not None and wanted > free:
        raise _too_large(rows, features, wanted, free, "a lower training.genuine_sample_share, or --engine processes")


def fitting_share(always: int, others: int, features: int, settings: TrainingSettings, *, may_sample: bool) -> float:
    """Returns the share of genuine payments that memory has room for, if the vectors lie in a file.

    It is that of the settings. If that is 1 and too much, it is the largest of 1/2, 1/4, 1/8 … that fits: a little more
    or less memory changes nothing then. `always`: the rows that any share has; `others`: those that it is a share of.
    Raises Misconfigured if none fits, or if not `may_sample`.
    """
    free, share = free_memory(), settings.genuine_sample_share
    if free is None:
        return share
    is_open = may_sample and share == 1.0
    while True:
        rows = always + round(share * others)
        wanted = training_bytes(rows, features, is_on_disk=True)
        if wanted <= free:
            return share
        if not is_open or share < _SHARE_MIN:
            hint = "a lower training.genuine_sample_share" if may_sample and not is_open else "more memory"
            raise _too_large(rows, features, wanted, free, hint)
        share /= 2


def _too_large(rows: int, features: int, wanted: int, free: int, hint: str) -> Misconfigured:
    return Misconfigured(
        f"to train on {rows:,} payments with {features} features takes about {wanted / 1e9:.1f} GB of memory, and "
        f"{free / 1e9:.1f} GB are free: wanted fewer days, or {hint}"
    )
