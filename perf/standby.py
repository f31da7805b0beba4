"""Switches between two complete versions on one host (blue-green): how long each takes, and does any call fail?

Measured: two `paywarden serve --standby` with one worker each, whose feature catalogues have different digests, share
ports, decision cache and `[serve] runtime`. An open loop of HTTP calls goes on all the time. Meanwhile the deployment
file is replaced, in turns, by one that names the other catalogue.

    python -m perf.standby [--switches N] [--pause S] [--rate R] [--entities N] [--json FILE]

A process of its own replaces the file and sends a payment over a new connection every 5 ms. `switch_ms_p50` and `_max`
count from the replaced file to the first answer with the other version's model, `last_ms_max` to the last answer of the
version before. `early_ms_p50` and `_max` are those of a way back that is asked for as soon as a switch was seen: the
version before still closes connections then. `failed` counts calls of the load and of that process (`asked_failed`)
without a 200. Among the failed, `shed` were refused at once because the estimated wait was too long, and `late` after
their deadline. `p99_ms` is the median of loads of 2.5 seconds, each with a switch.
"""

from __future__ import annotations

import http.client
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_load
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.ops.times import now_ms
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.mirror_writer import MirrorWriter
from perf.swap import renamed
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.servers import Server, pin_load, server_core, wait_until_ready
from perf.worlds.scoring_world import World, built_world

# A version takes the digest of its catalogue from its first argument. All else of the two is in their configurations.
_PROGRAM = """
import os, sys
from paywarden.ops.cli import main
from paywarden.scoring.server.context import ServerContext
name = sys.argv.pop(1)
os.sched_setaffinity(0, {int(sys.argv.pop(1))})
ServerContext.catalogue_digest = property(lambda _: name)
main()
"""
_NAMES = ("blue", "green")
_OPTIONS = LoadOptions(connections=8, streams=8)
_LOOK_S = 0.005
_TIMEOUT_S = 30.0
_WAITS = "another version decides, and this one waits"


class Versions:
    """Two configurations that share a runtime folder, and the processes that stand by with them."""

    def __init__(self, world: World, folder: Path) -> None:
        self._path, self._logs = folder / "serve" / DEPLOYMENT, folder
        text = world.config.read_text(encoding="utf-8")
        self.bundles = {name: renamed(world.bundle, folder / name) for name in _NAMES}
        self.models = {name: read_manifest(bundle).model_version for name, bundle in self.bundles.items()}
        empty = MirrorSettings(path=f"{world.mirror.path}-green", size_mb=64)
        writer = MirrorWriter(empty)
        writer.apply({}, {0: 1}, now_ms())
        writer.close()
        own = {"blue": (world.mirror.path, world.outbox.directory), "green": (empty.path, str(folder / "outbox"))}
        self._configs = {}
        for name, (mirror, outbox) in own.items():
            replaced = text.replace(
                f'bundle = "{world.bundle.resolve()}"',
                f'bundle = "{self.bundles[name]}"\nruntime = "{folder / "serve"}"',
            )
            replaced = replaced.replace(f'"{world.mirror.path}"', f'"{mirror}"')
            replaced = replaced.replace(f'"{world.outbox.directory}"', f'"{outbox}"')
            self._configs[name] = folder / f"{name}.toml"
            self._configs[name].write_text(replaced, encoding="utf-8")
        self._path.parent.mkdir(mode=0o700)

    def order(self, name: str) -> None:
        """Let this version serve."""
        bundle = self.bundles[name]
        policy = policy_digest(PolicySettings(), {})
        paths = ReleasePaths(str(bundle), "", read_manifest(bundle).digest, policy)
        write_deployment(self._path, Deployment(paths, catalogue=name))

    def log(self, name: str) -> str:
        """Returns the log of a version."""
        return (self._logs / f"{name}.log").read_text(encoding="utf-8")

    @contextmanager
    def standing_by(self) -> Iterator[str]:
        """Run both, the first one serving; give its address. Raises RuntimeError if it does not come up."""
        self.order(_NAMES[0])
        processes = []
        try:
            for name in reversed(_NAMES):
                with (self._logs / f"{name}.log").open("w") as log:
                    command = [sys.executable, "-c", _PROGRAM, name, str(server_core())]
                    processes.append(
                        subprocess.Popen(
                            [*command, "--config", str(self._configs[name]), "serve", "--standby"],
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE,
                            stderr=log,
                            text=True,
                        )
                    )
            stdout = processes[-1].stdout
            assert stdout is not None
            url = stdout.readline().strip()
            wait_until_ready(Server({"http": url}, processes[-1]), "/readyz")
            yield urlsplit(url).netloc
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(_TIMEOUT_S)
                assert process.stdout is not None
                process.stdout.close()


