"""`paywarden shadow report` over an archive, and what `shadow run` refuses."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import pytest
from click.testing import CliRunner, Result

from paywarden.models.rollout.shadow import ShadowRecord, ShadowSide
from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import read_source
from paywarden.streams.archive.archive import Archiver
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.worlds.stream.decision_records import decision

MS = 1_704_067_200_050


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["shadow", *arguments], catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    shadow, decisions, outcomes = (MemoryTopic(name) for name in ("shadow-decisions", "decisions", "outcomes"))
    for number in range(20):
        payment, card = f"p{number}", f"c{number // 3}"
        decisions.append(
            number % 2,
            decision(payment, card_id=card, amount_minor=5_000, bundle_digest="aa" * 32, policy_digest="bb" * 32),
            MS + number,
        )
        if number != 7:
            record = ShadowRecord(
                *(f"d-{payment}", payment, card, MS, "b-42", "x"),
                ShadowSide(0.1, "approve", "aa" * 32, "bb" * 32),
                ShadowSide(0.4, "review" if number % 4 == 0 else "approve", "cc" * 32, "bb" * 32),
            )
            shadow.append(number % 3, record.value(), MS + number)
        label = "fraud" if number % 8 == 0 else "genuine"
        outcomes.append(0, {"payment_id": payment, "outcome_time_ms": MS + 9, "label": label, "source": None}, MS + 9)
    for topic in (shadow, decisions, outcomes):
        archiver = Archiver(topic, IDS, topic.name, folder)
        archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
    return folder


def test_the_report_of_an_archive_has_the_same_figures_as_a_table_and_as_json(archive: Path) -> None:
    (pair,) = json.loads(asked("report", "--archive", str(archive), "--json").output)["pairs"]
    comparison = pair["comparison"]
    assert (pair["challenger"], pair["champion_bundle_digest"]) == ("b-42", "aa" * 32)
    assert (comparison["payments"], comparison["labelled"], comparison["paired_share"]) == (19, 19, 0.95)
    assert comparison["agreement"]["payments"] == [[14, 5, 0], [0, 0, 0], [0, 0, 0]]
    # Scores that do not differ have no correlation, and JSON has no NaN.
    assert comparison["score_shift"]["rank_correlation"] is None
    by_name = {one["name"]: one for one in comparison["differences"]}
    # Three frauds are reviewed, and five reviews cost 500 each.
    assert by_name["net_minor"]["difference"] == pytest.approx((3 * 5_000 - 5 * 500) / 19)
    assert by_name["net_minor"]["low"] < by_name["net_minor"]["difference"] < by_name["net_minor"]["high"]
    told = asked("report", "--archive", str(archive)).output
    assert "b-42: 2024-01-01 00:00:00 to 2024-01-01 00:00:00 UTC" in told
    assert "19 payments of 7 cards, 95.00 % of the champion's; 19 with a known outcome; 73.68 % get the same" in told
    assert "657.895" in told


def test_a_time_without_shadow_decisions_gives_a_line(archive: Path) -> None:
    told = asked("report", "--archive", str(archive), "--since", "2025-01-01T00:00:00Z")
    assert told.output == "there is no shadow decision of that time\n"


def test_run_names_what_is_wrong_with_a_challenger(tmp_path: Path) -> None:
    config = tmp_path / "paywarden.toml"
    for text, message in (
        ('[[shadow.challengers]]\nname = "B"\nbundle = "b"\n', r"\[shadow\] challengers: wanted a name of at most 64"),
        ('[[shadow.challengers]]\nname = "b"\n', r'\[shadow\] challengers "b": wanted a bundle, a policy or a config'),
        ('[[shadow.challengers]]\nname = "b"\nbundle = "x"\n' * 2, r"\[shadow\] challengers: two have the name 'b'"),
        ("[shadow]\ncpu_share_max = 2.0\n", r"\[shadow\] cpu_share_max: wanted above 0 and at most 1, got 2"),
    ):
        config.write_text(text)
        with pytest.raises(Misconfigured, match=message), wiring.shadow_host(read_source(str(config)), print, "text"):
            pass
