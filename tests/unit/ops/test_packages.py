"""The wheel holds every package: setuptools takes those that pyproject.toml lists, and no other."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.checkout import CHECKOUT

ROOTS = ("features", "models", "ops", "schemas", "scoring", "streams")


def packages_of(checkout: Path) -> set[str]:
    """The folders below the roots that hold an `__init__.py`, as packages. A client's package has its own wheel."""
    folders = {file.parent for root in ROOTS for file in (checkout / root).rglob("__init__.py")}
    others = {file.parent for file in (checkout / "ops" / "clients").rglob("pyproject.toml")}
    return {
        ".".join(("paywarden", *folder.relative_to(checkout).parts))
        for folder in folders
        if others.isdisjoint(folder.parents)
    }


def test_pyproject_lists_every_package_once() -> None:
    content = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = content["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_of(CHECKOUT) | {"paywarden"}