class Switches:
    """A process that switches to and fro, asks who answers, and reports the answers."""

    def __init__(self, versions: Versions, address: str, bodies: Sequence[bytes], count: int, pause_s: float) -> None:
        self._versions, self._address, self._bodies = versions, address, bodies
        self._count, self._pause_s = count, pause_s
        self._asked = self.failed = 0
        # Milliseconds from the file to the first answer of the other version, to the last one of the version before,
        # and to the first answer on the way back that follows at once.
        self.first_ms, self.last_ms, self.early_ms = list[float](), list[float](), list[float]()
        fork = multiprocessing.get_context("fork")
        self._told, told = fork.Pipe()
        self._process = fork.Process(target=self._work, args=(told,), daemon=True)
        self._process.start()

    @property
    def is_over(self) -> bool:
        """Whether all switches were made, and the figures are those of all."""
        if not self._told.poll():
            return False
        trouble, self.failed, self.first_ms, self.last_ms, self.early_ms = self._told.recv()
        if trouble:
            raise RuntimeError(trouble)
        return True

    def _work(self, told: Connection) -> None:
        trouble = ""
        try:
            for number in range(self._count):
                name, before = _NAMES[(number + 1) % 2], _NAMES[number % 2]
                time.sleep(self._pause_s)
                first, last = self._switch(name, look_on_s=self._pause_s)
                self.first_ms.append(first)
                self.last_ms.append(last)
                if number % 4 == 3:
                    # There and back: the version before has not ended its turn when it is called again.
                    self._switch(before, look_on_s=0.0)
                    self.early_ms.append(self._switch(name, look_on_s=0.0)[0])
        except RuntimeError as error:
            trouble = str(error)
        told.send((trouble, self.failed, self.first_ms, self.last_ms, self.early_ms))

    def _switch(self, name: str, *, look_on_s: float) -> tuple[float, float]:
        """Switch to a version. Returns when it first answered, and when another one last did, in milliseconds.

        The look goes on for `look_on_s` seconds after the first answer.
        """
        model = self._versions.models[name]
        began = time.monotonic()
        self._versions.order(name)
        first = last = 0.0
        while not first or time.monotonic() < began + first + look_on_s:
            answered_by = self._ask()
            now = time.monotonic() - began
            if now > _TIMEOUT_S:
                raise RuntimeError(f"{name} does not take over: {self._versions.log(name)[-2000:]}")
            if answered_by == model:
                first = first or now
            elif answered_by:
                last = now
            time.sleep(_LOOK_S)
        return 1000 * first, 1000 * last

    def _ask(self) -> str:
        """Returns the model that answers; empty if the call failed."""
        self._asked += 1
        connection = http.client.HTTPConnection(self._address, timeout=5)
        try:
            body = self._bodies[self._asked % len(self._bodies)]
            connection.request("POST", "/v1/score", body, {"content-type": "application/x-protobuf"})
            response = connection.getresponse()
            content = response.read()
            if response.status == 200:
                return ScoreResponse.FromString(content).model_version
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        self.failed += 1
        return ""


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--switches", {"type": int, "default": 40}),
        ("--pause", {"type": float, "default": 2.0, "help": "seconds between switches"}),
        ("--rate", {"type": float, "default": 1000.0, "help": "calls a second"}),
        ("--entities", {"type": int, "default": 20_000, "help": "in the mirror of one version, at least"}),
    )
    pin_load()
    with built_world(arguments.entities) as world, tempfile.TemporaryDirectory(prefix="paywarden-standby-") as folder:
        versions = Versions(world, Path(folder))
        bodies = stamped_bodies(world.requests, id_prefix="standby")
        # Ids of its own: a payment that was decided before gets the decision of the version before.
        own = [body for body, _ in zip(stamped_bodies(world.requests, id_prefix="asked"), range(20_000), strict=False)]
        with versions.standing_by() as address:
            target = f"http://{address}/v1/score"
            switches = Switches(versions, address, own, arguments.switches, arguments.pause)
            reports = []
            while not switches.is_over:
                reports.append(drive(run_load(target, bodies, rate=arguments.rate, seconds=2.5, options=_OPTIONS)))
            assert any(_WAITS in versions.log(name) for name in _NAMES)
    figures = {
        "switches": len(switches.first_ms) + 2 * len(switches.early_ms),
        "calls": sum(report.sent for report in reports),
        "failed": sum(report.sent - report.ok for report in reports) + switches.failed,
        "shed": sum(report.shed for report in reports),
        "late": sum(report.deadline_exceeded for report in reports),
        "asked_failed": switches.failed,
        "p99_ms": float(np.median([report.p99_ms for report in reports])),
        "switch_ms_p50": float(np.median(switches.first_ms)),
        "switch_ms_max": max(switches.first_ms),
        "last_ms_max": max(switches.last_ms),
    }
    if switches.early_ms:
        figures |= {"early_ms_p50": float(np.median(switches.early_ms)), "early_ms_max": max(switches.early_ms)}
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
