"""Runs lleaves for perf/native_model.py in an environment of its own: rows on stdin, seconds and margins on stdout."""

from __future__ import annotations

import sys
import time

import numpy as np


def main() -> None:
    """Answer rows until stdin ends."""
    # Installed in its environment only.
    import lleaves

    model = lleaves.Model(model_file=sys.argv[1])
    model.compile(raw_score=True)
    while head := sys.stdin.buffer.read(16):
        count, features = np.frombuffer(head, dtype="<i8").tolist()
        rows = np.frombuffer(sys.stdin.buffer.read(4 * count * features), dtype="<f4").reshape(count, features)
        started = time.perf_counter()
        margins = model.predict(rows, n_jobs=1)
        seconds = time.perf_counter() - started
        sys.stdout.buffer.write(np.concatenate(([seconds], margins)).astype("<f8").tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
