"""Runs histories in processes of their own, because the simulator replaces clocks and files of its whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.shrink import ranges

# A fixed budget, so that the test takes the same time on any machine: about 15 seconds of one core.
SEEDS = int(os.environ.get("PAYWARDEN_SIMULATION_SEEDS", "40"))
# The same histories every time, so that a failure is due to a change. Hunt for new ones with other seeds.
FIRST = int(os.environ.get("PAYWARDEN_SIMULATION_FIRST", "0"))
# Seeds that failed once. Each found a fault of the product, or of the simulator.
ONCE_FAILED = (
    3, 49, 58, 83, 234, 366, 562, 2096, 4477, 4581, 7853, 100162, 103388, 105831, 300061, 320200, 91001101, 92002378,
)  # fmt: skip

pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class Simulated:
    """The output and files of a process of the simulator, and the digests of three histories that it ran then."""

    status: int
    text: str
    result: dict[str, Any]

    @classmethod
    def by(cls, folder: Path, *arguments: str) -> Simulated:
        file = folder / "result.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", *arguments, "--json", str(file), "--digests-of", "20-22"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        assert done.returncode in (0, 1), done.stderr
        return cls(done.returncode, done.stdout, json.loads(file.read_text()))

    @property
    def digests(self) -> list[str]:
        return self.text.splitlines()[-3:]


# The start of a process takes as long as ten histories. Two processes are enough for all tests.
CHOSEN = sorted({*range(FIRST, FIRST + SEEDS), *ONCE_FAILED})


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """New histories, and those that failed once."""
    return Simulated.by(tmp_path_factory.mktemp("histories"), "--these", ranges(CHOSEN))


@pytest.fixture(scope="module")
def undone_fixes(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return Simulated.by(tmp_path_factory.mktemp("undone"), "--known-breaks")


def test_no_history_breaks_a_promise(histories: Simulated, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write("\nsimulation: " + "\n            ".join(histories.text.splitlines()[:2]) + "\n")
    assert histories.status == 0, histories.text
    assert histories.result["seeds"] == len(CHOSEN)
    assert sum(count for name, count in histories.result.items() if name.startswith("faults_")) > SEEDS


def test_each_break_is_of_a_name_that_there_is() -> None:
    """A name that somebody has changed would undo nothing, and the search would say only that it found nothing."""
    assert [name for name, mutation in MUTATIONS.items() if not mutation.is_fixed] == []


def test_each_undone_fix_is_found_within_its_number_of_seeds(undone_fixes: Simulated) -> None:
    assert undone_fixes.status == 0, undone_fixes.text
    assert undone_fixes.result.keys() == MUTATIONS.keys()


def test_a_seed_gives_the_same_history_whatever_ran_before_it(histories: Simulated, undone_fixes: Simulated) -> None:
    assert all(
        line.startswith(f"seed {seed}: trace ") for seed, line in zip((20, 21, 22), histories.digests, strict=True)
    )
    assert histories.digests == undone_fixes.digests
