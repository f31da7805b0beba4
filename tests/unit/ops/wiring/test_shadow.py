"""The parts of a challenger in the shadow, and the events that load it again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.bundle.version import Version
from paywarden.ops.wiring.shadow_parts import ChallengerFiles, _candidate_files, _challenger_files
from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.settings import read_source
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from paywarden.streams.shadow.challenger import VectorChallenger
from paywarden.streams.shadow.mirror_challenger import MirrorChallenger
from paywarden.streams.shadow.shadow_settings import ConfiguredChallenger
from tests.worlds.small import small_world


class World:
    def __init__(self, folder: Path) -> None:
        self.folder, self.time = folder, 0.0
        self.config = folder / "paywarden.toml"
        self.runtime = folder / "serve"
        self.runtime.mkdir()
        self.config.write_text(f'[serve]\nbundle = "{small_world.trained_bundle()}"\nruntime = "{self.runtime}"\n')
        self.policy = folder / "strict.toml"
        self.policy.write_text("[policy]\nreview_at = 0.01\n")

    def files(self, **challenger: Any) -> ChallengerFiles:
        made = _challenger_files(read_source(str(self.config)), ConfiguredChallenger("b-42", **challenger))
        made._clock = lambda: self.time
        return made

    def has_changed(self, files: ChallengerFiles) -> bool:
        self.time += 10
        return files.has_changed()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_policy_alone_is_for_the_bundle_that_decides_also_after_a_swap(world: World) -> None:
    first, other = small_world.loaded_bundle().manifest, small_world.other_loaded_bundle().manifest
    files = world.files(policy=str(world.policy))
    made = files.load()
    assert isinstance(made, VectorChallenger)
    assert made.version.bundle == first.digest
    assert not world.has_changed(files)
    world.policy.write_text("[policy]\nreview_at = 0.02\n")
    assert world.has_changed(files)
    again = files.load()
    assert isinstance(again, VectorChallenger)
    assert again.version.policy != made.version.policy
    assert not world.has_changed(files)
    write_deployment(world.runtime / DEPLOYMENT, Deployment(ReleasePaths(str(small_world.other_bundle()))))
    assert world.has_changed(files)
    swapped = files.load()
    assert isinstance(swapped, VectorChallenger)
    assert swapped.version == Version(other.digest, again.version.policy)


def test_a_bundle_is_checked_and_one_that_is_gone_is_no_change(world: World, tmp_path: Path) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    files = world.files(bundle=str(bundle))
    files.load()
    os.truncate(bundle / "model.txt", 100)
    with pytest.raises(BundleRefused, match="wrong checksum"):
        world.files(bundle=str(bundle)).load()
    # Nothing is loaded again for a setting that cannot be read.
    (world.runtime / DEPLOYMENT).write_text("no JSON")
    assert not world.has_changed(world.files(policy=str(world.policy)))


def test_a_shadow_host_has_a_configuration_of_its_own(world: World) -> None:
    own = world.folder / "wide.toml"
    own.write_text(f'[serve]\nbundle = "{small_world.other_bundle()}"\n[mirror]\npath = "{world.folder / "mirror"}"\n')
    files = world.files(config=str(own))
    made = files.load()
    assert isinstance(made, MirrorChallenger)
    assert not world.has_changed(files)
    assert made.evaluate([]).left_out == {}


def test_a_rollouts_candidate_is_a_challenger_with_the_digests_that_the_deployment_file_names(world: World) -> None:
    source, other = read_source(str(world.config)), small_world.other_loaded_bundle().manifest
    served = ReleasePaths(str(small_world.trained_bundle()))
    candidate = ReleasePaths(str(small_world.other_bundle()), str(world.policy), other.digest)
    path = world.runtime / DEPLOYMENT
    write_deployment(path, Deployment(served, candidate=candidate, rollout="r-7"))
    made = _candidate_files(source, "r-7").load()
    assert isinstance(made, VectorChallenger)
    assert made.version.bundle == other.digest
    write_deployment(path, Deployment(served, candidate=replace(candidate, bundle_digest="0" * 64), rollout="r-7"))
    with pytest.raises(BundleRefused, match="wanted the digest 000"):
        _candidate_files(source, "r-7").load()
    with pytest.raises(Misconfigured, match="no rollout of this name in the shadow"):
        _candidate_files(source, "r-8")
