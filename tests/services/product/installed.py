"""Run a process that sees only the packages of an extra, as on a host with no other packages."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.checkout import CHECKOUT

ROOT = CHECKOUT
OWN = "paywarden"

# Python runs this module at its start. The module hides packages from every import and from every search for a module.
_HIDING = """\
import os, sys
from importlib.machinery import PathFinder

_hidden = frozenset(os.environ["PAYWARDEN_TEST_HIDDEN"].split())


class _Finder:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in _hidden else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = _Finder
"""


@cache
def owners() -> dict[str, list[str]]:
    """Returns the distributions that bring each module, which takes half a second to find out."""
    return {module: list(names) for module, names in packages_distributions().items()}


@cache
def extras() -> dict[str, list[Requirement]]:
    """Returns the requirements of each extra in pyproject.toml. The key "" has those of every installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    written = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in written.items()}


def installed_by(extra: str) -> set[str]:
    """Returns the distributions that `pip install 'paywarden[extra]'` installs, with dependencies of dependencies."""
    found: set[tuple[str, str]] = set()
    waiting = {(OWN, extra)}
    while waiting:
        distribution, wanted = waiting.pop()
        if (distribution, wanted) in found:
            continue
        found.add((distribution, wanted))
        for requirement in _requirements(distribution, wanted):
            name = canonicalize_name(requirement.name)
            waiting |= {(name, ""), *((name, more) for more in requirement.extras)}
    return {distribution for distribution, _ in found}


def _requirements(distribution: str, extra: str) -> Iterator[Requirement]:
    if distribution == OWN:
        yield from (*extras()[""], *extras()[extra])
        return
    try:
        written = requires(distribution) or []
    except PackageNotFoundError:
        # The requirement is for another platform or another version of Python.
        return
    for requirement in map(Requirement, written):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def only(extra: str, folder: Path) -> dict[str, str]:
    """Returns variables for a process that sees the modules of this extra and of no other. `folder` is for its use."""
    installed = installed_by(extra)
    hidden = [
        module for module, names in owners().items() if not installed & {canonicalize_name(name) for name in names}
    ]
    (folder / "sitecustomize.py").write_text(_HIDING, encoding="utf-8")
    return {"PYTHONPATH": f"{folder}:{ROOT}", "PAYWARDEN_TEST_HIDDEN": " ".join(hidden)}
