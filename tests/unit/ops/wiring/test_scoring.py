"""What a scoring host is built from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from paywarden.ops.wiring import scoring_host
from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.settings import Source
from tests.worlds import small_world


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


def test_settings_of_the_chain_are_checked_before_any_worker_starts() -> None:
    with pytest.raises(Misconfigured, match=r"^\[serve\] model_failure_count_max: wanted at least 1, got 0"):
        scoring_host(source(model_failure_count_max=0), None)
