"""Commands that read a sealed archive after some cards are forgotten work as if these cards had never paid."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from click.testing import CliRunner

from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.ops.cli import cli
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.streams.archive.archive import Archiver
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY
from tests.worlds.stream.decision_records import decision

FORGOTTEN_COUNT = 30


class World:
    """`sealed` is an archive of which some cards are forgotten; `plain` never had them. Live decisions are in both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        payments, outcomes = (table.to_pylist() for table in small_world.tables())
        cards = sorted({row["card_id"] for row in payments})
        forgotten = set(cards[:: len(cards) // FORGOTTEN_COUNT])
        card_of = {row["payment_id"]: row["card_id"] for row in payments}
        live = [
            decision(row["payment_id"], card_id=row["card_id"], event_time_ms=row["event_time_ms"]) for row in payments
        ]
        keys = ErasureKeys.create(folder / "erasure.keys")
        self.missing = {}
        for name, rows in {"payments": payments, "outcomes": outcomes, "decisions": live}.items():
            whole, rest = MemoryTopic(name, batch=1000), MemoryTopic(name, batch=1000)
            for number, row in enumerate(rows):
                time_ms = row.get("event_time_ms") or row["outcome_time_ms"]
                whole.append(number % 3, row, time_ms)
                if card_of[row["payment_id"]] not in forgotten:
                    rest.append(number % 3, row, time_ms)
            self.missing[name] = sum(card_of[row["payment_id"]] in forgotten for row in rows)
            archive(folder / "sealed", whole, keys)
            archive(folder / "plain", rest, None)
        assert all(keys.destroy(card, 2**60) for card in forgotten)

    def run(self, archive: str, *arguments: str, config: str = "") -> str:
        """Runs a command over one of the archives; returns its stderr, which reports the holes of the sealed one."""
        (self.folder / "some.toml").write_text(config, encoding="utf-8")
        asked = ["--config", str(self.folder / "some.toml"), *arguments, "--data", str(self.folder / archive)]
        result = CliRunner().invoke(cli, asked, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        for topic in ("payments", "outcomes"):
            hole = f" {topic} of erased cards are missing from {self.folder / archive}"
            assert (hole in result.stderr) == (archive == "sealed")
        return result.stderr


def archive(folder: Path, topic: MemoryTopic, keys: ErasureKeys | None) -> None:
    archiver = Archiver(topic, IDS, topic.name, folder, records_max=2000, keys=keys)
    archiver.run(archiver.wanted(None, None), Event(), lambda _: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_a_replay_is_equal_to_the_bit_and_counts_erased_live_decisions(world: World) -> None:
    results = []
    for name in ("plain", "sealed"):
        out = world.folder / f"{name}-replay"
        bundle, days = str(small_world.trained_bundle()), ("--from", date_of_day(FIRST_DAY + 22))
        live = ("--archived-decisions", str(world.folder / name))
        said = world.run(name, "replay", "--bundle", bundle, *days, *live, "--out", str(out))
        hole = f"{world.missing['decisions']} decisions of erased cards are missing from"
        assert (hole in said) == (name == "sealed")
        metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        del metrics["payments_per_second"]
        results.append((metrics, (out / "decisions.parquet").read_bytes()))
    assert results[0] == results[1]


def test_a_training_gives_the_same_bundle(world: World) -> None:
    bundles = []
    for name in ("plain", "sealed"):
        days = ("--train-from", date_of_day(FIRST_DAY + 2), "--train-to", date_of_day(FIRST_DAY + 19))
        config = "[training]\ntrees = 5\nearly_stopping_rounds = 0\n"
        world.run(name, "train", *days, "--out", str(world.folder / f"{name}-bundle"), config=config)
        files = sorted((world.folder / f"{name}-bundle").rglob("*"))
        bundles.append({file.name: file.read_bytes() for file in files if file.is_file()})
    assert bundles[0].keys() == bundles[1].keys()
    assert {name for name in bundles[0] if bundles[0][name] != bundles[1][name]} == set()


def test_a_backfill_fills_the_store_with_the_same_bytes(world: World) -> None:
    stores = []
    for name in ("plain", "sealed"):
        path = str(world.folder / f"{name}-store")
        said = world.run(name, "backfill", config=f'[store]\nkind = "lmdb"\n[lmdb]\npath = "{path}"\n')
        for topic in ("payments", "outcomes"):
            hole = f" {world.missing[topic]} {topic} of erased cards are missing from"
            assert (hole in said) == (name == "sealed")
        with closing(LmdbStore.from_settings(LmdbSettings(path=path), readonly=True)) as store:
            kinds = (*small_world.engine().plan.entity_names, "payment", "progress")
            stores.append({key: value for kind in kinds for key, value in store.scan(kind)})
    assert len(stores[0]) > 1_000
    assert stores[0] == stores[1]
