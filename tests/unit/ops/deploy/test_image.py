"""The image: what can be said of its Dockerfile without building it."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from typing import Any, NamedTuple

from tests.checkout import CHECKOUT

IMAGE = CHECKOUT / "ops/deploy/image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text(encoding="utf-8")
SBOM = runpy.run_path(str(IMAGE / "sbom.py"))


class Step(NamedTuple):
    """An instruction of the Dockerfile: its word, its options (--from=…), and the words behind them."""

    word: str
    options: list[str]
    words: list[str]


def steps() -> list[Step]:
    lines = (line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#"))
    split = (shlex.split(line) for line in "\n".join(lines).replace("\\\n", " ").splitlines())
    return [
        Step(word, [one for one in rest if one.startswith("--")], [one for one in rest if not one.startswith("--")])
        for word, *rest in split
    ]


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_image_has_extras_that_exist() -> None:
    (extras,) = [
        step.words[0].removeprefix("EXTRAS=") for step in steps() if step.word == "ARG" and "EXTRAS=" in step.words[0]
    ]
    assert set(extras.split(",")) <= set(project()["project"]["optional-dependencies"])


def test_every_folder_of_packages_is_copied_and_not_ignored() -> None:
    copied = {source for step in steps() if step.word == "COPY" and not step.options for source in step.words[:-1]}
    roots = {folder for folder in project()["tool"]["setuptools"]["package-dir"].values() if folder != "."}
    assert roots <= copied
    kept = set(re.findall(r"^!(\S+)$", (CHECKOUT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    assert kept == copied
    assert all((CHECKOUT / source).exists() for source in copied)


def test_the_image_runs_as_a_user_without_rights() -> None:
    last_from = max(place for place, step in enumerate(steps()) if step.word == "FROM")
    last_stage = steps()[last_from:]
    users = [step.words for step in last_stage if step.word == "USER"]
    assert users == [["10001:10001"]]
    after = last_stage[[step.word for step in last_stage].index("USER") :]
    assert not [step for step in after if step.word in ("RUN", "COPY", "ADD")]


def test_debian_packages_are_components_in_one_order() -> None:
    lines = "zlib1g\t1:1.2.13.dfsg-1\tamd64\nbase-files\t12.4+deb12u1\tamd64\n"
    components = SBOM["debian_components"](lines, "debian-12")
    assert [part["name"] for part in components] == ["base-files", "zlib1g"]
    assert components[1]["purl"] == "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64&distro=debian-12"
    assert components == SBOM["debian_components"]("".join(reversed(lines.splitlines(keepends=True))), "debian-12")
