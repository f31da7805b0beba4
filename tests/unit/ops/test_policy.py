"""`paywarden policy check`, and the example of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ops.cli import cli
from schemas.errors import Misconfigured
from tests import small_world

EXAMPLE = Path(__file__).resolve().parents[3] / "ops" / "paywarden.toml"


def check(folder: Path, text: str, *arguments: str) -> str:
    """What is printed; a refusal is raised."""
    (folder / "some.toml").write_text(text, encoding="utf-8")
    asked = ["policy", "check", "--config", str(folder / "some.toml"), *arguments]
    result = CliRunner().invoke(cli, asked, standalone_mode=False, env={"COLUMNS": "160"})
    if result.exception is not None:
        raise result.exception
    return result.output


def example_tables(folder: Path) -> str:
    """The example's tables, which stand in comments there, as a reader would take them over."""
    section = EXAMPLE.read_text(encoding="utf-8").split("[policy]\n", 1)[1].split("\n# `paywarden train`")[0]
    tables = section[section.index("# [[policy.rules]]") :]
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in tables.splitlines())
    (folder / "own_shops.txt").write_text("merchant-0002\n", encoding="utf-8")
    return text.replace("@lists/own_shops.txt", f"@{folder / 'own_shops.txt'}")


def test_the_tables_of_the_example_are_right_and_printed(tmp_path: Path) -> None:
    output = check(tmp_path, "[policy]\nreview_at = 0.5\n" + example_tables(tmp_path))
    lines = [re.sub(r"[ │|]+", " ", line).strip() for line in output.splitlines()]
    assert 'online channel == "ecom" 0.2 0.7' in lines
    assert "(all others) 0.5 as the bundle says" in lines
    assert "gambling_burst mcc in lists.gambling and amount > 500_00 and card_count_1h >= 5 review at least" in lines
    assert "own_shops merchant_id in lists.own_shops and amount < 100_00 approve decides alone" in lines
    assert "gambling 3" in lines
    assert "own_shops 2" in lines
    assert "model_absent review" in lines


def test_brackets_in_a_condition_are_printed_as_they_are(tmp_path: Path) -> None:
    when = "score in [1] or 'unknown_card' in flags or mcc in ['[bold]']"
    text = f'[[policy.rules]]\nname = "a"\nwhen = "{when}"\naction = "review"'
    assert when in check(tmp_path, text)


def test_thresholds_that_the_settings_leave_open_are_the_bundles(tmp_path: Path) -> None:
    manifest = small_world.loaded_bundle().manifest
    output = check(tmp_path, "", "--bundle", str(small_world.trained_bundle()))
    assert f"{manifest.review_at:.4g}" in output
    assert f"{manifest.decline_at:.4g}" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[policy.rules]]\nname = "a"\nwhen = "amuont > 5"\naction = "review"',
            "policy.rules \"a\", character 1: there is no name 'amuont'; did you mean amount?",
        ),
        (
            "[policy]\nreview_at = 0.9\ndecline_at = 0.5",
            "policy.review_at (0.9) must not be above policy.decline_at (0.5)",
        ),
        ('[policy.lists]\na = ["@gone.txt"]', "policy.lists a: cannot read gone.txt: No such file or directory"),
        ("[[policy.segments]]\nname = 1", "[policy] segments, number 1: when is missing"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        check(tmp_path, text)
    assert str(refused.value) == message


def test_a_bundle_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"there is no manifest\.json"):
        check(tmp_path, "", "--bundle", str(tmp_path / "gone"))
