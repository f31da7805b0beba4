"""Writes constraints.txt again: `.venv/bin/python ops/deploy/renew_constraints.py`, after a change of a version in it.

The versions are those of constraints.txt. Their files, hashes and dependencies come from the index that pip uses
(`pip config`), and the packages that an extra needs from its dependencies, over all machines and releases of Python
below. A dependency that is not pinned is an error that names it: add a block with its version, and run this again.

Files for other systems and for older releases of Python are left out.
"""

from __future__ import annotations

import io
import json
import os
import re
import ssl
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import product
from typing import Any
from urllib.parse import urljoin

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from pip._internal.models.index import PyPI

from paywarden.ops.deploy.requirements import PINS, blocks

HEAD = """\
# The versions everything was tested with, and the hashes of their files: ops/deploy/requirements.py prints those of
# an extra for `pip install --require-hashes`. ops/deploy/renew_constraints.py wrote this file.
"""
_PROJECT = tomllib.loads((PINS.parent / "pyproject.toml").read_text(encoding="utf-8"))
# Packages that are no dependency of the project: what builds it, and what lists the parts of an image.
_MORE = {"build": "setuptools", "image": "cyclonedx-bom"}
# Its client wants an older package than ours: nobody installs it beside these versions.
_NOT_PINNED = "mlflow"
_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_MACHINES = ("x86_64", "aarch64")
ENVIRONMENTS = tuple(
    {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": "linux",
    }
    for python, machine in product(_PYTHONS, _MACHINES)
)


def fetched(url: str) -> bytes:
    """Returns what the index has at a URL, over pip's certificates."""
    request = urllib.request.Request(url, headers={"Accept": "application/vnd.pypi.simple.v1+json, */*;q=0.1"})
    with urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context(cafile=_pip("cert"))) as answer:
        return bytes(answer.read())


@cache
def _pip(name: str) -> str | None:
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return os.environ.get(f"PIP_{name.upper().replace('-', '_')}") or done.stdout.strip() or None


@cache
def files(package: str, version: str) -> tuple[dict[str, Any], ...]:
    """Returns the files of a version that may be installed here or there, without those that were withdrawn."""
    index = (_pip("index-url") or PyPI.simple_url).rstrip("/")
    url = f"{index}/{canonicalize_name(package)}/"
    page = json.loads(fetched(url))
    kept = (file for file in page["files"] if not file.get("yanked") and _is_wanted(file["filename"], version))
    found = [{**file, "url": urljoin(url, file["url"])} for file in kept]
    if not found:
        raise SystemExit(f"renew_constraints: the index has no file of {package} {version}")
    return tuple(found)


def _is_wanted(name: str, version: str) -> bool:
    try:
        if not name.endswith(".whl"):
            return str(parse_sdist_filename(name)[1]) == version
        _, its, _, tags = parse_wheel_filename(name)
    except (InvalidSdistFilename, InvalidWheelFilename):
        return False
    return str(its) == version and any(_fits(tag) for tag in tags)


def _fits(tag: Tag) -> bool:
    wanted = tag.platform == "any" or (
        tag.platform.startswith(("manylinux", "linux")) and tag.platform.endswith(_MACHINES)
    )
    minor = tag.interpreter.removeprefix("cp3")
    release = tag.interpreter in ("py3", "py2.py3") or tag.abi == "abi3" or f"3.{minor}" in _PYTHONS
    # No test runs on a free-threaded Python.
    return wanted and release and not tag.abi.endswith("t")


@cache
def needed(package: str, version: str) -> tuple[Requirement, ...]:
    """Returns the dependencies of a version, by the installed one or the metadata of its smallest wheel."""
    with suppress(PackageNotFoundError):
        installed = distribution(package)
        if installed.version == version:
            return tuple(Requirement(line) for line in installed.requires or [])
    wheels = [file for file in files(package, version) if file["filename"].endswith(".whl")]
    smallest = fetched(min(wheels, key=lambda file: file.get("size") or 0)["url"])
    with zipfile.ZipFile(io.BytesIO(smallest)) as content:
        (metadata,) = (name for name in content.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        fields = message_from_bytes(content.read(metadata))
    return tuple(Requirement(line) for line in fields.get_all("Requires-Dist") or [])


def extras_of(pins: dict[str, str]) -> dict[str, set[str]]:
    """Returns the extras that need each package."""
    optional = _PROJECT["project"]["optional-dependencies"]
    roots: dict[str, list[str]] = {"base": _PROJECT["project"]["dependencies"]}
    roots |= {extra: lines for extra, lines in optional.items() if extra != _NOT_PINNED}
    roots |= {extra: [line] for extra, line in _MORE.items()}
    users: dict[str, set[str]] = {}
    for extra, environment in product(roots, ENVIRONMENTS):
        todo, seen = [Requirement(line) for line in roots[extra]], set()
        while todo:
            wanted = todo.pop()
            name, inside = canonicalize_name(wanted.name), frozenset(wanted.extras)
            if (name, inside) in seen:
                continue
            seen.add((name, inside))
            if name == "paywarden":
                todo += [Requirement(line) for one in inside for line in optional[one]]
                continue
            if name not in pins:
                raise SystemExit(f"renew_constraints: {extra} needs {name}, which constraints.txt does not pin")
            users.setdefault(name, set()).add(extra)
            todo += [one for one in needed(name, pins[name]) if _holds(one, inside, environment)]
    return users


def _holds(requirement: Requirement, extras: frozenset[str], environment: dict[str, str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))


def written(spellings: dict[str, str], pins: dict[str, str], users: dict[str, set[str]]) -> Iterator[str]:
    """Yields the blocks of constraints.txt."""
    yield HEAD
    for name, version in sorted(pins.items()):
        hashes = sorted({file["hashes"]["sha256"] for file in files(name, version)})
        lines = [f"{spellings[name]}=={version}", *(f"    --hash=sha256:{digest}" for digest in hashes)]
        yield f"# {', '.join(sorted(users[name]))}\n" + " \\\n".join(lines) + "\n"


def main() -> None:
    """Read the versions, ask the index, and write the file."""
    found = [(name, lines.partition("==")[2].split()[0]) for name, _, lines in blocks(PINS.read_text(encoding="utf-8"))]
    spellings: dict[str, str] = {canonicalize_name(name): name for name, _ in found}
    pins: dict[str, str] = {canonicalize_name(name): version for name, version in found}
    users = extras_of(pins)
    if unused := sorted(set(pins) - set(users)):
        raise SystemExit(f"renew_constraints: nothing needs {', '.join(unused)}: take these blocks out")
    PINS.write_text("\n".join(written(spellings, pins, users)), encoding="utf-8")


if __name__ == "__main__":
    main()
