"""Predictors turn vectors into margins: the protocol and its two implementations.

A margin is the model's raw score (log-odds before calibration), float64. Both implementations give the same bits as
LightGBM's own `predict(raw_score=True)`. The parity gate and the tests check it.

LightGBM takes a value of at most 1e-35, either side of 0, for 0 when it predicts. But it may put a split at 1e-35 or at
-1e-35 when it trains. Both implementations therefore replace such a value by 0 before they compare it.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.explanations import ZERO
from paywarden.schemas.errors import BundleRefused
from paywarden.schemas.file_state import read_regular

# A `ctypes.CDLL` would make a class for each library, which stays until the next garbage collection, and never unloads.
_MARGINS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
_COUNT = ctypes.CFUNCTYPE(ctypes.c_int32)


class Predictor(Protocol):
    """Margins of vectors. Not thread-safe."""

    native: bool

    def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns margins, (rows,). `vectors`: (rows, features), float32, C-contiguous; missing values are NaN."""
        ...


class NativePredictor:
    """A predictor that calls the compiled library. A call takes about a microsecond plus the trees."""

    native = True

    def __init__(self, library: Path, feature_count: int) -> None:
        """Load a library that models/bundle/compiler.py built. Raises BundleRefused when it does not load."""
        try:
            self._handle = _load(library, read_regular(library, None))
            self.address: int = _ctypes.dlsym(self._handle, "paywarden_margins")
            """The address of `void paywarden_margins(const float *rows, int64_t row_count, double *margins)`."""
            self._margins: Any = _MARGINS(self.address)
            self._leaves_at = _leaves_of(self._handle)
            self.tree_count = 0
            """How many trees `leaves_at` finds leaves of; 0 if the library cannot find them."""
            if self._leaves_at:
                self.tree_count = int(_COUNT(_ctypes.dlsym(self._handle, "paywarden_tree_count"))())
            built_for = int(_COUNT(_ctypes.dlsym(self._handle, "paywarden_feature_count"))())
        except OSError as error:
            raise BundleRefused(f"the native library {library.name} does not load: {error}") from error
        if built_for != feature_count:
            raise BundleRefused(f"the native library takes {built_for} features, the bundle has {feature_count}")

    def close(self) -> None:
        """Unload the library, unless another predictor has loaded the same file.

        No call may be in it, and functions of `bound` must not be called any more.
        """
        _ctypes.dlclose(self._handle)
        self._margins, self._leaves_at = _closed, 0

    def leaves_at(self) -> int:
        """Returns the address of `void paywarden_leaves(const float *row, uint8_t *found)`, for a library with trees.

        It fills a byte for each tree: the number of the leaf that the row reaches, from left to right.
        """
        assert self._leaves_at, "the library finds no leaves, or is unloaded"
        return self._leaves_at

    def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        result = np.empty(len(vectors))
        self._margins(_address(vectors), len(vectors), _address(result))
        return result

    def bound(self, vectors: NDArray[np.float32]) -> Callable[[int], list[float]]:
        """See the function `bound`. The returned function raises ValueError for more rows than `vectors` has."""
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        result = np.empty(len(vectors))
        call: Any = self._margins
        values: Any = result.data
        vectors_at, result_at = ctypes.c_void_p(vectors.ctypes.data), ctypes.c_void_p(result.ctypes.data)

        def margins_of(rows: int) -> list[float]:
            # Using the array here also keeps it alive.
            if not 0 <= rows <= len(vectors):
                raise ValueError(f"wanted 0 to {len(vectors)} rows, got {rows}")
            call(vectors_at, rows, result_at)
            margins: list[float] = values[:rows].tolist()
            return margins

        return margins_of


