"""The report for analysts: complete, in one file, and without the id of any card."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.evaluation import Days
from paywarden.models.policy.policy import ConfiguredRule, Policy, PolicySettings
from paywarden.models.replay.live_comparison import LiveAgreement, LiveComparison
from paywarden.models.replay.measures import Contestant, ReplayResults
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.models.replay.report.page import TableCell, amount
from paywarden.models.replay.report.renderer import report_templates
from paywarden.models.replay.report.report import report_html
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY, LABEL_DELAY_DAYS

WINDOW = Days(FIRST_DAY + 20, FIRST_DAY + 28)
VOID = {"meta", "br", "hr", "img", "link", "input"}


@cache
def results(kind: str) -> ReplayResults:
    """Returns the results of a replay alone, against another model, or against another policy."""
    own, other = small_world.loaded_bundle(), small_world.other_loaded_bundle()
    rule = ConfiguredRule("large", "amount > 100_00", "review")
    challenger = {
        "alone": None,
        "model": Contestant(other, _policy(), "of the configuration"),
        "policy": Contestant(own, _policy(PolicySettings(review_at=0.02, rules=(rule,))), "strict <&>.toml"),
    }[kind]
    with TemporaryDirectory() as folder:
        return replay(
            small_world.history(),
            engine=small_world.engine(),
            rates=small_world.rates(),
            champion=Contestant(own, _policy(), "of the configuration"),
            challenger=challenger,
            destination=Path(folder),
            options=ReplayOptions(
                window=WINDOW,
                label_delay_days=LABEL_DELAY_DAYS,
                costs=CostSettings(review_cost_minor=123, reviews_a_day=20),
            ),
        )


def _policy(settings: PolicySettings | None = None) -> Policy:
    manifest = small_world.loaded_bundle().manifest
    return Policy(settings or PolicySettings(), review_at=manifest.review_at, decline_at=manifest.decline_at)


class Tags(HTMLParser):
    """Checks that tags are closed in the right order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>([^<]+)</h2>", page)


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", page)


@pytest.mark.parametrize("kind", ["alone", "model", "policy"])
def test_the_page_is_well_formed_and_loads_nothing(kind: str) -> None:
    page = report_html(results(kind))
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.seen & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|url\(|@import", page)
    assert "nan" not in text_of(page).lower().split()
    assert " None " not in text_of(page)


@pytest.mark.parametrize("kind", ["alone", "model", "policy"])
def test_no_card_and_no_merchant_is_named(kind: str) -> None:
    page = report_html(results(kind))
    words = set(re.findall(r"[\w-]+", text_of(page)))
    payments = small_world.tables()[0]
    for column in ("card_id", "merchant_id", "device_id", "ip"):
        assert not words & set(payments[column].to_pylist())


def test_a_challenger_has_its_sections_and_numbers() -> None:
    page = report_html(results("model"))
    assert {"Champion against challenger", "The largest payments with different actions"} <= set(headings(page))
    assert page.count('class="line challenger"') >= 3
    champion, challenger = results("model").champion, results("model").challenger
    assert challenger is not None
    for measures in (champion, challenger):
        assert measures.model_version in page
        assert f"{measures.average_precision:.4f}" in page
        assert measures.whole.money is not None
        assert f"<td>{amount(measures.whole.money.net_minor)}</td>" in page


def test_two_policies_of_one_model_have_one_set_of_scores() -> None:
    page = report_html(results("policy"))
    assert "differ in policy alone" in page
    assert "Shift of scores" not in page
    assert 'class="line challenger"' not in page
    assert "challenger: review at 0.02" in page
    assert "both: decline at" in page
    assert "strict &lt;&amp;&gt;.toml" in page
    assert "1 rule<" in page


def live(**changes: Any) -> LiveComparison:
    """A comparison of 1,000 payments: three got another action, twelve another score."""
    own = LiveAgreement(990, 0.998, 0.99, 0.25, 1)
    fallback = LiveAgreement(10, 0.9, 0.8, 0.01, 1)
    compared = LiveComparison(
        decisions=1010,
        decisions_not_decoded=2,
        repeated=3,
        only_live=7,
        only_replayed=8,
        whole=LiveAgreement(1000, 0.997, 0.988, 0.25, 2),
        actions=[[900, 1, 0], [2, 80, 0], [0, 0, 17]],
        score_differences=[0, 0, 4, 0, 0, 0, 992, 0, 4, 0, 0, 0, 0],
        flags_of_other_action={"mirror_absent": 2, "model_error": 1},
        by_model_version={results("alone").champion.model_version: own, "older <model>": fallback},
    )
    return replace(compared, **changes)


def test_live_decisions_have_a_section_of_agreement_and_differences() -> None:
    page = report_html(results("alone"), live())
    assert headings(page)[1] == "Live against replay"
    text = " ".join(text_of(page).split())
    assert (
        "Of 1,000 payments decided both live and here, 99.70% got the same action and 98.80% exactly the same" in text
    )
    assert "The largest difference of two scores is 0.25. 3 payments got another action. 2 of them had a live" in text
    assert "approved 900 1 0 reviewed 2 80 0 declined 0 0 17" in text
    assert "mirror_absent 2 model_error 1" in text
    assert f"{results('alone').champion.model_version} (here) 990 99.80% 99.00% 0.25" in text
    assert "older &lt;model&gt; 10 90.00% 80.00% 0.01" in text
    for part in (
        "7 payments: not in the replayed",
        "8 payments: no live decision",
        "3 decisions about",
        "2 records of",
    ):
        assert part in text
    assert "992 payments: -0.005 to +0.005" in text
    assert page.startswith(report_html(results("alone"))[:2000])
    Tags().feed(page)


def test_the_report_says_if_no_payment_was_decided_live() -> None:
    page = report_html(results("alone"), live(whole=LiveAgreement(0, None, None, None, 0), by_model_version={}))
    assert "No payment was decided both live and here." in page
    assert "Scores, replayed and live" not in page


def test_days_that_a_model_was_trained_on_are_pointed_out() -> None:
    assert "was trained on payments of" not in report_html(results("alone"))
    with TemporaryDirectory() as folder:
        early = replay(
            small_world.history(),
            engine=small_world.engine(),
            rates=small_world.rates(),
            champion=Contestant(small_world.loaded_bundle(), _policy(), "x"),
            destination=Path(folder),
            options=ReplayOptions(window=Days(FIRST_DAY + 10, FIRST_DAY + 12), label_delay_days=LABEL_DELAY_DAYS),
        )
        assert "was trained on payments of" in report_html(early)
        assert "was trained on payments of" in (Path(folder) / "report.html").read_text(encoding="utf-8")


def test_cells_are_escaped() -> None:
    parts: Any = report_templates().get_template("parts.html").module
    made = str(parts.table(["<b>"], [["<b>"], [TableCell("<b>", "same")]], caption="<b>"))
    assert made.count("&lt;b&gt;") == 4
    assert "<b>" not in made
