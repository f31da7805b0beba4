"""Runs histories in processes of their own, because the simulator replaces clocks and files of its whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.callers import Callers
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import Item, Plan
from tests.simulation.shrink import numbers_of, ranges, shrink
from tests.simulation.world import Failed

# A fixed budget, so that the test takes the same time on any machine: about 15 seconds of one core.
SEEDS = int(os.environ.get("PAYWARDEN_SIMULATION_SEEDS", "40"))
# The same histories every time, so that a failure is due to a change. Hunt for new ones with other seeds.
FIRST = int(os.environ.get("PAYWARDEN_SIMULATION_FIRST", "0"))
# Seeds that failed once. Each found a fault of the product, or of the simulator.
ONCE_FAILED = (3, 49, 58, 83, 234, 366, 562, 2096, 4477, 4581, 7853)

pytestmark = pytest.mark.timeout(1200)


def simulate(*arguments: str) -> tuple[int, str]:
    """Returns the exit status and what was printed."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout


def test_no_history_breaks_a_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process runs new histories and those that failed once: its start takes as long as ten histories."""
    file = tmp_path / "result.json"
    seeds = sorted({*range(FIRST, FIRST + SEEDS), *ONCE_FAILED})
    status, text = simulate("--these", ranges(seeds), "--json", str(file))
    with capsys.disabled():
        sys.stdout.write("\nsimulation: " + "\n            ".join(text.splitlines()[:2]) + "\n")
    assert status == 0, text
    result: dict[str, Any] = json.loads(file.read_text())
    assert result["seeds"] == len(seeds)
    assert sum(count for name, count in result.items() if name.startswith("faults_")) > SEEDS


def test_a_seed_gives_the_same_history_twice() -> None:
    arguments = ("--seeds", "3", "--first", "20", "--faults", "all", "--no-shrink")
    assert simulate(*arguments, "--digests") == simulate(*arguments, "--digests")


def test_each_undone_fix_is_found_within_its_number_of_seeds(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    status, text = simulate("--known-breaks", "--json", str(file))
    assert status == 0, text
    assert json.loads(file.read_text()).keys() == MUTATIONS.keys()


def test_a_failure_is_shrunk_to_what_it_needs() -> None:
    """The failure needs fault 3 and operations 5 and 6, and nothing else."""

    def item(number: int) -> Item:
        return Item(number, float(number), "any", {})

    def run(plan: Plan) -> Any:
        faults, operations = ({i.number for i in items} for items in (plan.faults, plan.operations))
        fails = faults >= {3} and operations >= {5, 6}
        return FakeOutcome("broken" if fails else None)

    plan = Plan(1, [item(number) for number in range(20)], [item(number) for number in range(7)])
    small, _ = shrink(plan, "broken", run)
    assert [i.number for i in small.faults] == [3]
    assert [i.number for i in small.operations] == [5, 6]


class FakeOutcome:
    def __init__(self, kind: str | None) -> None:
        self.failure = None if kind is None else FakeFailure(kind)


class FakeFailure:
    def __init__(self, kind: str) -> None:
        self.kind = kind


@pytest.mark.parametrize("is_new_fault", [False, True])
def test_a_worker_has_lied_only_if_one_fault_explains_both_refusals(is_new_fault: bool) -> None:
    world = SimpleNamespace(now=0.0)
    deployment: Any = SimpleNamespace(world=world)
    callers = Callers(deployment)

    def tell(moment: float, what: str) -> None:
        world.now = moment
        callers._note("worker-0", what)

    tell(0.0, "cannot record")
    tell(2.0, "ready")
    if is_new_fault:
        callers.forget_refusals("worker-0")
        tell(3.0, "cannot record")
        assert callers.last_seen("worker-0") == "cannot record"
        return
    with pytest.raises(Failed, match="readiness_lied"):
        tell(3.0, "cannot record")


def test_numbers_in_a_command_are_read_as_they_are_written() -> None:
    numbers = [0, 1, 2, 7, 9, 10]
    assert ranges(numbers) == "0-2,7,9-10"
    assert numbers_of(ranges(numbers)) == numbers
    assert numbers_of(ranges([])) == []
