"""The commands of docs/data-science/worked-example.md, with fewer cards and trees: each does what the page says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.models.bundle.bundle import read_manifest
from paywarden.ops.cli import cli
from tests.checkout import CHECKOUT

PAGE = CHECKOUT / "docs/data-science/worked-example.md"
CARDS = ("--cards 4000", "--cards 200")
# Fewer cards give models other names than the page has.
VERSIONS = {"m-6c321657430c": "work/bundle", "m-cd5fbd0e439e": "work/newest"}
# Frauds are few in a small world: a model of few trees, and no search for their number.
SMALL = {
    "PAYWARDEN_TRAINING_TREES": "20",
    "PAYWARDEN_TRAINING_MIN_ROWS_IN_LEAF": "10",
    "PAYWARDEN_TRAINING_THREADS": "1",
}


def commands() -> Iterator[str]:
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield from (line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))


def run(command: str) -> str:
    """Run a command in the current folder; returns what it said. `paywarden` runs in this process."""
    for version, bundle in VERSIONS.items():
        if version in command:
            command = command.replace(version, read_manifest(Path(bundle)).model_version)
    command, redirect, file = re.fullmatch(r"(.*?)(?: (>>?) (\S+))?", command.replace(*CARDS)).groups()  # type: ignore[union-attr]
    words = shlex.split(command)
    if words[0] != "paywarden":
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    result = CliRunner().invoke(cli, words[1:], env=SMALL, standalone_mode=False)
    assert result.exception is None, (command, result.exception, result.stderr)
    if redirect:
        with Path(file).open("a" if redirect == ">>" else "w", encoding="utf-8") as out:
            out.write(result.stdout)
    return result.stdout


def test_the_commands_of_the_page_make_a_bundle_near_the_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[str, str] = {}
    for command in commands():
        if command.startswith("cd "):
            monkeypatch.chdir(command.removeprefix("cd "))
        else:
            said[command] = run(command)
    assert [first.split()[1] for first in said][:3] == ["init", "features", "simulate"]
    assert "69 features" in said["paywarden features --check"] or "70 features" in said["paywarden features --check"]
    packaged, own = (json.loads(text)["ceiling"] for first, text in said.items() if "--ceiling" in first)
    assert packaged["frauds"] == own["frauds"] > 20
    # As the page tells of 4,000 cards, though few payments teach less.
    assert own["share"] > packaged["share"] + 0.05
    assert own["share"] > 0.3
    assert {one["situation"] for one in own["situations"]} >= {"usual", "first_party"}
    assert "signed manifest.json" in "".join(said.values())
    assert "every section is right" in said["paywarden policy check"]
    approved = [text for command, text in said.items() if "models approve" in command]
    assert len(approved) == 2
    assert all("approved by ben: it can be promoted" in text for text in approved)
    assert "promoted by anna" in "".join(text for command, text in said.items() if "models promote" in command)
    assert "newer-days: pending, started by anna" in said["paywarden rollout status"]
