"""Rules are found for a fresh attack, proven on later payments, and leave when they no longer earn."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.history.history import history_of_tables
from paywarden.models.metrics.evaluation import Days, date_of_day
from paywarden.models.policy.policy import ConfiguredRule, Facts, Policy, PolicySettings
from paywarden.models.replay.measures import Contestant
from paywarden.models.replay.mined_history import ProvenRules, mine_history
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.models.replay.rule_mining import (
    MinedRules,
    MiningAsked,
    MiningPayments,
    _Columns,
    _paths,
    _Weighing,
    mine,
)
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from tests.worlds.small import small_world
from tests.worlds.small.attack import known_by, with_attack
from tests.worlds.small.small_world import DAY_MS, FIRST_DAY

ATTACKED = FIRST_DAY + 24
"""The first day of the attack, which lasts three days. The model was trained before it."""


@cache
def world() -> tuple[Any, Any]:
    return with_attack(
        *small_world.tables(),
        first_ms=ATTACKED * DAY_MS,
        last_ms=(ATTACKED + 3) * DAY_MS,
        frauds_a_day=60,
        seed=1,
    )


def contestant(*rules: ConfiguredRule) -> Contestant:
    bundle = small_world.loaded_bundle()
    manifest = bundle.manifest
    settings = PolicySettings(rules=rules)
    policy = Policy(settings, review_at=manifest.review_at, decline_at=manifest.decline_at)
    return Contestant(bundle, policy, "some.toml")


def options(first: int, last: int) -> ReplayOptions:
    return ReplayOptions(window=Days(first, last), label_delay_days=0, unknown_labels="genuine")


def mined_by(day: int, proof: Path, *rules: ConfiguredRule) -> ProvenRules:
    """Mines at the end of a day, from what is known then."""
    return mine_history(
        history_of_tables(*known_by(*world(), (day + 1) * DAY_MS)),
        engine=small_world.engine(),
        catalogue=CATALOGUE,
        rates=small_world.rates(),
        current=contestant(*rules),
        proof=proof,
        options=options(day - 6, day),
        settings=MiningAsked(until=date_of_day(ATTACKED + 3)),
    )


def decided(policy: Policy, folder: Path, first: int, last: int) -> Any:
    replay(
        history_of_tables(*world()),
        engine=small_world.engine(),
        rates=small_world.rates(),
        champion=dataclasses.replace(contestant(), policy=policy),
        destination=folder,
        options=options(first, last),
    )
    return pq.read_table(folder / "decisions.parquet")


def recall(score: NDArray[np.float64], fraud: NDArray[np.bool_]) -> float:
    """Returns the share of frauds above 99 % of the genuine payments."""
    return float((score[fraud] > np.quantile(score[~fraud], 0.99, method="higher")).mean())


def test_rules_mined_within_a_day_stop_an_attack_and_then_leave(tmp_path: Path) -> None:
    found = mined_by(ATTACKED, tmp_path / "proof")
    assert found.mined.new
    table = decided(found.policy, tmp_path / "later", ATTACKED + 1, ATTACKED + 4)
    fraud = np.array(table["label"].to_pylist()) == "fraud"
    fired = np.array(
        [any(one.startswith("rule:mined_") for one in reasons) for reasons in table["reasons"].to_pylist()]
    )
    day = table["event_time_ms"].to_numpy() // DAY_MS
    # The rules hold until the day after the attack, and do nothing then.
    assert fired[day <= ATTACKED + 2].any()
    assert not fired[day > ATTACKED + 3].any()
    during, score = day <= ATTACKED + 2, table["score"].to_numpy()
    alone, with_rules = recall(score[during], fraud[during]), recall((score + 2 * fired)[during], fraud[during])
    assert with_rules > alone + 0.5
    # A later mining finds that they stop nothing any more.
    after = mined_by(ATTACKED + 5, tmp_path / "after", *found.policy.settings.rules)
    assert [each.rule for each in after.mined.retired] == list(found.policy.settings.rules)
    # While the attack goes on they stay, with a later end.
    ended = [dataclasses.replace(rule, until="2024-01-01") for rule in found.policy.settings.rules]
    again = mined_by(ATTACKED + 1, tmp_path / "again", *ended)
    assert {rule.until for rule in again.policy.settings.rules} == {date_of_day(ATTACKED + 3)}
    assert {each.rule.name for each in again.mined.kept} == {rule.name for rule in ended}


def test_the_proof_is_a_replay_that_counts_what_the_miner_counted(tmp_path: Path) -> None:
    found = mined_by(ATTACKED, tmp_path)
    assert found.proof.challenger is not None
    replayed = {each.reason: each.alone for each in found.proof.challenger.by_reason}
    for each in found.mined.new:
        assert each.found_on is not None
        assert replayed[f"rule:{each.rule.name}"] == each.found_on.payments + each.held_out.payments
    assert (tmp_path / "report.html").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith("mining-")] == []


def made(seed: int, *, payments: int = 3000, fraud_share: float = 0.05) -> MiningPayments:
    """Returns payments whose frauds have nothing in common."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(0, 10, (payments, len(CATALOGUE.features))).astype(np.float32)
    vectors[rng.random(vectors.shape) < 0.2] = np.nan
    return MiningPayments(
        time_ms=np.arange(payments),
        vectors=vectors,
        texts={"mcc": rng.choice(np.array(["5816", "7995", 'a"b', "a\\b", "#", None], dtype=object), payments)},
        fraud=rng.random(payments) < fraud_share,
        amount_minor=rng.integers(1_00, 100_00, payments),
        card=rng.integers(0, payments // 3, payments),
        weight=np.ones(payments),
        fired={},
    )


def test_of_noise_hardly_any_rule_is_proposed() -> None:
    settings = MiningAsked(until="2024-12-31", false_positives=0.1)
    results = [mine(made(seed), CATALOGUE, settings, day="2024-01-25") for seed in range(15)]
    assert sum(len(each.noise) for each in results) > 15
    assert sum(len(each.new) for each in results) <= 2


def test_a_condition_answers_as_the_path_that_it_says() -> None:
    payments = made(3, payments=400, fraud_share=0.3)
    names = [feature.name for feature in CATALOGUE.features]
    learn = slice(0, 400)
    columns = _Columns(payments, CATALOGUE, learn)
    paths = _paths(columns, _Weighing(payments, MiningAsked(until="2024-12-31")), learn)
    assert len(paths) > 100
    rules = [
        ConfiguredRule(f"r{number}", columns.condition(path), "review", override=True)
        for number, path in enumerate(paths[:200])
    ]
    held = [columns.holds(path) for path in paths[:200]]
    amount = payments.vectors[:, names.index("amount")]
    for rule, holds in zip(rules, held, strict=True):
        policy = Policy(PolicySettings(rules=(rule,)), review_at=0.5, decline_at=0.9)
        for row in range(0, 400, 7):
            # The exact amount is a whole number.
            if "amount " in rule.when.replace("_amount ", "") or np.isnan(amount[row]):
                continue
            facts = Facts(ScoreRequest(mcc=payments.texts["mcc"][row] or ""), 1, payments.vectors[row], 0.0, ())
            assert (policy.decide(facts).action == "review") == holds[row], rule.when


def test_rules_name_no_person_and_every_one_is_a_right_policy() -> None:
    payments = made(5, fraud_share=0.02)
    is_attack = np.arange(3000) % 40 == 0
    texts = {"mcc": np.where(is_attack, '5"816', payments.texts["mcc"])}
    attacked = dataclasses.replace(payments, texts=texts, fraud=payments.fraud | is_attack)
    found = mine(attacked, CATALOGUE, MiningAsked(until="2024-12-31"), day="2024-01-25")
    assert [each.rule.when for each in found.new][:1] == ["mcc == '5\"816'"]
    Policy(PolicySettings(rules=found.rules_after(())), review_at=0.5, decline_at=0.9)


def test_genuine_payments_that_stand_for_several_cost_as_several() -> None:
    payments = made(5)
    is_attack = np.arange(3000) % 10 == 0
    attacked = dataclasses.replace(
        payments,
        texts={"mcc": np.where(is_attack, "5999", payments.texts["mcc"])},
        fraud=is_attack & (np.arange(3000) % 20 == 0),
    )

    def found(weight: float) -> MinedRules:
        one = dataclasses.replace(attacked, weight=np.where(attacked.fraud, 1.0, weight))
        return mine(one, CATALOGUE, MiningAsked(until="2024-12-31", false_positives=0.1), day="2024-01-25")

    assert found(1.0).new
    assert not found(20.0).new


def test_too_few_missed_frauds_and_wrong_shares_are_one_line() -> None:
    with pytest.raises(Misconfigured, match="wanted at least 10 frauds that the policy approves, got 0"):
        mine(made(1, fraud_share=0.0), CATALOGUE, MiningAsked(until="2024-12-31"), day="2024-01-25")
    for share in (0.0, 0.2, float("nan")):
        with pytest.raises(Misconfigured, match="false positives of mined rules: wanted a share above 0"):
            MiningAsked(until="2024-12-31", false_positives=share)
