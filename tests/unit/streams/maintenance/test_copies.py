"""A thousand cards are forgotten: a search of the disk finds nothing of them, and all else is the same."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click import UsageError
from click.testing import CliRunner

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import write_history
from paywarden.features.profiles.keys import entity_key
from paywarden.features.stores.lmdb import LmdbStore
from paywarden.models.metrics.evaluation import DAY_MS, date_of_day
from paywarden.ops.cli import cli
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.decision_index import database as index_database
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.maintenance.backup import MANIFEST, Backup
from paywarden.streams.maintenance.copies import Swept, sweep
from paywarden.streams.profiles.events import record_key
from tests.fakes.topic_memory import MemoryTopic
from tests.unit.ops.test_erased_histories import archive
from tests.unit.streams.decision_index import test_purge
from tests.unit.streams.maintenance.test_entity_erasure import ENGINE, LONG
from tests.worlds.small import small_world

CARDS, FORGOTTEN = 1_500, 1_000
NOW_MS = 2**60


def tables() -> tuple[pa.Table, pa.Table]:
    """Payments and outcomes. Ids of cards to be forgotten, and those of their payments, begin with a 0."""
    payments, outcomes = simulate(cards=CARDS, days=2, seed=5)
    cards = payments["card_id"].unique().to_pylist()
    numbers = {card: f"{int(number >= FORGOTTEN)}{number:05d}" for number, card in enumerate(cards)}
    assert len(cards) > FORGOTTEN
    names = {
        row["payment_id"]: f"payment-id-{numbers[row['card_id']]}-{place}"
        for place, row in enumerate(payments.select(["payment_id", "card_id"]).to_pylist())
    }
    renamed = {
        "card_id": [f"card-number-{numbers[card]}" for card in payments["card_id"].to_pylist()],
        "payment_id": [names[name] for name in payments["payment_id"].to_pylist()],
        "device_id": [f"device-of-{numbers[card]}" for card in payments["card_id"].to_pylist()],
    }
    for name, values in renamed.items():
        payments = payments.set_column(payments.column_names.index(name), name, pa.array(values))
    place = outcomes.column_names.index("payment_id")
    names_of_outcomes = [names[name] for name in outcomes["payment_id"].to_pylist()]
    return payments, outcomes.set_column(place, "payment_id", pa.array(names_of_outcomes))


def run(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(cli, ["--config", str(folder / "p.toml"), *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def configure(folder: Path) -> ErasureKeys:
    text = (
        f'[erasure]\nkeys = "{folder}/erasure.keys"\n[store]\nkind = "lmdb"\n[lmdb]\npath = "{folder}/copies/a/store"\n'
    )
    (folder / "p.toml").write_text(text, encoding="utf-8")
    return ErasureKeys.create(folder / "erasure.keys")


def replayed(folder: Path, data: str, out: str, day: int) -> bytes:
    bundle = str(small_world.trained_bundle())
    run(
        *(folder, "replay", "--data", str(folder / data), "--bundle", bundle, "--out", str(folder / out)),
        *("--from", date_of_day(day), "--vectors"),
    )
    return (folder / out / "decisions.parquet").read_bytes()


def write_manifest(folder: Path, taken_ms: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(asdict(Backup("", "g", taken_ms, {}))))


def keys_in(store: Path) -> list[bytes]:
    with lmdb.open(str(store), readonly=True) as environment, environment.begin() as reading:
        return [bytes(key) for key, _ in reading.cursor()]


def on_disk(folder: Path, without: Path | None = None) -> bytes:
    """Returns all files, and what Parquet compresses also as it is."""
    found = []
    for path in folder.rglob("*"):
        if without in path.parents:
            continue
        if path.is_file():
            found.append(path.read_bytes())
        if path.suffix == ".parquet":
            found.append(str(pq.read_table(path, partitioning=None).to_pydict()).encode())
    return b"\0".join(found)


def test_no_byte_of_a_thousand_forgotten_cards_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = configure(tmp_path)
    payments, outcomes = tables()
    day = payments["event_time_ms"][0].as_py() // DAY_MS + 1
    write_history(tmp_path / "copies" / "history", payments, outcomes)
    for name, table in {"payments": payments, "outcomes": outcomes}.items():
        topic = MemoryTopic(name, batch=1_000)
        for row in table.to_pylist():
            topic.append(0, row, row.get("event_time_ms") or row["outcome_time_ms"])
        archive(tmp_path / "sealed", topic, keys)
        archive(tmp_path / "copies" / "unsealed", topic, None)
    replayed(tmp_path, "copies/history", "copies/replay", day)
    run(tmp_path, "backfill", "--data", str(tmp_path / "sealed"))
    write_manifest(tmp_path / "copies" / "a", payments["event_time_ms"][-1].as_py())
    letters = tmp_path / "copies" / "letters"
    letters.mkdir()
    for number, row in enumerate(payments.slice(0, 300).to_pylist()):
        (letters / f"0-{number}.key").write_text(row["card_id"])
        (letters / f"0-{number}.value").write_text(f"{row['payment_id']} {row['device_id']}")
    kept_letters = sum(row.startswith("card-number-1") for row in payments["card_id"][:300].to_pylist())
    # The search for ids would not find those that are packed.
    monkeypatch.setattr(index_database, "_PACKED", "")
    with closing(DuckDbDatabase(tmp_path / "index.duckdb")) as database:
        test_purge.fill(database)
    disk = on_disk(tmp_path)
    # What this test looks for is there before.
    assert all(mark in disk for mark in test_purge.MARKS)
    gone = sorted(card for card in payments["card_id"].unique().to_pylist() if card.startswith("card-number-0"))
    assert len(gone) == FORGOTTEN

    assert all(keys.destroy(card, NOW_MS) for card in gone)
    said = run(tmp_path, "admin", "forget", "--copies", str(tmp_path / "copies"))
    with closing(DuckDbDatabase(tmp_path / "index.duckdb")) as database:
        test_purge.forget_all(database)
        database.purge()

    disk = on_disk(tmp_path)
    *of_cards, of_devices = test_purge.MARKS
    assert [mark for mark in of_cards if mark in disk] == []
    # A device is an entity of its own, whose profile stays.
    backup = tmp_path / "copies" / "a"
    assert of_devices not in on_disk(tmp_path, without=backup)
    assert any(key.startswith(b"device:" + of_devices) for key in keys_in(backup / "store"))
    assert all(mark[:-1] + b"1" in disk for mark in test_purge.MARKS)
    assert re.search(rf"[0-9]{{4,}} rows, [0-9]{{4,}} records of stores and {300 - kept_letters} dead letters", said)
    assert len(list(letters.iterdir())) == 2 * kept_letters
    # The rest of each copy is as if these cards had never paid.
    decided = replayed(tmp_path, "sealed", "of-sealed", day)
    assert decided == replayed(tmp_path, "copies/unsealed", "of-unsealed", day)
    assert decided == replayed(tmp_path, "copies/history", "of-history", day)
    kept = pq.read_table(tmp_path / "copies" / "replay" / "decisions.parquet")
    assert kept["payment_id"] == pq.read_table(tmp_path / "of-sealed" / "decisions.parquet")["payment_id"]
    rest = payments.filter(pc.starts_with(payments["card_id"], "card-number-1"))
    assert len(rest) > 0
    with closing(LmdbStore(tmp_path / "copies" / "a" / "store", readonly=True)) as store:
        cards = {key.decode().removeprefix("card:") for key, _ in store.scan("card")}
        assert cards == set(rest["card_id"].to_pylist())
        assert {key for key, _ in store.scan("payment")} == {
            record_key(name) for name in rest["payment_id"].to_pylist()
        }
    assert "0 rows, 0 records of stores and 0 dead" in run(
        tmp_path, "admin", "forget", "--copies", str(tmp_path / "copies")
    )


def test_combinations_of_a_backup_go_too_and_later_profiles_stay(tmp_path: Path) -> None:
    keys = ErasureKeys.create(tmp_path / "erasure.keys")
    for name in ("before", "after"):
        with closing(LmdbStore(tmp_path / name / "store")) as store:
            for card in ("gone", "kept"):
                ids = {"card": [card], "card_merchant": [card, LONG], "merchant": [LONG[:9]]}
                of_card = [entity_key(entity, parts) for entity, parts in ids.items()]
                store.write(dict.fromkeys(of_card, b"state"), ttl_s=0)
                store.write({entity_key("card_merchant", [card, "m"]): b"state"}, ttl_s=0)
                record = PaymentRecord(keys=[key.decode() for key in of_card]).SerializeToString()
                store.write({record_key(f"p-{card}"): record}, ttl_s=60)
    write_manifest(tmp_path / "before", 1_000)
    write_manifest(tmp_path / "after", 3_000)
    keys.destroy("gone", 2_000)
    before = (tmp_path / "after" / "store" / "data.mdb").read_bytes()
    with lmdb.open(str(tmp_path / "before" / "store"), readonly=True) as old, old.begin() as reading:
        records = dict(reading.cursor())
    pair = entity_key("card_merchant", ["gone", LONG])

    assert sweep(tmp_path, keys, ENGINE.plan) == Swept(records=4)

    expected = {key: value for key, value in records.items() if b"gone" not in key and key != pair}
    with lmdb.open(str(tmp_path / "before" / "store"), readonly=True) as new, new.begin() as reading:
        assert dict(reading.cursor()) == expected
    disk = (tmp_path / "before" / "store" / "data.mdb").read_bytes()
    assert b"gone" not in disk
    assert pair not in disk
    assert (tmp_path / "after" / "store" / "data.mdb").read_bytes() == before


def test_payments_after_the_erasure_stay_and_the_footer_too(tmp_path: Path) -> None:
    keys = ErasureKeys.create(tmp_path / "erasure.keys")
    keys.destroy("gone", 5)
    rows = [{"payment_id": f"p{time_ms}", "card_id": "gone", "event_time_ms": time_ms} for time_ms in (4, 5, 6)]
    table = pa.Table.from_pylist([*rows, {"payment_id": "none"}]).replace_schema_metadata({"paywarden.x": "y"})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.table({"payment_id": ["p4", "p6"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"other": ["p4"]}), tmp_path / "c.parquet")
    assert sweep(tmp_path, keys, ENGINE.plan) == Swept(rows=3)
    found = pq.read_table(tmp_path / "a.parquet")
    assert found.equals(table.slice(2), check_metadata=True)
    assert pq.read_table(tmp_path / "b.parquet")["payment_id"].to_pylist() == ["p6"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "c.parquet", "erasure.keys"]


def test_copies_need_the_keys_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("")
    with pytest.raises(Misconfigured, match=r"\[erasure\] keys is not set"):
        run(tmp_path, "admin", "forget", "--copies", str(tmp_path))
    with pytest.raises(UsageError, match="name ENTITY:ID"):
        run(tmp_path, "admin", "forget")
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(Misconfigured, match=r"a\.parquet cannot be read as Parquet"):
        sweep(tmp_path, ErasureKeys.create(tmp_path / "erasure.keys"), ENGINE.plan)
