"""Texts that attack the console: in a real browser, whatever others wrote stays text.

The browser ignores the Content-Security-Policy here: escaping alone must hold.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.registry.registry import Signer
from paywarden.ops.console.people import Person, Role
from paywarden.ops.times import now_ms
from paywarden.ops.wiring.registry import model_registry
from paywarden.schemas.settings import Source
from tests.services.missing_tools import CHROMIUM
from tests.services.product.console_browser import served_console
from tests.worlds.drift.alerts_on_topics import alert_record
from tests.worlds.rollout.manifests import bundle_to_register, policy_to_register
from tests.worlds.rollout.people_with_keys import people_with_keys

pytest.importorskip("playwright.sync_api", reason=CHROMIUM.reason)
pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason=CHROMIUM.reason)

PLANTED = "<planted-tag onclick=attacked()>"
MARKUP = (
    f"\"'></title></textarea></pre></svg>{PLANTED}</planted-tag><script>attacked()</script><img src=x "
    "onerror=attacked()><svg onload=attacked()><base href=//evil.example>{{7*7}}\uff1cscript\uff1e"
)
ADDRESS = f"javascript:attacked()//{PLANTED}"
# What a text may never become. Our own links lead to this console.
FAULTS = """() => [...document.querySelectorAll("*")].filter((one) =>
  one.matches("planted-tag, iframe, object, embed, img, base, meta[http-equiv], body script") ||
  [...one.attributes].some(({ name, value }) => name.startsWith("on") ||
    (["href", "src", "action", "formaction", "xlink:href"].includes(name) && !/^([/#]|http:.{2}127)/.test(value)))
).map((one) => one.outerHTML.slice(0, 200)).concat(Array(window.attacks).fill("a script of a text has run"))"""
# Pages of one form differ in their texts only.
PAGES_OF_A_FORM = 4
# Addresses with such an end give a file, which a browser saves.
SAVED = (".json", "/csv")
PATIENCE_MS = 60_000


def test_no_text_of_others_becomes_a_script_or_a_tag(tmp_path: Path, chromium: Any) -> None:
    people = people_with_keys(tmp_path, ("anna", "ben"), "a passphrase of hers")
    registry = model_registry(Source({"models": people.models, "serve": {"runtime": str(tmp_path)}}, {}))
    anna, ben = (Signer(name, people.keys[name]) for name in ("anna", "ben"))
    bundle = bundle_to_register(tmp_path / "model-2")
    *_, first = registry.register(anna, bundle, policy_to_register(0.5), why=MARKUP, now_ms=now_ms() - 60_000)
    registry.approve(ben, first.digest, why=MARKUP, now_ms=now_ms() - 50_000)
    # A character that turns the direction of the text is written out.
    texts = dict.fromkeys(("card_id", "merchant_id", "device_id", "model_version", "country"), MARKUP + "\u202e")
    changes = {**texts, "channel": ADDRESS, "currency": PLANTED, "reasons": [f"rule:{MARKUP}"], "flags": [MARKUP]}
    owner = Person("anna", frozenset(Role))
    with served_console(tmp_path / "console", people.models, str(people.folder), [owner], changes) as running:
        for number, subject in enumerate((f"feature:{MARKUP}", f"flag:{MARKUP}", ADDRESS)):
            alert: dict[str, Any] = dict.fromkeys(("model_version", "cause", "statistic"), MARKUP)
            alert |= {"subject": subject, "segment": f"country={MARKUP}", "flags": [{"flag": MARKUP, "share": 0.2}]}
            running.topics.put(alert_record(90 + number, time_ms=now_ms(), alert_id=f"{number}{PLANTED}", **alert))
        context = chromium.new_context(base_url=running.url, bypass_csp=True, user_agent=MARKUP[:-8])
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script("window.attacks = 0; window.attacked = () => { window.attacks += 1 }")
        page, looked, with_texts = context.new_page(), Counter[tuple[str, bool]](), set[str]()

        def look() -> None:
            assert page.evaluate(FAULTS) == [], page.url
            looked[form := form_of(page.url.removeprefix(running.url))] += 1
            if "planted-tag" in page.inner_text("body"):
                with_texts.add(form[0])

        page.goto(f"/login?next={ADDRESS}")
        look()
        page.locator("button[value=anna]").click()
        page.wait_for_url(f"{running.url}/*")
        for path, field in (("inbox", "q"), ("cases", "q"), ("decisions", "merchant_id")):
            page.goto(f"/{path}")
            page.locator(f"form[role=search] input[name={field}]").fill(MARKUP)
            page.locator("form[role=search] button").click()
            look()
        page.goto("/policy")
        page.get_by_role("button", name="Begin a draft").click()
        page.locator("#rule input[name=name]").fill(MARKUP[:64])
        page.locator("select[name=name_0]").select_option("mcc")
        page.locator("select[name=operator_0]").select_option("==")
        page.locator("input[name=value_0]").fill(MARKUP)
        page.get_by_role("button", name="Save", exact=True).click()
        look()
        page.locator("#list input[name=list]").fill(MARKUP[:47])
        page.locator("#list input[name=why]").fill(MARKUP)
        page.locator("#list textarea").fill(MARKUP)
        page.get_by_role("button", name="Add", exact=True).click()
        look()
        page.locator("details:has(#text)").evaluate("one => (one.open = true)")
        page.locator("#text textarea").fill(f"[policy.rules.{MARKUP}]")
        page.get_by_role("button", name="Save the text").click()
        look()
        page.goto("/cases")
        page.locator("summary", has_text="Save this search").click()
        page.locator("input[name=called]").fill(MARKUP[:40])
        page.locator("form[action='/searches/save'] button").click()
        look()
        page.locator("input[name=title]").fill(MARKUP)
        page.get_by_role("button", name="Open a case").click()
        page.locator("textarea[name=note]").fill(MARKUP)
        page.get_by_role("button", name="Note it").click()
        sent = {"name": f"{PLANTED}.svg", "mimeType": "image/svg+xml", "buffer": b"<svg onload='alert(1)'/>"}
        page.locator("input[name=file]").set_input_files(sent)
        page.get_by_role("button", name="Attach").click()
        case = page.url
        look()
        page.locator("textarea[name=note]").fill(f"@anna {MARKUP} @ben")
        page.get_by_role("button", name="Note it").click()
        look()
        page.goto("/decisions/pay-001")
        page.locator("summary", has_text="Write a note").click()
        page.locator("form[action='/decisions/note'] textarea").fill(MARKUP)
        page.get_by_role("button", name="Note it").click()
        page.get_by_text("Noted.").wait_for()
        look()
        page.goto("/review")
        page.locator("input[form=picked]").first.check()
        page.locator("#picked input[name=to]").fill(MARKUP[:64])
        page.locator("#picked button[value=assign]").click()
        look()
        page.locator("input[form=picked]").first.check()
        page.locator("#picked select[name=verdict]").select_option("unsure")
        page.locator("#picked select[name=reason]").select_option("other")
        page.locator("#picked button[value=verdict]").click()
        page.get_by_role("heading", name="1 payment: unsure?").wait_for()
        look()
        # A file is saved, and never shown as a page of ours.
        page.goto(case)
        with page.expect_download():
            page.locator("a[href*='/files/']").click()
        waiting = ["/", "/cases", f"/inbox/0{PLANTED}"]
        while waiting:
            path = waiting.pop()
            if looked[form_of(path)] < PAGES_OF_A_FORM and not path.endswith(SAVED) and "/files/" not in path:
                page.goto(path)
                look()
                waiting += page.eval_on_selector_all("main a[href^='/'], nav a", "all => all.map((a) => a.pathname)")
        # The ledger of merchants may not have counted the day yet, and the queue not have the decisions.
        shown = {"audit", "inbox", "cases", "decisions", "models", "policy", "rollout"}
        assert with_texts - {"merchants", "review"} == shown
        context.close()


def form_of(path: str) -> tuple[str, bool]:
    """Returns the section of a page, and whether it is about one thing of the section."""
    _, section, *deeper = path.partition("?")[0].split("/")
    return section, bool(deeper)
