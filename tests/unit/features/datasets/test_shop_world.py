"""The made world "shop": its columns, its frauds, and the truth about them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from paywarden.features.datasets.shop_people import DISPOSABLE_DOMAINS
from paywarden.features.datasets.shop_situations import FRAUD_SHARE, SITUATIONS
from paywarden.features.datasets.shop_world import SHOP_COLUMNS, TRUTH_COLUMNS, ShopTables, simulate_shop
from paywarden.features.datasets.simulated_columns import DEFAULT_START_MS
from paywarden.features.history.history import final_labels, history_of_tables
from paywarden.schemas.errors import Misconfigured

DAY_MS = 86_400_000
CARDS, DAYS = 900, 60


@cache
def shop() -> ShopTables:
    return ShopTables(*(plain(table) for table in simulate_shop(cards=CARDS, days=DAYS, seed=3)))


def plain(table: pa.Table) -> pa.Table:
    """Returns a table with texts in place of codes."""
    texts = {name: pa.string() for name in table.column_names if pa.types.is_dictionary(table[name].type)}
    return table.cast(pa.schema([(field.name, texts.get(field.name, field.type)) for field in table.schema]))


def column(name: str, *, of: pa.Table | None = None) -> np.ndarray:
    table = shop().payments if of is None else of
    return np.array(table[name].to_pylist(), dtype=object)


def situation(name: str) -> np.ndarray:
    rows: np.ndarray = column("situation", of=shop().truth) == name
    assert rows.any(), f"the world has no {name}"
    return rows


def frauds() -> np.ndarray:
    labels: np.ndarray = final_labels(history_of_tables(shop().payments, shop().outcomes)) == 1
    return labels


def test_the_same_arguments_give_the_same_tables() -> None:
    again, other = (simulate_shop(cards=40, days=9, seed=seed) for seed in (4, 5))
    for table, same, else_ in zip(simulate_shop(cards=40, days=9, seed=4), again, other, strict=True):
        assert table.equals(same)
        assert not table.equals(else_)


def test_payments_lie_in_the_span_in_order_of_time_under_ids_of_their_own() -> None:
    times = shop().payments["event_time_ms"].to_numpy()
    assert (np.diff(times) >= 0).all()
    assert DEFAULT_START_MS <= times[0] < times[-1] < DEFAULT_START_MS + DAYS * DAY_MS
    assert pc.count_distinct(shop().payments["payment_id"]).as_py() == len(times)
    ended = simulate_shop(cards=20, days=5, seed=1, end_time_ms=DEFAULT_START_MS).payments["event_time_ms"].to_numpy()
    assert DEFAULT_START_MS - 5 * DAY_MS <= ended[0] < ended[-1] < DEFAULT_START_MS
    assert set(SHOP_COLUMNS) < set(shop().payments.column_names)


def test_the_truth_has_each_payment_with_the_share_of_frauds_that_is_drawn() -> None:
    truth = shop().truth
    assert [(field.name, str(field.type)) for field in truth.schema] == [column[:2] for column in TRUTH_COLUMNS]
    assert truth["payment_id"].equals(shop().payments["payment_id"])
    probability = truth["fraud_probability"].to_numpy()
    assert ((probability > 0) & (probability < 1)).all()
    is_fraud = frauds()
    # By tenths of probability, the number of frauds is as stated, within four standard deviations.
    for part in np.array_split(np.argsort(probability), 10):
        deviation = np.sqrt((probability[part] * (1 - probability[part])).sum())
        assert abs(is_fraud[part].sum() - probability[part].sum()) <= 4 * deviation + 1
    assert FRAUD_SHARE / 2 < is_fraud.mean() < 2 * FRAUD_SHARE
    assert set(column("situation", of=truth)) == set(SITUATIONS)


def test_enumeration_tries_many_cards_of_one_issuer_at_one_shop_in_minutes() -> None:
    tried = situation("enumeration")
    rows = shop().payments.filter(pa.array(tried))
    networks = [ip.rsplit(".", 1)[0] for ip in rows["ip"].to_pylist()]
    for network in set(networks):
        burst = rows.filter(pa.array([one == network for one in networks]))
        times = burst["event_time_ms"].to_numpy()
        assert len(times) < 8 or np.ptp(times) <= 41 * 60_000
        assert pc.count_distinct(burst["merchant_id"]).as_py() == 1
        assert pc.count_distinct(burst["card_id"]).as_py() >= 0.8 * len(times)
    assert np.mean(column("declined")[tried]) > 5 * np.mean(column("declined")[~tried])
    assert all(customer is None for customer in column("customer_id")[tried])


def test_a_taken_over_account_pays_from_a_new_device_to_a_stranger() -> None:
    taken = situation("take_over")
    own = set(column("device_id")[situation("usual")])
    assert not own & set(column("device_id")[taken])
    delivered = taken & np.array([name is not None for name in column("delivery_name")])
    assert (column("billing_name")[delivered] != column("delivery_name")[delivered]).all()
    assert all(customer is not None for customer in column("customer_id")[taken])
    failed = column("three_d_secure") == "failed"
    assert failed[taken].mean() > 10 * failed[~taken].mean()


def test_a_farm_is_one_device_of_many_new_accounts() -> None:
    farmed = situation("device_farm")
    age_ms = column("event_time_ms")[farmed] - column("account_opened_ms")[farmed]
    assert (age_ms >= 0).all()
    assert (age_ms <= 5 * DAY_MS).all()
    assert len(set(column("device_id")[farmed])) * 4 < len(set(column("customer_id")[farmed]))
    mails = [mail.split("@")[1] in DISPOSABLE_DOMAINS for mail in column("buyer_email")[farmed]]
    assert 0.4 < np.mean(mails) < 0.95


def test_people_have_cards_devices_and_networks_in_common() -> None:
    usual = shop().payments.filter(pa.array(situation("usual")))

    def most(of: str, by: str) -> int:
        pairs = usual.filter(pc.is_valid(usual[by])).group_by(by).aggregate([(of, "count_distinct")])
        return int(pc.max(pairs[f"{of}_count_distinct"]).as_py())

    assert most("card_id", "customer_id") > 1
    assert most("customer_id", "device_id") > 1
    assert 1 < most("card_id", "buyer_email") < 20
    assert most("buyer_email", "customer_id") == 1


@pytest.mark.parametrize("name", ["delivery_latitude", "delivery_longitude", "delivery_name", "shipping_minor"])
def test_tickets_and_vouchers_are_delivered_nowhere(name: str) -> None:
    is_missing = np.array([one is None for one in column(name)])
    nowhere = np.isin(column("product").astype(str), ("ticket", "voucher"))
    assert is_missing[nowhere].all()
    assert not is_missing[~nowhere & ~situation("enumeration")].any()


def test_a_small_world_is_made_and_an_impossible_one_refused() -> None:
    assert len(simulate_shop(cards=1, days=1, seed=0).payments) >= 0
    with pytest.raises(Misconfigured, match="cards must be at least 1, got 0"):
        simulate_shop(cards=0, days=1, seed=0)
