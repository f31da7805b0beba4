"""The wheel, installed outside the checkout: it holds every file, and it works in any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from paywarden.features.kernel.toolkit import machine_code
from tests.checkout import CHECKOUT

# The folders at the top of the repository; installed, they are `paywarden.schemas` and so on.
ROOTS = ("schemas", "features", "models", "scoring", "streams", "ops")
# Files of those who have a checkout, and packages of their own.
NOT_INSTALLED = tuple(CHECKOUT / name for name in ("ops/deploy", "ops/clients", "schemas/proto/released"))
# The one variable of Python that a run keeps: where the bytecode of all other packages is, which takes long to make.
KEPT = "PYTHONPYCACHEPREFIX"
# Where the code of the checkout is not kept, the demonstration compiles all of it.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, because building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for root in ROOTS:
        shutil.copytree(CHECKOUT / root, folder / "source" / root, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", "__main__.py"):
        shutil.copy(CHECKOUT / name, folder / "source")
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's programs. The environment has the wheel, and all other packages of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip("--python", str(folder / "bin" / "python"), "install", "--no-index", "--no-deps", str(wheel))
    (packages_folder,) = folder.glob("lib/python*/site-packages")
    (packages_folder / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of a user whose own packages have the names of ours. Importing one of these is an error."""
    for name in ROOTS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not mine')", encoding="utf-8")
    return tmp_path


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(installed: Path, project: Path, *arguments: str) -> str:
    """Run a command of the installed console script in the project's folder. Returns its output."""
    environment = {name: value for name, value in os.environ.items() if name == KEPT or not name.startswith("PYTHON")}
    # The wheel has the sources of the checkout, so the code that is compiled from them is the same.
    kept = machine_code.directory()
    if kept is not None:
        environment["NUMBA_CACHE_DIR"] = str(kept.parent)
    done = subprocess.run(
        [str(installed / "paywarden"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=project,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    compiled = {".pyc", ".nbi", ".nbc"}
    wanted = {
        f"paywarden/{path.relative_to(CHECKOUT)}"
        for root in ROOTS
        for path in (CHECKOUT / root).rglob("*")
        if path.is_file() and path.suffix not in compiled and not any("compiled-" in part for part in path.parts)
        if not any(path.is_relative_to(folder) for folder in NOT_INSTALLED)
    } | {"paywarden/__main__.py"}
    with zipfile.ZipFile(wheel) as content:
        packed = {name for name in content.namelist() if ".dist-info/" not in name}
    assert packed == wanted
    assert {"paywarden/ops/paywarden.toml", "paywarden/ops/alerts.yml"} <= packed


def test_commands_work_in_a_folder_with_packages_of_our_names(installed: Path, project: Path) -> None:
    assert "version 1.0.0" in run(installed, project, "--version")
    assert "card_count_1h" in run(installed, project, "features")


def test_a_project_of_ones_own_works_in_any_folder(installed: Path, project: Path) -> None:
    assert "catalogue.py" in run(installed, project, "init", "shop")
    assert "9 entities" in run(installed, project / "shop", "features", "--check")


def test_the_demo_of_a_project_works_in_a_folder_with_packages_of_our_names(installed: Path, project: Path) -> None:
    run(installed, project, "init", "shop")
    config = ("--config", "shop/paywarden.toml")
    run(installed, project, *config, "demo", "--seconds", "5", "--rate", "50", "--json", "summary.json")
    summary = json.loads((project / "summary.json").read_text(encoding="utf-8"))
    assert summary["answers"] == summary["payments_sent"] > 150
    assert summary["native_model"] is True
