"""Catches of rules, and drafts replayed on the last week: equal to deciding about each decision, one by one."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from paywarden.models.policy.policy import PolicySettings
from paywarden.ops.console.background import DONE, FAILED
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.policy.drafts import IndexedDecisions, draft_source
from paywarden.ops.console.policy.policy_page import PolicySection
from paywarden.ops.console.policy.replays import Replays
from paywarden.ops.console.policy.saved_drafts import SavedDrafts
from paywarden.ops.console.shell import API
from paywarden.ops.recomputation import decide_again
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.settings import read_source
from paywarden.streams.decision_index.index import Stored
from tests.services.product.console import NOW_MS
from tests.unit.ops.console.test_decisions import HOUR_MS, World
from tests.unit.ops.console.test_policy import _Decisions
from tests.unit.ops.console.test_shell import BEARER
from tests.worlds.small import small_world

DRAFT = """[policy]
review_at = 0.02
decline_at = 0.5
[[policy.rules]]
name = "many"
when = "card_count_1h >= 1 and amount > 1_00"
action = "decline"
"""
_NEVER = threading.Event()


class PolicyWorld(World):
    """A console with the page of the policy over an index of decisions."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = read_source(str(folder / "paywarden.toml"), {})
        ids = LocalSchemaIds()
        self.decoder, self.encoder = Decoder("decisions", ids), Encoder("decisions", ids.id_of("decisions"))
        self.decided = IndexedDecisions(self.source, self.opened, self.decoder.decode)
        self.policy = PolicySection(
            self.source, Desk(self.source, ""), _Decisions, self.decided, SavedDrafts(self.console.database)
        )
        self.sections = (*self.sections, self.policy.section())

    def add(self, decisions: list[dict[str, Any]]) -> None:
        with self.database.transaction() as transaction:
            self.index.add_decisions(transaction, [Stored(each, self.encoder.encode(each)) for each in decisions])

    def stored(self) -> list[Any]:
        return [self.decoder.decode(body) for _, body in self.index.bodies_between(0, NOW_MS, 10_000)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PolicyWorld]:
    made = PolicyWorld(tmp_path)
    yield made
    made.database.close()


def replayed(world: PolicyWorld, draft: str = DRAFT, decisions_max: int = 50_000) -> Any:
    """Returns a replay that is over."""
    replays = Replays(world.decided, review_cost_minor=500, decisions_max=decisions_max)
    asked = replays.ask(draft, "d", "anna", NOW_MS)
    assert replays.step(NOW_MS, _NEVER)
    return replays.find(asked.replay_id)


def test_a_replay_is_what_the_draft_says_about_each_decision(world: PolicyWorld) -> None:
    bundle = small_world.loaded_bundle()
    now, draft = world.decided.policies(DRAFT)
    expected: dict[tuple[str, str], list[int]] = {}
    for decision in world.stored():
        # Its own score may differ from the bundle's: the test world changes two of them.
        actions = [decide_again(decision, bundle, policy, world.decided.rates).action for policy in (now, draft)]
        if decision["decision_id"] not in ("d-review", "d-other") and actions[0] != actions[1]:
            change = expected.setdefault((actions[0], actions[1]), [0, 0])
            change[0] += 1
            change[1] += world.decided.rates.convert(decision["amount_minor"], decision["currency"], NOW_MS) or 0
    found = replayed(world)
    assert (found.state, found.result.week, found.result.sample) == (DONE, 10, 10)
    odd = {one["place"] for one in found.result.changed if one["payment_id"] in ("pay3", "pay4")}
    assert expected
    assert sum(one["payments"] for one in found.result.transitions) == sum(n for n, _ in expected.values()) + len(odd)
    assert {(one["before"], one["after"]) for one in found.result.changed if one["place"] not in odd} == set(expected)
    # pay1 is known as fraud.
    assert sum(one["frauds"] for one in found.result.transitions) == sum(
        one["payment_id"] == "pay1" for one in found.result.changed
    )
    assert sum(one["draft"] for one in found.result.actions) == 10


def test_a_sample_stands_for_the_whole_week(world: PolicyWorld) -> None:
    first = world.stored()[0]
    hour = NOW_MS // HOUR_MS * HOUR_MS - 48 * HOUR_MS
    many = [
        {
            **first,
            **{name: f"{name}{number}" for name in ("payment_id", "decision_id")},
            "decided_time_ms": hour + number * HOUR_MS // 3000,
        }
        for number in range(3000)
    ]
    world.add(many)
    result = replayed(world, decisions_max=1100).result
    assert result.week == 3010
    assert 80 <= result.sample <= 220
    assert sum(one["decided"] for one in result.actions) == pytest.approx(3010, abs=2)
    again = replayed(world, decisions_max=1100).result
    assert again == result


