"""A bundle that was trained here and copied elsewhere without its library serves there with the same scores."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from paywarden.features.stores.memory import MemoryStore
from paywarden.models.bundle.bundle import MANIFEST, load_bundle, native_library, parity_summary
from paywarden.models.bundle.compiler import compiler_name
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.maintenance.backfill import backfill
from tests.services.missing_tools import COMPILER
from tests.services.product.processes import PaywardenProcess, is_ready, post, run_paywarden, wait_until
from tests.worlds.small import small_world

PAYMENTS = 60
needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)


def now_ms() -> int:
    """Returns the time a second after the last payment of the small world."""
    return int(small_world.history().event_time_ms[-1]) + 1000


class Clone:
    """A host of its own: configuration, mirror, outbox, and the copied bundle."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.bundle = folder, folder / "bundle"
        shutil.copytree(bundle, self.bundle, ignore=shutil.ignore_patterns("native"))
        self.mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=64)
        self.outbox = OutboxSettings(directory=str(folder / "outbox"))
        self.config = folder / "paywarden.toml"
        self.config.write_text(
            f'[serve]\nbundle = "{self.bundle}"\nmetrics = "{folder / "metrics"}"\n'
            f'[mirror]\npath = "{self.mirror.path}"\nsize_mb = {self.mirror.size_mb}\n'
            f'[outbox]\ndirectory = "{self.outbox.directory}"\n'
            f'[answered]\npath = "{folder / "answered"}"\npayments_max = 1000\n'
            # The small world's payments are of 2024.
            f"[limits]\npast_ms_max = {TIME_BOUND_MS_MAX}\n[grpc]\nport = 0\n[http]\nport = 0\n",
            encoding="utf-8",
        )
        self.process: PaywardenProcess | None = None

    def fill_mirror(self, profiles: dict[bytes, bytes | None]) -> None:
        writer = MirrorWriter(self.mirror)
        writer.apply(profiles, {0: 1}, now_ms())
        writer.close()

    def serve(self) -> str:
        """Start the server. Returns its address once a worker is ready."""
        self.process = PaywardenProcess(self.folder, self.config, "serve")
        target = self.process.first_line()
        wait_until(lambda: is_ready(target), "the worker is ready")
        return target

    def log(self) -> str:
        assert self.process is not None
        return self.process.log.read_text(encoding="utf-8")

    def vectors(self) -> dict[str, bytes]:
        """Returns the vector with which each payment was scored, from the outbox."""
        (name,) = (path.name for path in Path(self.outbox.directory).iterdir() if path.is_dir())
        records = OutboxReader(self.outbox, name).read(0, 10 * PAYMENTS)
        entries = [OutboxEntry.FromString(record) for _, record in records]
        return {entry.request.payment_id: entry.vector for entry in entries}

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()


@cache
def profiles() -> dict[bytes, bytes | None]:
    """Returns the profiles of every entity of the small world, after all of its history."""
    store, engine = MemoryStore(), small_world.engine()
    backfill(small_world.history(), store, engine=engine, rates=small_world.rates(), outcome_days=1)
    return {key: state for name in engine.plan.entity_names for key, state in store.scan(name)}


def requests() -> list[ScoreRequest]:
    found = requests_of(small_world.tables()[0].slice(0, PAYMENTS), id_prefix="live-")
    for request in found:
        request.event_time_ms = now_ms()
    return found


def answers(target: str) -> list[ScoreResponse]:
    body = ScoreBatchRequest(requests=requests()).SerializeToString()
    status, answer = post(f"{target}/v1/score:batch", body, "application/x-protobuf")
    assert status == 200, answer
    return list(ScoreBatchResponse.FromString(answer).responses)


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    made = Clone(tmp_path, small_world.trained_bundle())
    yield made
    made.stop()


@needs_compiler
def test_a_bundle_copied_without_its_library_gives_the_same_scores(clone: Clone) -> None:
    clone.fill_mirror(profiles())
    answered = answers(clone.serve())
    assert [answer.payment_id for answer in answered] == [request.payment_id for request in requests()]
    # The worker scored with a library of this machine. Another process built it there, and the parity gate accepted it.
    assert "has no library for this machine: compiling it" in clone.log()
    built = json.loads((native_library(clone.bundle).parent / "build.json").read_text(encoding="utf-8"))
    assert built["gate"]["rows"] > 0
    assert parity_summary(clone.bundle)
    # The bundle as it was trained, in this process, on the vectors that the worker wrote down.
    here = load_bundle(small_world.trained_bundle(), catalogue_digest=small_world.engine().plan.digest)
    assert here.predictor.native
    vectors = clone.vectors()
    rows = np.array([np.frombuffer(vectors[answer.payment_id], "<f4") for answer in answered])
    assert [answer.score for answer in answered] == here.score(rows).tolist()
    assert {answer.model_version for answer in answered} == {here.manifest.model_version}
    assert len({answer.score for answer in answered}) >= 5, "payments that are told apart"


def flip(path: Path) -> None:
    """Change one bit in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.txt", flip, "model.txt has a wrong checksum"),
        ("golden.npz", truncate, "golden.npz has a wrong checksum"),
        ("golden.npz", Path.unlink, "golden.npz is missing"),
        (MANIFEST, truncate, None),
    ],
)
def test_a_damaged_copy_is_refused_before_anything_is_built(
    tmp_path: Path, name: str, damage: object, said: str | None
) -> None:
    copied = Clone(tmp_path, small_world.trained_bundle())
    assert callable(damage)
    damage(copied.bundle / name)
    done = run_paywarden("--config", str(copied.config), "serve")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert (said or f"{MANIFEST} cannot be read") in done.stderr.splitlines()[-1]
    assert str(copied.bundle) in done.stderr.splitlines()[-1]
    assert not (copied.bundle / "native" / platform.machine() / "model.so").exists()
