"""Sealed archives: what is left of forgotten cards on the disk, and what a replay reads without them."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.archive import Archiver
from paywarden.streams.archive.files import read_archive
from paywarden.streams.archive.topic_history import archived_rows, history_of_rows
from paywarden.streams.kafka.topic_rows import TIMESTAMP, rows_schema
from tests.fakes.topic_memory import IDS, MemoryTopic

NOW = 1_704_067_200_000
CARDS = 1_500
FORGOTTEN = [f"card-number-{number:05d}" for number in range(1_000)]


def topics() -> tuple[MemoryTopic, MemoryTopic]:
    """Two payments of each card, and an outcome of each payment."""
    payments, outcomes = MemoryTopic("payments"), MemoryTopic("outcomes")
    for number in range(2 * CARDS):
        payment = {
            "payment_id": f"payment-id-{number:06d}",
            "event_time_ms": NOW + number,
            "card_id": f"card-number-{number % CARDS:05d}",
            "merchant_id": "m",
            "device_id": f"device-of-{number % CARDS:05d}",
            "amount_minor": number + 1,
            "currency": "EUR",
        }
        payments.append(0, payment, NOW + number)
        outcome = {"payment_id": payment["payment_id"], "outcome_time_ms": NOW + number + 9, "label": "fraud"}
        outcomes.append(0, outcome, NOW + number + 9)
    return payments, outcomes


def archive(folder: Path, keys: ErasureKeys | None) -> None:
    for topic in topics():
        archiver = Archiver(topic, IDS, topic.name, folder, records_max=700, keys=keys)
        archiver.run(archiver.wanted(None, None), Event(), lambda _: None)


def bytes_below(folder: Path) -> bytes:
    """Returns all files, those that Parquet compresses also uncompressed."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            found.append(path.read_bytes())
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            found += [str(table.drop_columns(["sealed", "sealed_by"]).to_pydict()).encode()]
            found += [b"".join(value or b"" for value in table[name].to_pylist()) for name in ("sealed", "sealed_by")]
    return b"\0".join(found)


def test_no_byte_of_forgotten_cards_is_on_the_disk(tmp_path: Path) -> None:
    keys = ErasureKeys.create(tmp_path / "keys" / "erasure.keys")
    archive(tmp_path / "archive", keys)
    secrets = {card: key for card, (_, key, _) in keys.keys_for(FORGOTTEN).items()}
    before = (tmp_path / "keys" / "erasure.keys").read_bytes()

    assert all(keys.destroy(card, NOW + 10_000) for card in FORGOTTEN)

    disk, after = bytes_below(tmp_path), (tmp_path / "keys" / "erasure.keys").read_bytes()
    assert b"card-number" not in disk
    assert b"payment-id" not in disk
    assert b"device-of" not in disk
    gone = [before[512 + 64 * slot + 24 : 512 + 64 * slot + 56] for slot in range(CARDS)]
    assert sum(secret in after for secret in gone) == CARDS - len(FORGOTTEN)
    assert len(secrets) == 1_000
    assert not any(key in disk for key in secrets.values())
    (tmp_path / "keys" / "erasure.keys").unlink()
    with pytest.raises(Misconfigured, match="are not there"):
        archived_rows(tmp_path / "archive")


def test_the_history_of_the_other_cards_is_equal_and_holes_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ErasureKeys.create(tmp_path / "erasure.keys")
    archive(tmp_path / "sealed", keys)
    archive(tmp_path / "plain", None)
    plain, sealed = archived_rows(tmp_path / "plain"), archived_rows(tmp_path / "sealed")
    assert [rows.table for rows in plain] == [rows.table for rows in sealed]

    for card in FORGOTTEN:
        keys.destroy(card, NOW + 10_000)

    rest, outcomes = archived_rows(tmp_path / "sealed")
    is_kept = pc.invert(pc.is_in(plain[0].table["card_id"], pa.array(FORGOTTEN)))
    assert rest.table == plain[0].table.filter(is_kept)
    assert outcomes.table == plain[1].table.filter(is_kept)
    history, left_out = history_of_rows(rest, outcomes)
    assert len(history) == 2 * (CARDS - len(FORGOTTEN))
    assert left_out.counts == {}
    assert caplog.messages == [
        f"2000 {topic} of erased cards are missing from {tmp_path / 'sealed'}" for topic in ("payments", "outcomes")
    ]


