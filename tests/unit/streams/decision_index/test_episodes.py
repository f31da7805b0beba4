"""The index finds episodes of enumeration, raises their alerts, and keeps the ledger of merchants."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from typing import Any

import pytest

from paywarden.features.catalogue.attributes import amount, ip
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.fields import Payment, bin_number, network
from paywarden.models.metrics.episodes import QUIET_MS
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.alerts.alerts import Alert
from paywarden.streams.decision_index.database import Database
from paywarden.streams.decision_index.episodes import Episode, EpisodeAlerts, EpisodeFeatures, episodes
from paywarden.streams.decision_index.erasure import Erasure
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.ledger import MerchantLedger, MerchantMonth, month_of_merchants, months
from tests.worlds.stream.decision_records import decision

DAY_MS, MINUTE_MS = 86_400_000, 60_000
START_MS = 1_735_689_600_000  # 2025-01-01
MARKS = ((amount < 3_00, 0.02, 5),)
merchant, device = Entity("merchant", key="merchant_id"), Entity("device", key="device_id")
net, bank = Entity("network", key="ip_network"), Entity("bank", key="card_bin")
CATALOGUE = Catalogue(
    (merchant, device, net, bank),
    (
        request.amount("amount"),
        merchant.episode("merchant_episode", "1h", of=MARKS),
        device.episode("device_episode", "1h", of=MARKS),
        net.episode("network_episode", "1h", of=MARKS),
        bank.episode("bank_episode", "1h", of=MARKS),
    ),
    Payment(bin_number("card_bin", 1), network("ip_network", 2, of=ip)),
)
FEATURES = EpisodeFeatures.of(CATALOGUE, "digest")


def made(number: int, minute: float, *values: float, **changes: Any) -> dict[str, Any]:
    """Returns a decision whose vector has these values of the four episodes."""
    on = [*values, *[0.0] * (4 - len(values))]
    return decision(
        f"p{number}",
        **{
            "decided_time_ms": START_MS + int(minute * MINUTE_MS),
            "merchant_id": "m1",
            "device_id": None,
            "ip": None,
            "country": None,
            "channel": None,
            "amount_minor": 100,
            "catalogue_digest": "digest",
            "vector": struct.pack("<5f", 1.0, *on),
        }
        | changes,
    )


@pytest.fixture
def index(database: Database) -> DecisionIndex:
    return DecisionIndex(database, worth=lambda amount_minor, _currency, _time: amount_minor, features=FEATURES)


def add(index: DecisionIndex, decisions: Iterable[dict[str, Any]], batch: int = 3) -> None:
    every = list(decisions)
    for start in range(0, len(every), batch):
        with index.database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(each, b"body") for each in every[start : start + batch]])


def found(index: DecisionIndex) -> list[Episode]:
    return episodes(index.database, since_ms=0, count=100)


class Teller:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.is_away = False

    def send(self, _: Alert, record: dict[str, Any]) -> None:
        Encoder("drift-alerts", LocalSchemaIds().id_of("drift-alerts")).encode(record)
        self.told.append(record)

    def flush(self) -> None:
        if self.is_away:
            raise TemporaryFailure("Kafka is away")


def test_payments_during_an_episode_are_one_with_size_and_cost(index: DecisionIndex) -> None:
    approved = [made(number, number, 1.5, amount_minor=100) for number in range(5)]
    declined = [made(number, number, 2.5, amount_minor=50, action="decline") for number in range(5, 8)]
    quiet = [made(number, number, 0.99) for number in range(8, 12)]
    add(index, [*declined, *quiet, *approved])
    (one,) = found(index)
    assert (one.feature, one.entity, one.merchant_id) == ("merchant_episode", "m1", "m1")
    assert (one.begin_ms, one.end_ms) == (START_MS, START_MS + 7 * MINUTE_MS)
    assert (one.payments, one.approved, one.amount_minor, one.approved_minor) == (8, 5, 650, 500)
    assert one.value_max == 2.5


def test_quiet_hours_end_an_episode_and_the_next_one_begins(index: DecisionIndex) -> None:
    add(index, [made(1, 0, 1.5), made(2, QUIET_MS / MINUTE_MS, 1.5), made(3, 1, 1.2, merchant_id="m2")])
    assert sorted((one.entity, one.payments) for one in found(index)) == [("m1", 1), ("m1", 1), ("m2", 1)]


def test_a_decision_that_comes_twice_counts_once(index: DecisionIndex) -> None:
    add(index, [made(1, 0, 1.5), made(2, 1, 1.5)] * 2, batch=1)
    (one,) = found(index)
    assert one.payments == 2
    assert one.amount_minor == 200


def test_decisions_of_another_catalogue_or_without_a_vector_are_passed_over(index: DecisionIndex) -> None:
    add(index, [made(1, 0, 9.0, catalogue_digest="other"), made(2, 0, 9.0, vector=b"")])
    assert found(index) == []


def test_an_entity_is_named_by_what_a_decision_has(index: DecisionIndex) -> None:
    add(index, [made(1, 0, 0, 2, 2, 2, device_id="d1", ip="10.1.2.3")])
    assert {one.feature: one.entity for one in found(index)} == {
        "device_episode": "d1",
        "network_episode": "10.1.2.0/24",
        "bank_episode": "m1",
    }


def test_an_episode_is_raised_once_and_cleared_once(index: DecisionIndex) -> None:
    now, teller = [START_MS + MINUTE_MS], Teller()
    alerts = EpisodeAlerts(index.database, FEATURES, teller, now_ms=lambda: now[0])
    add(index, [made(1, 0, 0, 3.5, device_id="secret-device")])
    assert [alerts.step(), alerts.step()] == [1, 0]
    # It goes on and on, and is not told again.
    for hour in range(1, 30):
        add(index, [made(hour + 1, 60 * hour, 0, 3.5, device_id="secret-device")])
        now[0] = START_MS + hour * 60 * MINUTE_MS
        assert alerts.step() == 0
    now[0] += QUIET_MS
    assert [alerts.step(), alerts.step()] == [1, 0]
    raised, cleared = teller.told
    assert (raised["state"], cleared["state"]) == ("raised", "cleared")
    assert raised["alert_id"] == cleared["alert_id"]
    assert (raised["subject"], raised["segment"]) == ("episode:device_episode", "merchant_id=m1")
    assert (raised["statistic"], raised["value"], raised["cause"]) == ("evidence", 3.5, "traffic")
    assert cleared["current_count"] == 30
    assert raised["evidence"] == pytest.approx(3.5 * raised["evidence_threshold"])
    assert "secret-device" not in str(teller.told)


def test_an_alert_that_could_not_be_written_is_written_again(index: DecisionIndex) -> None:
    teller = Teller()
    alerts = EpisodeAlerts(index.database, FEATURES, teller, now_ms=lambda: START_MS)
    add(index, [made(1, 0, 1.5)])
    teller.is_away = True
    with pytest.raises(TemporaryFailure):
        alerts.step()
    teller.is_away = False
    assert alerts.step() == 1
    assert teller.told[0] == teller.told[1]


def test_old_episodes_of_a_filled_index_raise_no_alert(index: DecisionIndex) -> None:
    alerts = EpisodeAlerts(index.database, FEATURES, teller := Teller(), now_ms=lambda: START_MS + 3 * DAY_MS)
    add(index, [made(1, 0, 1.5)])
    assert alerts.step() == 0
    assert teller.told == []


# The ledger.


def outcome(number: int, time_ms: int, label: str, source: str | None = "issuer") -> dict[str, Any]:
    return {"payment_id": f"p{number}", "outcome_time_ms": time_ms, "label": label, "source": source}


def put(index: DecisionIndex, *outcomes: dict[str, Any]) -> None:
    with index.database.transaction() as transaction:
        index.add_outcomes(transaction, outcomes)


def counted(index: DecisionIndex, month: str = "2025-01", days: int = 31) -> list[MerchantMonth]:
    ledger = MerchantLedger(index.database, now_ms=lambda: START_MS + 31 * DAY_MS)
    for _ in range(days):
        ledger.step()
    return month_of_merchants(index.database, month, 100)


def test_the_ledger_counts_as_a_plain_loop_does(index: DecisionIndex) -> None:
    rng = random.Random(3)
    actions = ("approve", "review", "decline")
    decisions = [
        made(
            number,
            rng.uniform(0, 31 * 24 * 60 - 1),
            rng.choice((0.0, 1.5)),
            merchant_id=f"m{rng.randrange(4)}",
            amount_minor=rng.randrange(1000),
            action=rng.choice(actions),
        )
        for number in range(300)
    ]
    told = [
        outcome(number, START_MS + day * DAY_MS, rng.choice(("fraud", "genuine")), source)
        for number in range(0, 300, 2)
        for day, source in zip(rng.sample(range(90), 2), rng.sample(("issuer", "chargeback", None), 2), strict=True)
    ]
    add(index, [*decisions, *decisions[:20]], batch=50)
    put(index, *told)
    wanted: dict[str, list[int]] = {}
    for each in decisions:
        sums = wanted.setdefault(each["merchant_id"], [0] * 9)
        mine = [one for one in told if one["payment_id"] == each["payment_id"]]
        newest = max(mine, key=lambda one: (one["outcome_time_ms"], one["label"]), default={"label": ""})
        paid, is_on = each["amount_minor"], struct.unpack_from("<f", each["vector"], 4)[0] >= 1
        approved, fraud = int(each["action"] != "decline"), int(newest["label"] == "fraud")
        disputed = int(any(one["source"] == "chargeback" for one in mine))
        values = (1, paid, approved, approved * paid, fraud, fraud * paid, disputed, int(is_on), is_on * paid)
        wanted[each["merchant_id"]] = [total + int(value) for total, value in zip(sums, values, strict=True)]
    rows = counted(index)
    assert {row.merchant_id: list(vars(row).values())[1:] for row in rows} == wanted
    assert months(index.database) == ["2025-01"]
    assert rows == sorted(rows, key=lambda row: -(row.frauds + row.disputes + row.enumerated))


def test_a_corrected_outcome_corrects_the_ledger(index: DecisionIndex) -> None:
    add(index, [made(1, 0), made(2, 0)])
    put(index, outcome(1, START_MS + DAY_MS, "fraud", "chargeback"))
    (row,) = counted(index)
    assert (row.frauds, row.disputes, row.fraud_ratio) == (1, 1, 1.0)
    put(index, outcome(1, START_MS + 2 * DAY_MS, "genuine", "analyst"))
    (row,) = counted(index)
    assert (row.frauds, row.disputes, row.fraud_ratio) == (0, 1, 0.5)


def test_a_month_ends_with_its_last_day(index: DecisionIndex) -> None:
    add(index, [made(1, 31 * 24 * 60 - 1), made(2, 31 * 24 * 60)])
    counted(index)
    assert months(index.database) == ["2025-02", "2025-01"]
    assert [row.payments for row in month_of_merchants(index.database, "2025-01", 9)] == [1]


def test_erased_payments_leave_episodes_and_an_erased_merchant_the_ledger(index: DecisionIndex) -> None:
    add(index, [made(1, 0, 1.5, 1.5, device_id="d1"), made(2, 1, 1.5), made(3, 1, merchant_id="m2")])
    assert len(counted(index)) == 2

    def erase(**ids: str) -> None:
        erasure = Erasure.of(ids, START_MS + DAY_MS)
        assert erasure is not None
        with index.database.transaction() as transaction:
            index.erase(transaction, erasure)

    erase(device_id="d1")
    assert [(one.feature, one.payments) for one in found(index)] == [("merchant_episode", 1)]
    erase(merchant_id="m1")
    assert found(index) == []
    assert [row.merchant_id for row in month_of_merchants(index.database, "2025-01", 9)] == ["m2"]


def test_an_index_that_is_emptied_has_no_episode_and_no_ledger(index: DecisionIndex) -> None:
    add(index, [made(1, 0, 1.5)])
    counted(index)
    index.empty()
    assert found(index) == []
    assert months(index.database) == []


def test_old_episodes_and_days_leave_the_index(index: DecisionIndex) -> None:
    add(index, [made(1, 0, 1.5), made(2, 5 * 24 * 60, 1.5)])
    counted(index)
    index.expire(START_MS + 2 * DAY_MS)
    assert [one.begin_ms for one in found(index)] == [START_MS + 5 * DAY_MS]
    assert [row.payments for row in month_of_merchants(index.database, "2025-01", 9)] == [1]
