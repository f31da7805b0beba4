"""The reference pages: they are what the code gives, and leave nothing out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from paywarden.models.metrics.evaluation import Days
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.models.replay.files import OutputColumn
from paywarden.models.replay.measures import Contestant
from paywarden.models.replay.replay import ReplayOptions, replay
from paywarden.ops.cli import cli
from paywarden.ops.configuration import settings_types
from paywarden.ops.reference import data as reference_data
from paywarden.ops.reference import pages as reference
from paywarden.ops.reference import settings as reference_settings
from paywarden.ops.reference.data import field_docs
from paywarden.ops.reference.metrics import unit_of
from paywarden.ops.reference.page import Undocumented
from paywarden.ops.reference.pages import PAGES, main
from paywarden.ops.reference.settings import bounds_of
from paywarden.schemas import errors
from paywarden.schemas.avro import TOPICS, topic_schema
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


@pytest.mark.parametrize("topic", TOPICS)
def test_every_field_of_a_topic_is_in_the_dictionary(topic: str) -> None:
    section = page_of("data.md").split(f"\n### {topic}\n")[1].split("\n### ")[0]
    for field in topic_schema(topic)["fields"]:
        assert f"- `{field['name']}` (" in section


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
        assert all(f"- `{column}` (" in section for column in pq.read_schema(tmp_path / name).names)
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


def test_a_number_without_a_unit_is_an_error() -> None:
    with pytest.raises(Undocumented, match="column wealth is a number without a unit"):
        reference_data._of_column(OutputColumn("wealth", pa.int64(), "", "How rich."))
    with pytest.raises(Undocumented, match="payments: wealth is a number without a unit"):
        list(reference_data._of_record("payments", {"fields": [{"name": "wealth", "type": "long", "doc": "x"}]}, ""))


def commands_below(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands_below(below, f"{path} {name}")


def test_every_command_and_option_is_on_the_page() -> None:
    sections = dict(re.findall(r"^## (paywarden.*)\n((?:(?!^## ).*\n?)*)", page_of("commands.md"), re.MULTILINE))
    for path, command in commands_below(cli, "paywarden"):
        for option in command.params:
            if isinstance(option, click.Option):
                assert f"- `{', '.join(option.opts)}" in sections[path], path


def test_the_page_of_commands_says_which_extra_a_command_needs() -> None:
    section = page_of("commands.md").split("\n## paywarden train\n")[1].split("\n## ")[0]
    assert "Needs the extra `train`." in section


def test_every_one_line_help_fits_a_narrow_terminal() -> None:
    for path, command in commands_below(cli, "paywarden"):
        assert command.help is not None, path
        assert "..." not in command.get_short_help_str(58), path


@pytest.mark.parametrize("section", sorted(settings_types()))
def test_every_setting_is_on_the_page_with_a_meaning(section: str) -> None:
    rows = page_of("settings.md").split(f"\n## [{section}]\n")[1].split("\n## ")[0]
    for field in dataclasses.fields(settings_types()[section]):
        assert re.search(rf"^- `{field.name}`(?: \(.+\))?: \S", rows, re.MULTILINE), field.name


def test_the_example_describes_every_setting() -> None:
    assert list(reference_settings.undescribed()) == []


@pytest.mark.parametrize(
    ("section", "name", "hint", "bounds"),
    [
        ("admission", "deadline_ms", int, "at least 1"),
        ("aerospike", "tend_interval_ms", int, "at least 250"),
        ("store", "kind", str, "lmdb, aerospike or memory"),
        ("costs", "fraud_loss_share", float, "a share from 0 to 1"),
        ("lmdb", "path", str, ""),
    ],
)
def test_bounds_are_what_the_code_says_it_wants(section: str, name: str, hint: type, bounds: str) -> None:
    assert bounds_of(section, settings_types()[section], name, hint) == bounds


def test_every_metric_of_the_alerts_is_on_the_page() -> None:
    rules = (reference.FOLDER.parents[1] / "ops" / "alerts.yml").read_text(encoding="utf-8")
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bpaywarden_[a-z_]+", rules)}
    page = page_of("metrics.md")
    assert names
    assert [name for name in sorted(names) if f"- `{name}` (" not in page] == []


def test_labels_of_a_metric_without_a_series_yet_are_on_the_page() -> None:
    page = page_of("metrics.md")
    assert "- `paywarden_stream_consumer_lag` (gauge by `topic`, `partition`; count; alerts: StreamLags)" in page
    assert "- `paywarden_drift_score` (histogram by `version`; 0 to 1)" in page
    assert "- `paywarden_mirror_age_seconds` (gauge; alerts: MirrorStale)" in page


def test_a_metric_without_a_unit_is_an_error() -> None:
    with pytest.raises(Undocumented, match="metric paywarden_wealth has no unit"):
        unit_of("paywarden_wealth")


def test_every_topic_is_on_the_page_with_its_retention() -> None:
    page = page_of("topics.md")
    assert all(f"| `{topic}` |" in page for topic in (*TOPICS, "outbox-cursors", "schemas", "repartition-ENTITY"))
    assert "| `dead-letters-retried` | `PARTITION-OFFSET` of the letter | Avro," in page
    assert "| 1 | compacted, 60 days |" in page


def test_every_error_of_the_tree_is_on_the_page() -> None:
    page = page_of("errors.md")
    tree = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(tree) == 8
    assert all(f"`{error.__name__}` |" in page for error in tree)
    assert "| `resource_exhausted` | 429 Too Many Requests | 8 RESOURCE_EXHAUSTED |" in page
