"""Makes a failing history small: leaves out faults and operations as long as it fails in the same way.

First all faults at once, then halves, quarters and single items of each list (delta debugging, "ddmin").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.simulation.history import Outcome
from tests.simulation.plan import Plan

RUNS_MAX = 250


def shrink(plan: Plan, kind: str, run: Callable[[Plan], Outcome], runs_max: int = RUNS_MAX) -> tuple[Plan, Outcome]:
    """Returns the smallest plan found that still fails with `kind`, and its outcome."""
    runs = 0
    best = run(plan)
    assert best.failure is not None
    assert best.failure.kind == kind

    def fails(candidate: Plan) -> bool:
        nonlocal runs, best
        if runs >= runs_max:
            return False
        runs += 1
        outcome = run(candidate)
        if outcome.failure is None or outcome.failure.kind != kind:
            return False
        best = outcome
        return True

    for name in ("faults", "operations"):
        plan = _reduced(plan, name, fails)
    # Fewer operations may make more faults needless.
    return _reduced(plan, "faults", fails), best


def _reduced(plan: Plan, name: str, fails: Callable[[Plan], bool]) -> Plan:
    """Returns the plan with as few items in one of its lists as are needed."""
    size = len(getattr(plan, name))
    while size >= 1:
        items = [item.number for item in getattr(plan, name)]
        for first in range(0, len(items), size):
            candidate = _without(plan, name, items[first : first + size])
            if fails(candidate):
                plan = candidate
        size //= 2
    return plan


def _without(plan: Plan, name: str, numbers: Sequence[int]) -> Plan:
    return plan.without((), numbers) if name == "faults" else plan.without(numbers, ())


def ranges(numbers: Sequence[int]) -> str:
    """Returns numbers as text: 0-3,7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts) or "none"


def numbers_of(text: str) -> list[int]:
    """Parses what `ranges` writes."""
    numbers: list[int] = []
    for part in text.split(","):
        if part and part != "none":
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    return numbers
