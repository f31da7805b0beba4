"""The same trees by every engine that could run them: a row alone, and ten thousand at once.

Measured: 300 trees of 63 leaves over varied vectors of simulated payments, one thread. `bit_vectors` and `walk`
are our two libraries. The others are LightGBM's `predict`, its C call for single rows, Treelite's GTIL, ONNX Runtime,
and with `--peers` YDF and oneDAL, each in an environment of its own in .perf/. Used for: which engine a bundle gets.
Checked: our libraries and GTIL give LightGBM's bits, the others its scores.

    python -m perf.native_model [--rounds N] [--peers ydf,onedal] [--json FILE]

ONNX Runtime needs the packages of the extra `perf-models`, and is left out without them. Engines take turns, so that
other work of the machine disturbs all of them alike. `ydf_cpp_us` is YDF's own benchmark of a row in C++: its Python
makes a table of each call. `NAME_largest_difference` is that of scores.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import MODEL_TEXT
from paywarden.models.bundle.compiler import BIT_VECTORS, WALK, compile_library
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor
from perf.peers.tree_engines import PACKAGES, tree_engine
from perf.tools.measuring import arguments_of, finish, print_rounds
from perf.tools.servers import pin_load
from perf.worlds.scoring_world import WorldSize, make_past, vectors_of

# The seconds of each row alone, and of all together.
Round = Callable[[], tuple[NDArray[np.float64], float]]
Margins = Callable[[NDArray[np.float32]], NDArray[np.float64]]

_ROWS = 10_000
_SINGLE_ROWS = 2_000
# Engines with float32 thresholds or another order of sums come this near.
_NEAR = 1e-3


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rounds", {"type": int, "default": 7, "help": "that are counted"}),
        ("--peers", {"default": "", "help": f"also {', '.join(PACKAGES)}, each in an environment of its own"}),
    )
    pin_load()
    past = make_past(WorldSize())
    text = past.bundle / MODEL_TEXT
    rows = vectors_of(past, _ROWS)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        engines = _ours(text, rows.shape[1], Path(folder)) | _others(text, rows.shape[1])
        _check(engines, rows)
        singles = [np.ascontiguousarray(rows[number : number + 1]) for number in range(_SINGLE_ROWS)]
        rounds: dict[str, Round] = {name: partial(_round, one, rows, singles) for name, one in engines.items()}
        about: dict[str, float] = {}
        for name in filter(None, arguments.peers.split(",")):
            peer = stack.enter_context(tree_engine(name, text, rows, engines["lightgbm"](rows), _SINGLE_ROWS))
            assert peer.about["largest_difference"] < _NEAR, f"{name} is far"
            rounds[name] = peer.round
            about |= {f"{name}_{what}": figure for what, figure in peer.about.items()}
        figures = _measure(rounds, arguments.rounds) | about
    finish(figures, arguments.json)


def _ours(text: Path, features: int, folder: Path) -> dict[str, Margins]:
    engines: dict[str, Margins] = {}
    for name, generator in (("bit_vectors", BIT_VECTORS), ("walk", WALK)):
        library, started = folder / f"{name}.so", time.perf_counter()
        compile_library(text, features, library, generator=generator)
        print(f"{name} compiled in {time.perf_counter() - started:.1f} s", flush=True)
        engines[name] = NativePredictor(library, features).margins
    return engines


def _others(text: Path, features: int) -> dict[str, Margins]:
    booster = lightgbm.Booster(model_file=str(text))

    def predict(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(booster.predict(vectors, raw_score=True, num_threads=1))

    engines: dict[str, Margins] = {
        "lightgbm": predict,
        "lightgbm_single_row": _single_row(booster, features),
        "gtil": GtilPredictor(text).margins,
    }
    try:
        engines["onnxruntime"] = _onnx(booster, features)
    except ImportError as error:
        print(f"onnxruntime is left out: {error.name} is not installed")
    return engines


def _single_row(booster: lightgbm.Booster, features: int) -> Margins:
    """LightGBM's own fast path for one row at a time, through its C interface."""
    library, fast = lightgbm.basic._LIB, ctypes.c_void_p()  # type: ignore[attr-defined]
    row, out, size = np.zeros(features, dtype=np.float32), np.zeros(1), ctypes.c_int64()
    kinds = (ctypes.c_int(1), ctypes.c_int(0), ctypes.c_int(-1), ctypes.c_int(0), ctypes.c_int32(features))
    done = library.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle, *kinds, ctypes.c_char_p(b"num_threads=1"), ctypes.byref(fast)
    )
    assert done == 0, library.LGBM_GetLastError()
    at, out_at, size_at = ctypes.c_void_p(row.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.byref(size)

    def margins(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        found = np.empty(len(vectors))
        for number in range(len(vectors)):
            row[:] = vectors[number]
            library.LGBM_BoosterPredictForMatSingleRowFast(fast, at, size_at, out_at)
            found[number] = out[0]
        return found

    return margins


def _onnx(booster: lightgbm.Booster, features: int) -> Margins:
    """Return the log-odds of the probabilities that an ONNX classifier gives."""
    import onnxruntime
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    kind = FloatTensorType([None, features])
    model = convert_lightgbm(booster, initial_types=[("x", kind)], zipmap=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def margins(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        share = session.run(["probabilities"], {"x": vectors})[0][:, 1].astype(np.float64)
        with np.errstate(divide="ignore"):
            odds: NDArray[np.float64] = np.log(share / (1 - share))
        return odds

    return margins


def _check(engines: dict[str, Margins], rows: NDArray[np.float32]) -> None:
    some = np.ascontiguousarray(rows[:500])
    wanted = engines["lightgbm"](some)
    for name, margins in engines.items():
        got = margins(some)
        if name.startswith(("bit_vectors", "walk", "gtil")):
            assert np.array_equal(got, wanted), f"{name} differs from LightGBM"
        else:
            assert np.allclose(1 / (1 + np.exp(-got)), 1 / (1 + np.exp(-wanted)), atol=_NEAR), f"{name} is far"


def _round(
    margins: Margins, rows: NDArray[np.float32], singles: list[NDArray[np.float32]]
) -> tuple[NDArray[np.float64], float]:
    return np.array([_seconds(margins, one) for one in singles]), _seconds(margins, rows)


def _measure(engines: dict[str, Round], rounds: int) -> dict[str, float]:
    single: dict[str, list[NDArray[np.float64]]] = {name: [] for name in engines}
    many: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name, measure in engines.items():
            alone, together = measure()
            # The first round is not counted.
            if turn:
                single[name].append(alone * 1e6)
                many[name].append(_ROWS / together)
    for share in (50, 99):
        print_rounds(
            f"a row, p{share}", "µs", {n: [float(np.percentile(a, share)) for a in each] for n, each in single.items()}
        )
    print_rounds(f"{_ROWS:,} rows at once", "rows/s", many)
    figures = {f"{name}_p50_us": float(np.median(np.concatenate(each))) for name, each in single.items()}
    figures |= {f"{name}_p99_us": float(np.percentile(np.concatenate(each), 99)) for name, each in single.items()}
    return figures | {f"{name}_rows_per_second": float(np.median(each)) for name, each in many.items()}


def _seconds(margins: Margins, rows: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    margins(rows)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
