from __future__ import annotations

import subprocess
import sys

from tests.services.product.processes import ROOT

# This runs in a process of its own, because objects that are set aside stay so.
_PROGRAM = """
import gc, weakref
from paywarden.streams.health.gc_tuning import settle_collection

class Node:
    pass

kept = [Node() for _ in range(1000)]
settle_collection()
assert gc.get_freeze_count() > 1000
looks = []
gc.callbacks.append(lambda phase, info: looks.append(info["generation"]) if phase == "start" else None)
batch = [[number] for number in range(90_000)]
assert looks == []
del batch
ring = Node()
ring.itself = ring
gone = weakref.ref(ring)
del ring
for _ in range(3):
    batch = [[number] for number in range(110_000)]
assert gone() is None, "what refers to itself is still found"
"""


def test_a_batch_is_not_scanned_and_garbage_is_still_collected() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
