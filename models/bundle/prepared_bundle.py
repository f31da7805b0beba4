"""A checked bundle in a form that a serving process loads in a millisecond or two.

    FOLDER/bundle/        a copy of the bundle: the checks were made on the copy
    FOLDER/prepared.json  the manifest, its digest, and which files below belong to which model, with their checksums
    FOLDER/LARGE.*.npy    the trees of the explainer, as arrays, and some golden vectors with their margins

`load_bundle` parses the model's text and computes checksums: some 100 ms of Python. A process beside the workers does
that once (`prepare_bundle`). A serving process then reads the library and the arrays (`load_prepared`). The copy
matters: the process loads the very bytes that were checked, whatever happens to the bundle later.

The supervisor of a host loads it, and its workers inherit it. The arrays and the explainer's records have pages of
their own: the workers share them, and a bundle that is dropped leaves no holes in the heap. Nothing of a file is
mapped: one that is cut short, or written over, harms no process that has loaded it. Compiled code follows the arrays
without a check, so a file that has changed is refused.
"""

from __future__ import annotations

import json
import mmap
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import (
    FIRST,
    LARGE,
    MANIFEST,
    Bundle,
    Manifest,
    ModelPart,
    golden_margins,
    load_bundle,
    native_library,
    read_manifest,
    sha256_of,
)
from paywarden.models.bundle.cascade import Cascade, CascadeExplainer, CascadePredictor
from paywarden.models.bundle.explanations import Explainer, Trees, read_trees
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor, Predictor
from paywarden.models.bundle.signature import BUILD, SIGNATURE, TrustedKeys
from paywarden.models.bundle.stored_arrays import UNREADABLE
from paywarden.schemas.checked_text import with_checksum, without_checksum
from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.file_state import open_regular, read_regular
from paywarden.schemas.private_files import require_unwritable

_FORMAT = 1
_PREPARED, _COPY = "prepared.json", "bundle"
_TREES = ("nodes", "thresholds", "changes", "roots", "sets", "set_bounds")
# Golden vectors that the loading process tries: enough to touch the pages of the library.
_TRIED_ROWS = 64
_STEP_BYTES = 1 << 18


@dataclass(frozen=True)
class PreparedBundle:
    """A bundle and the digest of its manifest, which would take milliseconds to compute again."""

    bundle: Bundle
    digest: str


def prepare_bundle(
    bundle: Path,
    folder: Path,
    *,
    catalogue_digest: str,
    identity_digest: str,
    trusted: TrustedKeys | None,
    build_missing: Callable[[Path, TrustedKeys | None], bool],
) -> Manifest:
    """Copy a bundle into `folder`, check the copy as `load_bundle` does, and write the form that loads quickly.

    `build_missing` builds the libraries that the copy lacks for this machine. Returns the manifest. Raises
    BundleRefused naming the bundle and the first problem, and OSError if it cannot be copied.
    """
    manifest = read_manifest(bundle)
    copy = folder / _COPY
    try:
        _copy(bundle, manifest, copy)
        built = build_missing(copy, trusted)
        load_bundle(
            copy,
            catalogue_digest=catalogue_digest,
            identity_digest=identity_digest,
            trusted=trusted,
            built_here=built,
        ).close()
    except BundleRefused as error:
        raise BundleRefused(str(error).replace(str(copy), str(bundle))) from error
    parts = {}
    for part in manifest.parts:
        name = part.folder or "large"
        trees = read_trees(copy / part.model_text, len(manifest.feature_names))
        for array in _TREES:
            np.save(folder / f"{name}.{array}.npy", getattr(trees, array), allow_pickle=False)
        vectors, margins = golden_margins(copy, part)
        np.save(folder / f"{name}.vectors.npy", vectors[:_TRIED_ROWS], allow_pickle=False)
        np.save(folder / f"{name}.margins.npy", margins[:_TRIED_ROWS], allow_pickle=False)
        library = native_library(copy, part)
        checksums = {file: _checksum_of(folder / file) for file in _files_of(name)}
        parts[name] = {"base": trees.base, "native": library.exists(), "checksums": checksums}
        if library.exists():
            parts[name]["crc32"] = zlib.crc32(library.read_bytes())
    content = {"format": _FORMAT, "digest": manifest.digest, "manifest": asdict(manifest), "parts": parts}
    (folder / _PREPARED).write_text(with_checksum(json.dumps(content)), encoding="utf-8")
    return manifest


