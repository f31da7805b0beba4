"""Unit tests import only their subject's root package and the packages below it.

The packages import in one direction, and tests/unit/<root> follows the same order:

    tests/unit/models/replay/test_replay.py
      -> tests/worlds/small/small_world.py
           -> paywarden.models.training      allowed: the root of the test
           -> paywarden.features.history     allowed: below it
           -> paywarden.streams.archive      refused: above it

An import counts wherever it stands in a file, and also if a helper from tests/ makes it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT

# From the lowest to the highest.
ROOTS = ("schemas", "features", "models", "scoring", "streams", "ops")


@cache
def imported_names(file: Path) -> tuple[tuple[int, str], ...]:
    """Returns the line and the dotted name of each import: of `from a import b` both `a` and `a.b`."""
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: wanted an absolute import"
            names += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
            names.append((node.lineno, str(node.module)))
    return tuple(names)


def helper_file(checkout: Path, name: str) -> Path | None:
    """Returns the file of a module of tests/, or None if the name is something else."""
    if name.split(".")[0] != "tests":
        return None
    path = checkout.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def files_behind(checkout: Path, test: Path) -> Iterator[Path]:
    """Yields the test's own file, then each file of tests/ that it imports, directly or not."""
    seen, waiting = {test}, [test]
    while waiting:
        file = waiting.pop()
        yield file
        helpers = {helper_file(checkout, name) for _, name in imported_names(file)}
        new = {helper for helper in helpers if helper is not None} - seen
        seen |= new
        waiting += sorted(new)


def imports_from_above(checkout: Path, root: str) -> list[str]:
    """Returns a line for each import of a higher package by the unit tests of `root`."""
    above = set(ROOTS[ROOTS.index(root) + 1 :])
    lines: dict[str, None] = {}
    for test in sorted((checkout / "tests" / "unit" / root).rglob("*.py")):
        for file in files_behind(checkout, test):
            for line, name in imported_names(file):
                package, *inner = name.split(".")
                if package == "paywarden" and inner and inner[0] in above:
                    by = "" if file == test else f" by {file.relative_to(checkout)}"
                    lines[f"{test.relative_to(checkout)}: line {line}{by} imports {name}"] = None
    return list(lines)


@pytest.mark.parametrize("root", ROOTS)
def test_unit_tests_import_nothing_from_above_their_subject(root: str) -> None:
    assert list((CHECKOUT / "tests" / "unit" / root).rglob("test_*.py"))
    assert imports_from_above(CHECKOUT, root) == []


def test_an_import_from_above_is_named_wherever_it_stands(tmp_path: Path) -> None:
    unit, worlds = tmp_path / "tests" / "unit" / "models", tmp_path / "tests" / "worlds"
    unit.mkdir(parents=True)
    worlds.mkdir()
    (worlds / "outer.py").write_text("from tests.worlds import inner\n")
    (worlds / "inner.py").write_text("import tests.worlds.outer\nimport paywarden.ops.demo\n")
    (unit / "test_direct.py").write_text("def f():\n    from paywarden import features, streams\n")
    (unit / "test_helped.py").write_text("from tests.worlds.outer import inner\n")
    (unit / "test_good.py").write_text("import paywarden.schemas.avro\nfrom paywarden.models import bundle\n")
    assert imports_from_above(tmp_path, "models") == [
        "tests/unit/models/test_direct.py: line 2 imports paywarden.streams",
        "tests/unit/models/test_helped.py: line 2 by tests/worlds/inner.py imports paywarden.ops.demo",
    ]
