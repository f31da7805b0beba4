from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from paywarden.models.bundle.bundle import native_library
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor
from paywarden.schemas.errors import BundleRefused
from tests.services.missing_tools import COMPILER
from tests.worlds.small import small_world

FEATURES = len(small_world.engine().plan.names)
needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)


def test_a_library_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match=r"model\.so does not load"):
        NativePredictor(tmp_path / "model.so", FEATURES)


@needs_compiler
def test_where_there_are_no_files_in_memory_the_library_itself_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(_: str) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", none_here)
    predictor = NativePredictor(native_library(small_world.trained_bundle()), FEATURES)
    assert predictor.margins(np.zeros((1, FEATURES), dtype=np.float32)).shape == (1,)
    # Nothing that is mapped from there can be run, as in some sandboxes.
    empty = os.open(os.devnull, os.O_RDWR)
    monkeypatch.setattr(os, "memfd_create", lambda _: os.dup(empty))
    NativePredictor(native_library(small_world.trained_bundle()), FEATURES)
    os.close(empty)


def test_text_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "model.txt"
    for content in ("", "hello\n", "tree\nversion=v4\nnum_class=1\n"):
        text.write_text(content, encoding="utf-8")
        with pytest.raises(BundleRefused, match=r"model\.txt is not a LightGBM model"):
            GtilPredictor(text)
