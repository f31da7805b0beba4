"""The Compose file of one machine: what it names exists, and no process of ours has more rights than it needs."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from paywarden.ops.cli import cli
from paywarden.ops.configuration import section_problems, settings_types
from paywarden.schemas.settings import read_source
from tests.checkout import CHECKOUT
from tests.services.deploy_tools import COMPOSE, compose

FOLDER = CHECKOUT / "ops/deploy/compose"
PROFILES = ("shadow", "lead", "console")
# Dashboards come with rules and a configuration of Alertmanager, or not at all.
OF_OPERATIONS = (
    ()
    if (CHECKOUT / "ops/dashboards").exists()
    else ("../../recording.yml", "../../alertmanager.yml", "../../dashboards")
)
# `setup.sh` makes these.
MADE = ("gateway", "secrets")


@cache
def described() -> dict[str, Any]:
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def ours() -> dict[str, Any]:
    services = described()["services"]
    return {name: service for name, service in services.items() if "${PAYWARDEN_" in service["image"]}


def test_every_command_exists() -> None:
    for name, service in ours().items():
        words = [word for word in service["command"] if not word.startswith("-")]
        command = words[words.index("json") + 1 if "json" in words else 1]
        if name != "console":
            assert command in cli.commands, name


def test_every_file_volume_network_and_secret_that_is_named_exists() -> None:
    named = described()
    for name, service in named["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                is_made = source.removeprefix("./").split("/")[0] in MADE
                assert is_made or source in OF_OPERATIONS or (FOLDER / source).exists(), (name, source)
            else:
                assert source in named["volumes"], (name, source)
        assert set(service["networks"]) <= set(named["networks"])
        secrets = {each if isinstance(each, str) else each["source"] for each in service.get("secrets", ())}
        assert secrets <= set(named["secrets"])
        assert set(service.get("depends_on", ())) <= set(named["services"])


def test_our_processes_have_no_rights_and_a_limit_of_memory() -> None:
    assert set(ours()) == {"topics", "stream", "companion", "serve", "shadow", "lead", "console"}
    for name, service in ours().items():
        assert service["read_only"], name
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["mem_limit"]
        assert service["healthcheck"]
        assert not [
            word for word in json.dumps(service["environment"]).split('"') if "PASSWORD" in word or "KEY" in word
        ]


def test_the_settings_are_right_and_fit_the_file() -> None:
    source = read_source(str(FOLDER / "paywarden.toml"))
    assert [fault for name, kind in settings_types().items() for fault in section_problems(source, name, kind)] == []
    settings = tomllib.loads((FOLDER / "paywarden.toml").read_text(encoding="utf-8"))
    options = described()["volumes"]["memory"]["driver_opts"]["o"]
    shared_mb = int(re.findall(r"size=(\d+)g", options)[0]) * 1024
    answered_mb = settings["answered"]["payments_max"] * 24 / 2**20
    assert settings["mirror"]["size_mb"] + answered_mb < shared_mb
    ports = {"serve": settings["serve"]["admin_port"]}
    ports |= {name: settings[name]["http_port"] for name in ("companion", "stream", "shadow")}
    scraped = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    for name, port in ports.items():
        assert ours()[name]["environment"]["HEALTH_URL"] == f"http://127.0.0.1:{port}/livez"
        assert f"{name}:{port}" in scraped or f"port: {port}" in scraped


def test_compose_itself_reads_the_file(tmp_path: Path) -> None:
    program = compose()
    if program is None:
        pytest.skip(COMPOSE.reason)
    done = subprocess.run(
        [str(program), str(FOLDER / "compose.yaml"), *PROFILES],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["services"]) == set(described()["services"])
