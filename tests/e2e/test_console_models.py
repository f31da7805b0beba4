"""Models and rollouts in a real browser: each act by keys, two people, and a rollout that is stopped by itself."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.policy.policy import Facts, Policy, PolicySettings, policy_digest
from paywarden.models.registry.entries import ROLLOUT_STARTED
from paywarden.models.registry.registry import Registry, Signer
from paywarden.models.rollout.judgement import judge
from paywarden.models.rollout.plan import plan_of
from paywarden.models.rollout.registry_log import RegistryRolloutLog, proposed_versions
from paywarden.models.rollout.rollout import EventKind, Phase, RolloutEvent, Start
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.ops.console.people import Person, Role
from paywarden.ops.console.policy.drafts import draft_source
from paywarden.ops.recomputation import decision_fields, request_of, vector_of
from paywarden.ops.times import now_ms
from paywarden.ops.wiring.registry import model_registry
from paywarden.schemas.settings import Source
from tests.services.missing_tools import CHROMIUM
from tests.services.product.console_browser import Running, served_console
from tests.unit.models.rollout.test_judgement import counts_of
from tests.worlds.rollout.manifests import bundle_to_register, policy_to_register
from tests.worlds.rollout.people_with_keys import people_with_keys

pytest.importorskip("playwright.sync_api", reason=CHROMIUM.reason)
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason=CHROMIUM.reason)
pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason=CHROMIUM.reason)

PASSPHRASE = "a passphrase of hers"
NAMES = ("anna", "ben", "cleo")
_PICTURES = os.environ.get("PAYWARDEN_PICTURES", "")
_WIDE, _PHONE = {"width": 1440, "height": 960}, {"width": 390, "height": 844}
_PATIENCE_MS = 60_000


@dataclass
class Desk:
    """A console with a registry: cleo's model decides, and anna proposes another policy for it."""

    running: Running
    registry: Registry


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = people_with_keys(tmp_path, NAMES, PASSPHRASE)
    keys, folder, models = made.keys, made.folder, made.models
    registry = model_registry(Source({"models": models, "serve": {"runtime": str(tmp_path)}}, {}))
    anna, ben, cleo = (Signer(name, keys[name]) for name in NAMES)
    now = now_ms() - 600_000
    bundle = bundle_to_register(tmp_path / "model-2")
    *_, first = registry.register(cleo, bundle, policy_to_register(0.5), why="the first", now_ms=now)
    registry.approve(ben, first.digest, why="measured well", now_ms=now + 1)
    registry.promote(anna, first.digest, why="we begin", now_ms=now + 2)
    registry.register(anna, None, policy_to_register(0.6), why="fewer declined customers", now_ms=now + 3)
    owners = [Person(name, frozenset({Role.MODEL_OWNER, Role.LEAD})) for name in NAMES]
    with served_console(tmp_path / "console", models, str(folder), owners) as running:
        yield Desk(running, registry)


def _logged_in(chromium: Any, running: Running, person: str) -> Any:
    context = chromium.new_context(viewport=_WIDE, base_url=running.url)
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    page.goto("/login?next=/models")
    _tab_to(page, f"button[value={person}]")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Models and rollouts").wait_for()
    return page


def _tab_to(page: Any, selector: str) -> None:
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab on {page.url}")


def _act(page: Any, form: str, button: str, why: str, passphrase: str = "") -> None:
    """Fill in a form and press its button, by keys alone."""
    _tab_to(page, f"form[action='{form}'] input[name=why]")
    page.keyboard.type(why)
    if passphrase:
        _tab_to(page, f"form[action='{form}'] input[name=passphrase]")
        page.keyboard.type(passphrase)
    _tab_to(page, f"form[action='{form}'] {button}")
    page.keyboard.press("Enter")