def test_old_payments_are_not_archived_after_the_erasure_new_ones_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ErasureKeys.create(tmp_path / "erasure.keys")
    assert not keys.destroy("card-number-00003", NOW + 3)
    archive(tmp_path / "archive", keys)
    rows = read_archive(tmp_path / "archive", "payments", rows_schema("payments"))
    of_card = rows.table.filter(pc.equal(rows.table["card_id"], "card-number-00003"))
    assert of_card[TIMESTAMP].to_pylist() == [NOW + CARDS + 3]
    assert caplog.messages == [f"1 payments of erased cards are missing from {tmp_path / 'archive'}"]


def test_a_second_writer_gets_the_same_keys_and_sees_erasures(tmp_path: Path) -> None:
    one = ErasureKeys.create(tmp_path / "erasure.keys")
    two = ErasureKeys(tmp_path / "erasure.keys")
    found = one.keys_for(["a", "b"])
    assert two.keys_for(["b", "a", "c"]).items() >= found.items()
    ids = {card: found[card][0] for card in found}
    one.destroy("a", 5)
    assert two.keys_of(set(ids.values())) == {ids["b"]: found["b"][1]}
    assert two.keys_for(["a"])["a"][0] != ids["a"]
    assert two.keys_for(["a"])["a"][2] == 5


_KILLED = """
import os, signal, sys
from paywarden.schemas.erasure_keys import ErasureKeys
from pathlib import Path
keys = ErasureKeys(Path(sys.argv[1]))
write, sync = os.pwrite, os.fsync
def killed(*_): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before": os.pwrite = killed
else: os.fsync = killed
keys.destroy("a", 5)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_erasure_is_done_or_can_be_asked_again(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "erasure.keys"
    key_id = ErasureKeys.create(path).keys_for(["a", "b"])["a"][0]
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), moment], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    keys = ErasureKeys(path)
    assert bool(keys.keys_of({key_id})) == (moment == "before")
    keys.destroy("a", 5)
    assert not keys.keys_of({key_id})


def test_half_a_slot_of_a_killed_writer_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "erasure.keys"
    before = ErasureKeys.create(path).keys_for(["a"])
    with path.open("ab") as file:
        file.write(b"half")
    assert ErasureKeys(path).keys_for(["a", "b"]).items() >= before.items()
    assert path.stat().st_size == 512 + 2 * 64


def test_damaged_keys_and_keys_of_another_host_are_named(tmp_path: Path) -> None:
    path, archived = tmp_path / "erasure.keys", tmp_path / "archive"
    keys = ErasureKeys.create(path)
    archive(archived, keys)
    whole = path.read_bytes()
    for place, what in ((40, "its header"), (512 + 30, "slot 0")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Misconfigured, match=f"damaged: the checksum of {what}"):
            archived_rows(archived)
    path.write_bytes(b"something else")
    with pytest.raises(Misconfigured, match="no file of erasure keys"):
        archived_rows(archived)
    path.unlink()
    ErasureKeys.create(path)
    with pytest.raises(Misconfigured, match="sealed with other keys than those in"):
        archived_rows(archived)


def test_a_sealed_archive_is_not_continued_without_keys(tmp_path: Path) -> None:
    archive(tmp_path / "archive", ErasureKeys.create(tmp_path / "erasure.keys"))
    with pytest.raises(Misconfigured, match=r"is sealed: set \[erasure\] keys"):
        archive(tmp_path / "archive", None)


class FakeKms:
    """Wraps by exclusive or. `is_revoked`: it refuses."""

    is_revoked = False

    def wrap(self, secret: bytes) -> bytes:
        return bytes(byte ^ 90 for byte in secret)

    def unwrap(self, wrapped: bytes) -> bytes:
        if FakeKms.is_revoked:
            raise Misconfigured("the KMS refuses the key")
        return bytes(byte ^ 90 for byte in wrapped)


def test_a_key_service_wraps_the_secret_and_can_revoke_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:FakeKms"
    keys = ErasureKeys.create(tmp_path / "erasure.keys", name)
    found = keys.keys_for(["a"])
    assert ErasureKeys(tmp_path / "erasure.keys").keys_for(["a"]) == found
    monkeypatch.setattr(importlib.import_module(__name__).FakeKms, "is_revoked", True)
    with pytest.raises(Misconfigured, match="the KMS refuses"):
        ErasureKeys(tmp_path / "erasure.keys")
    with pytest.raises(Misconfigured, match="cannot import no_such:thing"):
        ErasureKeys.create(tmp_path / "other.keys", "no_such:thing")
    assert os.listdir(tmp_path) == ["erasure.keys"]
