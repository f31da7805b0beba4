"""What turns vectors into margins: the port, and its two implementations.

A margin is the model's raw score (log-odds before calibration), float64. Both implementations give the bits
that LightGBM's own `predict(raw_score=True)` gives; the parity gate and the tests hold them to it.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.errors import BundleRefused


class Predictor(Protocol):
    """Margins of vectors. Not thread-safe."""

    native: bool

    def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """`vectors`: shape (rows, features), float32, C-contiguous, missing is NaN. Result: shape (rows,)."""
        ...


class NativePredictor:
    """The compiled library, called directly: about a microsecond for the call, then the trees."""

    native = True

    def __init__(self, library: Path, feature_count: int) -> None:
        """Load a library that models/bundle/compiler.py built. Raises BundleRefused when it does not load."""
        try:
            loaded = _load(library)
            self._margins = loaded.paywarden_margins
            built_for = int(loaded.paywarden_feature_count())
        except (OSError, AttributeError) as error:
            raise BundleRefused(f"the native library {library.name} does not load: {error}") from error
        if built_for != feature_count:
            raise BundleRefused(f"the native library takes {built_for} features, the bundle has {feature_count}")
        self._margins.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._margins.restype = None

    def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        result = np.empty(len(vectors))
        self._margins(_address(vectors), len(vectors), _address(result))
        return result

    def bound(self, vectors: NDArray[np.float32]) -> Callable[[int], list[float]]:
        """See the function `bound`. The call raises ValueError for more rows than there are."""
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        result = np.empty(len(vectors))
        call: Any = self._margins
        values: Any = result.data
        vectors_at, result_at = ctypes.c_void_p(vectors.ctypes.data), ctypes.c_void_p(result.ctypes.data)

        def margins_of(rows: int) -> list[float]:
            # Naming the array also keeps it alive.
            if not 0 <= rows <= len(vectors):
                raise ValueError(f"wanted 0 to {len(vectors)} rows, got {rows}")
            call(vectors_at, rows, result_at)
            margins: list[float] = values[:rows].tolist()
            return margins

        return margins_of


def bound(predictor: Predictor, vectors: NDArray[np.float32]) -> Callable[[int], list[float]]:
    """A call that gives the margins of the first so many of these rows, with what they hold by then.

    For a caller whose array stays: of a single row, to look at arrays takes a third of the time. `vectors` as for
    `Predictor.margins`; they are kept alive.
    """
    if isinstance(predictor, NativePredictor):
        return predictor.bound(vectors)
    return lambda rows: predictor.margins(vectors[:rows]).tolist()


def _address(array: NDArray[Any]) -> int:
    """Where an array begins. Its own `ctypes.data` takes 0.75 µs, which for a single row is a tenth of everything."""
    if array.size and array.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return array.ctypes.data


def _load(library: Path) -> ctypes.CDLL:
    """The library that is in this file now: asked twice for one name, the loader gives what it has loaded before."""
    with tempfile.TemporaryDirectory(prefix="paywarden-load-") as folder:
        # A name never used before; it may go at once, the loader has the file itself.
        name = Path(folder) / library.name
        name.symlink_to(library.resolve())
        return ctypes.CDLL(str(name))


class GtilPredictor:
    """Treelite's own interpreter: no compiler needed, about 25 times slower on one row."""

    native = False

    def __init__(self, model_text: Path) -> None:
        """Load a LightGBM text model. Raises BundleRefused when Treelite cannot read it, or is not installed."""
        # Imported here: Treelite imports SciPy, and a scoring host that has a native library needs neither.
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
        # Thresholds are float64: a float32 widened compares the same, a narrowed threshold would not.
        rows = np.ascontiguousarray(vectors, dtype=np.float64)
        margins = self._predict(self._model, rows, pred_margin=True, nthread=1)
        return np.asarray(margins, dtype=np.float64).reshape(len(vectors))
