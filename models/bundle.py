"""A model ready to serve: one folder, checked before use.

    model.txt               LightGBM's text form
    golden.npz              vectors and the margins LightGBM gave for them
    manifest.json           what it was trained on and for, and the sha256 of the two files above
    native/MACHINE/model.so the library compiled for one CPU architecture, and in build.json its sha256

The manifest names the model; a library can be rebuilt anywhere without changing it. `load_bundle` refuses a
bundle whose files, catalogue or golden margins are not what they should be, and says which.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from models.compiler import COMPILER_OPTIONS, compile_library, compiler_name
from models.explain import Explainer, read_trees
from models.predictor import GtilPredictor, NativePredictor, Predictor
from schemas.errors import BundleRefused

if TYPE_CHECKING:
    from models.parity import ParityGate

FORMAT = 2
MODEL_TEXT, GOLDEN, MANIFEST = "model.txt", "golden.npz", "manifest.json"


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
    # How they were chosen: models/search.py, Choice.
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
    explainer: Explainer

    def score(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Calibrated probabilities of fraud. `vectors`: (rows, features), C-contiguous. Result: (rows,)."""
        return calibrated(
            self.predictor.margins(vectors),
            self.manifest.calibration_slope,
            self.manifest.calibration_intercept,
        )


def _check_explained(bundle: Path, explainer: Explainer) -> None:
    """Refuse reasons that do not add up to LightGBM's margins. Also compiles what gives them."""
    with np.load(bundle / GOLDEN, allow_pickle=False) as golden:
        vectors, wanted = golden["vectors"], golden["margins"]
    got = np.array([explainer.base + explainer.contributions(vector).sum() for vector in vectors])
    if not np.allclose(got, wanted, rtol=1e-9, atol=1e-9):
        raise BundleRefused(f"bundle {bundle}: what features add to a score is not what {MODEL_TEXT} gives")


def calibrated(margins: NDArray[np.float64], slope: float, intercept: float) -> NDArray[np.float64]:
    """Margins to probabilities. Row by row through libm, so that a row's score never depends on its batch."""
    return np.array([sigmoid(slope * margin + intercept) for margin in margins.tolist()], dtype=np.float64)


def sigmoid(value: float) -> float:
    """A probability from its log-odds."""
    # exp overflows above 709; a probability that far out is 0 in any case.
    return 1.0 / (1.0 + math.exp(-value)) if value > -700.0 else 0.0


def native_library(bundle: Path) -> Path:
    """Where this machine's library of a bundle is, or would be."""
    return bundle / "native" / platform.machine() / "model.so"


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
    if content.keys() != wanted.keys():
        odd = sorted(wanted.keys() ^ content.keys())
        raise BundleRefused(f"bundle {bundle}: {MANIFEST} lacks or does not know {', '.join(odd)}")
    for name, hint in wanted.items():
        if not _is_a(content[name], hint):
            raise BundleRefused(f"bundle {bundle}: {MANIFEST} has something unusable as {name}")
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


def build_native(bundle: Path, gate: ParityGate | None = None) -> Path:
    """Compile this machine's library and let it through the parity gate. Returns where it is.

    The gate is made of the golden vectors where none is given. A library that does not pass is not left behind.
    """
    manifest = read_manifest(bundle)
    _check_files(bundle, manifest)
    library = native_library(bundle)
    generator = compile_library(bundle / MODEL_TEXT, len(manifest.feature_names), library)
    try:
        predictor = NativePredictor(library, len(manifest.feature_names))
        check_golden(bundle, manifest, predictor)
        gate = gate or golden_gate(bundle)
        gate.require(predictor)
    except BundleRefused:
        library.unlink()
        raise
    build = {
        "sha256": sha256_of(library),
        "model_sha256": manifest.files[MODEL_TEXT],
        "generator": generator,
        "compiler": compiler_name(),
        "options": [*COMPILER_OPTIONS],
        "gate": {"rows": gate.row_count, "splits": gate.splits, "splits_left_out": gate.splits_left_out},
    }
    (library.parent / "build.json").write_text(json.dumps(build, indent=2) + "\n", encoding="utf-8")
    return library


def golden_gate(bundle: Path) -> ParityGate:
    """What the bundle's model must pass, made of the model itself and of its golden vectors."""
    # LightGBM is for those who build: a scoring process never loads it.
    from models.parity import ParityGate

    with np.load(bundle / GOLDEN, allow_pickle=False) as golden:
        vectors = golden["vectors"]
    # The first half are payments, the second was invented.
    return ParityGate.of(bundle / MODEL_TEXT, vectors[: (len(vectors) + 1) // 2], golden=vectors)


def told_gate(bundle: Path) -> str:
    """What this machine's library has passed, in a line. Raises BundleRefused where it has no note of that."""
    try:
        passed = json.loads((native_library(bundle).parent / "build.json").read_text(encoding="utf-8"))["gate"]
        left_out = f", {passed['splits_left_out']} left out" if passed["splits_left_out"] else ""
        return f"LightGBM's bits in {passed['rows']} rows, at the edges of {passed['splits']} splits{left_out}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleRefused(f"bundle {bundle}: build.json beside the native library cannot be read") from error


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
    predictor = _predictor(bundle, manifest)
    check_golden(bundle, manifest, predictor)
    trees = read_trees(bundle / MODEL_TEXT, len(manifest.feature_names))
    explainer = Explainer(trees, manifest.feature_names, slope=manifest.calibration_slope)
    _check_explained(bundle, explainer)
    return Bundle(manifest, predictor, explainer)


def _predictor(bundle: Path, manifest: Manifest) -> Predictor:
    library = native_library(bundle)
    if not library.exists():
        return GtilPredictor(bundle / MODEL_TEXT)
    try:
        build = json.loads((library.parent / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleRefused(f"bundle {bundle}: build.json beside the native library cannot be read") from error
    # Never load a library before its checksum is known to be right: loading runs its code.
    if not isinstance(build, dict) or build.get("sha256") != sha256_of(library):
        raise BundleRefused(f"bundle {bundle}: the native library has a wrong checksum")
    if build.get("model_sha256") != manifest.files[MODEL_TEXT]:
        raise BundleRefused(f"bundle {bundle}: the native library was built from another model")
    return NativePredictor(library, len(manifest.feature_names))


def _check_files(bundle: Path, manifest: Manifest) -> None:
    for name in (MODEL_TEXT, GOLDEN):
        path = bundle / name
        if not path.is_file():
            raise BundleRefused(f"bundle {bundle}: {name} is missing")
        if sha256_of(path) != manifest.files.get(name):
            raise BundleRefused(f"bundle {bundle}: {name} has a wrong checksum")


def check_golden(bundle: Path, manifest: Manifest, predictor: Predictor) -> None:
    """Refuse a predictor that gives one golden vector another margin, to the bit."""
    try:
        with np.load(bundle / GOLDEN, allow_pickle=False) as golden:
            vectors, wanted = golden["vectors"], golden["margins"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise BundleRefused(f"bundle {bundle}: {GOLDEN} cannot be read: {error}") from error
    if vectors.dtype != np.float32 or vectors.shape != (len(wanted), len(manifest.feature_names)):
        raise BundleRefused(f"bundle {bundle}: {GOLDEN} does not fit the manifest")
    got = predictor.margins(np.ascontiguousarray(vectors))
    wrong = np.flatnonzero(got != wanted)
    if len(wrong):
        raise BundleRefused(
            f"bundle {bundle}: {len(wrong)} of {len(wanted)} golden vectors get another score, "
            f"the first is number {wrong[0]}"
        )
