"""A real Spark cluster of two executors gives the bits of one process, however it is cut, and whatever dies."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from paywarden.features.dataflow import spark
from paywarden.features.dataflow.fold import Profiles, Window
from paywarden.features.dataflow.vectors import Passage, Vectors
from paywarden.features.history.history import read_history, write_history
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.policy.policy import PolicySettings
from paywarden.models.replay.passage import replay_on
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.ops.commands.model.backtest import backtest
from paywarden.ops.commands.model.train import train
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from tests.parity.features_worlds import catalogue_of
from tests.parity.test_dataflow import RULES, WINDOW, contestant, digests, one_pass
from tests.parity.test_two_hops import RING
from tests.services.kafka_classes import QUICK_JVM
from tests.services.product.processes import wait_until
from tests.worlds.small import small_world
from tests.worlds.small.small_world import LABEL_DELAY_DAYS

pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java 17, and there is no java", allow_module_level=True)

PAYMENTS = 450
# pyspark leaves its sockets to the collector of garbage.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.speculation": "true",
    "spark.task.maxFailures": "8",
    "spark.driver.extraJavaOptions": " ".join(QUICK_JVM),
    "spark.executor.extraJavaOptions": " ".join(QUICK_JVM),
}


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    # Executors find what the tests import.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    opened = spark.open_session("local-cluster[2,1,1024]", SETTINGS)
    opened.sparkContext.setLogLevel("OFF")
    yield opened
    opened.stop()
    gc.collect()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the first payments of the small world, in three files, and their outcomes."""
    folder = tmp_path_factory.mktemp("history")
    payments, outcomes = small_world.tables()
    payments = payments.slice(0, PAYMENTS)
    write_history(folder, payments, outcomes.filter(pc.is_in(outcomes["payment_id"], payments["payment_id"])))
    (folder / "payments").mkdir()
    for number in range(3):
        part = payments.slice(number * PAYMENTS // 3, PAYMENTS // 3)
        pq.write_table(part, folder / "payments" / f"part-{number}.parquet")
    return folder


def opened(engine: spark.SparkEngine, history: Path, features: FeatureEngine) -> Passage[Any]:
    paths = str(history / "payments"), str(history / "outcomes.parquet")
    return Passage.open(engine, *paths, features=features, rates=small_world.rates())


def computed(passage: Passage[Any]) -> tuple[bytes, dict[bytes, bytes]]:
    window = Window(0, passage.places.payments)
    table = pa.concat_tables(passage.engine.tables(passage.finished(window, Vectors())))
    assert table["row"].to_pylist() == list(range(PAYMENTS))
    profiles = pa.concat_tables([Profiles.schema.empty_table(), *passage.profiles()])
    found = dict(zip(profiles["_key"].to_pylist(), profiles["_profile"].to_pylist(), strict=True))
    assert len(found) == len(profiles)
    return b"".join(table["vector"].to_pylist()), found


@pytest.mark.parametrize(("partitions", "adaptive"), [(1, False), (2, True), (64, False)])
def test_vectors_and_profiles_have_the_bits_of_one_process(
    session: Any, history: Path, tmp_path: Path, partitions: int, adaptive: bool
) -> None:
    # Features two hops away, but for the many partitions, which take long.
    features = small_world.engine() if partitions == 64 else FeatureEngine(catalogue_of(RING))
    session.conf.set("spark.sql.adaptive.enabled", str(adaptive).lower())
    with spark.SparkEngine(session, str(tmp_path), partitions=partitions) as engine:
        found = computed(opened(engine, history, features))
    assert found == one_pass(history, features.plan.fields, features, small_world.rates())
    assert list(tmp_path.iterdir()) == []


def test_a_replay_has_the_bytes_of_one_process(session: Any, tmp_path: Path) -> None:
    write_history(tmp_path, *small_world.tables())
    champion = contestant(small_world.loaded_bundle(), PolicySettings())
    challenger = contestant(small_world.loaded_bundle(), RULES)
    options = ReplayOptions(window=WINDOW, label_delay_days=LABEL_DELAY_DAYS, with_vectors=True)
    local, spread = tmp_path / "local", tmp_path / "spread"
    spread.mkdir()
    features, rates = small_world.engine(), small_world.rates()
    replay(
        read_history(tmp_path),
        engine=features,
        rates=rates,
        champion=champion,
        challenger=challenger,
        destination=local,
        options=options,
    )
    with spark.SparkEngine(session, str(tmp_path), partitions=2) as engine:
        paths = str(tmp_path / "payments.parquet"), str(tmp_path / "outcomes.parquet")
        replay_on(
            Passage.open(engine, *paths, features=features, rates=rates),
            contestants=[(champion, small_world.trained_bundle()), (challenger, small_world.trained_bundle())],
            destination=spread,
            decisions=(spread / "decisions.parquet").as_uri(),
            options=options,
            say=lambda _: None,
        )
    assert digests(spread) == digests(local)


@pytest.mark.usefixtures("session")
def test_train_and_backtest_write_on_a_cluster_what_one_process_does(tmp_path: Path) -> None:
    write_history(tmp_path, *small_world.tables())
    settings = Source({"training": {"trees": 5, "early_stopping_rounds": 0, "genuine_sample_share": 0.5}}, {})
    days = ("--train-from", "-24d", "--train-to", "-7d")
    lengths = ("--train-days", "5", "--delay-days", "3", "--test-days", "4", "--models", "dt,lightgbm", "--budget", "1")
    work = tmp_path / "work"
    bundles, results = [], []
    for name, options in (
        ("one", ()),
        ("cluster", ("--engine", "spark", "--partitions", "2", "--work", str(work))),
    ):
        bundle, file = tmp_path / name, tmp_path / f"{name}.json"
        for command, arguments in (
            (train, (*days, "--out", str(bundle))),
            (backtest, ("run", *lengths, "--json", str(file))),
        ):
            done = CliRunner().invoke(command, [*arguments, "--data", str(tmp_path), *options], obj=settings)
            assert done.exit_code == 0, done.output
        bundles.append(read_manifest(bundle).digest)
        result = json.loads(file.read_text(encoding="utf-8"))
        for of_run in (result, *result["models"]):
            del of_run["seconds"]
        del result["feature_seconds"]
        results.append(result)
    assert bundles[0] == bundles[1]
    assert results[0] == results[1]
    assert list(work.iterdir()) == []


def test_a_killed_executor_changes_nothing(session: Any, history: Path, tmp_path: Path) -> None:
    features = small_world.engine()
    killed: list[int] = []

    def kill() -> None:
        # The first stage has been written, and the others are still to come.
        wait_until(lambda: any(tmp_path.glob(".stages-*/stage-1/_SUCCESS")), "the first stage is written")
        pid = executors_of(session)[0]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = Thread(target=kill)
    killer.start()
    with spark.SparkEngine(session, str(tmp_path), partitions=3) as engine:
        found = computed(opened(engine, history, features))
    killer.join()
    assert len(killed) == 1
    assert found == one_pass(history, features.plan.fields, features, small_world.rates())


def executors_of(session: Any) -> list[int]:
    """Returns the processes of the session's executors."""
    driver = str(session.sparkContext._gateway.proc.pid)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"CoarseGrainedExecutorBackend" in command and parent == driver:
            found.append(int(folder.name))
    return found


def test_a_worker_with_another_version_is_named(
    session: Any, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark, "package_digest", lambda: "another")
    with (
        spark.SparkEngine(session, str(tmp_path), partitions=1) as engine,
        pytest.raises(Misconfigured, match=r"^\S+ has another version of the package$"),
    ):
        opened(engine, history, small_world.engine())


def test_a_worker_without_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run = spark._worker(b"", "")
    monkeypatch.setitem(sys.modules, "paywarden.features.dataflow.spark", None)
    with pytest.raises(RuntimeError, match=r"^paywarden-worker: \S+ lacks the package: "):
        list(run(iter([])))


def test_a_wrong_row_is_named_by_its_file(session: Any, history: Path, tmp_path: Path) -> None:
    shutil.copytree(history, tmp_path / "history")
    part = tmp_path / "history" / "payments" / "part-1.parquet"
    table = pq.read_table(part)
    amounts = table["amount_minor"].to_pylist()
    amounts[5] = -1
    place = table.column_names.index("amount_minor")
    pq.write_table(table.set_column(place, "amount_minor", pa.array(amounts)), part)
    with spark.SparkEngine(session, str(tmp_path), partitions=1) as engine:
        with pytest.raises(Misconfigured, match=r"^part-1\.parquet, row 5: amount_minor "):
            opened(engine, tmp_path / "history", small_world.engine())
        texts = table.set_column(place, "amount_minor", pa.array(["x"] * len(table)))
        pq.write_table(texts, part)
        with pytest.raises(Misconfigured, match=r"part-1\.parquet: column amount_minor has another type"):
            opened(engine, tmp_path / "history", small_world.engine())


def test_a_path_that_is_not_there_is_named(session: Any, tmp_path: Path) -> None:
    with (
        spark.SparkEngine(session, str(tmp_path), partitions=1) as engine,
        pytest.raises(Misconfigured, match=r"Path does not exist: \S+/nowhere"),
    ):
        engine.read(str(tmp_path / "nowhere"))
