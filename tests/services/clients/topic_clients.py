"""The programs of docs/integrate/programs with their libraries, ready to run.

Their libraries are kept beside the services, in folders named after a digest of the programs' requirements.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.checkout import CHECKOUT
from tests.services.fetch import ServiceMissing, fetched, maven, tool

PAGE = CHECKOUT / "docs" / "integrate" / "topics.md"
_NAMES = (
    "produce.py",
    "consume.py",
    "package.json",
    "produce.js",
    "consume.js",
    "produce-with-registry.js",
    "pom.xml",
    "Produce.java",
    "Consume.java",
)
_BUILD_TIMEOUT_S = 600.0


def programs() -> dict[str, str]:
    """Returns the files that the page links to, by name."""
    return {name: (PAGE.parent / "programs" / name).read_text(encoding="utf-8") for name in _NAMES}


def command(program: str, folder: Path) -> Sequence[str]:
    """Put a program into `folder`. Returns how to run it; raises ServiceMissing if a tool is missing."""
    files = programs()
    if program.endswith(".java"):
        return _java(program, files)
    (folder / program).write_text(files[program], encoding="utf-8")
    if program.endswith(".py"):
        return [sys.executable, str(folder / program)]
    (folder / "node_modules").symlink_to(_node_modules(files["package.json"]))
    return [tool("node"), str(folder / program)]


def _node_modules(package: str) -> Path:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise ServiceMissing("`node` and `npm` are not on PATH: programs for Node cannot be run")

    def build(target: Path) -> None:
        target.mkdir()
        (target / "package.json").write_text(package, encoding="utf-8")
        _run([npm, "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"], cwd=target)

    return fetched(f"topic-clients-node-{_digest(package)}", build) / "node_modules"


def _java(program: str, files: dict[str, str]) -> Sequence[str]:
    sources = {name: text for name, text in files.items() if name.endswith(".java")}

    def build(target: Path) -> None:
        target.mkdir()
        for name, text in {**sources, "pom.xml": files["pom.xml"]}.items():
            (target / name).write_text(text, encoding="utf-8")
        pom = str(target / "pom.xml")
        maven("-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={target}/lib", cwd=target)
        paths = [str(target / name) for name in sources]
        _run(
            [tool("javac"), "-Xlint:all", "-Werror", "-cp", f"{target}/lib/*", "-d", f"{target}/classes", *paths],
            target,
        )

    built = fetched(f"topic-clients-java-{_digest(files['pom.xml'], *sources.values())}", build)
    return [tool("java"), "-cp", f"{built}/lib/*:{built}/classes", program.removesuffix(".java")]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _run(arguments: Sequence[str], cwd: Path) -> None:
    done = subprocess.run(
        arguments,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise ServiceMissing(f"{arguments[0]} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
