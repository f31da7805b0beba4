"""A policy over declared fields decides about a history as it decides live."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import ip
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.fields import Payment
from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.features.datasets.made_columns import with_declared_columns
from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import history_of_tables
from paywarden.features.history.point_in_time import Chunk
from paywarden.models.metrics.evaluation import DAY_MS, date_of_day
from paywarden.models.policy.policy import ConfiguredRule, Facts, Policy, PolicySettings
from paywarden.models.replay.replayed_policy import ReplayedPolicy
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.requests.schema import RequestSchema

MAIL = fields.email("buyer_email", 1)
card = Entity("card", "card_id")
CATALOGUE = Catalogue(
    [card],
    [request.amount("spent")],
    Payment(
        MAIL,
        fields.email_domain("buyer_domain", 2, of=MAIL),
        fields.category("product", 3, ["book", "phone", "food"]),
        fields.decimal("weight", 4, unit="kg", least=0, most=50, decimals=1),
        fields.integer("items", 5, unit="items", least=0, most=20),
        fields.money("fee_minor", 6),
        fields.flag("is_gift", 7),
        fields.network("ip_network", 8, of=ip),
        fields.country("billing_country", 9),
    ),
)
FIELDS = CATALOGUE.payment.fields
CONDITIONS = [
    'product == "phone" and buyer_domain in ("example.com", "example.org")',
    "weight > 2.4 and weight < 4",
    "items in (0, 1, 2) and fee_minor > 1_00",
    "is_gift",
    "missing(is_gift) or missing(weight) and not missing(buyer_email)",
    "billing_country != country and billing_country != 'DE'",
]


def policy_of(conditions: list[str], until: str = "") -> Policy:
    # The first whose condition is true decides, and its name says so.
    rules = tuple(
        ConfiguredRule(f"rule_{n}", text, "review", override=True, until=until) for n, text in enumerate(conditions)
    )
    return Policy(PolicySettings(rules=rules), review_at=0.5, decline_at=0.9, catalogue=CATALOGUE)


def payments() -> pa.Table:
    simulated, _ = simulate(cards=20, days=4, seed=3)
    return with_declared_columns(simulated, FIELDS, seed=5)


def no_outcomes() -> pa.Table:
    texts, numbers = pa.array([], pa.string()), pa.array([], pa.int64())
    return pa.table({"payment_id": texts, "outcome_time_ms": numbers, "label": texts, "source": texts})


def replayed(policy: Policy, table: pa.Table) -> list[tuple[str, tuple[str, ...]]]:
    history = history_of_tables(table, no_outcomes(), FIELDS)
    amounts = np.asarray(table["amount_minor"].to_numpy(), dtype=np.int64)
    by_policy = ReplayedPolicy(policy, history, amounts)
    chunk = Chunk(0, len(table), np.zeros((len(table), 1), dtype=np.float32), 0)
    decided = by_policy.decide(chunk, np.zeros(len(table)))
    causes = by_policy.causes
    return [(causes[cause].action, causes[cause].reasons) for cause in decided.cause.tolist()]


@pytest.mark.parametrize("until_day", [None, 1])
def test_conditions_over_declared_fields_answer_as_they_do_live(until_day: int | None) -> None:
    table, schema = payments(), RequestSchema(FIELDS)
    first_ms, *_, last_ms = table["event_time_ms"].to_pylist()
    end_ms = last_ms if until_day is None else (first_ms // DAY_MS + until_day + 1) * DAY_MS - 1
    policy = policy_of(CONDITIONS, "" if until_day is None else date_of_day(end_ms // DAY_MS))
    live = []
    for sent, amount in zip(
        requests_of(table, id_prefix="", fields=FIELDS), table["amount_minor"].to_pylist(), strict=True
    ):
        facts = Facts(schema.payment_of(sent.SerializeToString()), amount, np.zeros(1, dtype=np.float32), 0.0, ())
        verdict = policy.decide(facts)
        live.append((verdict.action, tuple(verdict.reasons)))
    assert replayed(policy, table) == live
    # Every rule decides about some payments, and some payments meet none.
    assert len(set(live)) == len(CONDITIONS) + 1
    decided_ms = [
        time_ms for time_ms, (_, reasons) in zip(table["event_time_ms"].to_pylist(), live, strict=True) if reasons
    ]
    assert first_ms < max(decided_ms) <= end_ms


def test_a_history_with_hashes_alone_cannot_be_compared_with_texts() -> None:
    table = payments()
    texts = table["buyer_email"].to_pylist()
    hashes = pa.array([None if text is None else LAPTOP_KEY.of(text) for text in texts], pa.int64())
    table = table.set_column(table.schema.get_field_index("buyer_email"), "buyer_email", hashes)
    table = table.append_column("buyer_domain", hashes)
    with pytest.raises(
        Misconfigured, match="the policy compares buyer_domain, and this history has keyed hashes of it"
    ):
        replayed(policy_of(['buyer_domain == "example.com"']), table)
    # Whether there is an address is known all the same.
    missing = table["buyer_email"].null_count
    assert replayed(policy_of(["missing(buyer_email)"]), table).count(("review", ("rule:rule_0",))) == missing > 0
