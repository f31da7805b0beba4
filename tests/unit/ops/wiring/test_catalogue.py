"""`[features] catalogue`: every part gets the project's catalogue, and a broken one is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.ops.configuration import problems_of
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import read_source

SHOP = """\
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.fields import Payment, text

customer_id = text("customer_id", 1, required=True, personal=True)
customer = Entity("customer", key="customer_id")
CATALOGUE = Catalogue((customer,), (customer.count("customer_count_1d", "1d"),), Payment(customer_id))
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A project's configuration file. Its catalogue stands in the folder beside it."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "catalogue.py").write_text(SHOP, encoding="utf-8")
    (tmp_path / "paywarden.toml").write_text('[features]\ncatalogue = "shop/catalogue.py"\n', encoding="utf-8")
    return tmp_path / "paywarden.toml"


def test_parts_get_the_catalogue_of_the_settings(config: Path) -> None:
    source = read_source(str(config), {})
    catalogue = wiring.catalogue(source)
    assert catalogue.names == ("customer_count_1d",)
    assert wiring.catalogue(read_source(str(config), {})) is catalogue
    assert wiring.entity_names(source) == ("customer",)
    plan = wiring.feature_engine(source).plan
    assert plan.names == catalogue.names
    assert plan.fields.by_name["customer_id"].number == 1
    policy = wiring.policy(source, review_at=0.5, decline_at=0.9, catalogue=catalogue)
    assert policy.thresholds == (0.5, 0.9)


def test_commands_list_the_features_and_fields_of_the_project(config: Path) -> None:
    result = CliRunner().invoke(cli, ["--config", str(config), "features"])
    assert result.exit_code == 0, result.output
    assert "customer_count_1d" in result.output
    assert "customer (by customer_id): 1 features; a profile takes" in result.output
    assert "card_count_1d" not in result.output


def test_a_broken_catalogue_is_one_problem_of_the_configuration(config: Path) -> None:
    path = config.parent / "shop" / "catalogue.py"
    path.write_text(SHOP.replace("customer.count", "custmer.count"), encoding="utf-8")
    source = read_source(str(config), {})
    wanted = "feature catalogue, catalogue.py:6:37: 'custmer' is not defined; did you mean 'customer'?"
    assert problems_of(source, None) == [wanted]
    with pytest.raises(Misconfigured, match=r"'custmer' is not defined"):
        wiring.feature_engine(source)
    # The environment names another one.
    named = read_source(str(config), {"PAYWARDEN_FEATURES_CATALOGUE": "none.py"})
    with pytest.raises(Misconfigured, match=r"cannot read .*none\.py: No such file"):
        wiring.catalogue(named)
