"""The systemd units: systemd's own check of them, and that they say what the processes need."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from paywarden.ops.cli import cli
from paywarden.ops.wiring import ServeSettings
from paywarden.scoring.grpc.settings import GrpcSettings
from paywarden.scoring.http.settings import HttpSettings
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


def test_there_is_a_unit_for_every_process() -> None:
    assert {path.stem for path in FOLDER.glob("*.service")} == {f"paywarden-{name}" for name in NAMES}
    for name in NAMES:
        (start,) = unit(name)["ExecStart"]
        words = start.split("--log json ")[1].split()
        if name != "console":
            assert words[0] in cli.commands


def test_systemd_finds_no_fault_and_few_rights(tmp_path: Path) -> None:
    program = next(_systemd(), None)
    if program is None:
        pytest.skip(SYSTEMD.reason)
    for path in FOLDER.glob("*.service"):
        # What the units start is not installed here.
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


def test_serve_ends_before_the_companion() -> None:
    """systemd stops in the reverse order of its starts: what is in the outbox is shipped."""
    assert "paywarden-companion.service" in unit("serve")["After"][0].split()


def test_all_processes_of_a_host_are_one_user_and_share_its_folders() -> None:
    for name in NAMES:
        assert (unit(name)["User"], unit(name)["StateDirectory"]) == (["paywarden"], ["paywarden"])
        assert unit(name)["ReadWritePaths"] == ["/dev/shm/paywarden"]
    assert "d /dev/shm/paywarden 0700 paywarden paywarden" in (FOLDER / "paywarden.tmpfiles.conf").read_text(
        encoding="utf-8"
    )
