"""Compile a LightGBM text model to a native library.

How it works:

1. Treelite reads the text model.
2. If every tree has at most 64 leaves and only numerical nodes, models/bundle/bitvectors.py writes C.
3. Otherwise models/bundle/tree_walk.py writes C: a table of nodes that each row walks.
4. The C loops over rows, so that Python makes one call for one row or a million.
5. gcc or clang compiles the C. A rename puts the library in its place as a whole.

Example: 300 trees of 63 leaves become bit vectors with 18,600 thresholds and masks. One categorical node in any tree
makes the whole model a table of 37,500 nodes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import treelite

from paywarden.models.bundle import bitvectors, tree_walk
from paywarden.schemas.errors import BundleRefused, Misconfigured

BIT_VECTORS, WALK = "bit vectors", "walk"
GENERATORS = (BIT_VECTORS, WALK)
# Contraction (fused multiply-add) would give different scores on different CPU architectures.
COMPILER_OPTIONS = ("-O2", "-ffp-contract=off")


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
                vectors = bitvectors.source_of(model, feature_count) if generator != WALK else None
                if vectors is None and generator == BIT_VECTORS:
                    raise BundleRefused(
                        f"{model_text.name} has trees of over {bitvectors.LEAVES_MAX} leaves, or categorical nodes"
                    )
                text = tree_walk.source_of(model, feature_count) if vectors is None else vectors
                library = _build(text, Path(folder), compiler)
        except (treelite.TreeliteError, ValueError) as error:
            # A ValueError holds the compiler's message.
            reason = (str(error).splitlines() or [""])[0]
            raise BundleRefused(f"{model_text.name} does not compile with {compiler}: {reason}") from error
        # A rename is atomic, and does not disturb a process that has loaded an older library.
        unfinished = destination.with_suffix(".unfinished")
        shutil.copyfile(library, unfinished)
        os.replace(unfinished, destination)
    return WALK if vectors is None else BIT_VECTORS


def _build(text: str, folder: Path, compiler: str) -> Path:
    source, library = folder / "trees.c", folder / "trees.so"
    source.write_text(text, encoding="utf-8")
    command = [compiler, *COMPILER_OPTIONS, "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip() or f"it ended with {done.returncode}")
    return library


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
