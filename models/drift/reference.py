"""The reference of a model: how its decisions were distributed in a known past. Later decisions are compared with it.

A bundle contains the reference of its training window in reference.npz. The command `paywarden drift reference` makes
one from a period of live decisions. models/drift/baseline.py explains the expected values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import read_manifest, sha256_of
from paywarden.models.bundle.stored_arrays import UNREADABLE, read_arrays
from paywarden.models.drift.baseline import Baseline, empty_baseline
from paywarden.models.drift.binning import DIGEST_SIZE, FEATURE_BINS, Binning
from paywarden.models.drift.counts import Counts
from paywarden.models.drift.signal_layout import Kinds, Layout, Ranks
from paywarden.models.drift.signals import Block
from paywarden.models.drift.training_distance import Natural, Subjects
from paywarden.schemas.errors import BundleRefused

REFERENCE = "reference.npz"
_FORMAT = 1
# Optional: a past without whole weeks has none.
_NATURAL, _NATURAL_PAYMENTS = "natural_psi", "natural_payments"
_COUNTS = ("payments", "scores", "actions", "features", "flags", "ages")


@dataclass(frozen=True)
class Reference:
    """`counts`: of the whole past. `review_at`: the score from which on the risk is high; one of the score edges.

    `natural`: how far weeks of the past lay from it, None where that was not measured. `start_ms`, `end_ms`: the days
    of the past, 0 where they are not known.
    """

    model_version: str
    feature_names: tuple[str, ...]
    review_at: float
    kinds: Kinds
    counts: Counts
    baseline: Baseline
    layout: Layout
    natural: Natural | None = field(default=None, compare=False)
    start_ms: int = 0
    end_ms: int = 0

    @property
    def binning(self) -> Binning:
        """The bins and segments of `counts`."""
        return self.counts.binning

    @cached_property
    def digest(self) -> bytes:
        """DIGEST_SIZE bytes. Equal references have equal digests."""
        whole = hashlib.sha256(repr((self.model_version, self.feature_names, self.review_at)).encode())
        whole.update(self.binning.digest)
        for array in (*self.counts.arrays, *(getattr(self.baseline, part.name) for part in fields(Baseline))):
            whole.update(np.ascontiguousarray(array).tobytes())
        return whole.digest()[:DIGEST_SIZE]

    def block(
        self, counts: Counts, start_ms: int, length_ms: int, followed: NDArray[np.float32] | None = None
    ) -> Block:
        """Returns the signals of a block's counts beside their expected values: see `Baseline.block`."""
        return self.baseline.block(self.layout, counts, start_ms, length_ms, followed)

    def save(self, path: Path) -> None:
        """Write the reference to a file. The same reference gives the same bytes."""
        binning = self.binning
        head = {
            "format": _FORMAT,
            "model_version": self.model_version,
            "feature_names": self.feature_names,
            "review_at": self.review_at,
            "kinds": self.kinds.value,
            "values": binning.values,
            "flags": binning.flags,
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
        }
        arrays: dict[str, Any] = {
            "head": np.array(json.dumps(head)),
            "score_edges": binning.score_edges,
            "feature_edges": binning.feature_edges,
        }
        arrays |= zip(_COUNTS, self.counts.arrays, strict=True)
        arrays |= {f"usual_{part.name}": getattr(self.baseline, part.name) for part in fields(Baseline)}
        if self.natural is not None:
            arrays |= {_NATURAL: self.natural.psi, _NATURAL_PAYMENTS: np.float64(self.natural.payments)}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)


def layout_of(counts: Counts, feature_names: tuple[str, ...], review_at: float, kinds: Kinds) -> Layout:
    """Returns the layout of a model's signals; ranks are those of `counts`."""
    return Layout(counts.binning, feature_names, Ranks.of_counts(counts), high_risk_at=review_at, kinds=kinds)


def read_reference(path: Path) -> Reference:
    """Returns the reference that `save` wrote. Raises BundleRefused naming the file."""
    try:
        arrays = read_arrays(path)
        head = json.loads(str(arrays["head"]))
        if head["format"] != _FORMAT:
            raise BundleRefused(f"{path}: wanted a reference of format {_FORMAT}, got {head['format']}")
        names, review_at, kinds = tuple(head["feature_names"]), head["review_at"], Kinds(head["kinds"])
        values = tuple(tuple(dimension) for dimension in head["values"])
        binning = Binning(arrays["score_edges"], arrays["feature_edges"], values, tuple(head["flags"]))
        counts = Counts(binning, *(arrays[name] for name in _COUNTS))
        baseline = Baseline(*(arrays[f"usual_{part.name}"] for part in fields(Baseline)))
        shapes = _shapes((*Counts.empty(binning).arrays, np.empty((len(names), FEATURE_BINS - 1))))
        fits = _shapes((*counts.arrays, binning.feature_edges)) == shapes
        natural = None
        if _NATURAL in arrays:
            natural = Natural(arrays[_NATURAL], float(arrays[_NATURAL_PAYMENTS]))
            fits = fits and natural.psi.shape == (len(Subjects(binning, names).all),)
        times_ms = int(head["start_ms"]), int(head["end_ms"])
    except UNREADABLE as error:
        raise BundleRefused(f"{path}: it cannot be read as a reference of decisions") from error
    layout = layout_of(counts, names, review_at, kinds) if fits else None
    if layout is None or _shapes(vars(baseline).values()) != _shapes(vars(empty_baseline(layout)).values()):
        raise BundleRefused(f"{path}: the parts of this reference do not belong together")
    return Reference(head["model_version"], names, review_at, kinds, counts, baseline, layout, natural, *times_ms)


def _shapes(arrays: Iterable[NDArray[Any]]) -> list[tuple[int, ...]]:
    return [array.shape for array in arrays]


def load_reference(bundle: Path) -> Reference | None:
    """Returns a bundle's reference; None for old bundles without one.

    Raises BundleRefused where the file is missing, has a wrong checksum or cannot be read.
    """
    manifest = read_manifest(bundle)
    path = bundle / REFERENCE
    if REFERENCE not in manifest.files:
        return None
    if not path.is_file():
        raise BundleRefused(f"bundle {bundle}: {REFERENCE} is missing")
    if sha256_of(path) != manifest.files[REFERENCE]:
        raise BundleRefused(f"bundle {bundle}: {REFERENCE} has a wrong checksum")
    return read_reference(path)
