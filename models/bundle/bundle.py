"""A model ready to serve: one folder, checked before use.

    model.txt               LightGBM's text form
    golden.npz              vectors and the margins LightGBM gave for them
    first.txt               with a cascade: the small model that is asked first (models/bundle/cascade.py)
    first_golden.npz        and its margins for the same vectors
    manifest.json           what it was trained on and for, and the sha256 of the files above
    native/MACHINE/model.so the library compiled for one CPU architecture, and in build.json its sha256
    native/MACHINE/first/   the same of the small model

The manifest names the model; a library can be rebuilt anywhere without changing it. `load_bundle` refuses a
bundle whose files, catalogue or golden margins are not what they should be, and says which.
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
from paywarden.models.bundle.explain import Explainer, read_trees
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor, Predictor
from paywarden.models.bundle.sigmoid import sigmoids
from paywarden.models.bundle.stored_arrays import UNREADABLE, read_arrays
from paywarden.schemas.errors import BundleRefused

if TYPE_CHECKING:
    from paywarden.models.bundle.parity import ParityGate

FORMAT = 2
MODEL_TEXT, GOLDEN, MANIFEST = "model.txt", "golden.npz", "manifest.json"


@dataclass(frozen=True)
class ModelPart:
    """A model of a bundle: names of its files, and of its folder among the libraries."""

    model_text: str
    golden: str
    folder: str


LARGE = ModelPart(MODEL_TEXT, GOLDEN, "")
"""The model that every bundle has."""
FIRST = ModelPart("first.txt", "first_golden.npz", "first")
"""The one that a cascade asks first."""


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. Days are UTC, YYYY-MM-DD, both included."""

    format: int
    model_version: str
    catalogue_digest: str
    feature_names: list[str]
    # What each feature did for the model, in that order: sum of the gains of its splits, and their number.
    importance_gain: list[float]
    importance_split: list[int]
    train_from: str
    train_to: str
    training_payments: int
    training_frauds: int
    # The [training] settings as they were chosen, but for those that do not change the model.
    parameters: dict[str, Any]
    # How they were chosen: models/training/search.py, Choice.
    validation: dict[str, Any]
    # score = 1 / (1 + exp(-(slope * margin + intercept)))
    calibration_slope: float
    calibration_intercept: float
    # A score at or above these takes the action, unless the policy's configuration says otherwise.
    review_at: float
    decline_at: float
    # Out of fold, on the training window.
    metrics: dict[str, float]
    # Out-of-fold scores in bins of equal size: mean_score, observed_rate (of frauds), count.
    reliability: list[dict[str, float]]
    # Out-of-fold scores: counts[i] lie in [edges[i], edges[i + 1]).
    score_edges: list[float]
    score_counts: list[int]
    files: dict[str, str]
    # Of models/bundle/cascade.py, as a record; empty without one, and left out by bundles older than that.
    cascade: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[ModelPart, ...]:
        """The bundle's models."""
        return (LARGE, FIRST) if self.cascade else (LARGE,)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def digest(self) -> str:
        """Of the manifest, and so of the files it has the checksums of: equal digests are equal bundles."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def most_important(self, count: int) -> list[tuple[str, float, int]]:
        """The features with the largest gain: (name, gain, splits). Of equal ones the first of the catalogue."""
        rows = zip(self.feature_names, self.importance_gain, self.importance_split, strict=True)
        return sorted(rows, key=lambda row: -row[1])[:count]


@dataclass(frozen=True)
class Bundle:
    """A bundle that has passed every check."""

    manifest: Manifest
    predictor: Predictor
    explainer: Explains

    def score(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities of fraud. `vectors`: (rows, features), C-contiguous. Result: (rows,)."""
        return calibrated(
            self.predictor.margins(vectors),
            self.manifest.calibration_slope,
            self.manifest.calibration_intercept,
        )


