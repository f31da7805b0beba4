"""The reference pages: they are what the code gives, and leave nothing out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from paywarden.models.metrics.evaluation import Days
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.models.replay.measures import Contestant
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.ops.reference import data as reference_data
from paywarden.ops.reference import reference_pages as reference
from paywarden.ops.reference import settings_page as reference_settings
from paywarden.ops.reference.data import field_docs
from paywarden.ops.reference.page import Undocumented
from paywarden.ops.reference.reference_pages import PAGES, main
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY, LABEL_DELAY_DAYS


@cache
def page_of(name: str) -> str:
    """Returns a page as the code gives it now. To make the settings' takes half a second."""
    return PAGES[name]()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_page_in_the_repository_is_what_the_code_gives(name: str) -> None:
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == page_of(name), "run `python -m paywarden.ops.reference`"


def test_a_page_that_is_older_than_the_code_is_refused_by_its_name(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert CliRunner().invoke(main, [*arguments, "--check"]).exit_code == 0
    (tmp_path / "data.md").write_text("older\n", encoding="utf-8")
    refused = CliRunner().invoke(main, [*arguments, "--check"])
    assert refused.exit_code == 1
    assert f"{tmp_path}/data.md differs from the code" in refused.stderr
    assert (tmp_path / "data.md").read_text(encoding="utf-8") == "older\n"


def test_every_column_and_key_that_a_replay_writes_is_in_the_dictionary(tmp_path: Path) -> None:
    own, other = small_world.loaded_bundle(), small_world.other_loaded_bundle()
    policy = Policy(PolicySettings(), review_at=own.manifest.review_at, decline_at=own.manifest.decline_at)
    results = replay(
        small_world.history(),
        engine=small_world.engine(),
        rates=small_world.rates(),
        champion=Contestant(own, policy, "x"),
        challenger=Contestant(other, policy, "y"),
        destination=tmp_path,
        options=ReplayOptions(Days(FIRST_DAY + 22, FIRST_DAY + 24), LABEL_DELAY_DAYS, with_vectors=True),
    )
    page = page_of("data.md")
    for name in ("decisions.parquet", "differences.parquet"):
        section = page.split(f"### {name}\n")[1].split("\n### ")[0]
        assert all(f"`{column}`" in section for column in pq.read_schema(tmp_path / name).names)
    metrics = results.headline().keys() | {"payments_per_second"}
    assert all(f"`{key}`" in page for key in metrics)


def test_a_field_without_a_meaning_is_an_error() -> None:
    @dataclass
    class Half:
        said: str
        """Something."""
        unsaid: str

    assert field_docs(Half) == {"said": "Something."}
    with pytest.raises(Undocumented, match=r"Half\.unsaid has no docstring"):
        list(reference_data._of_dataclass(Half))


def test_the_example_describes_every_setting() -> None:
    assert list(reference_settings.undescribed()) == []
    assert reference_settings.EXAMPLE.read_text(encoding="utf-8") == reference_settings.example_text()
