"""Two versions of different catalogues on one host: one switch, one switch back, and no call is refused."""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from paywarden.scoring.state.mirror_writer import MirrorWriter
from tests.services.product.processes import PaywardenProcess, wait_for_listener, wait_until
from tests.services.product.scoring_server import PATIENT, Server
from tests.unit.scoring.server.test_takeover import Caller
from tests.worlds.small import small_world

# A version takes the digest of its catalogue from its first argument. All else of the two is in their configurations.
PROGRAM = """
import sys
from paywarden.ops.cli import main
from paywarden.scoring.server.context import ServerContext
name = sys.argv.pop(1)
ServerContext.catalogue_digest = property(lambda _: name)
main()
"""
BUNDLES = {"blue": small_world.trained_bundle, "green": small_world.other_bundle}


class Versions:
    """A folder for what both share, and a process for each of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runtime = folder, folder / "serve"
        self.servers = {name: Server(self._made(name), bundle=BUNDLES[name](), more=PATIENT) for name in BUNDLES}
        self.processes: dict[str, PaywardenProcess] = {}
        for name, server in self.servers.items():
            text = server.config.read_text(encoding="utf-8")
            for shared in ("serve", "answered"):
                text = text.replace(f"{server.folder / shared}", f"{folder / shared}")
            server.config.write_text(text, encoding="utf-8")
            writer = MirrorWriter(server.mirror)
            writer.apply({}, {0: 1}, 1)
            writer.close()
            assert self.model_of(name)

    def _made(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def start(self, name: str) -> None:
        config = str(self.servers[name].config)
        self.processes[name] = PaywardenProcess.of_program(
            self.folder, PROGRAM, name, "--config", config, "serve", "--standby"
        )

    def address_of(self, name: str) -> str:
        """Returns the address of a version whose turn it is, once a worker listens."""
        address = urllib.parse.urlsplit(self.processes[name].first_line()).netloc
        wait_for_listener(address)
        return address

    def log(self, name: str) -> str:
        return self.processes[name].log.read_text(encoding="utf-8")

    def order(self, name: str) -> None:
        bundle = BUNDLES[name]()
        paths = ReleasePaths(str(bundle), "", read_manifest(bundle).digest, policy_digest(PolicySettings(), {}))
        self.runtime.mkdir(exist_ok=True)
        write_deployment(self.runtime / DEPLOYMENT, Deployment(paths, catalogue=name))

    def model_of(self, name: str) -> str:
        return read_manifest(BUNDLES[name]()).model_version


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[Versions]:
    made = Versions(tmp_path)
    yield made
    for process in made.processes.values():
        process.stop()


def test_one_switch_and_one_switch_back_change_all_three_and_refuse_no_call(
    versions: Versions, record_property: Callable[[str, object], None]
) -> None:
    versions.order("blue")
    for name in ("green", "blue"):
        versions.start(name)
    address = versions.address_of("blue")
    seconds = []
    with Caller(address) as caller:
        caller.goes_on(5)
        for name in ("green", "blue", "green", "blue"):
            begun = time.monotonic()
            versions.order(name)
            wait_until(lambda name=name: caller.model == versions.model_of(name), f"{name} decides")  # type: ignore[misc]
            seconds.append(time.monotonic() - begun)
            caller.goes_on(5)
    assert caller.trouble == []
    record_property("seconds_of_switches", seconds)
    # Its workers may still answer what was in flight.
    wait_until(lambda: "another version decides, and this one waits" in versions.log("green"), "green waits")


def test_a_version_without_a_mirror_does_not_take_over(versions: Versions) -> None:
    versions.order("blue")
    versions.start("blue")
    address = versions.address_of("blue")
    mirror = versions.servers["green"].mirror.data_file
    os.rename(mirror, mirror.with_suffix(".away"))
    versions.start("green")
    with Caller(address) as caller:
        versions.order("green")
        wait_until(
            lambda: "green does not take over, and the other version serves on" in versions.log("green"), "it says so"
        )
        caller.goes_on(5)
        assert caller.model == versions.model_of("blue")
        os.rename(mirror.with_suffix(".away"), mirror)
        wait_until(lambda: caller.model == versions.model_of("green"), "green decides")
    assert caller.trouble == []