def _look(page: Any, name: str) -> None:
    """A page has no serious finding and fits a phone."""
    found = axe_api.Axe().run(page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    assert not serious, (name, serious)
    for kind, size in (("wide", _WIDE), ("phone", _PHONE)):
        page.set_viewport_size(size)
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0, (name, kind)
        if _PICTURES:
            page.screenshot(path=str(Path(_PICTURES) / f"models-{name}-{kind}.png"), full_page=True)
    page.set_viewport_size(_WIDE)


def test_two_people_let_a_version_decide_and_go_back_by_keys(desk: Desk, chromium: Any) -> None:
    anna, ben = (_logged_in(chromium, desk.running, name) for name in NAMES[:2])
    anna.get_by_text("You proposed it or registered a part of it: others approve it.").wait_for()
    assert anna.locator("form[action='/models/approve']").count() == 0
    text = ben.locator(".diff").inner_text()
    assert "− decline_at = 0.5" in text
    assert "+ decline_at = 0.6" in text
    _look(ben, "proposed")
    _act(ben, "/models/approve", "button", "fewer reviews, same fraud", "another passphrase")
    ben.get_by_text("The passphrase is wrong").wait_for()
    assert not desk.registry.state().history[1:]
    ben.goto("/models")
    _act(ben, "/models/approve", "button", "fewer reviews, same fraud", PASSPHRASE)
    ben.get_by_text("You approved it.").wait_for()
    anna.reload()
    _act(anna, "/models/promote", "button", "approved", PASSPHRASE)
    anna.get_by_text("Promoted the version").wait_for()
    champion = desk.registry.state().champion
    assert champion is not None
    assert champion.policy == policy_to_register(0.6).digest
    ben.reload()
    _act(ben, "/models/rollback", "button", "reviews came too late", PASSPHRASE)
    ben.get_by_text("Rolled back to the version").wait_for()
    champion = desk.registry.state().champion
    assert champion is not None
    assert champion.policy == policy_to_register(0.5).digest
    ben.get_by_role("cell", name="reviews came too late").wait_for()
    _look(ben, "rolled-back-champion")
    for page in (anna, ben):
        page.context.close()


def test_an_analyst_builds_a_rule_for_an_attack_and_sees_it_work(desk: Desk, chromium: Any) -> None:
    """One shop's payments are an attack. The rule is built, previewed, proposed, approved, and decides."""
    anna, ben = (_logged_in(chromium, desk.running, name) for name in NAMES[:2])
    cleo = _logged_in(chromium, desk.running, "demo-analyst")
    cleo.goto("/policy")
    cleo.get_by_role("button", name="Begin a draft").click()
    cleo.wait_for_url("**/policy/drafts/*")
    draft = cleo.url
    cleo.locator("#rule input[name=name]").fill("Card testing")
    for row, (name, operator, value) in enumerate((("merchant_id", "==", "shop-1"), ("amount", ">", "much"))):
        cleo.locator(f"select[name=name_{row}]").select_option(name)
        cleo.locator(f"select[name=operator_{row}]").select_option(operator)
        cleo.locator(f"input[name=value_{row}]").fill(value)
    cleo.get_by_text("minor units; today half up to").first.wait_for()
    cleo.get_by_role("button", name="Save and preview").click()
    cleo.get_by_text("wanted a number such as 5, 0.25 or 500_00").wait_for()
    _look(cleo, "rule-faults")
    cleo.locator("input[name=value_1]").fill("5_00")
    cleo.locator("#rule input[name=name]").fill("card_testing")
    cleo.locator("select[name=action]").select_option("decline")
    cleo.get_by_role("button", name="Save and preview").click()
    cleo.get_by_text("It is done.").wait_for()
    cleo.get_by_text("20 payments").first.wait_for()
    told = re.compile(r"Known fraud\s+1, .*\s+Known genuine\s+1, ")
    assert told.search(cleo.locator("main").inner_text())
    cleo.get_by_text("More than a tenth of the payments would be declined by the rule card_testing").wait_for()
    cleo.reload()
    _look(cleo, "rule-previewed")
    assert cleo.locator("form[action$='/propose']").count() == 0
    text = cleo.locator("textarea[name=text]").input_value()
    ben.goto(draft)
    propose = ben.locator("#propose")
    propose.locator("input[name=why]").fill("stops the attack on shop-1")
    propose.locator("input[name=passphrase]").fill(PASSPHRASE)
    propose.get_by_role("button").click()
    assert ben.url == draft, "the browser wants the second word"
    propose.locator("input[name=agreed]").check()
    propose.get_by_role("button").click()
    ben.wait_for_url("**/models")
    ben.get_by_text("Proposed the policy").wait_for()
    anna.reload()
    _act(anna, "/models/approve", "button", "the preview looks right", PASSPHRASE)
    anna.get_by_text("You approved it.").wait_for()
    anna.reload()
    _act(anna, "/models/promote", "button", "stop it now", PASSPHRASE)
    anna.get_by_text("Promoted the version").wait_for()
    champion = desk.registry.state().champion
    assert champion is not None
    settings = draft_source(text).section("policy", PolicySettings)
    assert champion.policy == policy_digest(settings, {})
    # The promoted policy decides about the next payments: it declines the attack, and nothing else by this rule.
    policy = Policy(settings, review_at=0.3, decline_at=0.8)
    later = []
    for one in desk.running.decisions:
        made = {**one, "payment_id": f"later-{one['payment_id']}", "decision_id": f"later-{one['decision_id']}"}
        verdict = policy.decide(
            Facts(
                request_of({**dict.fromkeys(decision_fields()), **one}),
                one["amount_minor"],
                vector_of(one),
                one["score"],
                (),
            )
        )
        later.append({**made, "action": verdict.action, "reasons": list(verdict.reasons), "decided_time_ms": now_ms()})
    desk.running.decide(later)
    caught = sum("rule:card_testing" in one["reasons"] for one in later)
    assert 15 <= caught <= 20
    cleo.goto("/policy/rules/card_testing")
    cleo.get_by_role("cell", name=str(caught), exact=True).first.wait_for()
    _look(cleo, "rule-history")
    for page in (anna, ben, cleo):
        page.context.close()


def test_a_rollout_is_planned_and_started_by_keys(desk: Desk, chromium: Any) -> None:
    anna, ben = (_logged_in(chromium, desk.running, name) for name in NAMES[:2])
    _tab_to(anna, "a[href^='/rollout/plan?candidate=']")
    anna.keyboard.press("Enter")
    anna.get_by_role("heading", name="Plan a rollout").wait_for()
    anna.get_by_text(re.compile("The index has [0-9]+ payments of the last 24 hours")).wait_for()
    for name, text in (
        ("steps", "10, 50, 100"),
        ("hours", "6, 24"),
        ("cards_a_day", "200000"),
        ("review", "5"),
        ("decline", "2"),
    ):
        _tab_to(anna, f"input[name={name}]")
        anna.keyboard.press("Control+a")
        anna.keyboard.type(text)
    anna.keyboard.press("Enter")
    anna.get_by_role("heading", name="What each step could find").wait_for()
    anna.get_by_text("has not the approvals that it needs").wait_for()
    assert anna.locator("form[action='/rollout/start']").count() == 0
    _act(ben, "/models/approve", "button", "fewer reviews, same fraud", PASSPHRASE)
    ben.get_by_text("You approved it.").wait_for()
    anna.reload()
    _look(anna, "plan")
    anna.set_viewport_size(_PHONE)
    _act(anna, "/rollout/start", "button", "try it on a few cards", PASSPHRASE)
    anna.get_by_text("It waits until a host has loaded the candidate").wait_for()
    anna.get_by_text("try it on a few cards").first.wait_for()
    assert "10 %" in anna.locator(".steps").inner_text()
    started = [one for one in desk.registry.log.read().entries if one.kind == ROLLOUT_STARTED]
    assert [(one.by, one.why) for one in started] == [("anna", "try it on a few cards")]
    for page in (anna, ben):
        page.context.close()


@dataclass
class Canary:
    """A console, and a rollout at one in ten of the cards. `keeper` has the key of its lead."""

    running: Running
    keeper: RolloutKeeper

    def look(self, cards: int, **more: float) -> None:
        """Look at the step with this number of cards. `more`: by event, the candidate's ratio to the champion."""
        found = self.keeper.refresh()
        assert found is not None
        plan = found.start.plan
        seen = judge(plan, found.step, counts_of(cards, ratios=more, step=found.step, plan=plan))
        self.keeper.take(
            RolloutEvent(EventKind.LOOKED, max(now_ms(), found.time_ms), "lead", step=found.step, judgement=seen)
        )


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    made = people_with_keys(tmp_path, ("anna", "ben", "lead"), PASSPHRASE)
    registry = model_registry(Source({"models": made.models, "serve": {"runtime": str(tmp_path / "none")}}, {}))
    anna, ben, lead = (Signer(name, key) for name, key in made.keys.items())
    now = now_ms() - 600_000
    for number, policy in enumerate((policy_to_register(0.5), policy_to_register(0.6))):
        bundle = None if number else bundle_to_register(tmp_path / "model-2")
        *_, entry = registry.register(anna, bundle, policy, why="w", now_ms=now)
        registry.approve(ben, entry.digest, why="w", now_ms=now + 1)
        if not number:
            registry.promote(anna, entry.digest, why="w", now_ms=now + 2)
    start = Start("r-7", "00" * 16, *proposed_versions(registry.state(), entry.digest), plan_of([10, 50, 100]))
    begun = RolloutEvent(EventKind.STARTED, now_ms() - 60_000, "anna", "finds more of the new pattern", start)
    RolloutKeeper(RegistryRolloutLog(registry, anna)).take(begun)
    people = [Person("anna", frozenset({Role.MODEL_OWNER})), Person("ben", frozenset({Role.LEAD}))]
    with served_console(tmp_path / "console", made.models, str(made.folder), people) as running:
        yield Canary(running, RolloutKeeper(RegistryRolloutLog(registry, lead)))


def test_a_rollout_is_watched_paused_resumed_and_aborted_by_keys(canary: Canary, chromium: Any) -> None:
    lead, owner = (_logged_in(chromium, canary.running, name) for name in ("ben", "anna"))
    lead.get_by_text("It waits until a host has loaded the candidate").wait_for()
    canary.keeper.take(RolloutEvent(EventKind.READY, now_ms(), "host-1"))
    # Nobody reloads the page.
    lead.get_by_text("The candidate has 10 % of the cards").wait_for()
    canary.look(6_000)
    lead.get_by_text("Not known yet").first.wait_for()
    _look(lead, "rollout-runs")
    _act(lead, "/rollout/stop", "button[value=pause]", "the shop has a sale", PASSPHRASE)
    lead.get_by_text("The candidate keeps 10 % of the cards, and gets no more.").wait_for()
    owner.get_by_text("Paused by ben: the shop has a sale.").wait_for()
    _act(owner, "/rollout/go-on", "button[value=resume]", "the sale is over", PASSPHRASE)
    owner.get_by_text("The candidate has 10 % of the cards").wait_for()
    # A lead stops what may do harm, and lets nothing go on.
    lead.get_by_text("The candidate has 10 % of the cards").wait_for()
    assert lead.locator("form[action='/rollout/go-on']").count() == 0
    _act(lead, "/rollout/stop", "button[value=abort]", "a bug in the candidate", PASSPHRASE)
    lead.get_by_text("It ended at").wait_for()
    assert "Aborted by ben: a bug in the candidate." in lead.locator("main").inner_text()
    found = canary.keeper.refresh()
    assert found is not None
    assert found.phase is Phase.ABORTED
    _look(lead, "rollout-aborted")
    for page in (lead, owner):
        page.context.close()
