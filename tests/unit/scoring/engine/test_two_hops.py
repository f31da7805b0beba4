"""Features two hops away on a scoring host: the bits of the kernel alone, and faults that stay where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.models.policy.policy import PROFILE_UNREADABLE, Policy, PolicySettings, flags_of
from paywarden.scoring.engine import served_model
from paywarden.scoring.engine.batching.batcher import Chunk, Refusal
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics, StageTimes
from paywarden.scoring.state.identity_index import IdentityIndex, index_of
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.overlay.overlay_files import prepare
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.overlay_marks import OverlayMarks
from tests.oracles.step_overlay import StepOverlay
from tests.oracles.step_vectors import StepVectors
from tests.worlds.small import two_hops
from tests.worlds.small.even_chain import KeptEntries, NativeEvenChain
from tests.worlds.small.two_hops import CATALOGUE, NOW_MS, Past

NAMES = CATALOGUE.names
OF_NEIGHBOURS = [NAMES.index(name) for name in ("worst_merchant", "merchants_mean", "buyers", "cards_devices")]


@pytest.fixture
def settings(tmp_path: Path) -> MirrorSettings:
    return MirrorSettings(path=str(tmp_path / "mirror"), size_mb=64)


def write(settings: MirrorSettings, profiles: Mapping[bytes, bytes | None], index: IdentityIndex | None = None) -> None:
    """Write a mirror as a companion does."""
    with closing(MirrorWriter(settings)) as writer:
        list(writer.keep_index(index_of(two_hops.engine().plan) if index is None else index))
        writer.apply(profiles, {0: 1}, NOW_MS - 100)


def metrics() -> ScoringMetrics:
    names = two_hops.engine().plan.entity_names
    return ScoringMetrics.declare(MetricsRegistry(), flags=flags_of(names), entities=names)


def step_vectors(engine: FeatureEngine, settings: MirrorSettings, overlay: StepOverlay | None = None) -> StepVectors:
    rows = np.zeros((ROWS_MAX, engine.plan.row_width), dtype=np.int64)
    stages = StageTimes(MetricsRegistry())
    return StepVectors(engine, settings, rows, metrics=metrics(), stages=stages, overlay=overlay, held_cards=None)


class Host:
    """The vectors of one worker."""

    def __init__(self, settings: MirrorSettings) -> None:
        self.vectors = step_vectors(two_hops.engine().clone_for_thread(), settings)
        self.vectors.open()

    def fill(self, payments: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float32], list[tuple[str, ...]]]:
        checked = two_hops.checked(payments)
        flags, _ = self.vectors.fill(checked)
        return self.vectors.vectors[: len(checked)].copy(), flags


@pytest.fixture
def past() -> Past:
    return Past(seed=1)


@pytest.fixture
def host(settings: MirrorSettings, past: Past) -> Iterator[Host]:
    write(settings, past.profiles)
    opened = Host(settings)
    yield opened
    opened.vectors.close()


def same(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    return found.tobytes() == wanted.tobytes()


# Neighbours that cannot be read


@pytest.mark.parametrize("state", [b"", b"\x06 no profile", b"\x00" * 300, None])
def test_a_neighbour_that_cannot_be_read_counts_as_one_that_is_gone_and_is_told(
    settings: MirrorSettings, past: Past, state: bytes | None
) -> None:
    damaged = next(key for key in past.profiles if key.startswith(b"merchant:"))
    if state is None:
        changed = bytearray(past.profiles[damaged])
        changed[-1] ^= 1
        state = bytes(changed)
    write(settings, {**past.profiles, damaged: state})
    asked = [values for values in past.asked(60) if values["merchant_id"] != damaged[9:].decode()]
    checked = two_hops.checked(asked)
    before = past.vectors(checked)
    del past.profiles[damaged]
    wanted = past.vectors(checked)
    host = Host(settings)
    with closing(host.vectors):
        found, flags = host.fill(asked)
    assert same(found, wanted)
    told = [PROFILE_UNREADABLE in of_payment for of_payment in flags]
    is_other = [before[row].tobytes() != wanted[row].tobytes() for row in range(len(asked))]
    assert 0 < sum(is_other) <= sum(told) < len(asked)
    assert not any(other and not is_told for other, is_told in zip(is_other, told, strict=True))
    assert all(of_payment.count(PROFILE_UNREADABLE) <= 1 for of_payment in flags)


# A card has neighbours of its own, an address has none.
@pytest.mark.parametrize("own", [b"card:c-1", b"address:192.0.2.7"])
def test_a_payment_whose_own_profile_cannot_be_read_has_no_neighbours(
    settings: MirrorSettings, past: Past, own: bytes
) -> None:
    write(settings, {**past.profiles, own: b"\x06 no profile"})
    asked = past.asked(50)
    checked = two_hops.checked(asked)
    host = Host(settings)
    with closing(host.vectors):
        found, flags = host.fill(asked)
    nobody = past.vectors(checked, known={})
    del past.profiles[own]
    wanted, entities = past.vectors(checked), two_hops.engine().plan.entity_count
    is_own = [own in checked.keys[row * entities : (row + 1) * entities] for row in range(len(asked))]
    assert 1 < sum(is_own) < len(asked)
    for row in range(len(asked)):
        # To the others it is a neighbour.
        assert same(found[row], nobody[row] if is_own[row] else wanted[row])
        assert flags[row].count(PROFILE_UNREADABLE) == 1 or not is_own[row]


def test_an_index_that_is_older_than_the_mirror_is_not_used(host: Host, past: Past) -> None:
    gone = [key for key in past.profiles if key.startswith(b"merchant:")][:4]
    host.vectors.close()
    _behind_the_index(Path(host.vectors._settings.path), gone)
    host.vectors.open()
    # `open` takes an index that is not as new as the mirror for none.
    assert host.vectors.mirror is None


def _behind_the_index(path: Path, keys: Sequence[bytes]) -> None:
    with closing(MirrorWriter(MirrorSettings(path=str(path), size_mb=64))) as writer:
        writer.apply(dict.fromkeys(keys), {})


def test_neighbours_of_an_earlier_catalogue_are_migrated(settings: MirrorSettings, past: Past) -> None:
    more = Catalogue(
        entities=CATALOGUE.entities,
        features=(*CATALOGUE.features, two_hops.merchant.count("more", "7d"), two_hops.card.count("other", "7d")),
        payment=two_hops.FIELDS,
    )
    earlier = two_hops.profiles_of(FeatureEngine(more), two_hops.heard(seed=1))
    assert earlier.keys() == past.profiles.keys()
    assert earlier != past.profiles
    write(settings, earlier)
    asked = past.asked(20)
    host = Host(settings)
    with closing(host.vectors):
        found, flags = host.fill(asked)
    assert same(found, past.vectors(two_hops.checked(asked)))
    assert not any(PROFILE_UNREADABLE in of_payment for of_payment in flags)


# Mirrors


def test_without_a_mirror_neighbours_are_missing(settings: MirrorSettings, past: Past) -> None:
    host = Host(settings)
    vectors, flags = host.fill(past.asked(3))
    assert np.isnan(vectors[:, OF_NEIGHBOURS]).all()
    assert flags == [("mirror_absent",)] * 3
    write(settings, past.profiles)
    assert host.vectors.open()
    asked = past.asked(3)
    assert same(host.fill(asked)[0], past.vectors(two_hops.checked(asked)))
    host.vectors.close()
    # What the mirror said is gone, too.
    assert np.isnan(host.fill(asked)[0][:, OF_NEIGHBOURS]).all()


def test_a_mirror_without_the_index_is_not_used_and_the_reason_is_told(settings: MirrorSettings, past: Past) -> None:
    nothing = IdentityIndex({}, two_hops.engine().plan.key)
    write(settings, past.profiles, nothing)
    host = Host(settings)
    assert host.vectors.missing() == (
        f"the mirror at {settings.path} does not find the neighbours of features two hops away: the companion makes "
        "its index, or has another [features] catalogue"
    )
    assert host.fill(past.asked(1))[1] == [("mirror_absent",)]
    write(settings, {})
    assert host.vectors.open()
    assert host.vectors.missing() == ""
    asked = past.asked(9)
    assert same(host.fill(asked)[0], past.vectors(two_hops.checked(asked)))
    host.vectors.close()


def test_a_catalogue_without_hops_takes_any_mirror(settings: MirrorSettings, past: Past) -> None:
    plain = Catalogue(CATALOGUE.entities, CATALOGUE.features[:9], payment=two_hops.FIELDS)
    write(settings, past.profiles, IdentityIndex({}, two_hops.engine().plan.key))
    vectors = step_vectors(FeatureEngine(plain), settings)
    assert vectors.open()
    assert vectors.hops.values.shape == (ROWS_MAX, 0)
    assert vectors.hops.frame_for(vectors.rows) is None
    vectors.close()


def test_the_index_of_a_plan_has_the_targets_alone_and_knows_their_keys() -> None:
    assert index_of(two_hops.engine().plan).entities == {
        "card": False,
        "merchant": False,
        "device": False,
        "address": False,
        "buyer": True,
        "subnet": True,
    }


# Overlay


@pytest.mark.parametrize("has_marks", [True, False])
def test_pending_payments_are_no_neighbours_and_in_no_neighbours_profile(
    tmp_path: Path, settings: MirrorSettings, past: Past, has_marks: bool
) -> None:
    write(settings, past.profiles)
    plan, clock_ms = two_hops.engine().plan, [50_000]
    overlay_settings = OverlaySettings(
        enabled=True, path=str(tmp_path / "overlay"), lifetime_ms=10_000, payments_max=150, marks_max=512
    )
    prepare(overlay_settings, plan)
    with closing(MirrorWriter(settings)) as writer:
        newest = writer.newest_transaction()
    if has_marks:
        marks = OverlayMarks(overlay_settings, plan, settings.path, clock_ms=lambda: clock_ms[0])
        marks.open_mirror(newest)
        clock_ms[0] += overlay_settings.doubt_ms + 1
    engine = two_hops.engine().clone_for_thread()
    overlay = StepOverlay(overlay_settings, engine, rows_max=ROWS_MAX, clock_ms=lambda: clock_ms[0])
    vectors = step_vectors(engine, settings, overlay)
    assert vectors.open()
    pending = [{**values, "amount_minor": 99_000_000} for values in past.asked(30)]
    asked = past.asked(40)
    before = two_hops.checked(pending)
    vectors.fill(before)
    overlay.add(before.keys, before.ids, before.rows, NOW_MS)
    checked = two_hops.checked(asked)
    flags, _ = vectors.fill(checked)
    found, alone = vectors.vectors[: len(asked)], past.vectors(checked)
    for name in ("worst_merchant", "merchants_mean", "buyers", "subnets", "cards_devices", "cards_max", "device_ages"):
        place = NAMES.index(name)
        assert same(found[:, place], alone[:, place]), name
    # The payments' own profiles have them.
    own = NAMES.index("merchant_mean")
    assert same(found[:, own], alone[:, own]) is not has_marks
    assert all(("overlay_absent" in of_payment) is not has_marks for of_payment in flags)
    vectors.close()
    overlay.close()


# One call


def test_one_call_has_the_vectors_of_the_kernel_alone(
    settings: MirrorSettings, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "os", SimpleNamespace(urandom=bytes))
    damaged = next(key for key in past.profiles if key.startswith(b"merchant:"))
    write(settings, {**past.profiles, damaged: b"\x06 no profile"})
    kept = KeptEntries()
    scorer = PaymentScorer(
        engine=two_hops.engine().clone_for_thread(),
        intake=two_hops.decoder(),
        models=cast(ModelChain, NativeEvenChain()),
        policy=Policy(PolicySettings(), review_at=0.9, decline_at=0.95),
        mirror=settings,
        outbox=kept,
        metrics=metrics(),
    )
    in_steps, fill = list[int](), scorer._fill

    def noted(*given: Any) -> int:
        in_steps.append(1)
        return fill(*given)

    scorer._fill = noted  # type: ignore[assignment,method-assign]
    chunks_in_steps = 0
    for count in (1, 5, 64, 1, 20):
        kept.entries.clear()
        asked = past.asked(count)
        in_steps.clear()
        results = scorer.score(Chunk([two_hops.body_of(values) for values in asked]), NOW_MS)
        assert not any(isinstance(result, Refusal) for result in results)
        chunks_in_steps += len(in_steps)
        found = np.array([np.frombuffer(entry.vector, dtype="<f4") for entry in kept.entries])
        for row, values in enumerate(asked):
            if PROFILE_UNREADABLE in kept.entries[row].response.flags:
                assert in_steps
            elif values["merchant_id"] != damaged[9:].decode():
                assert same(found[row], past.vectors(two_hops.checked([values]))[0])
    assert chunks_in_steps < 5
    scorer.close_mirror()
