"""The benchmarks of the scoring path come up and compute what they say; nothing is measured here."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import perf
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import LoadAnswer, run_closed
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from perf import overload
from perf.faults import slow_disk_environment, slow_disk_library
from perf.tools.measuring import drive
from perf.tools.servers import running, serving
from perf.worlds import scoring_world
from perf.worlds.scoring_world import World, WorldSize, built_world
from tests.worlds.small import small_world

TINY = WorldSize(
    cards=300, days=20, training_cards=300, training_days=18, training=small_world.SETTINGS, requests=300, seed=2
)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(perf.__path__)])
def test_importing_a_benchmark_does_nothing(name: str) -> None:
    importlib.import_module(f"perf.{name}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring_world, "CACHE", tmp_path_factory.mktemp("cache"))
        with built_world(2000, TINY) as built:
            yield built


def test_a_world_has_its_entities_and_requests_find_nearly_all(world: World) -> None:
    assert world.entities >= 2000
    answers = _answers(world, 200)
    flagged = sum("unknown_card" in response.flags for response in answers)
    assert 0 < flagged < 0.1 * len(answers)
    assert not any("unknown_merchant" in response.flags for response in answers)
    assert not any(flag.startswith("mirror") for response in answers for flag in response.flags)
    # Requests differ: a pool of one answer would be served from the processor's caches.
    assert len({response.score for response in answers}) > 10


def _answers(world: World, count: int) -> list[ScoreResponse]:
    answers: list[LoadAnswer] = []
    with serving(world.config) as server:
        bodies = (body for body, _ in zip(stamped_bodies(world.requests, id_prefix="t"), range(count), strict=False))
        report = drive(run_closed(server.http, bodies, seconds=20, on_answer=answers.append))
    assert (report.ok, report.errors) == (count, 0)
    return [ScoreResponse.FromString(answer.body) for answer in answers]


def test_baselines_answer_the_same_load(world: World) -> None:
    rows = iter([json.dumps({"features": [0.5] * scoring_world.FASTAPI_FEATURES}).encode()] * 20)
    json_options = LoadOptions(content_type="application/json")
    with running("perf.peers.baseline_fastapi", str(world.fastapi_model), ready_path="/readyz") as fastapi:
        assert drive(run_closed(f"{fastapi.http}/score", rows, seconds=5, options=json_options)).ok == 20
    with running("perf.peers.baseline_grpcio", str(world.config)) as grpcio:
        assert grpcio.grpc is not None
        assert _closed(grpcio.grpc, world).ok == 20
    with running("perf.peers.echo") as echo:
        assert _closed(echo.http, world).ok == 20


def _closed(target: str, world: World) -> LoadReport:
    bodies = (body for body, _ in zip(stamped_bodies(world.requests, id_prefix="t"), range(20), strict=False))
    return drive(run_closed(target, bodies, seconds=20, options=LoadOptions(connections=2, streams=2)))


def _since(seconds: float) -> NDArray[np.float64]:
    return np.arange(0, seconds, 0.01)


def test_recovery_is_when_half_a_second_has_been_calm() -> None:
    since = _since(3)
    latency_ms = np.where(since < 0.38, 50.0, 1.0).astype(np.float32)
    ok = np.ones(len(since), dtype=bool)
    assert overload.recovery_seconds(since, ok, latency_ms, calm_ms=2) == pytest.approx(0.4)
    # A refusal later on begins it anew.
    ok[65] = False
    assert overload.recovery_seconds(since, ok, latency_ms, calm_ms=2) == pytest.approx(0.7)


def test_a_load_that_never_calms_down_never_recovers() -> None:
    since = _since(2)
    latency_ms = np.full(len(since), 50.0, dtype=np.float32)
    assert overload.recovery_seconds(since, np.ones(len(since), dtype=bool), latency_ms, calm_ms=2) is None


def test_a_disk_is_slow_only_in_its_folder_while_switched_on(tmp_path: Path) -> None:
    library = slow_disk_library(tmp_path)
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    program = """
import os, sys, time
def milliseconds(folder, call):
    fd = os.open(os.path.join(folder, "file"), os.O_CREAT | os.O_WRONLY)
    started = time.perf_counter()
    call(fd)
    return (time.perf_counter() - started) * 1000
here, elsewhere, switch = sys.argv[1:]
write = lambda fd: [os.write(fd, b"x") for _ in range(200)]
print(milliseconds(here, write))
open(switch + ".write", "w").close()
print(milliseconds(here, write), milliseconds(elsewhere, write))
os.unlink(switch + ".write")
open(switch + ".sync", "w").close()
print(milliseconds(here, write), milliseconds(here, lambda fd: [os.fdatasync(fd) for _ in range(4)]))
"""
    switch = tmp_path / "slow"
    done = subprocess.run(
        [sys.executable, "-c", program, str(here), str(elsewhere), str(switch)],
        env={**os.environ, **slow_disk_environment(library, here, switch)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    before, slow, other_folder, other_kind, sync = map(float, done.stdout.split())
    # 200 writes of a millisecond more, and 4 syncs of 50.
    assert slow >= 200
    assert sync >= 200
    assert max(before, other_folder, other_kind) < 200