def load_prepared(folder: Path) -> PreparedBundle:
    """Load the files that `prepare_bundle` wrote into a private folder, and try some golden vectors.

    Raises BundleRefused if it is gone, damaged, or another user may write to it.
    """
    try:
        text = without_checksum(read_regular(folder / _PREPARED).decode("utf-8"))
        content: dict[str, Any] = json.loads(text)
        if content["format"] != _FORMAT:
            raise BundleRefused(f"prepared bundle {folder}: wanted format {_FORMAT}, got {content['format']}")
        manifest = Manifest(**content["manifest"])
        predictor, explainer = _part(folder, manifest, LARGE, content, slope=manifest.calibration_slope)
        if not manifest.cascade:
            return PreparedBundle(Bundle(manifest, predictor, explainer), content["digest"])
        cascade = Cascade.of_record(manifest.cascade)
        first, first_explainer = _part(folder, manifest, FIRST, content, slope=cascade.calibration_slope)
    except (*UNREADABLE, AttributeError, RecursionError) as error:
        raise BundleRefused(f"prepared bundle {folder}: it is gone or damaged: {error}") from error
    both = CascadePredictor(
        first, predictor, cascade, slope=manifest.calibration_slope, intercept=manifest.calibration_intercept
    )
    return PreparedBundle(Bundle(manifest, both, CascadeExplainer(both, first_explainer, explainer)), content["digest"])


def _copy(bundle: Path, manifest: Manifest, copy: Path) -> None:
    """Copy the files that serving needs. A file that is missing is left out: the check of the copy names it."""
    copy.mkdir(parents=True)
    names = [MANIFEST, SIGNATURE, *(name for part in manifest.parts for name in (part.model_text, part.golden))]
    # A signature covers the records of all machines' libraries, this machine needs its own libraries alone.
    names += [path.relative_to(bundle).as_posix() for path in bundle.glob(f"native/**/{BUILD}")]
    names += [native_library(Path(), part).as_posix() for part in manifest.parts]
    for name in names:
        if (bundle / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, copy / name)


def _part(
    folder: Path,
    manifest: Manifest,
    part: ModelPart,
    content: dict[str, Any],
    *,
    slope: float,
) -> tuple[Predictor, Explainer]:
    name, copy = part.folder or "large", folder / _COPY
    told = content["parts"][name]
    predictor: Predictor
    if told["native"]:
        library = native_library(copy, part)
        try:
            require_unwritable(library)
        except Misconfigured as error:
            raise BundleRefused(f"prepared bundle {folder}: its library is not loaded: {error}") from error
        # To load a part of a library kills the process.
        code = read_regular(library, None)
        if zlib.crc32(code) != told["crc32"]:
            raise BundleRefused(f"prepared bundle {folder}: its library {library.name} is damaged")
        predictor = NativePredictor(library, len(manifest.feature_names), content=code)
    else:
        if sha256_of(copy / part.model_text) != manifest.files[part.model_text]:
            raise BundleRefused(f"prepared bundle {folder}: its {part.model_text} is damaged")
        predictor = GtilPredictor(copy / part.model_text)
    for file, wanted in told["checksums"].items():
        if _checksum_of(folder / file) != wanted:
            raise BundleRefused(f"prepared bundle {folder}: its {file} is damaged")
    with open_regular(folder / f"{name}.vectors.npy") as file:
        vectors = np.load(file, allow_pickle=False)
    with open_regular(folder / f"{name}.margins.npy") as file:
        margins = np.load(file, allow_pickle=False)
    if predictor.margins(np.ascontiguousarray(vectors)).tolist() != margins.tolist():
        raise BundleRefused(f"prepared bundle {folder}: golden vectors get another score")
    arrays = {}
    for array in _TREES:
        arrays[array] = _paged(folder / f"{name}.{array}.npy")
    leaves = predictor if isinstance(predictor, NativePredictor) else None
    trees = Trees(**arrays, base=told["base"])
    explainer = Explainer(trees, manifest.feature_names, slope=slope, leaves=leaves)
    if len(vectors):
        explainer.reasons(np.ascontiguousarray(vectors[0]), 1)
    return predictor, explainer


def _files_of(name: str) -> list[str]:
    """Returns the names of the files of arrays of a model."""
    return [f"{name}.{array}.npy" for array in (*_TREES, "vectors", "margins")]


def _checksum_of(path: Path) -> int:
    found = 0
    with open_regular(path) as file:
        while step := file.read(_STEP_BYTES):
            found = zlib.crc32(step, found)
    return found


def _paged(path: Path) -> NDArray[Any]:
    """Returns the array of a file, in pages of its own: a file that is cut short later does not kill the process."""
    open_regular(path).close()
    described: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    assert isinstance(described, np.memmap)
    pages = mmap.mmap(-1, max(1, described.nbytes))
    with open_regular(path) as file:
        file.seek(described.offset)
        if file.readinto(memoryview(pages)[: described.nbytes]) != described.nbytes:
            raise ValueError(f"{path.name} is shorter than it says")
    order: Literal["C", "F"] = "C" if described.flags.c_contiguous else "F"
    return np.frombuffer(pages, described.dtype, described.size).reshape(described.shape, order=order)
