"""Every command runs with the packages of its extra, and names the extra that is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.models.bundle.bundle import native_library
from paywarden.ops.extras import MODULES
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import consume, make_consumer
from tests.checkout import CHECKOUT
from tests.services.product.deployment import Deployment
from tests.services.product.installed import OWN, extras, installed_by, only, owners
from tests.services.product.processes import is_ready, post, run_paywarden, wait_until
from tests.worlds.small import small_world

Only = Callable[[str], dict[str, str]]
Ended = tuple[int, str, str]
"""Exit status, stdout and stderr of a command."""

# Modules that packages bring besides those that they are for.
BESIDES = {"adbc_driver_duckdb", "multipart"}

# Runs commands of the command line one after the other in one process, and prints how each has ended.
PROGRAM = """
import contextlib, io, json, sys
from paywarden.ops.cli import main

ended = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["paywarden", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code
    ended.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""


def run_all(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[Ended]:
    """Run commands in one process with these further variables: each start of one takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=CHECKOUT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return [(status, out, err) for status, out, err in json.loads(done.stdout)]


@pytest.fixture
def with_extra(tmp_path: Path) -> Only:
    """Returns variables for a process that sees only this extra. "" is the base installation."""
    folder = tmp_path / "only"
    folder.mkdir()
    return lambda extra: only(extra, folder)


def modules_of(extra: str) -> set[str]:
    """Returns the modules that the packages of an extra bring, including those of the extras that it names."""
    mine: set[str] = set()
    for requirement in extras()[extra]:
        name = canonicalize_name(requirement.name)
        if name == OWN:
            mine.update(*map(modules_of, requirement.extras))
        else:
            mine.update(module for module, names in owners().items() if name in map(canonicalize_name, names))
    return {module for module in mine - BESIDES if not module.startswith("_")}


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_brings_the_modules_of_its_packages(extra: str) -> None:
    # Two packages share the module `opentelemetry`: only what is below it says which is installed.
    assert {module.partition(".")[0] for module in MODULES[extra]} == modules_of(extra)


def test_a_scoring_host_installs_no_training_and_no_faust() -> None:
    packages = installed_by("serve")
    assert "httptools" in packages
    assert not packages & {"faust-streaming", "lightgbm", "pandas", "pyarrow", "scikit-learn", "scipy", "treelite"}


BASE = (
    ("compile",),
    ("features"),
    ("topics", "create"),
    ("policy", "check"),
    ("admin", "dead-letters"),
    ("drift", "status"),
    ("admin", "profile-sets"),
    ("doctor", "--only", "store"),
    ("admin", "forget", "card:nobody"),
)


def test_the_base_installation_is_enough_to_administer(deployment: Deployment, with_extra: Only) -> None:
    LmdbStore.from_settings(LmdbSettings(path=str(deployment.store))).close()
    commands = [("--config", str(deployment.config), *command) for command in BASE]
    for command, (status, _, errors) in zip(BASE, run_all(commands, with_extra("")), strict=True):
        assert status == 0, (command, errors)


# A command, and the extra that it needs.
NEEDS = (
    ("train --data d --train-from 2024-01-01 --train-to 2024-01-02 --out b", "train"),
    ("drift reference --archive a --from 2024-01-01 --to 2024-01-02 --out o", "train"),
    ("backtest run --data d --train-days 1 --delay-days 1 --test-days 1", "train"),
    ("replay --data d --bundle b --out o", "history"),
    ("serve", "serve"),
    ("stream", "stream"),
    ("compile b", "compile"),
    ("demo", "demo"),
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How each command of NEEDS has ended in the base installation."""
    commands = [command for command, _ in NEEDS]
    environment = only("", tmp_path_factory.mktemp("only"))
    return dict(zip(commands, run_all([command.split() for command in commands], environment), strict=True))


@pytest.mark.parametrize(("command", "extra"), NEEDS)
def test_a_command_without_its_extra_says_how_to_install_it(command: str, extra: str, ended: dict[str, Ended]) -> None:
    name = command.partition(" -")[0].removesuffix(" b")
    line = f"paywarden: {name} needs the extra `{extra}`: pip install 'paywarden[{extra}]'\n"
    assert ended[command] == (1, "", line)


def test_stream_worker_and_scoring_host_run_with_only_their_extras(
    deployment: Deployment, settings: KafkaSettings, with_extra: Only
) -> None:
    shutil.copytree(small_world.trained_bundle(), deployment.bundle)
    stream = deployment.start("stream", environment=with_extra("stream")).first_line()
    wait_until(lambda: is_ready(stream), "the stream worker is ready")
    companion = deployment.start("companion", environment=with_extra("serve")).first_line()
    target = deployment.start("serve", environment=with_extra("serve")).first_line()
    wait_until(lambda: is_ready(companion) and is_ready(target), "companion and scoring worker are ready")
    (request,) = requests_of(small_world.tables()[0].slice(0, 1), id_prefix="")
    request.event_time_ms = now_ms()
    status, body = post(f"{target}/v1/score", request.SerializeToString(), "application/x-protobuf")
    assert status == 200, body
    wanted = {ScoreResponse.FromString(body).decision_id}
    consumer = make_consumer(settings, group_id="decision-reader")
    consumer.subscribe([settings.topic("decisions")])
    decoder = Decoder("decisions", LocalSchemaIds())
    shipped: set[str] = set()

    def is_shipped() -> bool:
        values = [record.value for record in consume(consumer, 10, 0.1).records]
        shipped.update(decoder.decode(value)["decision_id"] for value in values if value is not None)
        return shipped == wanted

    wait_until(is_shipped, "the companion has shipped the decision")
    consumer.close()


@pytest.fixture(scope="module")
def trained(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was trained with only the extra for training."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "only").mkdir()
    done = run_paywarden(
        *("train", "--data", str(history), "--train-from", "2024-01-08", "--train-to", "2024-01-20"),
        *("--out", str(folder / "bundle")),
        environment={**only("train", folder / "only"), "PAYWARDEN_TRAINING_TREES": "20"},
    )
    assert done.returncode == 0, done.stderr
    return folder / "bundle"


def test_simulate_replay_and_backfill_need_only_files(
    history: Path, trained: Path, with_extra: Only, tmp_path: Path
) -> None:
    environment = {
        **with_extra("history"),
        "PAYWARDEN_LMDB_PATH": str(tmp_path / "store"),
    }
    for command in (
        ("simulate", "--cards", "50", "--days", "10", "--out", str(tmp_path / "data")),
        ("backfill", "--data", str(tmp_path / "data")),
        ("replay", "--data", str(history), "--bundle", str(trained), "--from", "2024-01-25", "--out", str(tmp_path)),
    ):
        done = run_paywarden(*command, environment=environment)
        assert done.returncode == 0, done.stderr


def test_a_library_is_built_with_only_its_extra(trained: Path, with_extra: Only, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("native"))
    done = run_paywarden("compile", str(copy), environment=with_extra("compile"))
    assert done.returncode == 0, done.stderr
    assert native_library(copy).is_file()


def test_a_bundle_without_a_library_is_refused_if_none_can_be_built(
    trained: Path, with_extra: Only, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("native"))
    done = run_paywarden("serve", "--bundle", str(copy), environment=with_extra("serve"))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("paywarden: ")
    assert "no native library for this machine" in last
    assert "pip install 'paywarden[compile]'" in last
