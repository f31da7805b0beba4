"""Estimate the memory of a training before the features are computed, which may take hours.

    the table              4 bytes for each feature of a row
    models of some folds   a copy of their rows, LightGBM's bins, and the rows that are scored

Measured with 60,000 and 240,000 rows of 40 features, a row takes 16 bytes more for each feature. Beside it stand the
programs and LightGBM's histograms.

Example: 10 million payments with 80 features take 20 x 80 x 10 million bytes and 0.5 GB more: 16.5 GB.
"""

from __future__ import annotations

from paywarden.models.training.settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.memory_bound import free_memory

# For each feature of a row; the second part is that of the rows that trees are grown on. They are a quarter more than
# measured.
_BYTES_OF_TABLE, _BYTES_OF_GROWING = 6, 14
# Students are grown on labels of models of folds within folds.
_BYTES_OF_DISTILLING = 8
_BYTES_BESIDE = 500_000_000


def training_bytes(rows: int, features: int, settings: TrainingSettings) -> int:
    """Returns about how many bytes a training takes."""
    growing = _BYTES_OF_GROWING + (_BYTES_OF_DISTILLING if settings.seeds > 1 else 0)
    return round(rows * features * (_BYTES_OF_TABLE + growing * settings.genuine_sample_share)) + _BYTES_BESIDE


def require_memory(rows: int, features: int, settings: TrainingSettings) -> None:
    """Raises Misconfigured if a training takes more memory than there is."""
    free = free_memory()
    wanted = training_bytes(rows, features, settings)
    if free is not None and wanted > free:
        raise Misconfigured(
            f"to train on {rows:,} payments with {features} features takes about {wanted / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free: wanted fewer days, or a lower training.genuine_sample_share"
        )
