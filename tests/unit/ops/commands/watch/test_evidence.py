"""Evidence equals a plain count over the same records, and is the same bytes again."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
import struct
import weakref
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from paywarden.features.profiles.money import load_rates
from paywarden.ops.commands.watch.evidence import evidence
from paywarden.ops.evidence import evidence_run
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from paywarden.streams.archive.files import ArchiveFile, Opener, locked, write_part
from paywarden.streams.decision_index.episodes import EpisodeFeature, EpisodeFeatures
from paywarden.streams.kafka.topic_rows import TopicRows, rows_schema

DAY_MS = 86_400_000
FIRST_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
RATES = load_rates()
BANDS = {"all": (-1, 10**18), "up to 100": (-1, 10_000), "100 to 250": (10_000, 25_000), "250 to 500": (25_000, 50_000)}
BANDS["above 500"] = (50_000, 10**18)
Row = dict[str, Any]


class World:
    """A year of records: payments sent twice, decided twice and declined later, corrected outcomes, any currency."""

    def __init__(self, seed: int = 7, payments: int = 1500) -> None:
        draw = random.Random(seed)
        self.payments: list[Row] = []
        self.decisions: list[Row] = []
        self.outcomes: list[Row] = []
        for number in range(payments):
            time_ms = FIRST_MS + draw.randrange(365 * DAY_MS)
            payment = {
                "payment_id": f"p{number}",
                "event_time_ms": time_ms,
                "card_id": f"c{draw.randrange(100)}",
                "merchant_id": draw.choice(["=shop", "bakery", "travel", "books"]),
                "amount_minor": draw.choice([0, draw.randrange(120_000), 10_000, 25_000, 50_000]),
                "currency": draw.choice(["EUR", "EUR", "USD", "JPY", "XAU"]),
                "country": draw.choice(["DE", "FR", None]),
                "channel": draw.choice(["ecom", "app", "pos", None]),
                "declined": draw.choice([None, False, False, True]),
            }
            self.payments.append(payment)
            if draw.random() < 0.1:
                self.payments.append({**payment, "declined": draw.choice([None, True])})
            for again in range(draw.choice([0, 1, 1, 1, 2])):
                self.decisions.append(self._decision(draw, payment, again))
            for _ in range(draw.choice([0, 0, 1, 2])):
                late_ms = time_ms + draw.randrange(90 * DAY_MS)
                label, source = draw.choice(["fraud", "genuine"]), draw.choice(["chargeback", "issuer", None])
                outcome = {"payment_id": payment["payment_id"], "label": label, "source": source}
                self.outcomes.append({**outcome, "outcome_time_ms": late_ms, "kafka_timestamp_ms": late_ms})
        self.others: dict[str, list[Row]] = {}

    @staticmethod
    def _decision(draw: random.Random, payment: Row, again: int) -> Row:
        decided_ms = payment["event_time_ms"] + 5 + again
        fields = {name: value for name, value in payment.items() if name != "declined"}
        return fields | {
            "decision_id": f"d{payment['payment_id']}-{again}",
            "decided_time_ms": decided_ms,
            "kafka_timestamp_ms": decided_ms,
            "score": draw.random(),
            "action": draw.choice(["approve", "approve", "review", "decline"]),
            "reasons": ["rule:large"],
            "model_version": "m1" if decided_ms < FIRST_MS + 100 * DAY_MS else "m2",
            "bundle_digest": "b",
            "policy_digest": "q",
            "catalogue_digest": "f",
        }

    def write(self, folder: Path, keys: ErasureKeys | None = None) -> None:
        for topic, rows in {
            "payments": self.payments,
            "decisions": self.decisions,
            "outcomes": self.outcomes,
            **self.others,
        }.items():
            write_topic(folder, topic, rows, keys=keys)


def write_topic(folder: Path, topic: str, rows: Sequence[Row], first: int = 0, keys: ErasureKeys | None = None) -> None:
    schema = rows_schema(topic)
    filled = [
        {field.name: _empty(field) for field in schema}
        | {"kafka_timestamp_ms": row.get("event_time_ms", 0), "kafka_offset": first + number}
        | row
        for number, row in enumerate(rows)
    ]
    table = pa.Table.from_pylist(filled, schema)
    offsets = range(first, first + len(rows))
    with locked(folder, topic):
        write_part(folder, topic, 0, offsets, day_ms=FIRST_MS, rows=TopicRows(table, ()), keys=keys)


def _empty(field: pa.Field) -> Any:
    if field.nullable:
        return None
    kinds = {pa.string(): "", pa.binary(): b"", pa.bool_(): False}
    return [] if pa.types.is_list(field.type) else kinds.get(field.type, 0)


def run(folder: Path, out: str, *options: str) -> Result:
    archive = folder / "archive"
    days = ("--from", "2026-01-01", "--to", "2027-01-01")
    arguments = ["--archive", str(archive), *days, "--remote", "ecom,app", *options, "--out", str(folder / out)]
    return CliRunner().invoke(evidence, arguments, obj=Source({}, {}), catch_exceptions=False)


def figures(folder: Path, out: str, name: str) -> list[Row]:
    found = json.loads((folder / out / "evidence.json").read_text())["figures"][name]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


class Plain:
    """Payments by the words of the page, one after the other."""

    def __init__(self, world: World, exempted: tuple[str, str] | None = None) -> None:
        self.rows: list[Row] = []
        sent: dict[str, list[Row]] = defaultdict(list)
        for payment in world.payments:
            sent[payment["payment_id"]].append(payment)
        for payment_id, records in sent.items():
            first = records[0]
            decisions = [one for one in world.decisions if one["payment_id"] == payment_id]
            action = min(decisions, key=lambda one: int(one["decided_time_ms"]))["action"] if decisions else ""
            known = [one for one in world.outcomes if one["payment_id"] == payment_id]
            newest = max(known, key=lambda one: (int(one["outcome_time_ms"]), str(one["label"])), default=None)
            disputes = [int(one["outcome_time_ms"]) for one in known if one["source"] == "chargeback"]
            self.rows.append(
                first
                | {
                    "worth": RATES.convert(first["amount_minor"], first["currency"], first["event_time_ms"]),
                    "executed": action != "decline" and not any(one["declined"] for one in records),
                    "remote": first["channel"] in ("ecom", "app"),
                    "fraud_ms": newest["outcome_time_ms"] if newest and newest["label"] == "fraud" else None,
                    "disputed_ms": min(disputes, default=None),
                    "exempted": exempted is not None and first[exempted[0]] == exempted[1],
                }
            )


def quarter(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return f"{moment.year} Q{(moment.month + 2) // 3}"


def month(time_ms: int, back: int = 0) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    number = moment.year * 12 + moment.month - 1 - back
    return f"{number // 12}-{number % 12 + 1:02}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World()
    made.write(tmp_path / "archive")
    return made


def test_fraud_rates_equal_a_plain_count_to_the_cent(world: World, tmp_path: Path) -> None:
    run(tmp_path, "out", "--exempted", "country=DE")
    plain = [one for one in Plain(world, ("country", "DE")).rows if one["executed"] and one["remote"]]
    found = figures(tmp_path, "out", "exemptions")
    assert len(found) == 4 * len(BANDS)
    for row in found:
        low, high = BANDS[row["band"]]
        mine = [
            one
            for one in plain
            if one["worth"] is not None
            and low < one["worth"] <= high
            and quarter(one["event_time_ms"]) == row["quarter"]
        ]
        frauds = [one for one in mine if one["fraud_ms"] is not None]
        wanted = {
            "payments": len(mine),
            "value_minor": sum(one["worth"] for one in mine),
            "frauds": len(frauds),
            "fraud_minor": sum(one["worth"] for one in frauds),
            "exempted": sum(one["exempted"] for one in mine),
            "exempted_minor": sum(one["worth"] for one in mine if one["exempted"]),
            "exempted_fraud_minor": sum(one["worth"] for one in frauds if one["exempted"]),
        }
        assert {name: row[name] for name in wanted} == wanted
        assert row["fraud_bp"] == float(Fraction(10_000 * wanted["fraud_minor"], wanted["value_minor"]))


def test_ratios_of_merchants_equal_a_plain_count_by_month(world: World, tmp_path: Path) -> None:
    run(tmp_path, "out")
    plain = [one for one in Plain(world).rows if one["executed"]]
    with (tmp_path / "out" / "merchants.csv").open() as file:
        found = {(row["month"], row["merchant_id"].lstrip("'")): row for row in csv.DictReader(file)}
    wanted: dict[tuple[str, str], Row] = defaultdict(lambda: {"frauds": 0, "fraud_minor": 0, "disputes": 0})
    for one in plain:
        if one["fraud_ms"] is not None:
            row = wanted[month(one["fraud_ms"]), one["merchant_id"]]
            row["frauds"] += 1
            row["fraud_minor"] += one["worth"] or 0
        if one["disputed_ms"] is not None:
            wanted[month(one["disputed_ms"]), one["merchant_id"]]["disputes"] += 1
    wanted = {key: row for key, row in wanted.items() if key[0].startswith("2026")}
    assert set(found) == set(wanted)
    for (name, merchant), row in wanted.items():
        sold = [one for one in plain if one["merchant_id"] == merchant and month(one["event_time_ms"]) == name]
        before = [one for one in plain if one["merchant_id"] == merchant and month(one["event_time_ms"], -1) == name]
        value = sum(one["worth"] or 0 for one in sold)
        ratios = {
            "visa_ratio": (row["frauds"] + row["disputes"], len(sold)),
            "mastercard_chargeback_bp": (10_000 * row["disputes"], len(before)),
            "mastercard_fraud_bp": (10_000 * row["fraud_minor"], value),
        }
        wanted_texts = {label: f"{up / down:.6f}" if down else "" for label, (up, down) in ratios.items()}
        wanted_texts |= {label: str(count) for label, count in row.items()}
        wanted_texts |= {"payments": str(len(sold)), "value_minor": str(value)}
        assert {label: found[name, merchant][label] for label in wanted_texts} == wanted_texts


@pytest.mark.usefixtures("world")
def test_an_id_that_a_spreadsheet_would_run_is_quoted(tmp_path: Path) -> None:
    run(tmp_path, "out")
    ids = {line.split(",")[1] for line in (tmp_path / "out" / "merchants.csv").read_text().splitlines()[1:]}
    assert ids == {"'=shop", "bakery", "travel", "books"}


def test_enumeration_equals_a_plain_count_of_vectors(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(11)
    values = [0.0, 0.3, math.nextafter(1.0, 0.0) - 1e-7, 1.0, 1.4, 300.0, -2.0, math.nan, math.inf]
    for one in world.decisions:
        one["catalogue_digest"] = draw.choice(["f", "f", "other"])
        # A card's address and network have no episode in some decisions: their vectors are shorter.
        one["vector"] = struct.pack("<3f", 5.0, draw.choice(values), draw.choice(values))[: draw.choice([8, 12, 12, 0])]
    (tmp_path / "archive").rename(tmp_path / "before")
    world.write(tmp_path / "archive")
    places = {"shop_episode": 1, "net_episode": 2}
    features = EpisodeFeatures("f", tuple(EpisodeFeature(name, at, (), {}, 10.0) for name, at in places.items()))
    monkeypatch.setattr(evidence_run, "episode_features", lambda _: features)
    run(tmp_path, "out")
    wanted: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    read = 0
    for payment in Plain(world).rows:
        own = [one for one in world.decisions if one["payment_id"] == payment["payment_id"]]
        numbers = [
            number
            for one in own
            if one["catalogue_digest"] == "f"
            for number in struct.unpack(f"<{len(one['vector']) // 4}f", one["vector"])[1:]
        ]
        is_on = any(number >= 1.0 for number in numbers)
        read += any(one["catalogue_digest"] == "f" for one in own)
        row = wanted[month(payment["event_time_ms"]), payment["merchant_id"]]
        for place, count in enumerate((1, is_on, is_on * (payment["worth"] or 0))):
            row[place] += count
    names = ("payments", "enumerated", "enumerated_minor")
    found = {
        (row["month"], row["merchant_id"]): [row[name] for name in names]
        for row in figures(tmp_path, "out", "enumeration")
    }
    assert found == {key: row for key, row in wanted.items() if row[1]}
    assert len(found) > 20
    first = figures(tmp_path, "out", "enumeration")[0]
    assert first["enumeration_ratio"] == first["enumerated"] / first["payments"]
    assert sum(one["episodes_read"] for one in figures(tmp_path, "out", "coverage")) == read
    assert "shop_episode, net_episode of the catalogue f" in (tmp_path / "out" / "evidence.html").read_text()


def test_versions_and_samples_are_those_of_the_decisions(world: World, tmp_path: Path) -> None:
    run(tmp_path, "out")
    in_year = [one for one in world.decisions if one["decided_time_ms"] < FIRST_MS + 365 * DAY_MS]
    found = {row["model_version"]: row for row in figures(tmp_path, "out", "versions")}
    for version, row in found.items():
        mine = [one["action"] for one in in_year if one["model_version"] == version]
        counts = [len(mine), *(mine.count(action) for action in ("approve", "review", "decline"))]
        assert [row[name] for name in ("decisions", "approved", "reviewed", "declined")] == counts
    assert set(found) == {"m1", "m2"}
    firsts = {one["payment_id"]: one for one in reversed(in_year)}
    ids = sorted(
        (hashlib.sha256(payment_id.encode()).hexdigest(), one["decision_id"])
        for payment_id, one in firsts.items()
        if one["action"] != "approve"
    )
    assert [row["decision_id"] for row in figures(tmp_path, "out", "sample")] == [name for _, name in ids[:20]]


def test_the_same_archive_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    until = "--known-to", "2027-02-01"
    run(tmp_path, "one", *until)
    # The archive grows by outcomes that were not known then.
    late = {"label": "fraud", "source": "chargeback", "kafka_timestamp_ms": FIRST_MS + 500 * DAY_MS}
    later = [
        {"payment_id": one["payment_id"], "outcome_time_ms": one["event_time_ms"], **late} for one in world.payments
    ]
    write_topic(tmp_path / "archive", "outcomes", later, first=len(world.outcomes))
    run(tmp_path, "two", *until)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    run(tmp_path, "three")
    assert (tmp_path / "three" / "evidence.json").read_bytes() != files["evidence.json"]


@pytest.mark.usefixtures("world")
def test_the_signature_covers_every_file(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    run(tmp_path, "out", "--key", str(tmp_path / "key.pem"))
    sums = (tmp_path / "out" / "SHA256SUMS").read_bytes()
    key.public_key().verify((tmp_path / "out" / "SHA256SUMS.sig").read_bytes(), sums)
    named = {name: digest for digest, name in (line.split("  ") for line in sums.decode().splitlines())}
    files = [path for path in (tmp_path / "out").iterdir() if not path.name.startswith("SHA256SUMS")]
    assert named == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_reviews_and_alerts_are_shown_with_what_came_of_them(world: World, tmp_path: Path) -> None:
    first = {one["payment_id"]: one for one in reversed(world.decisions)}
    verdicts = [
        {"verdict_id": f"v{payment_id}-{turn}", "decision_id": one["decision_id"], "payment_id": payment_id}
        | {"verdict": verdict, "turn": turn, "kafka_timestamp_ms": FIRST_MS + DAY_MS}
        for payment_id, one in [*first.items()][:40]
        for turn, verdict in ((1, "fraud"), (2, "fraud" if payment_id.endswith("1") else "genuine"))
    ]
    # A record that was sent twice counts once.
    write_topic(tmp_path / "archive", "verdicts", [*verdicts, verdicts[0]])
    alert = {"alert_id": "a1", "severity": "warning", "subject": "score", "segment": "overall"}
    states = [
        {**alert, "state": state, "time_ms": FIRST_MS + hour * 3_600_000}
        for hour, state in ((1, "raised"), (5, "cleared"))
    ]
    write_topic(tmp_path / "archive", "drift-alerts", states)
    noted = {
        "alert_id": "a1",
        "kind": "acknowledged",
        "time_ms": FIRST_MS + 2 * 3_600_000,
        "by": "anna",
        "note": "a sale",
    }
    write_topic(tmp_path / "archive", "drift-acknowledgements", [noted])
    run(tmp_path, "out")
    (row,) = figures(tmp_path, "out", "reviews")
    agree = sum(payment_id.endswith("1") for payment_id in [*first][:40])
    assert (row["quarter"], row["reviews"], row["reviewed_twice"], row["reviewers_agree"]) == ("2026 Q1", 40, 40, agree)
    (row,) = figures(tmp_path, "out", "alerts")
    assert row["cleared"] == "2026-01-01 05:00:00"
    assert (row["severity"], row["acknowledged_by"], row["notes"]) == ("warning", "anna", "a sale")


@pytest.mark.usefixtures("world")
def test_what_is_not_archived_is_named_in_the_report(tmp_path: Path) -> None:
    run(tmp_path, "out")
    page = (tmp_path / "out" / "evidence.html").read_text()
    assert "The archive has no verdicts." in page
    assert "The archive has no drift-alerts." in page
    assert "No registry is configured" in page


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--exempted", "sca=tra"), "has no column sca"),
        (("--exempted", "a b=tra"), "wanted COLUMN=VALUE with the name of a field"),
        (("--key", "nowhere.pem"), "cannot read the key nowhere.pem"),
    ],
)
def test_wrong_options_end_in_one_line(tmp_path: Path, options: Sequence[str], wanted: str) -> None:
    with pytest.raises(Misconfigured, match=wanted):
        run(tmp_path, "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_gap_in_the_archive_gives_no_evidence(world: World, tmp_path: Path) -> None:
    write_topic(tmp_path / "archive", "outcomes", world.outcomes[:1], first=len(world.outcomes) + 3)
    with pytest.raises(Misconfigured, match="partition 0 has a gap"):
        run(tmp_path, "out")


@pytest.mark.usefixtures("world")
def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(Misconfigured, match="has files already"):
        run(tmp_path, "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_archive_keeps_nested_fields_of_alerts(tmp_path: Path) -> None:
    histogram = {"edges": [0.0, 1.0], "counts": [3], "missing": 1}
    write_topic(tmp_path, "drift-alerts", [{"alert_id": "a", "current_histogram": histogram}])
    (path,) = tmp_path.glob("drift-alerts/*/*.parquet")
    assert pq.read_table(path, partitioning=None)["current_histogram"].to_pylist() == [histogram]


def test_a_sealed_archive_gives_the_same_figures_with_one_part_in_memory(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[pa.Table]] = []
    open_part = Opener.open

    def alone(opener: Opener, part: ArchiveFile, offsets: range | None = None) -> pa.Table:
        assert not any(earlier() for earlier in opened), "an earlier part is in memory"
        table = open_part(opener, part, offsets)
        opened.append(weakref.ref(table))
        return table

    monkeypatch.setattr(Opener, "open", alone)
    assert run(tmp_path, "plain").exit_code == 0
    (tmp_path / "archive").rename(tmp_path / "plain-archive")
    world.write(tmp_path / "archive", ErasureKeys.create(tmp_path / "erasure.keys"))
    assert run(tmp_path, "sealed").exit_code == 0
    plain, sealed = (json.loads((tmp_path / out / "evidence.json").read_text()) for out in ("plain", "sealed"))
    assert sealed["figures"] == plain["figures"]
    assert len(opened) > 3
