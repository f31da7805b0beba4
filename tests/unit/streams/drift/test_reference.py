"""A reference made from archived decisions has those of one model on some days, each once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.metrics.evaluation import Days
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.drift.backtest_files import archived
from paywarden.streams.drift.reference import live_reference
from tests.worlds.small.decision_archive import DAYS, FIRST_DAY, PER_HOUR, manifest, write_decision_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_decision_archive(folder)
    return folder


def test_a_reference_has_the_models_decisions_on_these_days(archive: Path) -> None:
    made = live_reference(archive, manifest(), Days(FIRST_DAY, FIRST_DAY + DAYS - 1))
    assert made.model_version == manifest().model_version
    assert made.counts.payments[0] == DAYS * 24 * PER_HOUR
    assert made.kinds == Kinds.SCORE | Kinds.INPUTS | Kinds.QUALITY
    # The reference knows ages and actions.
    assert made.counts.ages[0, :-1].sum() == made.counts.payments[0]
    assert made.counts.actions[0, 1:].sum() > 0
    fewer = live_reference(archive, manifest(), Days(FIRST_DAY, FIRST_DAY + 1))
    assert fewer.counts.payments[0] == 2 * 24 * PER_HOUR


def test_days_without_decisions_and_too_few_days_are_refused(archive: Path) -> None:
    with pytest.raises(Misconfigured, match=r"holds no decision of model m-\w+ from"):
        live_reference(archive, manifest(), Days(FIRST_DAY + 20, FIRST_DAY + 30))
    with pytest.raises(Misconfigured, match="wanted decisions of 2 days or more"):
        live_reference(archive, manifest(), Days(FIRST_DAY, FIRST_DAY))


def test_decisions_of_another_catalogue_are_refused(archive: Path) -> None:
    other = replace(manifest(), model_version="m-other")
    with pytest.raises(Misconfigured, match="decisions of model m-other have no vectors of its"):
        live_reference(archive, other, Days(FIRST_DAY, FIRST_DAY + 1))


def test_a_backtest_reads_each_decision_once_by_the_time_it_was_made(archive: Path) -> None:
    parts = list(archived(archive, Days(FIRST_DAY, FIRST_DAY + DAYS - 1)))
    assert len(parts) == DAYS
    versions, widths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("versions", "widths"))
    ours = versions == manifest().model_version
    assert ours.sum() == DAYS * 24 * PER_HOUR
    assert set(widths[ours]) == {len(manifest().feature_names)}
    # Those of another model have no vectors.
    assert (~ours).sum() == DAYS * 24
    assert set(widths[~ours]) == {0}
    times = np.concatenate([part.time_ms for part in parts])
    assert (np.diff(times) >= 0).all()
    # Without days, the first and the last decision say which. Here that is one day more, of late decisions: those about
    # payments of at most the day before.
    assert sum(len(part.time_ms) for part in archived(archive, None)) == len(times) + 24
