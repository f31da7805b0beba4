"""The systemd units' own command lines, run as their user behind their sandbox: start, answer, and end when asked.

No systemd runs here. tests/services/units/as_unit.py does by hand what it would do.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from paywarden.features.kernel.toolkit import machine_code
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.maintenance.backfill import backfill
from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.missing_tools import Tool
from tests.services.ports import free_ports
from tests.services.product.processes import post, wait_until
from tests.unit.ops.deploy.test_units import unit
from tests.worlds.small import small_world

SANDBOX = Tool("root, systemd-analyze and libseccomp", "apt-get install systemd libseccomp2, and run as root")
UID = 4711
# In the order of their starts.
NAMES = ("stream", "companion", "serve")
_CONFIG = """\
[kafka]
bootstrap = "{bootstrap}"
check_crcs = false
[lmdb]
path = "store"
[mirror]
path = "/dev/shm/paywarden/mirror"
size_mb = 64
[answered]
path = "/dev/shm/paywarden/answered"
payments_max = 10_000
[serve]
bundle = "/srv/paywarden/models/current"
metrics = "/dev/shm/paywarden/metrics"
admin_port = {serve}
[http]
port = {http}
[grpc]
port = {grpc}
[companion]
http_port = {companion}
[stream]
http_port = {stream}
[admission]
deadline_ms = 20_000
wait_ms_max = 10_000
"""


def _may_sandbox() -> bool:
    has_tools = all(map(shutil.which, ("systemd-analyze", "mount", "unshare"))) and ctypes.util.find_library("seccomp")
    if sys.platform != "linux" or os.geteuid() != 0 or not has_tools:
        return False
    # A container may have a root without the right to mount.
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@dataclass
class Machine:
    """The units' machine: its files as folders here, and the processes that run on it."""

    folder: Path
    memory: Path
    ports: Mapping[str, int]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command_line: str = "") -> None:
        """Start what a unit starts, or another command line with its sandbox."""
        settings = {**unit(name), **({"ExecStart": [command_line]} if command_line else {})}
        root = self.folder / f"root-{name}"
        root.mkdir(exist_ok=True)
        binds = {
            "/var/lib/paywarden": str(self.folder / "state"),
            "/dev/shm/paywarden": str(self.memory),
            "/etc/paywarden": str(self.folder / "etc"),
            "/srv/paywarden": str(self.folder / "srv"),
            "/opt/paywarden": sys.prefix,
            # The interpreter's environment and the checkout, wherever they lie.
            sys.prefix: sys.prefix,
            str(CHECKOUT): str(CHECKOUT),
        }
        given = {"settings": settings, "uid": UID, "root": str(root), "binds": binds}
        command = [sys.executable, str(CHECKOUT / "tests/services/units/as_unit.py"), json.dumps(given)]
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def metrics(self, name: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/metrics", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def is_ready(self, name: str) -> bool:
        assert self.running[name].poll() is None, self.log(name).read_text("utf-8")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/readyz", timeout=PATIENCE_S) as answer:
                return bool(answer.status == 200)
        except (urllib.error.HTTPError, OSError):
            return False


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if not _may_sandbox():
        pytest.skip(SANDBOX.reason)
    folder = tmp_path_factory.mktemp("machine")
    with ExitStack() as stack:
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-test-", dir="/dev/shm")))
        broker = stack.enter_context(closing(EmbeddedBroker()))
        ports = dict(zip(("serve", "companion", "stream", "http", "grpc"), free_ports(5), strict=True))
        (folder / "etc").mkdir()
        (folder / "etc/paywarden.toml").write_text(_CONFIG.format(bootstrap=broker.bootstrap, **ports), "utf-8")
        shutil.copytree(small_world.trained_bundle(), folder / "srv/models/current")
        state = folder / "state"
        with closing(LmdbStore.from_settings(LmdbSettings(path=str(state / "store")))) as store:
            backfill(
                small_world.history(), store, engine=small_world.engine(), rates=small_world.rates(), outcome_days=30
            )
        # Three processes that compile everything for themselves would take minutes of both cores. This test begins
        # early in a whole run: after a change of compiled code, other tests may not have filled the cache yet.
        if (compiled := machine_code.directory()) is not None:
            subprocess.run([sys.executable, "-P", "-m", "paywarden", "compile"], stdout=subprocess.DEVNULL, check=True)
            shutil.copytree(compiled, state / "compiled" / compiled.name)
        subprocess.run(["chmod", "-R", "a+rX,go-w", str(folder / "srv"), str(folder / "etc")], check=True)
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(state), str(memory)], check=True)
        made = Machine(folder, memory, ports)
        try:
            yield made
        finally:
            for process in made.running.values():
                process.kill()
                process.wait()


