"""Installs take the versions and hashes of constraints.txt, and an image begins with a base by its digest."""

from __future__ import annotations

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.checkout import CHECKOUT

FOLDER = CHECKOUT / "ops/deploy"
PINS = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_HASH = r"    --hash=sha256:[0-9a-f]{64}"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("requirements", FOLDER / "requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pinned_package_has_hashes(script: ModuleType) -> None:
    found = list(script.blocks(PINS))
    assert len(found) == PINS.count("==") > 100
    for name, extras, lines in found:
        head, *hashes = lines.rstrip().split(" \\\n")
        assert re.fullmatch(r"[\w.-]+==[\w.!]+", head), head
        assert hashes, name
        assert all(re.fullmatch(_HASH, line) for line in hashes), name
        assert extras <= {"base", "build", "image", *PROJECT["optional-dependencies"]}, name


def test_an_extra_prints_its_packages_and_those_of_every_process(script: ModuleType) -> None:
    for extra, lines in {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        if extra == "mlflow":
            continue
        printed = {
            canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", script.requirements(PINS, [extra]), re.M)
        }
        wanted = {canonicalize_name(Requirement(line).name) for line in [*lines, *PROJECT["dependencies"]]}
        assert wanted - {"paywarden"} <= printed, extra
    assert "lightgbm" not in script.requirements(PINS, ["serve", "stream"])
    with pytest.raises(SystemExit, match=r"constraints.txt has nothing for sirve"):
        script.requirements(PINS, ["sirve"])


@pytest.mark.parametrize("name", ["Makefile", "ops/deploy/image/Dockerfile", "docs/operate/deploy.md"])
def test_every_installation_checks_hashes_or_fetches_nothing(name: str) -> None:
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    text = text.replace("$(PIP) ", "$(BIN)/pip install --no-deps ")
    installing = [line for line in text.splitlines() if re.search(r"(?:^|/)pip install --[nq]", line)]
    assert len(installing) > 1
    for line in installing:
        assert "--no-deps" in line, line
        fetches_nothing = "--no-build-isolation" in line or line.endswith(".whl") or line.startswith("PIP := ")
        assert "--require-hashes" in line or fetches_nothing, line
