"""The image: what can be said of its Dockerfile without building it. `try_in_chroot.py` beside it takes its steps."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from functools import cache
from types import ModuleType
from typing import Any

from tests.checkout import CHECKOUT

IMAGE = CHECKOUT / "ops/deploy/image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text(encoding="utf-8")


@cache
def script(name: str) -> ModuleType:
    """A script beside the Dockerfile, as a module."""
    spec = importlib.util.spec_from_file_location(name, IMAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def steps() -> list[Any]:
    return list(script("try_in_chroot").instructions(DOCKERFILE))


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_dockerfile_is_read_as_its_lines_say() -> None:
    text = 'ARG A=1\n# a comment\nFROM x AS y\nCOPY --from=z a \\\n  b\nENTRYPOINT ["p", "q r"]\n'
    read = [(step.word, step.words, step.options) for step in script("try_in_chroot").instructions(text)]
    assert read == [
        ("ARG", ["A=1"], {}),
        ("FROM", ["x", "AS", "y"], {}),
        ("COPY", ["a", "b"], {"from": "z"}),
        ("ENTRYPOINT", ["p", "q r"], {}),
    ]


def test_the_image_has_extras_that_exist() -> None:
    (extras,) = [
        step.rest.partition("=")[2] for step in steps() if step.word == "ARG" and step.rest.startswith("EXTRAS=")
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
    users = [step.rest for step in last_stage if step.word == "USER"]
    assert users == ["10001:10001"]
    after = last_stage[[step.word for step in last_stage].index("USER") :]
    assert not [step for step in after if step.word in ("RUN", "COPY", "ADD")]


def test_debian_packages_are_components_in_one_order() -> None:
    lines = "zlib1g\t1:1.2.13.dfsg-1\tamd64\nbase-files\t12.4+deb12u1\tamd64\n"
    components = script("sbom").debian_components(lines, "debian-12")
    assert [part["name"] for part in components] == ["base-files", "zlib1g"]
    assert components[1]["purl"] == "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64&distro=debian-12"
    assert json.dumps(components) == json.dumps(
        script("sbom").debian_components("".join(reversed(lines.splitlines(keepends=True))), "debian-12")
    )
