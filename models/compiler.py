"""LightGBM text model to native library: Treelite, TL2cgen, the C compiler.

TL2cgen's `predict` adds into its result, overwrites its input when it quantises, and marks a missing value in
the low half of an 8-byte entry. A few lines of C of our own, compiled into the same library, hide all three
and loop over rows, so that Python makes one call for one row or a million.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tl2cgen
import treelite

from schemas.errors import BundleRefused, Misconfigured

# Contraction (fused multiply-add) would make scores differ between CPU architectures.
COMPILER_OPTIONS = ["-O2", "-ffp-contract=off"]
TRANSLATION_UNITS = 8

_ROWS_C = """
#include "header.h"
#include <stdint.h>

#define FEATURE_COUNT {feature_count}

int32_t paywarden_feature_count(void) {{ return FEATURE_COUNT; }}

/* rows: row_count x FEATURE_COUNT floats, NaN is missing. A float widened to double never looks missing. */
void paywarden_margins(const float* rows, int64_t row_count, double* margins) {{
  union Entry entry[FEATURE_COUNT];
  for (int64_t row = 0; row < row_count; ++row) {{
    for (int feature = 0; feature < FEATURE_COUNT; ++feature) {{
      const float value = rows[row * FEATURE_COUNT + feature];
      if (value != value) {{
        entry[feature].fvalue = 0.0;
        entry[feature].missing = -1;
      }} else {{
        entry[feature].fvalue = value;
      }}
    }}
    margins[row] = 0.0;
    predict(entry, 1, &margins[row]);
  }}
}}
"""


def compiler_name() -> str | None:
    """The C compiler there is on this machine, or None."""
    return next((name for name in ("gcc", "clang") if shutil.which(name)), None)


def compile_library(model_text: Path, feature_count: int, destination: Path) -> None:
    """Compile a LightGBM text model. Raises Misconfigured without a compiler, BundleRefused when it fails."""
    compiler = compiler_name()
    if compiler is None:
        raise Misconfigured("there is no C compiler (gcc or clang) on this machine")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"cannot write a library to {destination.parent}: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="paywarden-compile-") as folder:
        try:
            with _native_output(Path(folder) / "log"):
                library = _build(model_text, feature_count, Path(folder) / "source", compiler)
        except (treelite.TreeliteError, tl2cgen.TL2cgenError, ValueError) as error:
            # A ValueError is TL2cgen's word for a compiler that does not even tell its version.
            reason = (str(error).splitlines() or [""])[0]
            raise BundleRefused(f"{model_text.name} does not compile with {compiler}: {reason}") from error
        # The rename makes the library appear whole or not at all, and leaves a loaded older one alone.
        unfinished = destination.with_suffix(".unfinished")
        shutil.copyfile(library, unfinished)
        os.replace(unfinished, destination)


def _build(model_text: Path, feature_count: int, source: Path, compiler: str) -> Path:
    model = treelite.frontend.load_lightgbm_model(str(model_text))
    params = {"quantize": 1, "parallel_comp": min(TRANSLATION_UNITS, model.num_tree)}
    tl2cgen.generate_c_code(model, dirpath=source, params=params)
    rows = _ROWS_C.format(feature_count=feature_count)
    (source / "rows.c").write_text(rows, encoding="utf-8")
    recipe = json.loads((source / "recipe.json").read_text(encoding="utf-8"))
    recipe["sources"].append({"name": "rows", "length": len(rows.splitlines())})
    (source / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    return Path(
        tl2cgen.create_shared(
            compiler, source, nthread=os.cpu_count(), options=COMPILER_OPTIONS, long_build_time_warning=False
        )
    )


@contextlib.contextmanager
def _native_output(log: Path) -> Iterator[None]:
    """Keep what the libraries print to the terminal out of it: notices of version and progress."""
    sys.stderr.flush()
    saved = os.dup(2)
    with log.open("wb") as sink, contextlib.redirect_stdout(io.StringIO()):
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
