"""The page of the policy: how often rules fire, and drafts that cannot read files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.policy.drafts import IndexedDecisions, draft_source
from paywarden.ops.console.policy.policy_page import PolicySection
from paywarden.ops.console.policy.saved_drafts import SavedDrafts
from paywarden.ops.console.shell import API
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import Source
from paywarden.streams.decision_index.index import DecisionIndex
from tests.services.product.console import console_under_test
from tests.unit.ops.console.test_shell import BEARER

POLICY = {
    "review_at": 0.5,
    "decline_at": 0.9,
    "rules": [
        {"name": "large", "when": "amount > 100000", "action": "review"},
        {"name": "night", "when": "score > 0.2", "action": "review"},
    ],
}


class _Decisions:
    def between(self, first_ms: int, last_ms: int) -> list[dict[str, Any]]:
        assert last_ms - first_ms == 3_600_000
        reasons = [["rule:large"], ["rule:large", "rule:night"], ["rule:old"], ["mirror_absent"], []]
        own = policy_digest(Source({"policy": POLICY}, {}).section("policy", PolicySettings), {})
        return [{"reasons": one, "policy_digest": own} for one in reasons]

    def close(self) -> None:
        pass


class NoIndex(IndexedDecisions):
    """An index that cannot be used."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def index(self) -> DecisionIndex:
        raise TemporaryFailure("the index does not answer")


def test_the_page_says_how_often_rules_fire(tmp_path: Path) -> None:
    console = console_under_test(tmp_path)
    source = Source({"policy": POLICY, "serve": {"bundle": str(tmp_path / "none")}}, {})
    policy = PolicySection(source, Desk(source, ""), _Decisions, NoIndex(source), SavedDrafts(console.database))
    policy.fired.step(console.clock())
    browser = console.browser([policy.section()], "demo-lead")
    view = browser.get(f"{API}/policy", headers=BEARER).json()["view"]
    assert [(one["name"], one["fired"], one["alone"]) for one in view["rules"]] == [("large", 2, 1), ("night", 1, 0)]
    assert view["overlaps"] == [{"first": "large", "second": "night", "payments": 1}]
    assert view["unknown_rules"] == [["old", 1]]
    page = browser.get("/policy").text
    assert "40 %" in page
    console.database.close()


@pytest.mark.parametrize(
    "text",
    ["nonsense", "[kafka]\nbootstrap = 'x'", "policy = 1", "[policy]\nother = 1", "[policy]\n[kafka]"],
)
def test_a_draft_is_a_policy_and_nothing_else(text: str) -> None:
    with pytest.raises(Misconfigured):
        draft_source(text)


def test_a_fault_in_the_background_is_told_and_not_taken_for_counting(tmp_path: Path) -> None:
    def faulty() -> Any:
        raise RuntimeError("a bug")

    console = console_under_test(tmp_path)
    source = Source({"policy": POLICY, "serve": {"bundle": str(tmp_path / "none")}}, {})
    policy = PolicySection(source, Desk(source, ""), faulty, NoIndex(source), SavedDrafts(console.database))
    policy.fired.step(console.clock())
    text = console.browser([policy.section()], "demo-lead").get("/policy").text
    assert "the console has made a fault" in text
    assert "being counted" not in text.partition("What they caught")[0]
    console.database.close()


def test_a_policy_that_decides_nothing_has_no_rule_that_is_quiet(tmp_path: Path) -> None:
    console = console_under_test(tmp_path)
    other = {**POLICY, "review_at": 0.6}
    source = Source({"policy": other, "serve": {"bundle": str(tmp_path / "none")}}, {})
    policy = PolicySection(source, Desk(source, ""), _Decisions, NoIndex(source), SavedDrafts(console.database))
    policy.fired.step(console.clock())
    text = console.browser([policy.section()], "demo-lead").get("/policy").text
    assert "This policy decided none of them" in text
    assert "40 %" not in text
    console.database.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("review_at = " + "9" * 5_000, "is not TOML"),
        ("x = " + "[" * 10_000 + "]" * 10_000, "is not TOML"),
        ("x = " + "{a=" * 5_000 + "1" + "}" * 5_000, "is not TOML"),
        ("a." * 20_000 + "b = 1", "keys of at most 8 parts"),
        ('"a" . ' * 9_000 + "b = 1", "keys of at most 8 parts"),
        ("a" * 59_000, "is not TOML"),
        ('"' * 59_000, "is not TOML"),
        ("'a" * 29_000, "is not TOML"),
        ("x\n" * 29_000, "is not TOML"),
        ('lists = {ips = ["' + '", "'.join(["10.0.0.1"] * 4_000) + '"]}', ""),
    ],
)
def test_no_draft_is_a_bug_or_takes_the_console_long(text: str, words: str) -> None:
    """Numbers of 5,000 digits and deep brackets were answered 500, and a key of 20,000 parts took eight seconds."""
    began = time.process_time()
    if words:
        with pytest.raises(Misconfigured, match=words):
            draft_source(f"[policy]\n{text}\n")
    else:
        assert len(draft_source(f"[policy]\n{text}\n").file["policy"]["lists"]["ips"]) == 4_000
    # Quadratic ways take some ten seconds and more; this takes milliseconds.
    assert time.process_time() - began < 3