def test_a_decision_without_what_conditions_read_is_counted_and_left_out(world: PolicyWorld) -> None:
    first = world.stored()[0]
    world.add(
        [
            {**first, "payment_id": "old", "decision_id": "old", "catalogue_digest": "another"},
            {**first, "payment_id": "bare", "decision_id": "bare", "vector": b""},
            {**first, "payment_id": "short", "decision_id": "short", "vector": first["vector"][:4]},
            {**first, "payment_id": "torn", "decision_id": "torn", "vector": b"123"},
        ]
    )
    result = replayed(world).result
    assert result.left_out == {
        "they were made with another catalogue": 1,
        "their vectors were not kept": 1,
        "their vectors lack features": 1,
        "their vectors cannot be read": 1,
    }
    assert result.sample == 10
    # Without conditions the score is enough.
    thresholds = replayed(world, "[policy]\nreview_at = 0.3\ndecline_at = 0.9").result
    assert thresholds.left_out == {"their vectors cannot be read": 1}


def test_a_replay_that_meets_a_bug_has_failed(world: PolicyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("paywarden.ops.console.policy.replays.Tally._facts", bug)
    replays = Replays(world.decided, review_cost_minor=500)
    replays.ask(DRAFT, "d", "anna", NOW_MS)
    with pytest.raises(RuntimeError):
        replays.step(NOW_MS, _NEVER)
    (found,) = replays.all()
    assert (found.state, found.problem) == ("failed", "the console has made a fault: its log says more")


def test_a_replay_ends_when_somebody_cancels_it_and_says_why_it_failed(world: PolicyWorld) -> None:
    replays = Replays(world.decided, review_cost_minor=500)
    asked = [replays.ask(DRAFT, "d", "anna", NOW_MS) for _ in range(5)]
    with pytest.raises(TemporaryFailure, match="wait already"):
        replays.ask(DRAFT, "d", "anna", NOW_MS)
    assert replays.cancel(asked[0].replay_id)
    assert not replays.cancel(asked[0].replay_id)
    assert replays.step(NOW_MS, _NEVER)
    states = [one.state for one in reversed(replays.all())]
    assert states == ["cancelled", DONE, "waiting", "waiting", "waiting"]
    failing = replayed(world, DRAFT.replace("card_count_1h", "no_such_feature"))
    assert failing.state == FAILED
    assert "no_such_feature" in failing.problem
    # Cancelled in the midst: the next batch is not taken.
    running = replays.find(asked[2].replay_id)
    assert running is not None

    class _Cancels(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            del timeout
            replays.cancel(asked[2].replay_id)
            return False

    assert replays.step(NOW_MS, _Cancels())
    found = replays.find(asked[2].replay_id)
    assert found == replace(running, state="cancelled", done=0.1)


def _post(browser: TestClient, path: str, **form: str) -> Any:
    return browser.post(path, data=form)


def test_a_draft_is_replayed_from_the_page_and_cancelled(world: PolicyWorld) -> None:
    browser = world.browser("demo-analyst")
    address = f"/policy/replays/{world.policy.replays.ask(DRAFT, 'd', 'anna', NOW_MS).replay_id}"
    assert "It waits" in browser.get(address).text
    version = browser.get(f"{address}/version").json()
    world.policy.replays.step(NOW_MS, _NEVER)
    page = browser.get(address).text
    assert "What changes" in page
    assert "It is done." in page
    assert browser.get(f"{address}/version").json() != version
    view = browser.get(f"{API}{address}", headers=BEARER).json()["view"]
    assert view["replay"]["result"]["week"] == 10
    assert _post(browser, f"{address}/cancel").status_code == 409
    other = f"/policy/replays/{world.policy.replays.ask(DRAFT, 'd', 'anna', NOW_MS).replay_id}"
    assert _post(browser, f"{other}/cancel").status_code == 303
    assert "cancelled" in browser.get(other).text
    assert browser.get("/policy/replays/nothing").status_code == 404
    # A draft may list cards: a person who may not see cards cannot read others' drafts.
    assert "card_count_1h" not in world.browser("demo-model-owner").get(address).text
    assert world.browser("demo-auditor").get(address).status_code == 403


def test_the_page_says_what_each_rule_caught(world: PolicyWorld) -> None:
    stored = world.stored()
    outcomes = [(1, "genuine", 10), (1, "fraud", 20), (2, "genuine", 10)]
    decisions = [
        {**stored[0], "payment_id": f"r{number}", "decision_id": f"r{number}", "reasons": ["rule:many"]}
        for number in range(4)
    ]
    decisions.append({**decisions[0], "decided_time_ms": NOW_MS - 8 * 24 * HOUR_MS})
    world.add([*decisions, decisions[2]])
    with world.database.transaction() as transaction:
        world.index.add_outcomes(
            transaction,
            [
                {"payment_id": f"r{number}", "outcome_time_ms": time_ms, "label": label, "source": ""}
                for number, label, time_ms in outcomes
            ],
        )
    caught = world.index.rule_catch("many", NOW_MS - 7 * 24 * HOUR_MS)
    # The newest outcome counts, a repeated decision once, and one of before the week not at all.
    assert (caught.frauds, caught.genuine, caught.unknown, caught.is_all) == (1, 1, 2, True)
    assert caught.fraud_minor == decisions[0]["amount_minor"]
    assert caught.fraud_share == 0.5
    assert world.index.rule_catch("none", 0).fraud_share is None
    weeks = world.index.rule_weeks("many", NOW_MS - 30 * 24 * HOUR_MS)
    assert [(one.frauds, one.genuine, one.unknown) for one in weeks] == [(1, 1, 2), (0, 0, 1)]
    monday = datetime.datetime.fromtimestamp(weeks[0].since_ms / 1000, datetime.UTC)
    assert (monday.weekday(), monday.hour) == (0, 0)
    page = world.browser("demo-operator").get("/policy/rules/many").text
    assert "50 %" in page
    assert "CSV" not in page
    sent = world.browser("demo-analyst").get("/policy/rules/many/csv")
    assert sent.text.splitlines()[1].split(",")[1:3] == ["4", "1"]
    assert world.browser("demo-operator").get("/policy/rules/many/csv").status_code == 403


def test_rules_are_mined_from_the_page_and_the_policy_with_them_is_replayed(world: PolicyWorld) -> None:
    first = world.stored()[0]
    start_ms, vector = NOW_MS - 3 * 24 * HOUR_MS, np.frombuffer(first["vector"], dtype="<f4")
    frauds = [f"attack{number}" for number in range(40)]
    decisions = [
        {
            **first,
            "payment_id": payment_id,
            "decision_id": f"d-{payment_id}",
            "card_id": f"card-{payment_id}",
            "mcc": "5816" if payment_id in frauds else "5411",
            "action": "approve",
            "score": 0.001,
            "amount_minor": 80_00,
            "currency": "EUR",
            "vector": (vector + np.float32(number % 7)).astype("<f4").tobytes(),
            "event_time_ms": start_ms + number * 60_000,
            "decided_time_ms": start_ms + number * 60_000,
        }
        for number, payment_id in enumerate(
            one for place in range(40) for one in (frauds[place], *(f"good{place}-{k}" for k in range(10)))
        )
    ]
    world.add(decisions)
    outcomes = [{"payment_id": one, "outcome_time_ms": NOW_MS, "label": "fraud", "source": "issuer"} for one in frauds]
    with world.database.transaction() as transaction:
        world.index.add_outcomes(transaction, outcomes)
    browser = world.browser("demo-analyst")
    address = _post(browser, "/policy/mine").headers["location"]
    assert world.policy.replays.step(NOW_MS, _NEVER)
    found = world.policy.replays.find(address.rsplit("/", 1)[1])
    assert found is not None
    assert (found.state, found.problem) == (DONE, "")
    (rule,) = draft_source(found.draft).section("policy", PolicySettings).rules[-1:]
    assert (rule.name[:6], rule.when, rule.action) == ("mined_", 'mcc == "5816"', "review")
    assert rule.until > "2024"
    assert found.result is not None
    caught = [one for one in found.result.transitions if (one["before"], one["after"]) == ("approve", "review")]
    assert caught[0]["frauds"] == 40
    assert "mined_" in browser.get(address).text
    # The draft has the lists of the settings, which may name cards.
    own = world.policy.replays.ask(found.draft, found.digest, "demo-model-owner", NOW_MS, mines=True)
    owner, path = world.browser("demo-model-owner"), f"/policy/replays/{own.replay_id}"
    assert "The text of [policy]" in owner.get(path).text
    world.policy._settings = replace(world.policy._settings, lists={"blocked": ("card",)})
    assert "The text of [policy]" not in owner.get(path).text
    assert world.policy.replays.cancel(own.replay_id)
    # The same week without frauds is one line.
    other = world.policy.replays.ask("", "", "anna", start_ms, mines=True)
    assert world.policy.replays.step(start_ms - 1, _NEVER)
    failed = world.policy.replays.find(other.replay_id)
    assert failed is not None
    assert failed.problem.startswith("wanted at least 10 frauds that the policy approves")
    assert world.browser("demo-auditor").post("/policy/mine").status_code == 403
