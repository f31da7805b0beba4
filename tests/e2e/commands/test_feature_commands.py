"""backfill, features show and forget from outside: their effects, and errors of one line that names no card."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.features.stores.profile_sets import ProfileSets
from tests.services.product.deployment import Deployment
from tests.services.product.processes import run_paywarden
from tests.services.servers.kafka import KafkaServer

_PROGRESS = re.compile(r": [\d,]+( of [\d,]+ \(\d+%\)| done in )")


class Shell:
    """The command line with a configuration of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.config = folder / "paywarden.toml"
        self.config.write_text(f'[lmdb]\npath = "{self.store}"\nfsync = false\n', encoding="utf-8")

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed. Returns its output."""
        done = run_paywarden("--config", str(self.config), *arguments)
        assert done.returncode == 0, done.stderr
        # A command that takes longer than usual says how far it is.
        assert [line for line in done.stderr.splitlines() if not _PROGRESS.search(line)] == []
        return done.stdout

    def refused(self, *arguments: str, **environment: str) -> str:
        """Run a command that must fail. Returns its one line."""
        done = run_paywarden("--config", str(self.config), *arguments, environment=environment)
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        (line,) = done.stderr.strip().splitlines()
        return line

    def contents(self) -> dict[bytes, bytes]:
        names = ("card", "merchant", "device", "payment", "progress")
        with closing(LmdbStore(self.store, readonly=True)) as store:
            return {key: value for name in names for key, value in store.scan(name)}

    def write(self, key: bytes, value: bytes) -> None:
        with closing(LmdbStore(self.store)) as store:
            store.write({key: value}, ttl_s=0)


@pytest.fixture(scope="module")
def card_id(history: Path) -> str:
    first: str = pq.read_table(history / "payments.parquet")["card_id"][0].as_py()
    return first


@pytest.fixture(scope="module")
def filled(history: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, str]:
    """A backfilled store, and the output of the command."""
    shell = Shell(tmp_path_factory.mktemp("filled"))
    return shell, shell.run("backfill", "--data", str(history))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_backfill_refuses_a_store_with_profiles_without_overwrite(shell: Shell, history: Path) -> None:
    shell.write(b"card:somebody", b"precious")
    line = shell.refused("backfill", "--data", str(history))
    assert line.startswith("paywarden: the store holds card profiles that no backfill of this wrote")
    assert "--overwrite" in line
    assert "somebody" not in line
    assert shell.contents() == {b"card:somebody": b"precious"}
    shell.run("backfill", "--data", str(history), "--overwrite")
    assert shell.contents()[b"card:somebody"] == b"precious"


def test_a_full_store_is_one_line_and_the_backfill_can_continue(shell: Shell, history: Path) -> None:
    line = shell.refused("backfill", "--data", str(history), PAYWARDEN_LMDB_MAP_SIZE_BYTES=str(2 << 20))
    assert "raise map_size_bytes" in line
    assert line.endswith("the same command goes on where this ended")
    assert "of these, written before" in shell.run("backfill", "--data", str(history))


def test_forget_erases_a_card_from_every_set_and_warns_of_its_return(
    tmp_path: Path, kafka: KafkaServer, topic_prefix: str
) -> None:
    with Deployment(tmp_path, kafka.bootstrap, topic_prefix) as deployment:
        deployment.create_topics()
        sets = LmdbSets(LmdbSettings(path=str(deployment.store)))
        ProfileSets(sets.open_register()).create("b1", now_ms=1)
        for name in ("", "b1"):
            with closing(sets.open(name)) as store:
                store.write({b"card:C1": b"profile", b"card:C2": b"profile"}, ttl_s=0)
        done = deployment.run("admin", "forget", "card:C1")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("profiles         2 erased")
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("erased from profile sets that are not live, too: b1;")
        assert "run this again when it is built" in line
        for name in ("", "b1"):
            with closing(sets.open(name, readonly=True)) as store:
                assert [key for key, _ in store.scan("card")] == [b"card:C2"]


def test_forget_without_a_broker_erases_nothing(filled: tuple[Shell, str], card_id: str) -> None:
    shell, _ = filled
    before = shell.contents()
    line = shell.refused("admin", "forget", f"card:{card_id}", PAYWARDEN_KAFKA_BOOTSTRAP="127.0.0.1:9")
    assert "no Kafka broker answers at 127.0.0.1:9" in line
    assert card_id not in line
    assert shell.contents() == before