def _check_explained(bundle: Path, part: ModelPart, explainer: Explainer) -> None:
    """Refuse reasons that do not add up to LightGBM's margins. Also compiles what gives them."""
    vectors, wanted = _golden(bundle, part)
    got = np.array([explainer.base + explainer.contributions(vector).sum() for vector in vectors])
    if not np.allclose(got, wanted, rtol=1e-9, atol=1e-9):
        raise BundleRefused(f"bundle {bundle}: what features add to a score is not what {part.model_text} gives")


def calibrated(margins: NDArray[np.float64], slope: float, intercept: float) -> NDArray[np.float64]:
    """Margins to probabilities, each as `sigmoid` has it: a row's score never depends on its batch."""
    return sigmoids(slope * margins + intercept)


def sigmoid(value: float) -> float:
    """A probability from its log-odds."""
    # exp overflows above 709; a probability that far out is 0 in any case.
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def native_library(bundle: Path, part: ModelPart = LARGE) -> Path:
    """Where this machine's library of a bundle's model is, or would be."""
    return bundle / "native" / platform.machine() / part.folder / "model.so"


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(bundle: Path) -> Manifest:
    """The manifest, checked for form. Raises BundleRefused."""
    path = bundle / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleRefused(f"bundle {bundle}: there is no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise BundleRefused(f"bundle {bundle}: {MANIFEST} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleRefused(f"bundle {bundle}: wanted a manifest of format {FORMAT}")
    wanted = get_type_hints(Manifest)
    content.setdefault("cascade", {})
    if content.keys() != wanted.keys():
        odd = sorted(wanted.keys() ^ content.keys())
        raise BundleRefused(f"bundle {bundle}: {MANIFEST} lacks or does not know {', '.join(odd)}")
    for name, hint in wanted.items():
        if not _is_a(content[name], hint):
            raise BundleRefused(f"bundle {bundle}: {MANIFEST} has something unusable as {name}")
    if content["cascade"]:
        try:
            Cascade.of_record(content["cascade"])
        except ValueError as error:
            raise BundleRefused(f"bundle {bundle}: the cascade cannot be used: {error}") from error
    return Manifest(**content)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has the type of a manifest's field. NaN and infinities are no numbers here."""
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is_a(item, get_args(hint)[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return hint is Any or type(value) is hint


def build_native(bundle: Path, gates: Mapping[ModelPart, ParityGate] = MappingProxyType({})) -> Path:
    """Compile this machine's libraries and let them through the parity gate. Returns where the large model's is.

    A gate is made of the golden vectors where none is given. A library that does not pass is not left behind.
    """
    manifest = read_manifest(bundle)
    _check_files(bundle, manifest)
    for part in manifest.parts:
        _build(bundle, manifest, part, gates.get(part))
    return native_library(bundle)


def _build(bundle: Path, manifest: Manifest, part: ModelPart, gate: ParityGate | None) -> None:
    # Those who build have Treelite and TL2cgen, which import SciPy: a scoring process never loads them.
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
    (library.parent / "build.json").write_text(json.dumps(build, indent=2) + "\n", encoding="utf-8")


def golden_gate(bundle: Path, part: ModelPart = LARGE) -> ParityGate:
    """What a model of the bundle must pass, made of the model itself and of its golden vectors."""
    # LightGBM is for those who build: a scoring process never loads it.
    from paywarden.models.bundle.parity import ParityGate

    vectors, _ = _golden(bundle, part)
    return ParityGate.of(bundle / part.model_text, golden_payments(bundle), golden=vectors)


def _golden(bundle: Path, part: ModelPart) -> tuple[NDArray[Any], NDArray[Any]]:
    """Golden vectors and their margins, of whatever shape and type they are. Raises BundleRefused."""
    try:
        arrays = read_arrays(bundle / part.golden)
        return arrays["vectors"], arrays["margins"]
    except UNREADABLE as error:
        raise BundleRefused(f"bundle {bundle}: {part.golden} cannot be read: {error}") from error


def golden_payments(bundle: Path) -> NDArray[np.float32]:
    """Those of the golden vectors that are payments of the training window, an even part of them."""
    vectors, _ = _golden(bundle, LARGE)
    # The second half was invented.
    return np.ascontiguousarray(vectors[: (len(vectors) + 1) // 2])


def parity_summary(bundle: Path) -> str:
    """What this machine's libraries have passed, in a line. Raises BundleRefused where they have no note of that."""
    try:
        folders = [native_library(bundle, part).parent for part in read_manifest(bundle).parts]
        passed = [json.loads((folder / "build.json").read_text(encoding="utf-8"))["gate"] for folder in folders]
        rows, splits, left_out = (sum(one[name] for one in passed) for name in ("rows", "splits", "splits_left_out"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleRefused(f"bundle {bundle}: build.json beside the native library cannot be read") from error
    more = f", {left_out} left out" if left_out else ""
    return f"LightGBM's bits in {rows} rows, at the edges of {splits} splits{more}"


def load_bundle(bundle: Path, *, catalogue_digest: str) -> Bundle:
    """Load a bundle for serving or replay; native where its library is there, else through GTIL.

    Raises BundleRefused naming the first thing that is wrong: the manifest, a checksum, the catalogue, the
    library, or a golden vector.
    """
    manifest = read_manifest(bundle)
    _check_files(bundle, manifest)
    if manifest.catalogue_digest != catalogue_digest:
        raise BundleRefused(
            f"bundle {bundle}: it was trained with the feature catalogue {manifest.catalogue_digest}, "
            f"this is {catalogue_digest}: train it again"
        )
    predictor, explainer = _checked_part(bundle, manifest, LARGE, slope=manifest.calibration_slope)
    if not manifest.cascade:
        return Bundle(manifest, predictor, explainer)
    cascade = Cascade.of_record(manifest.cascade)
    first, of_first = _checked_part(bundle, manifest, FIRST, slope=cascade.calibration_slope)
    together = CascadePredictor(
        first, predictor, cascade, slope=manifest.calibration_slope, intercept=manifest.calibration_intercept
    )
    return Bundle(manifest, together, CascadeExplainer(together, of_first, explainer))


def _checked_part(bundle: Path, manifest: Manifest, part: ModelPart, *, slope: float) -> tuple[Predictor, Explainer]:
    """What scores with a model of the bundle and what explains it, held against its golden vectors."""
    predictor = _predictor(bundle, manifest, part)
    check_golden(bundle, manifest, predictor, part)
    trees = read_trees(bundle / part.model_text, len(manifest.feature_names))
    explainer = Explainer(trees, manifest.feature_names, slope=slope)
    _check_explained(bundle, part, explainer)
    return predictor, explainer


def _predictor(bundle: Path, manifest: Manifest, part: ModelPart) -> Predictor:
    library = native_library(bundle, part)
    if not library.exists():
        return GtilPredictor(bundle / part.model_text)
    try:
        build = json.loads((library.parent / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleRefused(f"bundle {bundle}: build.json beside the native library cannot be read") from error
    # Never load a library before its checksum is known to be right: loading runs its code.
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
    """Refuse a predictor that gives one golden vector another margin, to the bit."""
    vectors, wanted = _golden(bundle, part)
    if vectors.dtype != np.float32 or vectors.shape != (len(wanted), len(manifest.feature_names)):
        raise BundleRefused(f"bundle {bundle}: {part.golden} does not fit the manifest")
    got = predictor.margins(np.ascontiguousarray(vectors))
    wrong = np.flatnonzero(got != wanted)
    if len(wrong):
        raise BundleRefused(
            f"bundle {bundle}: {len(wrong)} of {len(wanted)} golden vectors get another score, "
            f"the first is number {wrong[0]}"
        )
