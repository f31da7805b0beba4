"""Drafts of the policy: a rule built from rows, lists, two people at one draft, previews, roles, hostile texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from paywarden.models.policy.policy import PolicySettings
from paywarden.ops.console.policy.drafts import draft_source
from paywarden.ops.console.policy.saved_drafts import DRAFTS_MAX, SavedDraft
from paywarden.ops.console.shell import API
from tests.services.product.console import NOW_MS
from tests.unit.ops.console.test_policy_replays import _NEVER, PolicyWorld
from tests.unit.ops.console.test_shell import BEARER

ROWS = {"group_0": "1", "name_0": "amount", "operator_0": ">", "value_0": "50_00"} | {
    "group_1": "1",
    "name_1": "currency",
    "operator_1": "==",
    "value_1": "EUR",
}
RULE = {"name": "large", "action": "review", "joins": "any", "do": "save", "rule": "", **ROWS}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PolicyWorld]:
    made = PolicyWorld(tmp_path)
    yield made
    made.database.close()


def begun(browser: TestClient, **form: str) -> str:
    """Returns the address of a new draft."""
    return str(browser.post("/policy/drafts", data=form).headers["location"])


def saved(world: PolicyWorld, address: str) -> SavedDraft:
    found = world.policy.drafts._saved.find(address.rsplit("/", 1)[1])
    assert found is not None
    return found


def settings_of(world: PolicyWorld, address: str) -> PolicySettings:
    return draft_source(saved(world, address).text).section("policy", PolicySettings)


def post(browser: TestClient, address: str, act: str, version: int, **form: Any) -> Any:
    return browser.post(f"{address}/{act}", data={"version": str(version), **form})


def test_a_rule_is_built_from_rows_changed_and_removed(world: PolicyWorld) -> None:
    browser = world.browser("demo-analyst")
    address = begun(browser)
    assert post(browser, address, "rule", 1, **RULE).status_code == 303
    (rule,) = settings_of(world, address).rules
    assert (rule.name, rule.when, rule.action) == ("large", 'amount > 50_00 and currency == "EUR"', "review")
    page = unescape(browser.get(f"{address}?rule=large").text)
    for shown in (
        "Change the rule large",
        'value="50_00"',
        'value="EUR"',
        "It has no last day.",
        "name-amount",
    ):
        assert shown in page
    changed = {**RULE, "rule": "large", "name": "larger", "group_1": "2", "until": "2030-01-31"}
    assert post(browser, address, "rule", 2, **changed).status_code == 303
    (rule,) = settings_of(world, address).rules
    assert (rule.name, rule.when, rule.until) == ("larger", 'amount > 50_00 or currency == "EUR"', "2030-01-31")
    assert post(browser, address, "rule", 3, rule="larger", name="larger", do="remove").status_code == 303
    assert settings_of(world, address).rules == ()
    assert [one.note for one in world.policy.drafts._saved.versions(address.rsplit("/", 1)[1])][:2] == [
        "removed larger",
        "changed larger",
    ]


def test_every_row_with_a_fault_says_so_and_nothing_typed_is_lost(world: PolicyWorld) -> None:
    browser = world.browser("demo-analyst")
    address = begun(browser)
    wrong = {**RULE, "value_0": "much", "name_1": "amount", "operator_1": "holds", "value_1": "x"}
    wrong |= {"group_2": "2", "name_2": "written", "value_2": "amuont > 5", "group_3": "2", "value_3": "lonely"}
    answer = post(browser, address, "rule", 1, **wrong)
    page = unescape(answer.text)
    assert answer.status_code == 409
    faults = ("wanted a number such as", "wanted one of these for amount", "did you mean amount", "choose a name")
    for shown in (*faults, 'value="much"', 'value="lonely"', 'value="amuont > 5"', 'value="large"'):
        assert shown in page, shown
    assert saved(world, address).version == 1
    told = browser.post(f"{API}{address}/rule", headers=BEARER, json={"version": 1, **wrong}).json()["error"]
    assert all(fault in str(told) for fault in faults)


def test_a_text_with_faults_is_saved_with_each_fault_at_its_rule(world: PolicyWorld) -> None:
    browser = world.browser("demo-analyst")
    address = begun(browser)
    text = "[policy]\nreview_at = 0.02\n" + "".join(
        f'[[policy.rules]]\nname = "{name}"\nwhen = "{when}"\naction = "review"\n'
        for name, when in (("a", "amuont > 5"), ("b", "amount > 2 and amount < 1"), ("c", "scroe > 0.1"))
    )
    assert post(browser, address, "text", 1, text=text).status_code == 303
    page = unescape(browser.get(address).text)
    for shown in ("no name 'amuont'", "no name 'scroe'", "It can never hold: amount is wanted above 2 and below 1."):
        assert shown in page
    assert "nobody can preview it" in page
    assert post(browser, address, "preview", 2).status_code == 409
    # Not even TOML.
    assert post(browser, address, "text", 2, text="[policy").status_code == 303
    assert "is not TOML" in browser.get(address).text
    assert post(browser, address, "rule", 3, **RULE).status_code == 409


def test_a_condition_keeps_its_text_while_its_rows_stay(world: PolicyWorld) -> None:
    browser = world.browser("demo-analyst")
    address = begun(
        browser, text='[policy]\n[[policy.rules]]\nname = "a"\nwhen = "(amount  >  5_00)"\naction = "review"\n'
    )
    rows = {"group_0": "1", "name_0": "amount", "operator_0": ">", "value_0": "5_00"}
    form = {"rule": "a", "name": "a", "action": "decline", "joins": "any", "do": "save", **rows}
    assert post(browser, address, "rule", 1, **form).status_code == 303
    (kept,) = settings_of(world, address).rules
    assert (kept.when, kept.action) == ("(amount  >  5_00)", "decline")


def test_two_people_at_one_draft_lose_no_words(world: PolicyWorld) -> None:
    anna, ben = world.browser("demo-analyst"), world.browser("demo-lead")
    address = begun(anna)
    assert post(anna, address, "rule", 1, **RULE).status_code == 303
    answer = post(ben, address, "rule", 1, **{**RULE, "name": "mine", "value_0": "77_77"})
    page = unescape(answer.text)
    assert answer.status_code == 409
    assert page.index("50_00") < page.index("Your text")
    assert "77_77" in page.partition("<textarea")[2]
    assert saved(world, address).version == 2
    mine = unescape(re.findall(r"<textarea[^>]*>(.*?)</textarea>", answer.text, re.DOTALL)[0])
    assert post(ben, address, "text", 2, text=mine).status_code == 303
    assert [one.name for one in settings_of(world, address).rules] == ["mine"]
    told = ben.post(f"{API}{address}/text", headers=BEARER, json={"version": 1, "text": mine})
    assert (told.status_code, "meanwhile" in told.text) == (409, True)


def test_lists_take_a_thousand_lines_and_say_what_came_twice(world: PolicyWorld) -> None:
    browser = world.browser("demo-analyst")
    address = begun(browser)
    pasted = "\r\n".join([*(f"  card-{number} " for number in range(1000)), "card-1", "", "card-2"])
    form = {"list": "blocked", "entries": pasted, "why": "a stolen batch"}
    assert post(browser, address, "list", 1, **form, do="add").status_code == 303
    assert saved(world, address).note == (
        "1000 entries added to blocked; 0 were there already, 2 came twice: a stolen batch"
    )
    ending = {**form, "entries": "late\nlater", "until": "2026-12-31"}
    assert post(browser, address, "list", 2, **ending, do="add").status_code == 303
    removed = {**form, "entries": "card-5\nnone"}
    assert post(browser, address, "list", 3, **removed, do="remove").status_code == 303
    lists = settings_of(world, address).lists
    assert {name: len(entries) for name, entries in lists.items()} == {"blocked": 999, "blocked_until_20261231": 2}
    assert "1 entry removed from blocked; 1 were not there" in saved(world, address).note
    wrong = {**form, "list": "Blocked", "until": "soon", "entries": f"@file\n{'x' * 300}\nfine"}
    answer = post(browser, address, "list", 4, **wrong, do="add")
    for shown in ("The list's name:", "Until:", "Line 1:", "Line 2:", "fine</textarea>"):
        assert shown in unescape(answer.text)
    many = post(browser, address, "list", 4, **{**form, "entries": "card\n" * 1_000_000}, do="add")
    assert many.status_code == 413
    assert "wanted at most 1024 kB" in many.text


def test_a_last_day_of_a_list_may_be_typed_without_zeros(world: PolicyWorld) -> None:
    browser = world.browser("demo-lead")
    address = begun(browser)
    form = {"list": "blocked", "entries": "late", "why": "w", "until": "2027-1-5"}
    assert post(browser, address, "list", 1, **form, do="add").status_code == 303
    assert settings_of(world, address).lists["blocked_until_20270105"] == ("late",)
    assert "Until:" in post(browser, address, "list", 2, **{**form, "until": "soon"}, do="remove").text
    assert post(browser, address, "list", 2, **form, do="remove").status_code == 303
    assert set(settings_of(world, address).lists) == {"blocked"}


def test_a_preview_says_whom_a_rule_hits_and_doubts_a_heavy_one(world: PolicyWorld) -> None:
    browser = world.browser("demo-lead")
    address = begun(browser)
    heavy = {**RULE, "action": "decline", "do": "preview", "value_0": "1"}
    del heavy["name_1"], heavy["operator_1"], heavy["value_1"], heavy["group_1"]
    assert post(browser, address, "rule", 1, **heavy).status_code == 303
    assert "Nobody has previewed this text" in world.policy.drafts._doubt(world.policy.replays.all()[0].digest)
    assert world.policy.replays.step(NOW_MS, _NEVER)
    page = browser.get(address).text
    for shown in ("10 payments", "It holds for every payment.", "More than a tenth of the payments", "1, 100.00"):
        assert shown in page, shown
    form = {"why": "w", "passphrase": "p"}
    refused = post(browser, address, "propose", 2, **form)
    assert refused.status_code == 409
    assert "More than a tenth of last week" in refused.text
    assert "no registry" in post(browser, address, "propose", 2, **form, agreed="yes").text
    (found,) = world.policy.replays.all()
    assert found.result is not None
    (hits,) = found.result.rules
    decided = world.stored()
    assert (hits["payments"], hits["frauds"], hits["cards"]) == (10, 1, len({one["card_id"] for one in decided}))
    assert hits["merchant_id"][0][1] <= 10
    assert found.result.hours_a_day is None


def test_entries_of_lists_are_for_those_who_see_cards(world: PolicyWorld) -> None:
    analyst, owner = world.browser("demo-analyst"), world.browser("demo-model-owner")
    address = begun(analyst)
    form = {"list": "blocked", "entries": "card-0000-1234", "why": "stolen", "do": "add"}
    post(analyst, address, "list", 1, **form)
    assert "card-0000-1234" in analyst.get(address).text
    assert "card-0000-1234" not in owner.get(address).text
    assert "card-0000-1234" not in str(owner.get(f"{API}{address}").json())
    # An owner changes rules nevertheless, and the lists stay.
    assert post(owner, address, "rule", 2, **RULE).status_code == 303
    assert settings_of(world, address).lists["blocked"] == ("card-0000-1234",)
    assert post(owner, address, "text", 3, text="[policy]\n").status_code in (403, 409)
    assert "card-0000-1234" not in post(owner, address, "rule", 1, **RULE).text
    noted = {entry.by for entry in world.console.audit.newest(50) if entry.act == "viewed"}
    assert "demo-analyst" in noted
    assert "demo-model-owner" not in noted


def test_forms_of_drafts_refuse_other_roles_other_sites_and_markup(world: PolicyWorld) -> None:
    browser = world.browser("demo-analyst")
    address = begun(browser)
    acts: dict[str, dict[str, str]] = {
        "rule": RULE,
        "list": {"list": "l", "entries": "e", "why": "w", "do": "add"},
        "text": {"text": "[policy]\n"},
        "preview": {},
        "propose": {"why": "w"},
    }
    for person in ("demo-auditor", "demo-operator"):
        other = world.browser(person)
        assert other.get(address).status_code == 403
        assert other.post("/policy/drafts", data={}).status_code == 403
        assert {post(other, address, act, 1, **form).status_code for act, form in acts.items()} == {403}
    assert post(browser, address, "propose", 1, why="w").status_code == 403
    for act, form in acts.items():
        away = browser.post(f"{address}/{act}", data={"version": "1", **form}, headers={"sec-fetch-site": "cross-site"})
        assert away.status_code == 403, act
    assert saved(world, address).version == 1
    markup = "<script>alert(1)</script>"
    answers = [
        post(browser, address, "rule", 1, **{**RULE, "name": markup, "value_1": markup}),
        post(browser, address, "list", 1, list=markup, entries=markup, why=markup, do="add"),
        post(browser, address, "text", 1, text=f'[policy]\n[[policy.rules]]\nname = "{markup}"\nwhen = "{markup}"'),
        browser.get(address),
        browser.get(f"/policy/rules/{'%3Cscript%3E'}"),
    ]
    assert not [one for one in answers if "<script>alert" in one.text or "<script>\n" in one.text]
    assert browser.get("/policy/drafts/none").status_code == 404


def test_old_drafts_and_versions_leave(world: PolicyWorld) -> None:
    drafts = world.policy.drafts._saved
    first = drafts.open("[policy]\n", "anna", "first", 1)
    for number in range(DRAFTS_MAX):
        drafts.open("[policy]\n", "anna", str(number), 2 + number)
    assert drafts.find(first.draft_id) is None
    assert [one.note for one in drafts.all()] == [str(number) for number in reversed(range(DRAFTS_MAX))]
