"""Compile a LightGBM text model to a native library.

How it works:

1. Treelite reads the text model.
2. If every tree has at most 64 leaves and only numerical nodes, models/bundle/bitvectors.py writes C. Its code takes a
   third of the time of the other generator's.
3. Otherwise TL2cgen writes C: nested conditions, one for each node. A few lines of C of our own go into the same
   library, because TL2cgen's `predict` adds to its result, overwrites its input when it quantises, and marks a
   missing value in the low half of an 8-byte entry.
4. Our lines loop over rows, so that Python makes one call for one row or a million. They take all rows of a block
   through one part of the trees before the next part. That is a quarter faster than row by row, and each row's sum has
   the same bits.
5. gcc or clang compiles the C. A rename puts the library in its place as a whole.

Example: 300 trees of 63 leaves become bit vectors with 18,600 thresholds and masks. One categorical node in any tree
makes the whole model nested conditions, in 8 units of about 38 trees each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tl2cgen
import treelite

from paywarden.models.bundle import bitvectors
from paywarden.schemas.errors import BundleRefused, Misconfigured

BIT_VECTORS, TL2CGEN = "bit vectors", "tl2cgen"
GENERATORS = (BIT_VECTORS, TL2CGEN)
# Contraction (fused multiply-add) would give different scores on different CPU architectures.
COMPILER_OPTIONS = ("-O2", "-ffp-contract=off")

# The rows that pass through a unit's trees before the next unit's. A unit's code stays in the level-1 cache meanwhile.
BLOCK_ROWS = 64

_ROWS_C = """
#include "header.h"
#include <stdint.h>

#define FEATURE_COUNT {feature_count}
#define BLOCK_ROWS {block_rows}
#define ZERO 1e-35f

{quantisation}
typedef void (*unit)(union Entry*, double*);
static const unit units[] = {{ {units} }};

int32_t paywarden_feature_count(void) {{ return FEATURE_COUNT; }}

/* A float widened to double never looks missing. LightGBM takes values as small as ZERO for 0. */
static void fill(const float* row, union Entry* entry) {{
  for (int feature = 0; feature < FEATURE_COUNT; ++feature) {{
    const float value = row[feature] >= -ZERO && row[feature] <= ZERO ? 0.0f : row[feature];
    if (value != value) {{
      entry[feature].fvalue = 0.0;
      entry[feature].missing = -1;
    }} else {{
      entry[feature].fvalue = value;
      QUANTISE(entry[feature], value, feature);
    }}
  }}
}}

/* rows: row_count x FEATURE_COUNT floats, NaN is missing. Each row adds up its trees in their order. */
void paywarden_margins(const float* rows, int64_t row_count, double* margins) {{
  static __thread union Entry block[BLOCK_ROWS][FEATURE_COUNT];
  for (int64_t first = 0; first < row_count; first += BLOCK_ROWS) {{
    const int64_t count = row_count - first < BLOCK_ROWS ? row_count - first : BLOCK_ROWS;
    for (int64_t row = 0; row < count; ++row) {{
      fill(rows + (first + row) * FEATURE_COUNT, block[row]);
      margins[first + row] = 0.0;
    }}
    for (unsigned number = 0; number < sizeof units / sizeof *units; ++number)
      for (int64_t row = 0; row < count; ++row) units[number](block[row], &margins[first + row]);
  }}
}}
"""


_QUANTISED = """extern const unsigned char is_categorical[];
#define QUANTISE(entry, value, feature) if (!is_categorical[feature]) (entry).qvalue = quantize(value, feature)"""
# A model without numerical nodes has no thresholds, and TL2cgen writes no function `quantize`.
_NOT_QUANTISED = "#define QUANTISE(entry, value, feature)"

# TL2cgen replaces each value by its rank among the model's thresholds, and compares ranks. It writes the trees in this
# many parts: they are compiled in parallel, and a block of rows passes through one after the other.
_UNITS = 8


def compiler_name() -> str | None:
    """Returns the name of this machine's C compiler, gcc or clang; None without one."""
    return next((name for name in ("gcc", "clang") if shutil.which(name)), None)


def compile_library(model_text: Path, feature_count: int, destination: Path, *, generator: str = "") -> str:
    """Compile a LightGBM text model and return which of GENERATORS wrote the C.

    Without `generator`, bit vectors are used if the model allows it. Raises Misconfigured without a compiler or a
    writable destination, BundleRefused if the model does not compile.
    """
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
                model = treelite.frontend.load_lightgbm_model(str(model_text))
                vectors = bitvectors.source_of(model, feature_count) if generator != TL2CGEN else None
                if vectors is None and generator == BIT_VECTORS:
                    raise BundleRefused(
                        f"{model_text.name} has trees of over {bitvectors.LEAVES_MAX} leaves, or categorical nodes"
                    )
                source = Path(folder) / "source"
                if vectors is not None:
                    library = _build_vectors(vectors, source, compiler)
                else:
                    library = _build_conditions(model, feature_count, source, compiler)
        except (treelite.TreeliteError, tl2cgen.TL2cgenError, ValueError) as error:
            # A ValueError holds the compiler's message, or TL2cgen's about a compiler that prints no version.
            reason = (str(error).splitlines() or [""])[0]
            raise BundleRefused(f"{model_text.name} does not compile with {compiler}: {reason}") from error
        # A rename is atomic, and does not disturb a process that has loaded an older library.
        unfinished = destination.with_suffix(".unfinished")
        shutil.copyfile(library, unfinished)
        os.replace(unfinished, destination)
    return TL2CGEN if vectors is None else BIT_VECTORS


def _build_vectors(text: str, source: Path, compiler: str) -> Path:
    source.mkdir()
    (source / "vectors.c").write_text(text, encoding="utf-8")
    library = source / "vectors.so"
    command = [compiler, *COMPILER_OPTIONS, "-shared", "-fPIC", "-o", str(library), str(source / "vectors.c")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip() or f"it ended with {done.returncode}")
    return library


def _build_conditions(model: treelite.Model, feature_count: int, source: Path, compiler: str) -> Path:
    params = {"quantize": 1, "parallel_comp": min(_UNITS, model.num_tree)}
    tl2cgen.generate_c_code(model, dirpath=source, params=params)
    # TL2cgen may write fewer units than requested: it splits the trees evenly.
    header = (source / "header.h").read_text(encoding="utf-8")
    units = ", ".join(re.findall(r"\bpredict_unit\d+\b", header))
    quantisation = _QUANTISED if "quantize(" in header else _NOT_QUANTISED
    rows = _ROWS_C.format(feature_count=feature_count, block_rows=BLOCK_ROWS, units=units, quantisation=quantisation)
    (source / "rows.c").write_text(rows, encoding="utf-8")
    recipe = json.loads((source / "recipe.json").read_text(encoding="utf-8"))
    recipe["sources"].append({"name": "rows", "length": len(rows.splitlines())})
    (source / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    return Path(
        tl2cgen.create_shared(
            compiler, source, nthread=os.cpu_count(), options=[*COMPILER_OPTIONS], long_build_time_warning=False
        )
    )


@contextlib.contextmanager
def _native_output(log: Path) -> Iterator[None]:
    """Redirect the libraries' notices of versions and progress to a file instead of the terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    with log.open("wb") as sink, contextlib.redirect_stdout(io.StringIO()):
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