def bound(predictor: Predictor, vectors: NDArray[np.float32]) -> Callable[[int], list[float]]:
    """Returns a function that takes N and gives the margins of the first N rows, with their values at that time.

    For callers that reuse one array: preparing an array for the call takes a third of the time of a single row.
    `vectors`: as for `Predictor.margins`; the function keeps the array alive.
    """
    if isinstance(predictor, NativePredictor):
        return predictor.bound(vectors)
    return lambda rows: predictor.margins(vectors[:rows]).tolist()


def _closed(*_: object) -> None:
    raise AssertionError("the library is unloaded")


def _address(array: NDArray[Any]) -> int:
    """Returns the address of an array. NumPy's `ctypes.data` takes 0.75 µs, a tenth of the time of a single row."""
    if array.size and array.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return array.ctypes.data


def _leaves_of(handle: int) -> int:
    """Returns the address of paywarden_leaves; 0 if the library walks a table of nodes, and has none."""
    try:
        return int(_ctypes.dlsym(handle, "paywarden_leaves"))
    except OSError:
        return 0


def _load(library: Path, content: bytes) -> int:
    """Load a library, whose file holds `content`. For a path it has loaded before, the loader returns the old one.

    The loader maps the file. If somebody writes over that file, or cuts it short, the code of a running process
    changes, or touching it kills the process (SIGBUS); and so it does in each process that is forked from this one.
    This process therefore loads a copy in memory that no other process has.
    """
    copy = _copied(library.name, content)
    if copy is not None:
        try:
            if handle := _opened(f"/proc/self/fd/{copy}", library.name):
                return handle
        finally:
            os.close(copy)
    # Some systems load nothing from there.
    handle = _opened(library.resolve(), library.name)
    # The second attempt raises the error.
    return handle or int(_ctypes.dlopen(str(library.resolve()), ctypes.DEFAULT_MODE))


def _opened(file: Path | str, name: str) -> int:
    """Returns the loader's handle of a library, under a path that it has not seen yet; 0 if it does not load."""
    with tempfile.TemporaryDirectory(prefix="paywarden-load-") as folder:
        # The link can be deleted at once, because the loader has opened the file.
        link = Path(folder) / name
        link.symlink_to(file)
        # Without the interpreter's lock, which `_ctypes.dlopen` holds: a worker answers payments meanwhile.
        handle = _dlopen()(str(link).encode(), ctypes.DEFAULT_MODE | os.RTLD_NOW)
        return int(handle or 0)


def _copied(name: str, content: bytes) -> int | None:
    """Returns the descriptor of a file in memory with this content; None where there are no such files."""
    try:
        descriptor = os.memfd_create(name)
    except OSError:
        return None
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@cache
def _dlopen() -> Any:
    """Returns the loader's `dlopen`, as a function that does not hold the interpreter's lock."""
    function = ctypes.CDLL(None).dlopen
    function.argtypes, function.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    return function


class GtilPredictor:
    """A predictor that uses Treelite's interpreter, GTIL. It needs no compiler; one row takes about 25 times longer."""

    native = False

    def __init__(self, model_text: Path) -> None:
        """Load a LightGBM text model. Raises BundleRefused if Treelite cannot read it or is not installed."""
        # Imported here: Treelite imports SciPy, and a scoring host with a native library needs neither.
        try:
            import treelite
        except ModuleNotFoundError as error:
            raise BundleRefused(
                f"{model_text} has no native library for this machine, and the interpreter for models without one is "
                "not installed: pip install 'paywarden[compile]'"
            ) from error
        self._predict = treelite.gtil.predict
        try:
            self._model = treelite.frontend.load_lightgbm_model(str(model_text))
        except treelite.TreeliteError as error:
            raise BundleRefused(f"{model_text.name} is not a LightGBM model: {error}") from error

    def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        # Thresholds are float64. Widening the values keeps every comparison; narrowing the thresholds would not.
        rows = np.array(vectors, dtype=np.float64, order="C")
        rows[np.abs(rows) <= ZERO] = 0.0
        margins = self._predict(self._model, rows, pred_margin=True, nthread=1)
        return np.asarray(margins, dtype=np.float64).reshape(len(vectors))
