"""Bundles of model versions that decisions name are found without a restart, in a bounded number of looks."""

from __future__ import annotations

import shutil
from pathlib import Path

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.drift.reference import Reference, load_reference
from paywarden.ops.wiring.drift_parts import _found_references
from paywarden.schemas.settings import read_source
from paywarden.streams.drift.drift_counts import OTHER_VERSION, Binnings
from paywarden.streams.drift.drift_search import PAUSES_S, VERSIONS_MAX, ReferenceSearch
from paywarden.streams.drift.drift_settings import DriftSettings
from paywarden.streams.drift.learning import counted_binning
from tests.worlds.small import small_world


def reference() -> Reference:
    found = load_reference(small_world.trained_bundle())
    assert found is not None
    return found


class Search:
    """A search with a clock of its own. `there` are the references that can be found."""

    def __init__(self) -> None:
        self.now_s, self.there, self.asked = 0.0, list[Reference](), list[frozenset[str]]()
        self.learnt: list[Reference] = []
        self.search = ReferenceSearch(self._find, self.learnt.append, now_s=lambda: self.now_s)

    def _find(self, versions: frozenset[str]) -> list[Reference]:
        self.asked.append(versions)
        return [one for one in self.there if one.model_version in versions]


def test_a_bundle_that_comes_later_is_found_and_learnt_once() -> None:
    world, version = Search(), reference().model_version
    for _ in range(3):
        world.search.miss(f"{version}/b")
    assert world.search.look() == 0
    world.there.append(reference())
    assert world.search.look() == 0, "not before it is due again"
    world.now_s += PAUSES_S[1]
    assert world.search.look() == 1
    assert world.search.look() == 0
    assert [one.model_version for one in world.learnt] == [version]
    assert world.asked == [frozenset([version])] * 2


def test_the_search_for_a_version_is_given_up_and_few_are_looked_for() -> None:
    world = Search()
    for name in ("", OTHER_VERSION, *(f"m-{number}" for number in range(10 * VERSIONS_MAX))):
        world.search.miss(name)
    for _ in range(200):
        world.search.look()
        world.search.miss("m-0")
        world.now_s += 3600.0
    assert len(world.asked) == len(PAUSES_S)
    assert world.asked[0] == frozenset(f"m-{number}" for number in range(VERSIONS_MAX))


def test_an_unknown_version_is_missed_and_counted_with_its_features_once_it_is_learnt() -> None:
    binnings, missed, version = Binnings({}), list[str](), reference().model_version
    binnings.missed = missed.append
    grid, _ = binnings.of(f"{version}/b")
    assert missed == [f"{version}/b"]
    binnings.learn(version, counted_binning(reference()))
    model, binning = binnings.of(f"{version}/b")
    assert (model.version, binning.feature_count) == (f"{version}/b", len(reference().feature_names))
    assert model != grid
    assert len(missed) == 1
    # The counts of before it was learnt can still be read.
    assert binnings.binning_of(grid) is not None


def test_bundles_are_found_behind_a_link_and_in_folders_of_bundles(tmp_path: Path) -> None:
    first, other = small_world.trained_bundle(), small_world.other_bundle()
    (tmp_path / "current").symlink_to(first)
    shutil.copytree(other, tmp_path / "bundles" / "b-2")
    (tmp_path / "bundles" / "half").mkdir()
    config = tmp_path / "paywarden.toml"
    config.write_text(f'[serve]\nbundle = "{tmp_path / "current"}"\n', encoding="utf-8")
    settings = DriftSettings(bundle_folders=(str(tmp_path / "bundles"), str(tmp_path / "gone")))
    versions = {read_manifest(bundle).model_version for bundle in (first, other)}
    found = _found_references(read_source(str(config)), settings, frozenset(versions | {"m-unknown"}))
    assert {one.model_version for one in found} == versions
    assert _found_references(read_source(str(config)), settings, frozenset({"m-unknown"})) == []
    (only,) = _found_references(read_source(str(config)), DriftSettings(), frozenset(versions))
    assert only.model_version == read_manifest(first).model_version
