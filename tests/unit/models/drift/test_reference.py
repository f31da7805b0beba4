"""References as files: reading gives the saved reference or refuses the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paywarden.models.bundle.bundle import MANIFEST, load_bundle, sha256_of
from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.drift.counts import DecisionRows, count_rows
from paywarden.models.drift.detectors import DAY_MS, LENGTHS_MS
from paywarden.models.drift.reference import REFERENCE, Reference, load_reference, read_reference
from paywarden.models.drift.reference_builder import Live, PastDecisions, make_reference
from paywarden.models.drift.signals import Block
from paywarden.models.drift.table_segments import TableSegments
from paywarden.schemas.errors import BundleRefused
from tests.worlds.small import small_world

FIRST_MS = 20_000 * DAY_MS
FLAGS = ("unknown_card",)


def made(seed: int = 1, *, version: str = "v1", live: bool = True) -> Reference:
    random, rows = np.random.default_rng(seed), 600
    found = make_reference(
        PastDecisions(
            random.random(rows),
            random.random((rows, 2)).astype(np.float32),
            TableSegments(
                FIRST_MS + np.sort(random.integers(0, 3 * DAY_MS, rows)),
                tuple(random.choice(np.array(["DE", "FR", None], dtype=object), rows) for _ in DIMENSIONS),
            ),
            Live(random.integers(0, 3, rows), [FLAGS, ()] * 300, random.integers(-1, 9000, rows)) if live else None,
        ),
        model_version=version,
        feature_names=("amount", "age"),
        thresholds=(0.9, 0.97),
        flags=FLAGS if live else (),
    )
    assert found is not None
    return found


@cache
def reference() -> Reference:
    return made()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Saves a reference, so that a test can damage it."""
    reference().save(tmp_path / REFERENCE)
    return tmp_path / REFERENCE


def block_of(one: Reference, length_ms: int) -> Block:
    """Returns counts of some payments of the following week."""
    random, rows = np.random.default_rng(9), 100
    counts = count_rows(
        one.binning,
        DecisionRows(
            random.random(rows),
            random.integers(0, 3, rows),
            random.random((rows, 2)).astype(np.float32),
            [("odd",)] * rows,
            random.integers(-1, 9000, rows),
            [["DE", "US"] * 50 for _ in DIMENSIONS],
        ),
    )
    moved = np.linspace(-1, 1, len(one.layout.signals), dtype=np.float32)
    return one.block(counts, FIRST_MS + 5 * DAY_MS, length_ms, moved)


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Write the file again with changes to its head and its arrays."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    head = json.loads(str(arrays["head"]))
    change(head, arrays)
    np.savez(path, **{**arrays, "head": np.array(json.dumps(head))})


def refusal(path: Path) -> str:
    with pytest.raises(BundleRefused) as caught:
        read_reference(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("live", [True, False])
def test_reading_gives_the_saved_reference(tmp_path: Path, live: bool) -> None:
    saved = made(live=live)
    saved.save(tmp_path / "any name")
    read = read_reference(tmp_path / "any name")
    assert read.digest == saved.digest
    assert read.binning.digest == saved.binning.digest
    assert (read.model_version, read.feature_names, read.review_at, read.kinds) == (
        "v1", ("amount", "age"), 0.9, saved.kinds,
    )  # fmt: skip
    assert read.layout.signals == saved.layout.signals
    for length_ms in LENGTHS_MS:
        mine, other = block_of(read, length_ms), block_of(saved, length_ms)
        assert mine.signals == other.signals
        for name in ("value", "expected", "sd", "count", "effect"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


def test_the_same_reference_gives_the_same_bytes_on_another_day(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 2e9)
    made().save(tmp_path / "again")
    read_reference(path).save(tmp_path / "read")
    assert path.read_bytes() == (tmp_path / "again").read_bytes() == (tmp_path / "read").read_bytes()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(place=st.integers(0, 2**32), from_the_end=st.booleans(), bit=st.integers(0, 7))
def test_a_damaged_file_is_refused_unless_the_damage_is_harmless(
    path: Path, place: int, from_the_end: bool, bit: int
) -> None:
    reference().save(path)
    content = bytearray(path.read_bytes())
    # The zip's directory is at the end.
    content[-1 - place % 2000 if from_the_end else place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        read = read_reference(path)
    except BundleRefused as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert read.digest == reference().digest


@pytest.mark.parametrize(
    "change",
    [
        lambda head, _: head.pop("review_at"),
        lambda head, _: head.update(kinds=64),
        lambda head, _: head.update(values=[["DE"]]),
        lambda head, _: head.update(flags=None),
        lambda _, arrays: arrays.pop("usual_season"),
        lambda _, arrays: arrays.pop("score_edges"),
    ],
)
def test_a_reference_in_which_something_is_missing_is_refused(
    path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]
) -> None:
    edit(path, change)
    assert "cannot be read as a reference" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda head, _: head.update(feature_names=["amount"]),
        lambda head, _: head.update(values=[["DE"], ["FR"], []]),
        lambda head, _: head.update(kinds=1),
        lambda _, arrays: arrays.update(feature_edges=arrays["feature_edges"][:, 1:]),
        lambda _, arrays: arrays.update(score_edges=arrays["score_edges"][1:]),
        lambda _, arrays: arrays.update(features=arrays["features"][0]),
        lambda _, arrays: arrays.update(usual_level=arrays["usual_level"][1:]),
        lambda _, arrays: arrays.update(usual_season=arrays["usual_season"][:24]),
        lambda _, arrays: arrays.update(usual_wander=arrays["usual_wander"][:2]),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]
) -> None:
    edit(path, change)
    assert "do not belong together" in refusal(path)


def edit_files(bundle: Path, change: Callable[[dict[str, str]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(manifest["files"])
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_a_bundle_without_a_reference_is_a_bundle(tmp_path: Path) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    edit_files(bundle, lambda files: files.pop(REFERENCE))
    (bundle / REFERENCE).unlink()
    assert load_reference(bundle) is None
    load_bundle(bundle, catalogue_digest=small_world.engine().plan.digest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: reference().save(path), f"{REFERENCE} has a wrong checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), f"{REFERENCE} has a wrong checksum"),
        (lambda path: path.unlink(), f"{REFERENCE} is missing"),
    ],
    ids=["another", "cut", "absent"],
)
def test_a_bundle_whose_reference_was_changed_is_refused(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    change(bundle / REFERENCE)
    with pytest.raises(BundleRefused, match=words):
        load_reference(bundle)


def test_a_reference_with_another_format_is_refused(tmp_path: Path) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    edit(bundle / REFERENCE, lambda head, _: head.update(format=9))
    edit_files(bundle, lambda files: files.update({REFERENCE: sha256_of(bundle / REFERENCE)}))
    with pytest.raises(BundleRefused, match="got 9"):
        load_reference(bundle)
