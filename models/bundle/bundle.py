"""A model ready to serve: one folder, checked before use.

    model.txt               LightGBM's text form
    golden.npz              vectors and the margins LightGBM gave for them
    first.txt               with a cascade: the small model that scores first (models/bundle/cascade.py)
    first_golden.npz        with a cascade: its margins for the same vectors
    manifest.json           training data, settings and metrics, and the sha256 of the files above
    native/MACHINE/model.so the library compiled for one CPU architecture; build.json beside it holds its sha256
    native/MACHINE/first/   with a cascade: the library of the small model
    signature.json          who released the bundle, if it was signed (models/bundle/signature.py)

The manifest identifies the model. The library is not part of it and can be rebuilt on any machine. `load_bundle`
refuses a bundle with a wrong file, another feature catalogue or another golden margin, and names the first problem.
A library is code: it is loaded only from a path that no other user may write to, and where keys are trusted, only if
the signature covers it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.cascade import Cascade, CascadeExplainer, CascadePredictor, Explains
from paywarden.models.bundle.explanations import Explainer, read_trees
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor, Predictor
from paywarden.models.bundle.sigmoid import sigmoids
from paywarden.models.bundle.signature import BUILD
from paywarden.models.bundle.signature import MANIFEST as MANIFEST
from paywarden.models.bundle.stored_arrays import UNREADABLE, read_arrays
from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.file_state import open_regular, read_regular
from paywarden.schemas.private_files import require_unwritable

if TYPE_CHECKING:
    from paywarden.models.bundle.parity import ParityGate
    from paywarden.models.bundle.signature import TrustedKeys

FORMAT = 2
MODEL_TEXT, GOLDEN = "model.txt", "golden.npz"


@dataclass(frozen=True)
class ModelPart:
    """A model of a bundle: the names of its files, and its folder among the native libraries."""

    model_text: str
    golden: str
    folder: str


LARGE = ModelPart(MODEL_TEXT, GOLDEN, "")
"""The model that every bundle has."""
FIRST = ModelPart("first.txt", "first_golden.npz", "first")
"""The small model that scores first in a cascade."""


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle. Days are UTC dates, YYYY-MM-DD; first and last day are included."""

    format: int
    model_version: str
    catalogue_digest: str
    feature_names: list[str]
    # Importance of each feature, in the order of feature_names: the sum of its splits' gains, and their number.
    importance_gain: list[float]
    importance_split: list[int]
    train_from: str
    train_to: str
    training_payments: int
    training_frauds: int
    # The [training] settings after the search, without those that do not change the model.
    parameters: dict[str, Any]
    # How they were chosen: `Choice.record` in models/training/search.py.
    validation: dict[str, Any]
    # score = 1 / (1 + exp(-(slope * margin + intercept)))
    calibration_slope: float
    calibration_intercept: float
    # Default thresholds: a score at or above them takes the action. The policy's configuration may set others.
    review_at: float
    decline_at: float
    # Metrics of the out-of-fold scores on the training window.
    metrics: dict[str, float]
    # Out-of-fold scores in bins of equal size: mean_score, observed_rate (of frauds), count.
    reliability: list[dict[str, float]]
    # Histogram of the out-of-fold scores: counts[i] of them lie in [edges[i], edges[i + 1]).
    score_edges: list[float]
    score_counts: list[int]
    files: dict[str, str]
    # The fields of a Cascade (models/bundle/cascade.py). Empty without a cascade.
    cascade: dict[str, Any] = field(default_factory=dict)
    # The digest of the key that made identities of texts. An empty one accepts any key.
    identity_digest: str = ""
    # The findings of the training about its data (models/training/training_evidence.py).
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[ModelPart, ...]:
        """The bundle's models."""
        return (LARGE, FIRST) if self.cascade else (LARGE,)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def digest(self) -> str:
        """The sha256 of the manifest. It contains the files' checksums, so equal digests mean equal bundles."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def most_important(self, count: int) -> list[tuple[str, float, int]]:
        """Returns the features with the largest gain as (name, gain, splits). Ties keep the catalogue's order."""
        rows = zip(self.feature_names, self.importance_gain, self.importance_split, strict=True)
        return sorted(rows, key=lambda row: -row[1])[:count]


