"""`paywarden init`: the project that it makes works as it is."""

from __future__ import annotations

import json
import runpy
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.datasets.catalogue_check import check_catalogue, made_payments
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.ops.cli import cli
from paywarden.ops.commands.data.init import make_project
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import Form
from tests.parity.features_worlds import DECLARED, every_word


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "shop"
    result = CliRunner().invoke(cli, ["init", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"next: cd {folder} && paywarden features --check"
    return folder


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(folder / "paywarden.toml"), *arguments], standalone_mode=False)


def test_a_project_has_its_files_and_only_its_owner_can_change_them(shop: Path) -> None:
    files = [path for path in shop.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(shop)) for path in files) == [
        "README.md",
        "catalogue.py",
        "lists/own_shops.txt",
        "payment.py",
        "paywarden.toml",
        "tests/test_catalogue.py",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_the_check_of_a_project_finds_nothing_wrong(shop: Path) -> None:
    result = run(shop, "features", "--check", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    checked = json.loads(result.stdout)
    assert (checked["differences"], checked["without_values"]) == ([], [])
    assert {"card", "customer", "buyer", "network", "bin_merchant"} <= {one["name"] for one in checked["entities"]}
    assert (
        "the same bits live, in training and the plain way"
        in run(shop, "features", "--check", "--payments", "20").stdout
    )


def test_the_listing_of_a_project_has_its_fields(shop: Path) -> None:
    lines = [" ".join(line.split()) for line in run(shop, "features").stdout.splitlines()]
    items = "items 6 integer items a whole number from 0 to 1000 as it is int64 = 106"
    assert f"{items} features items, card_items_step" in lines
    mail = "buyer_email 3 e-mail an e-mail address of at most 255 bytes as a keyed hash string = 103"
    assert f"{mail} entity buyer; derived buyer_domain" in lines
    product = "product 5 id book, clothing, food, phone …, or any other text as it is string = 105"
    assert f"{product} entity product_kind; feature product" in lines
    assert "ip_network 13 network derived from ip as a keyed hash entity network" in lines
    listing = json.loads(run(shop, "features", "--json").stdout)
    assert all(feature["meaning"] and feature["unit"] for feature in listing["features"])
    assert max(entity["bytes_after_one_payment"] for entity in listing["entities"]) < 400
    fields = listing["fields"]
    assert [field["number"] for field in fields] == list(range(1, 19))
    page = run(shop, "features", "--markdown").stdout
    assert "| `is_gift` | 8 | flag |  | true or false | as it is | bool = 108 | feature is_gift |" in page


def test_the_tests_of_a_project_pass(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(shop / "tests" / "test_catalogue.py"), run_name="__main__")
    assert capsys.readouterr().out == "the catalogue is right\n"


def test_made_payments_obey_the_rules_of_every_field(shop: Path) -> None:
    catalogue = load_catalogue(shop / "catalogue.py")
    made = made_payments(catalogue, 500, 1)
    assert made == made_payments(catalogue, 500, 1)
    for field in catalogue.payment.fields.declared:
        values = [one.get(field.name) for one in made]
        assert [field.problem_of(value) for value in values if field.problem_of(value)] == []
        assert any(value is None for value in values) != field.is_required
        assert len(set(values)) > 2, field.name
        if field.form is Form.EMAIL:
            assert len(set(values)) > 5


def test_a_minimal_project_has_the_packaged_features_and_no_shop(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    result = CliRunner().invoke(cli, ["init", "--minimal", str(folder)])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == ["catalogue.py", "payment.py", "paywarden.toml"]
    assert sum(len(path.read_text().splitlines()) for path in folder.iterdir()) < 70
    catalogue = load_catalogue(folder / "catalogue.py")
    assert {one.name for one in catalogue.features} == {one.name for one in CATALOGUE.features} | {"card_count_3h"}
    assert check_catalogue(catalogue, payments=30).differences == ()


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(Misconfigured, match=r"is not empty; wanted a new folder or an empty one"):
        make_project(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(Misconfigured, match=r"cannot make a project in .*mine.txt.shop: Not a directory"):
        make_project(tmp_path / "mine.txt" / "shop")


def test_every_word_of_the_language_passes_the_same_check() -> None:
    for catalogue in (CATALOGUE, every_word(DECLARED)):
        checked = check_catalogue(catalogue, payments=200)
        assert (checked.differences, checked.not_plain) == ((), ())
        assert checked.payments == 200


def test_a_difference_between_the_two_ways_is_an_error(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_slots = FeatureEngine.vectors_of_slots

    def wrong(self, attributes, slots):  # type: ignore[no-untyped-def]
        vectors = of_slots(self, attributes, slots)
        vectors[3, 0] += 1
        return vectors

    monkeypatch.setattr(FeatureEngine, "vectors_of_slots", wrong)
    with pytest.raises(Misconfigured, match=r"features differ, 2 values in all: payment 3, amount: .* at once"):
        CliRunner().invoke(
            cli, ["--config", str(shop / "paywarden.toml"), "features", "--check"], catch_exceptions=False
        )
