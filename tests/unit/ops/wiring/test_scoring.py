"""The parts that a scoring host is built from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.model_log import LogFile
from paywarden.ops.wiring import scoring_host
from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.settings import Source, read_source
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from tests.worlds.rollout.registry import Writer, digest, people_file
from tests.worlds.small import small_world


def source(**serve: Any) -> Source:
    return Source({"serve": {"bundle": str(small_world.trained_bundle()), **serve}}, {})


def test_a_host_has_the_bundle_and_its_fallback(tmp_path: Path) -> None:
    host = scoring_host(source(fallback_bundle=str(small_world.copied_bundle(tmp_path))), None)
    version = small_world.loaded_bundle().manifest.model_version
    assert [bundle.manifest.model_version for bundle in host.bundles] == [version, version]
    assert len(scoring_host(source(), None).bundles) == 1


def test_a_fallback_bundle_is_checked_like_the_first(tmp_path: Path) -> None:
    fallback = small_world.copied_bundle(tmp_path)
    os.truncate(fallback / "model.txt", 100)
    with pytest.raises(BundleRefused, match=rf"bundle {fallback}: model\.txt has a wrong checksum"):
        scoring_host(source(fallback_bundle=str(fallback)), None)


def test_a_host_explores_only_with_a_share_and_only_with_a_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("00" * 16)
    serve = {"bundle": str(small_world.trained_bundle()), "runtime": str(tmp_path / "serve")}
    asked = {"share": 0.02, "budget_minor_a_day": 1000, "payment_minor_max": 100, "hosts": 2, "key_file": str(key)}
    assert scoring_host(Source({"serve": serve}, {}), None).exploration is None
    exploration = scoring_host(Source({"serve": serve, "exploration": asked}, {}), None).exploration
    assert exploration is not None
    opened = exploration.open()
    assert (opened.share, opened.budget) == (0.02, 500)
    assert (tmp_path / "serve" / "exploration.spent").stat().st_mode & 0o777 == 0o600
    assert "00" * 16 not in repr(exploration)
    with pytest.raises(Misconfigured, match=r"exploration.key_file: wanted a file with the key of the coin"):
        scoring_host(Source({"serve": serve, "exploration": asked | {"key_file": ""}}, {}), None)


def test_a_host_starts_with_no_version_that_the_registry_does_not_allow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = small_world.trained_bundle()
    manifest, policy = read_manifest(bundle), policy_digest(PolicySettings(), {})
    writer, file = Writer(), LogFile(tmp_path / "log.jsonl")
    catalogue, files = manifest.catalogue_digest, {"manifest.json": digest("any")}
    writer.add(kinds.REGISTERED_BUNDLE, "anna", bundle=manifest.digest, catalogue=catalogue, files=files)
    writer.add(kinds.REGISTERED_POLICY, "anna", policy=policy, files=files)
    what = {"bundle": manifest.digest, "policy": policy, "catalogue": catalogue}
    promoted = writer.add(kinds.PROPOSED, "anna", what)
    writer.add(kinds.PROMOTED, "ben", proposal=promoted.digest)
    file.append(lambda _: writer.log.entries)
    people = people_file(tmp_path, {"anna": ("propose",), "ben": ("promote",)})
    settings = {
        "serve": {"runtime": str(tmp_path)},
        "models": {"log": str(file.path), "people": str(people), "folder": str(tmp_path / "registry")},
    }
    path, allowed = tmp_path / DEPLOYMENT, ReleasePaths(str(bundle), "", manifest.digest, policy)
    write_deployment(path, Deployment(allowed))
    host = scoring_host(Source(settings, {}), None)
    assert host.releases.refusal_of(Deployment(allowed)) == ""
    other = ReleasePaths(str(small_world.other_bundle()))
    assert "candidate: wanted a version that the" in host.releases.refusal_of(Deployment(allowed, candidate=other))
    write_deployment(path, Deployment(other))
    with pytest.raises(
        Misconfigured, match=r"deployment.json: active: wanted a version that the registry has promoted"
    ):
        scoring_host(Source(settings, {}), None)
    # A damaged log decides nothing, and keeps no host from starting.
    file.path.write_bytes(b"{}\n" + file.path.read_bytes())
    assert scoring_host(Source(settings, {}), None).bundles
    assert "which is served all the same" in caplog.text


def test_a_bundle_that_the_check_refuses_is_named_by_its_own_path(tmp_path: Path) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    config = tmp_path / "paywarden.toml"
    config.write_text(f'[serve]\nbundle = "{bundle}"\nruntime = "{tmp_path}/serve"\n', encoding="utf-8")
    releases = scoring_host(read_source(str(config), {}), None).releases
    ready = tmp_path / "ready"
    ready.mkdir()
    (bundle / "model.txt").write_bytes(b"tree")
    with pytest.raises(BundleRefused, match=f"bundle {bundle}: model.txt has a wrong checksum"):
        releases.prepare(ReleasePaths(str(bundle)), ready)
    assert list(ready.iterdir()) == []


def test_a_release_that_was_prepared_and_is_damaged_is_prepared_again(tmp_path: Path) -> None:
    config = tmp_path / "paywarden.toml"
    bundle = small_world.trained_bundle()
    config.write_text(f'[serve]\nbundle = "{bundle}"\nruntime = "{tmp_path}/serve"\n', encoding="utf-8")
    releases = scoring_host(read_source(str(config), {}), None).releases
    ready = tmp_path / "ready"
    ready.mkdir()
    paths = ReleasePaths(str(bundle))
    key = releases.prepare(paths, ready)
    before = (ready / key / "policy.json").stat().st_ino
    assert releases.prepare(paths, ready) == key
    assert (ready / key / "policy.json").stat().st_ino == before
    # As a loss of power leaves a file.
    (ready / key / "bundle" / "model.txt").write_bytes(b"")
    assert releases.prepare(paths, ready) == key
    assert (ready / key / "bundle" / "model.txt").read_bytes() == (bundle / "model.txt").read_bytes()
