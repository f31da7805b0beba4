"""Runs many histories, and shrinks and replays those that fail.

    python -m tests.simulation --seeds 1000 --minutes 5 --jobs 2      as many seeds as fit into the time
    python -m tests.simulation --seed 4711 --trace                    one history, with its last steps
    python -m tests.simulation --seed 4711 --keep-faults 2 --keep-operations 3,8-9
    python -m tests.simulation --mutation source_identity --seeds 50     with a fix undone

Exit status: 0 when no history failed, 1 when one did.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# A set of strings has another order in each process, unless PYTHONHASHSEED is set.
_HASH_SEED = "PYTHONHASHSEED"
# Histories leave circles of objects behind; this many are collected together.
_COLLECT_EVERY = 4


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if os.environ.get(_HASH_SEED) != "0":
        environment = os.environ | {_HASH_SEED: "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *options.given], environment)
    if options.part is not None:
        return _run_part(options)
    if options.seed is not None:
        return _one(options)
    status = _known_breaks(options) if options.known_breaks else _many(options)
    if options.digests_of is not None:
        _print_digests(options.digests_of)
    return status


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    from tests.simulation.mutations import MUTATIONS
    from tests.simulation.plan import DEFAULT

    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many histories (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--these", metavar="N,N-N", help="run these seeds, whatever --first and --seeds say")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write seeds, failures, steps and faults as JSON")
    parser.add_argument("--seed", type=int, help="run this one history and shrink it if it fails")
    parser.add_argument("--trace", action="store_true", help="print the last steps of the history")
    parser.add_argument("--keep-faults", metavar="N,N-N", help="leave out all other faults")
    parser.add_argument("--keep-operations", metavar="N,N-N", help="leave out all other operations")
    parser.add_argument("--no-shrink", action="store_true", help="do not shrink failures")
    parser.add_argument("--stop-at-failure", action="store_true", help="end with the first failure")
    parser.add_argument(
        "--faults", default="all", help=f"'all', or some of: {', '.join(DEFAULT)} (default: %(default)s)"
    )
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="undo a fix: the simulator must fail")
    parser.add_argument(
        "--known-breaks", action="store_true", help="undo each fix in turn; fails unless each is found in time"
    )
    parser.add_argument("--digests", action="store_true", help="print the trace's digest of each history, no times")
    parser.add_argument(
        "--digests-of", metavar="N,N-N", help="then run these seeds with all faults, and print their traces' digests"
    )
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = {"all": DEFAULT, "none": ()}.get(options.faults, tuple(options.faults.split(",")))
    if unknown := set(chosen) - set(DEFAULT):
        parser.error(f"--faults: there is no {', '.join(sorted(unknown))}")
    if options.mutation and options.faults == "all":
        chosen = MUTATIONS[options.mutation].faults
    options.kinds = tuple(chosen)
    return options


@contextmanager
def ready(mutation: str | None) -> Iterator[None]:
    """Warm up and patch this process."""
    from tests.simulation.history import remove_left_over
    from tests.simulation.mutations import MUTATIONS
    from tests.simulation.patches import patched
    from tests.simulation.processes import parts

    remove_left_over()
    parts()
    gc.collect()
    gc.freeze()
    gc.disable()
    with patched():
        if mutation is None:
            yield
        else:
            with MUTATIONS[mutation].undone():
                yield


def _one(options: argparse.Namespace) -> int:
    from tests.simulation.history import run_plan
    from tests.simulation.plan import plan_of
    from tests.simulation.shrink import numbers_of, shrink

    with ready(options.mutation):
        plan = plan_of(options.seed, options.kinds)
        if options.keep_faults is not None or options.keep_operations is not None:
            faults = [i.number for i in plan.faults] if options.keep_faults is None else numbers_of(options.keep_faults)
            operations = (
                [i.number for i in plan.operations]
                if options.keep_operations is None
                else numbers_of(options.keep_operations)
            )
            plan = plan.kept(operations, faults)
        outcome = run_plan(plan)
        if options.trace:
            print("\n".join(outcome.notes))
        print(f"seed {plan.seed}: trace {outcome.digest}, {outcome.steps} steps")
        if outcome.failure is None:
            print("every promise was kept")
            return 0
        print(f"FAILED {outcome.failure}")
        if not options.no_shrink:
            plan, outcome = shrink(plan, outcome.failure.kind, run_plan)
            print(_told(plan, outcome, options))
        return 1


def _told(plan: Any, outcome: Any, options: argparse.Namespace) -> str:
    from tests.simulation.shrink import ranges

    lines = [f"smallest history found: {len(plan.faults)} faults, {len(plan.operations)} operations"]
    lines += [f"  {item}" for item in sorted([*plan.faults, *plan.operations], key=lambda item: item.at)]
    lines.append(f"FAILED {outcome.failure}")
    more = f" --mutation {options.mutation}" if options.mutation else ""
    faults = options.faults if options.mutation is None else ",".join(options.kinds)
    lines.append(
        f"replay: python -m tests.simulation --seed {plan.seed} --faults {faults}{more} "
        f"--keep-faults {ranges([item.number for item in plan.faults])} "
        f"--keep-operations {ranges([item.number for item in plan.operations])}"
    )
    return "\n".join(line[:300] for line in lines)


def _known_breaks(options: argparse.Namespace) -> int:
    """Undo each fix in turn, and run seeds until one fails, the one first that is known to."""
    from tests.simulation.history import run_plan
    from tests.simulation.mutations import MUTATIONS
    from tests.simulation.plan import plan_of

    found: dict[str, int | None] = {}
    with ready(None):
        for name, mutation in MUTATIONS.items():
            found[name], text = None, "not found"
            with mutation.undone():
                for seed in mutation.order:
                    failure = run_plan(plan_of(seed, mutation.faults)).failure
                    gc.collect()
                    if failure is not None and failure.kind in mutation.kinds:
                        found[name], text = seed + 1, str(failure).splitlines()[0]
                        break
            state = "undone" if mutation.is_fixed else "not fixed yet"
            print(f"{name} ({state}): seed {found[name]} of {mutation.seeds}: {text[:160]}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if None in found.values() else 0


class Result(NamedTuple):
    """The result of one seed."""

    seed: int
    kind: str
    text: str
    steps: int
    faults: dict[str, int]
    digest: str


def _run_seeds(options: argparse.Namespace, part: int, deadline: float) -> Iterator[Result]:
    """Run one part of the seeds, every `jobs`-th of them, until the time is over."""
    from tests.simulation.history import run_plan
    from tests.simulation.plan import plan_of
    from tests.simulation.shrink import numbers_of

    seeds: Sequence[int] = range(options.first, options.first + options.seeds)
    if options.these is not None:
        seeds = numbers_of(options.these)
    with ready(options.mutation):
        for count, seed in enumerate(seeds[part :: options.jobs]):
            if time.monotonic() > deadline:
                return
            outcome = run_plan(plan_of(seed, options.kinds))
            kind = "" if outcome.failure is None else outcome.failure.kind
            yield Result(seed, kind, str(outcome.failure or ""), outcome.steps, dict(outcome.faults), outcome.digest)
            if count % _COLLECT_EVERY == 0:
                gc.collect()


def _run_part(options: argparse.Namespace) -> int:
    """Run one part of the seeds in this process, and print each result as a line of JSON."""
    deadline = time.monotonic() + options.minutes * 60
    for result in _run_seeds(options, options.part, deadline):
        print(json.dumps(result), flush=True)
    return 0


def _results(options: argparse.Namespace) -> Iterator[Result]:
    """Run the parts in processes side by side."""
    if options.jobs == 1:
        yield from _run_seeds(options, 0, time.monotonic() + options.minutes * 60)
        return
    command = [sys.executable, "-m", "tests.simulation", *options.given]
    running = [
        subprocess.Popen([*command, "--part", str(part)], stdout=subprocess.PIPE, text=True)
        for part in range(options.jobs)
    ]
    with selectors.DefaultSelector() as selector:
        for process in running:
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, process)
        try:
            while selector.get_map():
                for key, _ in selector.select():
                    line = key.fileobj.readline()  # type: ignore[union-attr]
                    if line:
                        yield Result(*json.loads(line))
                    else:
                        selector.unregister(key.fileobj)
                        if status := key.data.wait():
                            raise RuntimeError(f"a process of the simulator ended with {status}")
        finally:
            for process in running:
                process.terminate()
                process.wait()


def _many(options: argparse.Namespace) -> int:
    started = time.monotonic()
    results: list[Result] = []
    for result in _results(options):
        results.append(result)
        if result.kind and options.stop_at_failure:
            break
    results.sort()
    failures = [result for result in results if result.kind]
    faults: Counter[str] = Counter()
    for result in results:
        faults.update(result.faults)
    steps = sum(result.steps for result in results)
    if options.digests:
        print("\n".join(_digest_line(result.seed, result.digest, result.steps) for result in results))
        return 1 if failures else 0
    elapsed_s = time.monotonic() - started
    print(f"{len(results)} seeds from {options.first}, {steps} steps, {len(failures)} failures, {elapsed_s:.0f} s")
    print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(faults.items())))
    for failure in failures[:20]:
        lines = failure.text.splitlines()
        print(f"seed {failure.seed} failed: {lines[0][:300]}")
        if len(lines) > 1:
            print("\n".join(lines[-3:]))
    if options.json:
        summary: dict[str, Any] = {"seeds": len(results), "failures": len(failures), "steps": steps}
        summary |= {"seconds": round(elapsed_s, 1), "first_failure": failures[0].seed if failures else None}
        summary["failure_kinds"] = ",".join(sorted({failure.kind for failure in failures}))
        summary |= {f"faults_{name}": count for name, count in sorted(faults.items())}
        Path(options.json).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if failures and not options.no_shrink:
        _shrink_first(options, failures[0].seed)
    return 1 if failures else 0


def _digest_line(seed: int, digest: str, steps: int) -> str:
    return f"seed {seed}: trace {digest}, {steps} steps"


def _print_digests(seeds: str) -> None:
    from tests.simulation.history import run_plan
    from tests.simulation.plan import DEFAULT, plan_of
    from tests.simulation.shrink import numbers_of

    with ready(None):
        for seed in numbers_of(seeds):
            outcome = run_plan(plan_of(seed, DEFAULT))
            print(_digest_line(seed, outcome.digest, outcome.steps))


def _shrink_first(options: argparse.Namespace, seed: int) -> None:
    from tests.simulation.history import run_plan
    from tests.simulation.plan import plan_of
    from tests.simulation.shrink import shrink

    with ready(options.mutation):
        plan = plan_of(seed, options.kinds)
        outcome = run_plan(plan)
        if outcome.failure is None:
            print(f"seed {seed} does not fail again: the history is not deterministic")
            return
        plan, outcome = shrink(plan, outcome.failure.kind, run_plan)
        print(_told(plan, outcome, options))


if __name__ == "__main__":
    sys.exit(main())
