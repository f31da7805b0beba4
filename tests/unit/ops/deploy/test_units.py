"""The systemd units: systemd's own check of them, and that they say what the processes need."""

from __future__ import annotations

import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import click
import pytest

from paywarden.ops.cli import cli
from paywarden.ops.wiring import ServeSettings
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.net.tls import TlsSettings
from paywarden.scoring.server.context import connections_of
from paywarden.scoring.server.descriptors import FILES_RESERVE
from tests.checkout import CHECKOUT
from tests.services.missing_tools import Tool

FOLDER = CHECKOUT / "ops/deploy/systemd"
SYSTEMD = Tool("systemd-analyze 250 or newer", "apt-get install systemd")
NAMES = ("serve", "companion", "stream", "shadow", "lead", "console")
# systemd's measure of what a unit may do: 0 nothing, 10 everything. Without the network it would be below 1.
EXPOSURE_MAX = 2.0


@cache
def unit(name: str) -> dict[str, list[str]]:
    """Returns the settings of a unit, each with its values in order."""
    settings: dict[str, list[str]] = {}
    for line in (FOLDER / f"paywarden-{name}.service").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            setting, _, value = line.partition("=")
            settings.setdefault(setting, []).append(value)
    return settings


def _systemd() -> Iterator[str]:
    program = shutil.which("systemd-analyze")
    if program is not None:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        if (found := re.match(r"systemd (\d+)", version)) and int(found[1]) >= 250:
            yield program


def _started(name: str) -> list[str]:
    """Returns the words of what a unit starts, with the values of its variables."""
    (start,) = unit(name)["ExecStart"]
    pairs = dict(word.split("=", 1) for line in unit(name)["Environment"] for word in line.split())
    return shlex.split(string.Template(start).substitute(pairs))


def _parsed(words: Sequence[str]) -> list[str]:
    """Parse a command line as `paywarden` does, without running it; returns the names of the commands in it.

    Raises click.UsageError for a command, an option or a value that does not exist.
    """
    command: click.Command = cli
    context = cli.make_context("paywarden", list(words))
    names: list[str] = []
    while isinstance(command, click.Group) and (rest := [*context._protected_args, *context.args]):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        names.append(name or "")
        command, context = found, found.make_context(name, rest, parent=context)
    return names


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("serve", ["serve"]),
        ("companion", ["companion"]),
        ("stream", ["stream"]),
        ("shadow", ["shadow", "run"]),
        ("lead", ["rollout", "lead"]),
        ("console", ["console"]),
    ],
)
def test_a_unit_starts_a_command_with_options_that_exist(name: str, commands: Sequence[str]) -> None:
    program, *words = _started(name)
    assert program == "/opt/paywarden/bin/paywarden"
    assert _parsed(words) == commands


def test_a_process_gets_the_secrets_of_its_own_work_alone() -> None:
    """`serve` had the passwords of Kafka and of the store, and it connects to neither."""
    files = {name: {Path(path.removeprefix("-")).stem for path in unit(name)["EnvironmentFile"]} for name in NAMES}
    assert files["serve"] == {"models"}
    assert files["stream"] == {"kafka", "store"}
    assert files["companion"] == {"kafka", "store", "models"}
    assert files["shadow"] == files["lead"] == {"kafka", "models"}
    assert files["console"] == {"kafka", "models", "console"}


def test_the_page_of_deploying_makes_every_file_that_a_unit_names() -> None:
    page = (CHECKOUT / "docs/operate/deploy.md").read_text(encoding="utf-8")
    _, _, section = page.partition("\n## On machines with systemd\n")
    section = section.partition("\n## ")[0]
    for name in NAMES:
        named = [word for word in _started(name) if word.startswith("/")]
        named += [value.removeprefix("-") for value in unit(name)["EnvironmentFile"]]
        missing = [path for path in named if not path.startswith("/opt/paywarden/") and path not in section]
        assert missing == [], name
    assert "python3 -m venv /opt/paywarden" in section


def test_systemd_finds_no_fault_and_few_rights(tmp_path: Path) -> None:
    program = next(_systemd(), None)
    if program is None:
        pytest.skip(SYSTEMD.reason)
    for path in FOLDER.glob("*.service"):
        # The programs that the units start are not installed here.
        text = path.read_text(encoding="utf-8").replace("/opt/paywarden/bin/paywarden", "/bin/true")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    units = sorted(map(str, tmp_path.glob("*.service")))
    checked = subprocess.run([program, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    ours = [line for line in checked.stderr.splitlines() if "paywarden" in line]
    assert (checked.returncode, ours) == (0, [])
    for name in units:
        scored = subprocess.run(
            [program, "security", "--offline=true", "--no-pager", name], capture_output=True, text=True, check=False
        )
        (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", scored.stdout)
        assert float(exposure) <= EXPOSURE_MAX, name


def test_a_worker_may_open_the_files_that_its_connections_need() -> None:
    needed = sum(connections_of(HttpSettings(), GrpcSettings(), TlsSettings()).values()) + FILES_RESERVE
    assert int(unit("serve")["LimitNOFILE"][0]) >= needed


def test_systemd_waits_longer_than_a_process_takes_to_stop() -> None:
    stop_s = max(one.drain_delay_ms + one.stop_timeout_ms for one in (HttpSettings(), GrpcSettings())) / 1000
    # A hanging worker is killed after this long.
    assert int(unit("serve")["TimeoutStopSec"][0]) > stop_s + ServeSettings().hang_timeout_s