# Acts that a unit's sandbox forbids, each by its own part: each line prints its error.
_FORBIDDEN = """
import os, socket
def tried(what):
    try:
        what()
    except OSError as error:
        print(type(error).__name__, error.strerror)
    else:
        print("done")
tried(lambda: open("/var/lib/other", "w"))
tried(lambda: open("/opt/paywarden/other", "w"))
tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
tried(lambda: os.chroot("/"))
tried(lambda: open("/dev/kmsg"))
tried(lambda: open("/proc/1/cmdline"))
tried(lambda: open("/var/lib/paywarden/own", "w").close())
tried(lambda: open("/tmp/own", "w").close())
tried(lambda: socket.socket().close())
"""


def test_a_unit_may_write_and_reach_nothing_but_its_own(machine: Machine) -> None:
    (machine.folder / "etc/forbidden.py").write_text(_FORBIDDEN, "utf-8")
    machine.start("serve", f"{sys.executable} -P /etc/paywarden/forbidden.py")
    machine.running.pop("serve").wait(PATIENCE_S)
    assert machine.log("serve").read_text("utf-8").splitlines() == [
        *["OSError Read-only file system"] * 2,
        *["PermissionError Operation not permitted"] * 2,
        *["FileNotFoundError No such file or directory"] * 2,
        *["done"] * 3,
    ]


def test_units_start_answer_and_end_in_their_time_behind_their_sandbox(machine: Machine) -> None:
    for name in NAMES:
        machine.start(name)
    for name in NAMES:
        wait_until(lambda: machine.is_ready(name), f"{name} is ready: {machine.log(name)}")  # noqa: B023
    payment = {
        "payment_id": "p-1",
        "event_time_ms": time.time_ns() // 1_000_000,
        "card_id": "card-1",
        "merchant_id": "merchant-1",
        "amount_minor": 4999,
        "currency": "EUR",
    }
    url = f"http://127.0.0.1:{machine.ports['http']}/v1/score"
    status, body = post(url, json.dumps(payment).encode(), "application/json")
    assert (status, json.loads(body)["payment_id"]) == (200, "p-1"), body
    assert "mirror_absent" not in json.loads(body)["flags"]

    files = min(int(unit("serve")["LimitNOFILE"][0]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for name in NAMES:
        main = psutil.Process(machine.running[name].pid)
        assert main.uids() == (UID, UID, UID)
        limits = Path(f"/proc/{main.pid}/limits").read_text("ascii")
        assert re.findall(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE) == [(str(files), str(files))]
        told = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{main.pid}/status").read_text("ascii").splitlines()
            if ":" in line
        )
        rights = {key: told[key].strip() for key in ("NoNewPrivs", "Seccomp", "CapBnd", "CapEff", "Groups")}
        assert rights == {
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "Groups": "",
            **dict.fromkeys(("CapBnd", "CapEff"), "0" * 16),
        }

    shipped = "paywarden_companion_decisions_shipped_total 1.0"
    wait_until(lambda: shipped in machine.metrics("companion"), "the decision is on its topic")

    # As systemd stops them: serve before the companion, each within its time.
    for name in reversed(NAMES):
        process = machine.running[name]
        process.terminate()
        ended = process.wait(int(unit(name)["TimeoutStopSec"][0]))
        assert ended == 0, machine.log(name).read_text("utf-8")
