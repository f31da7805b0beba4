from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paywarden.models.bundle import bitvectors
from paywarden.models.bundle.bundle import (
    GOLDEN,
    MANIFEST,
    MODEL_TEXT,
    build_native,
    calibrated,
    load_bundle,
    native_library,
    parity_summary,
    sha256_of,
)
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.predictor import NativePredictor
from paywarden.schemas.errors import BundleRefused, Misconfigured
from tests.services.missing_tools import COMPILER
from tests.services.product.processes import run_program
from tests.worlds.small import small_world

needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)
DIGEST = small_world.engine().plan.digest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_world.copied_bundle(tmp_path)


def refusal(bundle: Path, digest: str = DIGEST) -> str:
    """Returns the message, a single line, with which a bundle is refused."""
    with pytest.raises(BundleRefused) as caught:
        load_bundle(bundle, catalogue_digest=digest)
    line = str(caught.value)
    assert "\n" not in line
    return line


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_golden(bundle: Path, **arrays: Any) -> None:
    """Replace the golden file and update its checksum."""
    np.savez(bundle / GOLDEN, **arrays)
    edit_manifest(bundle, lambda manifest: manifest["files"].update({GOLDEN: sha256_of(bundle / GOLDEN)}))


def golden_of(bundle: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with np.load(bundle / GOLDEN) as golden:
        return golden["vectors"], golden["margins"]


def test_a_bundle_that_was_trained_with_another_identity_key_is_refused(bundle: Path) -> None:
    own = small_world.engine().plan.key.digest
    load_bundle(bundle, catalogue_digest=DIGEST, identity_digest=own)
    with pytest.raises(BundleRefused, match=f"identity key of digest {own}, this one has other: set the same"):
        load_bundle(bundle, catalogue_digest=DIGEST, identity_digest="other")


def test_a_bundle_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    vectors = small_world.table().vectors
    wanted = small_world.loaded_bundle().score(vectors)
    elsewhere = tmp_path / "some where" / "else"
    shutil.copytree(bundle, elsewhere)
    shutil.rmtree(bundle)
    assert np.array_equal(load_bundle(elsewhere, catalogue_digest=DIGEST).score(vectors), wanted)


def test_without_a_library_the_same_scores_come_from_gtil_to_the_bit(bundle: Path) -> None:
    shutil.rmtree(bundle / "native")
    loaded = load_bundle(bundle, catalogue_digest=DIGEST)
    assert not loaded.predictor.native
    vectors = small_world.table().vectors
    assert np.array_equal(loaded.score(vectors), small_world.loaded_bundle().score(vectors))


def test_a_closed_bundle_leaves_no_library_behind_and_can_be_loaded_again(bundle: Path) -> None:
    def libraries() -> set[str]:
        """Returns the inodes of mapped copies of libraries; other tests have loaded some."""
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        return {line.split()[4] for line in lines if "memfd:model.so" in line}

    before = libraries()
    for _ in range(3):
        loaded = load_bundle(bundle, catalogue_digest=DIGEST)
        assert len(libraries() - before) == int(loaded.predictor.native)
        loaded.close()
        assert libraries() == before
    with pytest.raises(AssertionError, match="unloaded"):
        loaded.predictor.margins(np.zeros((1, len(loaded.manifest.feature_names)), dtype=np.float32))


def test_files_that_are_cut_short_harm_no_process_that_has_loaded_them(bundle: Path) -> None:
    """Its workers were killed (SIGBUS), and so was each that was started in their place."""
    program = """
import os, sys
from pathlib import Path
from paywarden.models.bundle.bundle import golden_payments, load_bundle
folder = Path(sys.argv[1])
loaded, rows = load_bundle(folder, catalogue_digest=sys.argv[2]), golden_payments(folder)
before = loaded.score(rows).tolist(), [loaded.explainer.reasons(row, 4) for row in rows]
for path in folder.rglob("*"):
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, 0)
        path.write_bytes(bytes(len(content) // 2))
assert (loaded.score(rows).tolist(), [loaded.explainer.reasons(row, 4) for row in rows]) == before
print("well")
"""
    done = run_program(program, str(bundle), DIGEST)
    assert (done.returncode, done.stdout.strip()) == (0, "well"), done.stderr


@needs_compiler
def test_compile_repairs_a_damaged_library(bundle: Path) -> None:
    native_library(bundle).write_bytes(b"no library")
    build_native(bundle)
    assert load_bundle(bundle, catalogue_digest=DIGEST).predictor.native


@needs_compiler
def test_a_library_that_is_wrong_only_at_a_split_is_refused_and_deleted(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thresholds rounded to the nearest float32, all golden vectors keep their scores. A later payment may not."""
    monkeypatch.setattr(bitvectors, "_float_below", lambda value: float(np.float32(value)))
    with pytest.raises(BundleRefused, match=r"differently from LightGBM \(rows at the edges of splits\)"):
        build_native(bundle)
    assert not native_library(bundle).exists()
    assert not load_bundle(bundle, catalogue_digest=DIGEST).predictor.native


@needs_compiler
def test_the_parity_summary_says_what_a_library_passed(bundle: Path) -> None:
    build_native(bundle)
    assert re.fullmatch(r"LightGBM's bits in \d+ rows, at the edges of \d+ splits", parity_summary(bundle))
    (native_library(bundle).parent / "build.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleRefused, match=r"build\.json"):
        parity_summary(bundle)


def test_a_missing_bundle_or_manifest_is_refused(tmp_path: Path, bundle: Path) -> None:
    assert "there is no manifest.json" in refusal(tmp_path / "nowhere")
    (bundle / MANIFEST).unlink()
    assert "there is no manifest.json" in refusal(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"null"])
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    assert "manifest" in refusal(bundle)


def test_a_manifest_with_an_unknown_key_is_refused_with_its_name(bundle: Path) -> None:
    edit_manifest(bundle, lambda manifest: manifest.update(surprise=1))
    assert "lacks fields, or has unknown ones: surprise" in refusal(bundle)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("calibration_slope", "1.0"),
        ("calibration_intercept", math.nan),
        ("review_at", None),
        ("feature_names", "amount"),
        ("feature_names", [1, 2]),
        ("training_payments", 1.5),
        ("files", []),
        ("files", {"model.txt": 3}),
        ("metrics", {"auc_roc": math.inf}),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_at_start(bundle: Path, name: str, value: object) -> None:
    edit_manifest(bundle, lambda manifest: manifest.update({name: value}))
    assert refusal(bundle).endswith(f"manifest.json has something unusable as {name}")


@pytest.mark.parametrize("name", [MODEL_TEXT, GOLDEN])
def test_a_missing_file_is_refused_with_its_name(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"{name} is missing" in refusal(bundle)


@pytest.mark.parametrize("name", [MODEL_TEXT, GOLDEN])
def test_a_file_with_one_other_byte_is_refused_with_its_name(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert f"{name} has a wrong checksum" in refusal(bundle)


def test_a_bundle_of_another_catalogue_is_refused_with_both_digests(bundle: Path) -> None:
    line = refusal(bundle, digest="0123456789abcdef")
    assert DIGEST in line
    assert "0123456789abcdef" in line


def test_a_model_that_is_no_lightgbm_model_is_refused(bundle: Path) -> None:
    shutil.rmtree(bundle / "native")
    (bundle / MODEL_TEXT).write_text("tree\nbut nothing else\n", encoding="utf-8")
    edit_manifest(bundle, lambda manifest: manifest["files"].update({MODEL_TEXT: sha256_of(bundle / MODEL_TEXT)}))
    assert "is not a LightGBM model" in refusal(bundle)


@needs_compiler
def test_a_library_with_a_wrong_checksum_is_refused_before_it_is_loaded(bundle: Path) -> None:
    library = native_library(bundle)
    library.write_bytes(library.read_bytes() + b"\0")
    assert "the native library has a wrong checksum" in refusal(bundle)


@needs_compiler
def test_a_library_without_a_build_note_is_refused(bundle: Path) -> None:
    (native_library(bundle).parent / "build.json").unlink()
    assert "build.json beside the native library cannot be read" in refusal(bundle)


@needs_compiler
def test_a_library_built_from_another_model_is_refused(bundle: Path) -> None:
    note = native_library(bundle).parent / "build.json"
    build = json.loads(note.read_text(encoding="utf-8"))
    note.write_text(json.dumps({**build, "model_sha256": "0" * 64}), encoding="utf-8")
    assert "the native library was built from another model" in refusal(bundle)


@needs_compiler
def test_a_library_for_another_number_of_features_is_refused(bundle: Path) -> None:
    features = len(small_world.engine().plan.names)
    with pytest.raises(BundleRefused, match=f"takes {features} features, the bundle has {features + 1}"):
        NativePredictor(native_library(bundle), features + 1)


def test_a_golden_vector_with_another_margin_is_refused_to_the_bit(bundle: Path) -> None:
    vectors, margins = golden_of(bundle)
    margins[7] = np.nextafter(margins[7], np.inf)
    write_golden(bundle, vectors=vectors, margins=margins)
    assert "1 of 1024 golden vectors get another score, the first is number 7" in refusal(bundle)


def test_golden_vectors_of_another_width_or_type_are_refused(bundle: Path) -> None:
    vectors, margins = golden_of(bundle)
    for wrong in (vectors[:, 1:], vectors.astype(np.float64), vectors[1:]):
        write_golden(bundle, vectors=wrong, margins=margins)
        assert "golden.npz does not fit the manifest" in refusal(bundle)


def test_an_unreadable_golden_file_is_refused(bundle: Path) -> None:
    write_golden(bundle, something=np.zeros(3))
    assert "golden.npz cannot be read" in refusal(bundle)
    (bundle / GOLDEN).write_bytes(b"not a zip file")
    edit_manifest(bundle, lambda manifest: manifest["files"].update({GOLDEN: sha256_of(bundle / GOLDEN)}))
    assert "golden.npz cannot be read" in refusal(bundle)


def test_compile_without_a_compiler_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match="there is no C compiler"):
        build_native(bundle)


@pytest.mark.parametrize("complaint", ["exit 1", 'case "$*" in *--version*) exit 0;; esac; echo wrong >&2; exit 1'])
def test_a_compiler_that_fails_is_one_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, complaint: str
) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text(f"#!/bin/sh\n{complaint}\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(BundleRefused, match=r"^model\.txt does not compile with gcc: [^\n]+\Z"):
        build_native(bundle)


def test_calibration_is_monotonous_and_never_overflows() -> None:
    margins = np.array([-1e300, -1e4, -3.0, 0.0, 3.0, 1e4, 1e300])
    scores = calibrated(margins, 1.5, -0.5)
    assert np.all(np.diff(scores) >= 0)
    assert scores[0] == 0.0
    assert scores[-1] == 1.0
    assert scores[3] == 1.0 / (1.0 + math.exp(0.5))
