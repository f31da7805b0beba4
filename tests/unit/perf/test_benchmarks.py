"""Each benchmark explains itself, and the systems that the scoring path is compared with answer its load."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from itertools import islice
from pathlib import Path

import pytest

import perf
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_closed
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import drive
from perf.tools.servers import running, serving
from perf.worlds import scoring_world
from perf.worlds.scoring_world import FASTAPI_FEATURES, WorldSize, built_world
from tests.worlds.small import small_world

BENCHMARKS = [module.name for module in pkgutil.iter_modules(perf.__path__) if not module.ispkg]
TINY = WorldSize(
    cards=300, days=20, training_cards=300, training_days=18, training=small_world.SETTINGS, requests=300, seed=2
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_says_what_it_measures(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"perf.{name}")
    monkeypatch.setattr(sys, "argv", [f"perf.{name}", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert f"python -m perf.{name}" in capsys.readouterr().out


def test_a_worker_and_its_peers_answer_the_same_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_world, "CACHE", tmp_path)
    rows = json.dumps({"features": [0.5] * FASTAPI_FEATURES}).encode()
    with built_world(2000, TINY) as world:
        bodies = stamped_bodies(world.requests, id_prefix="t")

        def answered(target: str | None, body: bytes = b"", content_type: str = "application/x-protobuf") -> int:
            assert target is not None
            options = LoadOptions(content_type=content_type, connections=2, streams=2)
            some = iter([body] * 20) if body else islice(bodies, 20)
            return drive(run_closed(target, some, seconds=20, options=options)).ok

        with serving(world.config) as server:
            assert (answered(server.http), answered(server.grpc)) == (20, 20)
        with running("perf.peers.baseline_fastapi", str(world.fastapi_model), ready_path="/readyz") as fastapi:
            assert answered(f"{fastapi.http}/score", rows, "application/json") == 20
        with running("perf.peers.baseline_grpcio", str(world.config)) as grpcio:
            assert answered(grpcio.grpc) == 20
        with running("perf.peers.echo") as echo:
            assert answered(echo.http) == 20