@dataclass(frozen=True)
class Bundle:
    """A bundle that has passed every check."""

    manifest: Manifest
    predictor: Predictor
    explainer: Explains

    def close(self) -> None:
        """Unload the native libraries. Nothing may use the bundle any more, and no call may be in it."""
        predictor = self.predictor
        parts = [predictor.first, predictor.large] if isinstance(predictor, CascadePredictor) else [predictor]
        for part in parts:
            if isinstance(part, NativePredictor):
                part.close()

    def score(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns calibrated probabilities of fraud, (rows,). `vectors`: (rows, features), float32, C-contiguous."""
        return calibrated(
            self.predictor.margins(vectors),
            self.manifest.calibration_slope,
            self.manifest.calibration_intercept,
        )


def _check_explained(bundle: Path, part: ModelPart, explainer: Explainer) -> None:
    """Refuse an explainer whose contributions do not sum to LightGBM's margins. Also compiles the explainer."""
    vectors, golden = golden_margins(bundle, part)
    sums = np.array([explainer.base + explainer.contributions(vector).sum() for vector in vectors])
    if not np.allclose(sums, golden, rtol=1e-9, atol=1e-9):
        raise BundleRefused(
            f"bundle {bundle}: the features' contributions do not add up to the margins of {part.model_text}"
        )


def calibrated(margins: NDArray[np.float64], slope: float, intercept: float) -> NDArray[np.float64]:
    """Returns the probabilities of margins, with the same bits as `sigmoid`: a score never depends on its batch."""
    return sigmoids(slope * margins + intercept)


def sigmoid(value: float) -> float:
    """Returns the probability of log-odds."""
    # exp overflows above 709. The probability is 0 there in any case.
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def native_library(bundle: Path, part: ModelPart = LARGE) -> Path:
    """Returns the path of this machine's library of a bundle's model, whether it exists or not."""
    return bundle / "native" / platform.machine() / part.folder / "model.so"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(read_regular(path, None)).hexdigest()


def read_manifest(bundle: Path) -> Manifest:
    """Returns the manifest. Raises BundleRefused if it is missing, not JSON, or has other keys or types."""
    path = bundle / MANIFEST
    try:
        with open_regular(path) as file:
            content = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError as error:
        raise BundleRefused(f"bundle {bundle}: there is no {MANIFEST}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleRefused(f"bundle {bundle}: {MANIFEST} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleRefused(f"bundle {bundle}: wanted a manifest of format {FORMAT}")
    hints = get_type_hints(Manifest)
    if content.keys() != hints.keys():
        odd = sorted(hints.keys() ^ content.keys())
        raise BundleRefused(f"bundle {bundle}: {MANIFEST} lacks fields, or has unknown ones: {', '.join(odd)}")
    for name, hint in hints.items():
        if not _is_a(content[name], hint):
            raise BundleRefused(f"bundle {bundle}: {MANIFEST} has something unusable as {name}")
    if content["cascade"]:
        try:
            Cascade.of_record(content["cascade"])
        except ValueError as error:
            raise BundleRefused(f"bundle {bundle}: the cascade cannot be used: {error}") from error
    return Manifest(**content)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has the type of a manifest's field. NaN and infinities do not count as numbers."""
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is_a(item, get_args(hint)[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return hint is Any or type(value) is hint


def build_native(bundle: Path, gates: Mapping[ModelPart, ParityGate] = MappingProxyType({})) -> Path:
    """Compile this machine's libraries and check them with the parity gate. Returns the path of the large model's.

    Without a gate in `gates`, one is made from the golden vectors. A library that fails is deleted. Raises
    BundleRefused for a bad bundle or library, Misconfigured without a compiler.
    """
    manifest = read_manifest(bundle)
    _check_files(bundle, manifest)
    for part in manifest.parts:
        _build(bundle, manifest, part, gates.get(part))
    return native_library(bundle)


def _build(bundle: Path, manifest: Manifest, part: ModelPart, gate: ParityGate | None) -> None:
    # Only builds import Treelite, which imports SciPy. A scoring process never loads them.
    from paywarden.models.bundle.compiler import COMPILER_OPTIONS, compile_library, compiler_name

    library = native_library(bundle, part)
    generator = compile_library(bundle / part.model_text, len(manifest.feature_names), library)
    try:
        predictor = NativePredictor(library, len(manifest.feature_names))
        check_golden(bundle, manifest, predictor, part)
        gate = gate or golden_gate(bundle, part)
        gate.require(predictor)
    except BundleRefused:
        library.unlink()
        raise
    build = {
        "sha256": sha256_of(library),
        "model_sha256": manifest.files[part.model_text],
        "generator": generator,
        "compiler": compiler_name(),
        "options": [*COMPILER_OPTIONS],
        "gate": {"rows": gate.row_count, "splits": gate.splits, "splits_left_out": gate.splits_left_out},
    }
    (library.parent / BUILD).write_text(json.dumps(build, indent=2) + "\n", encoding="utf-8")


def golden_gate(bundle: Path, part: ModelPart = LARGE) -> ParityGate:
    """Returns the parity gate of one of the bundle's models, made from the model and its golden vectors."""
    # Only builds import LightGBM. A scoring process never loads it.
    from paywarden.models.bundle.parity import ParityGate

    vectors, _ = golden_margins(bundle, part)
    return ParityGate.of(bundle / part.model_text, golden_payments(bundle), golden=vectors)


def golden_margins(bundle: Path, part: ModelPart) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns golden vectors and margins, with shapes and types unchecked. Raises BundleRefused if unreadable."""
    try:
        arrays = read_arrays(bundle / part.golden)
        return arrays["vectors"], arrays["margins"]
    except UNREADABLE as error:
        raise BundleRefused(f"bundle {bundle}: {part.golden} cannot be read: {error}") from error


def golden_payments(bundle: Path) -> NDArray[np.float32]:
    """Returns the golden vectors that are real payments of the training window."""
    vectors, _ = golden_margins(bundle, LARGE)
    # The second half are random rows.
    return np.ascontiguousarray(vectors[: (len(vectors) + 1) // 2])


def parity_summary(bundle: Path) -> str:
    """Returns a line about the rows that this machine's libraries passed. Raises BundleRefused without a record."""
    try:
        folders = [native_library(bundle, part).parent for part in read_manifest(bundle).parts]
        passed = [json.loads(read_regular(folder / BUILD))["gate"] for folder in folders]
        rows, splits, left_out = (sum(gate[name] for gate in passed) for name in ("rows", "splits", "splits_left_out"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleRefused(f"bundle {bundle}: build.json beside the native library cannot be read") from error
    more = f", {left_out} left out" if left_out else ""
    return f"LightGBM's bits in {rows} rows, at the edges of {splits} splits{more}"


def load_bundle(
    bundle: Path,
    *,
    catalogue_digest: str,
    identity_digest: str = "",
    trusted: TrustedKeys | None = None,
    built_here: bool = False,
) -> Bundle:
    """Load and check a bundle for serving or replay. Without this machine's native library, Treelite's GTIL scores.

    An empty `identity_digest`, here or in the manifest, accepts any key of identities. `trusted`: one of these
    keys must have signed the bundle; None takes unsigned ones. `built_here`: this process has just had the library
    built, so that no signature can cover it. Raises BundleRefused naming the first problem: the signature, the
    manifest, a checksum, the catalogue, the key of identities, the library, or a golden vector.
    """
    signed = None if trusted is None else trusted.require(bundle)
    manifest = read_manifest(bundle)
    if signed is not None and not built_here:
        _require_signed_libraries(bundle, manifest, signed)
    _check_files(bundle, manifest)
    if manifest.catalogue_digest != catalogue_digest:
        raise BundleRefused(
            f"bundle {bundle}: it was trained with the feature catalogue {manifest.catalogue_digest}, "
            f"this is {catalogue_digest}: train it again"
        )
    if "" not in (identity_digest, manifest.identity_digest) and identity_digest != manifest.identity_digest:
        raise BundleRefused(
            f"bundle {bundle}: it was trained with the identity key of digest {manifest.identity_digest}, this one has "
            f"{identity_digest}: set the same [features] identity_key_file, or train it again"
        )
    predictor, explainer = _checked_part(bundle, manifest, LARGE, slope=manifest.calibration_slope)
    if not manifest.cascade:
        return Bundle(manifest, predictor, explainer)
    cascade = Cascade.of_record(manifest.cascade)
    first, first_explainer = _checked_part(bundle, manifest, FIRST, slope=cascade.calibration_slope)
    both = CascadePredictor(
        first, predictor, cascade, slope=manifest.calibration_slope, intercept=manifest.calibration_intercept
    )
    return Bundle(manifest, both, CascadeExplainer(both, first_explainer, explainer))


def unsigned_libraries(bundle: Path, manifest: Manifest, signed: frozenset[str]) -> list[Path]:
    """Returns this machine's libraries of a bundle that its signature does not cover."""
    libraries = [native_library(bundle, part) for part in manifest.parts]
    return [path for path in libraries if path.exists() and _build_of(bundle, path) not in signed]


def _build_of(bundle: Path, library: Path) -> str:
    return (library.parent / BUILD).relative_to(bundle).as_posix()


def _require_signed_libraries(bundle: Path, manifest: Manifest, signed: frozenset[str]) -> None:
    for library in unsigned_libraries(bundle, manifest, signed):
        raise BundleRefused(
            f"bundle {bundle}: {library.relative_to(bundle)} was built after the bundle was signed: "
            "sign it again with `paywarden admin sign`, or remove the library"
        )


def _checked_part(bundle: Path, manifest: Manifest, part: ModelPart, *, slope: float) -> tuple[Predictor, Explainer]:
    """Returns predictor and explainer of one of the bundle's models, checked against its golden vectors."""
    predictor = _predictor(bundle, manifest, part)
    check_golden(bundle, manifest, predictor, part)
    trees = read_trees(bundle / part.model_text, len(manifest.feature_names))
    leaves = predictor if isinstance(predictor, NativePredictor) else None
    explainer = Explainer(trees, manifest.feature_names, slope=slope, leaves=leaves)
    _check_explained(bundle, part, explainer)
    return predictor, explainer


def _predictor(bundle: Path, manifest: Manifest, part: ModelPart) -> Predictor:
    library = native_library(bundle, part)
    if not library.exists():
        return GtilPredictor(bundle / part.model_text)
    try:
        build = json.loads(read_regular(library.parent / BUILD))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleRefused(f"bundle {bundle}: build.json beside the native library cannot be read") from error
    # Check the library before loading it: loading runs its code.
    try:
        require_unwritable(library)
    except Misconfigured as error:
        raise BundleRefused(f"bundle {bundle}: the native library is not loaded: {error}") from error
    if not isinstance(build, dict) or build.get("sha256") != sha256_of(library):
        raise BundleRefused(f"bundle {bundle}: the native library has a wrong checksum")
    if build.get("model_sha256") != manifest.files[part.model_text]:
        raise BundleRefused(f"bundle {bundle}: the native library was built from another model")
    return NativePredictor(library, len(manifest.feature_names))


def _check_files(bundle: Path, manifest: Manifest) -> None:
    for name in [name for part in manifest.parts for name in (part.model_text, part.golden)]:
        path = bundle / name
        if not path.is_file():
            raise BundleRefused(f"bundle {bundle}: {name} is missing")
        if sha256_of(path) != manifest.files.get(name):
            raise BundleRefused(f"bundle {bundle}: {name} has a wrong checksum")


def check_golden(bundle: Path, manifest: Manifest, predictor: Predictor, part: ModelPart = LARGE) -> None:
    """Raises BundleRefused if a predictor's margin of any golden vector differs in a bit."""
    vectors, golden = golden_margins(bundle, part)
    if vectors.dtype != np.float32 or vectors.shape != (len(golden), len(manifest.feature_names)):
        raise BundleRefused(f"bundle {bundle}: {part.golden} does not fit the manifest")
    margins = predictor.margins(np.ascontiguousarray(vectors))
    wrong = np.flatnonzero(margins != golden)
    if len(wrong):
        raise BundleRefused(
            f"bundle {bundle}: {len(wrong)} of {len(golden)} golden vectors get another score, "
            f"the first is number {wrong[0]}"
        )
