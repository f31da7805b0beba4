"""A challenger with a mirror of its own decides as a worker on that mirror, and never after the payment is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.policy.policy import PROFILE_UNREADABLE, Policy, PolicySettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.identity_index import IdentityIndex, index_of
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.shadow import mirror_challenger
from paywarden.streams.shadow.challenger import FAILED, LATE, NO_PROFILES
from paywarden.streams.shadow.mirror_challenger import LATE_MS, MirrorChallenger
from tests.parity.features_worlds import RATES
from tests.unit.features.kernel import profiles as words
from tests.unit.scoring.engine.test_scorer import NOW_MS, Host, requests, score_many
from tests.worlds.small import small_world, two_hops
from tests.worlds.small.even_chain import EvenChain
from tests.worlds.small.small_history import profiles

SETTINGS: dict[str, Any] = {"review_at": 0.01, "decline_at": 0.05}
# Half of the profiles: what another catalogue would make of the same payments.
OTHER = {key: state for number, (key, state) in enumerate(sorted(profiles().items())) if number % 2}


def decisions(folder: Path, filled: dict[bytes, bytes | None], **policy: Any) -> list[OutboxEntry]:
    host = Host(folder, **policy)
    host.fill(filled, NOW_MS - 300)
    score_many(host.scorer, requests()[:150])
    host.close()
    return list(host.outbox.entries)


@pytest.fixture
def champions(tmp_path: Path) -> list[OutboxEntry]:
    (tmp_path / "champion").mkdir()
    return decisions(tmp_path / "champion", profiles())


def challenger(mirror: MirrorSettings, now_ms: int) -> MirrorChallenger:
    bundle = small_world.loaded_bundle()
    return MirrorChallenger(
        "wide",
        bundle,
        Policy(PolicySettings(**SETTINGS), review_at=0.5, decline_at=0.9),
        engine=small_world.engine(),
        mirror=mirror,
        decoder=RequestDecoder(small_world.engine().plan, small_world.rates(), RequestLimits()),
        now_ms=lambda: now_ms,
    )


def filled(folder: Path, complete_to_ms: int) -> MirrorSettings:
    folder.mkdir()
    host = Host(folder)
    host.fill(OTHER, complete_to_ms)
    return host.mirror


def test_it_decides_as_a_worker_on_its_mirror_and_is_marked(champions: list[OutboxEntry], tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    expected = decisions(tmp_path / "worker", OTHER, **SETTINGS)
    own = challenger(filled(tmp_path / "shadow", NOW_MS - 300), NOW_MS + 100)
    found = own.evaluate(champions)
    assert found.left_out == {}
    differ = 0
    for record, champion, other in zip(found.records, champions, expected, strict=True):
        assert record.is_shadow_host
        assert (record.challenger.score, record.challenger.action) == (other.response.score, other.response.action)
        assert list(record.challenger_reasons) == list(other.response.reasons)
        assert (record.champion.score, record.decision_id) == (champion.response.score, champion.response.decision_id)
        differ += record.challenger.score != record.champion.score
    assert differ > 50
    # It goes on when its mirror is closed for another version of it, and opened again.
    own.close()
    assert own.evaluate(champions[:2]).left_out == {NO_PROFILES: 2}


def test_a_decision_that_cannot_be_compared_fails_alone(champions: list[OutboxEntry], tmp_path: Path) -> None:
    own = challenger(filled(tmp_path / "shadow", NOW_MS - 300), NOW_MS + 100)
    (first, *_) = own.evaluate(champions[:1]).records
    # The challenger has become the champion, and an action that nobody knows.
    champions[1].bundle_digest = bytes.fromhex(first.challenger.version.bundle)
    champions[1].policy_digest = bytes.fromhex(first.challenger.version.policy)
    champions[2].response.action = "perhaps"
    found = own.evaluate(champions[:4])
    assert found.left_out == {FAILED: 2}
    assert [one.payment_id for one in found.records] == [champions[at].request.payment_id for at in (0, 3)]


@pytest.mark.parametrize(
    ("complete_to_ms", "now_ms", "left_out"),
    [
        # The payment itself may be in the profiles by now.
        (NOW_MS + 50, NOW_MS + 100, {LATE: 5}),
        (NOW_MS - 300, NOW_MS + LATE_MS + 1, {LATE: 5}),
        (0, NOW_MS + 100, {NO_PROFILES: 5}),
    ],
)
def test_a_payment_that_may_be_in_the_profiles_is_left_out(
    champions: list[OutboxEntry], tmp_path: Path, complete_to_ms: int, now_ms: int, left_out: dict[str, int]
) -> None:
    found = challenger(filled(tmp_path / "shadow", complete_to_ms), now_ms).evaluate(champions[:5])
    assert (found.records, found.left_out) == ([], left_out)


def test_without_a_mirror_it_waits_and_a_request_it_cannot_read_fails_alone(
    champions: list[OutboxEntry], tmp_path: Path
) -> None:
    absent = challenger(MirrorSettings(path=str(tmp_path / "none")), NOW_MS + 100)
    assert absent.evaluate(champions[:3]).left_out == {NO_PROFILES: 3}
    champions[1].request.currency = "QQX"
    found = challenger(filled(tmp_path / "shadow", NOW_MS - 300), NOW_MS + 100).evaluate(champions[:3])
    assert found.left_out == {FAILED: 1}
    assert [one.payment_id for one in found.records] == [champions[at].request.payment_id for at in (0, 2)]


def test_a_catalogue_with_fields_that_no_decision_holds_is_refused() -> None:
    field = SimpleNamespace(name="customer_id")
    engine = SimpleNamespace(plan=SimpleNamespace(fields=SimpleNamespace(declared=(field,))))
    with pytest.raises(Misconfigured, match=r"challenger wide: its catalogue declares fields .* customer_id"):
        MirrorChallenger(
            "wide",
            small_world.loaded_bundle(),
            Policy(PolicySettings(), review_at=0.5, decline_at=0.9),
            engine=cast(FeatureEngine, engine),
            mirror=MirrorSettings(),
            decoder=RequestDecoder(small_world.engine().plan, small_world.rates(), RequestLimits()),
        )


# Features two hops away: what the neighbours say comes from the challenger's own mirror, by its own index.


@cache
def wide() -> FeatureEngine:
    """The catalogue of the world with two hops, without the fields that a project declares."""
    entities = two_hops.CATALOGUE.entities[:4]
    declared = ("buyer_count", "subnet_count", "buyers", "subnets")
    features = [one for one in two_hops.CATALOGUE.features if one.name not in declared]
    return FeatureEngine(Catalogue(entities, tuple(features)))


class WideWorld:
    """A past, its profiles in a mirror by the wide catalogue, and decisions of a champion about new payments."""

    def __init__(self, folder: Path) -> None:
        past, self.mirror = two_hops.Past(seed=5), MirrorSettings(path=str(folder / "mirror"), size_mb=64)
        self.profiles = two_hops.profiles_of(wide(), two_hops.heard(seed=5))
        self._keys = two_hops.keys_by_identity(two_hops.heard(seed=5))
        self._asked = [without_declared(values) for values in past.asked(60)]
        approved = ScoreResponse(action="approve")
        self.champions = [
            OutboxEntry(request=ScoreRequest(**values), response=approved, decided_time_ms=two_hops.NOW_MS)
            for values in self._asked
        ]

    def write(self, index: IdentityIndex, changed: Mapping[bytes, bytes] | None = None) -> None:
        """Write the mirror as a companion does."""
        with closing(MirrorWriter(self.mirror)) as writer:
            list(writer.keep_index(index))
            writer.apply({**self.profiles, **(changed or {})}, {0: 1}, two_hops.NOW_MS - 300)

    def challenger(self, monkeypatch: pytest.MonkeyPatch) -> MirrorChallenger:
        """One whose model scores all payments alike, and keeps their vectors."""
        monkeypatch.setattr(mirror_challenger, "ModelChain", lambda *_, **__: EvenChain())
        bundle = SimpleNamespace(manifest=SimpleNamespace(digest="ab" * 32))
        limits = RequestLimits(past_ms_max=400 * 24 * 3_600_000)
        return MirrorChallenger(
            "wide",
            cast(Any, bundle),
            Policy(PolicySettings(), review_at=0.5, decline_at=0.9),
            engine=wide().clone_for_thread(),
            mirror=self.mirror,
            decoder=RequestDecoder(wide().plan, RATES, limits),
            now_ms=lambda: two_hops.NOW_MS,
            # It looks for a mirror each time.
            clock=iter(range(1000)).__next__,
        )

    def vectors(self, profiles: Mapping[bytes, bytes]) -> list[bytes]:
        """Returns the vectors of the payments by the kernel alone."""
        checked, names = two_hops.checked(self._asked), wide().plan.entity_names
        width, entities = wide().plan.row_width, len(two_hops.CATALOGUE.entities)
        seen = [
            {name: profiles.get(key) for name, key in zip(names, checked.keys[at:], strict=False) if key}
            for at in range(0, len(checked.keys), entities)
        ]

        def profile_of(entity: str, identity: int) -> bytes | None:
            return profiles.get(self._keys.get((entity, identity), b""))

        rows = checked.rows[:, :width].tolist()
        return [vector.tobytes() for vector in words.vectors(wide().clone_for_thread(), rows, seen, profile_of)]


def without_declared(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "buyer_email"}


@pytest.fixture
def wide_world(tmp_path: Path) -> WideWorld:
    return WideWorld(tmp_path)


def made_vectors(own: MirrorChallenger) -> list[bytes]:
    return [entry.vector for entry in own._kept.entries]


def unlike(vectors: Sequence[bytes], others: Sequence[bytes]) -> list[int]:
    return [place for place, (one, other) in enumerate(zip(vectors, others, strict=True)) if one != other]


def test_its_features_two_hops_away_have_the_bits_of_the_kernel_on_its_own_mirror(
    wide_world: WideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide_world.write(index_of(wide().plan))
    with closing(wide_world.challenger(monkeypatch)) as own:
        found = own.evaluate(wide_world.champions)
        assert (len(found.records), found.left_out) == (len(wide_world.champions), {})
        vectors = np.array([np.frombuffer(vector, dtype="<f4") for vector in made_vectors(own)])
        assert made_vectors(own) == wide_world.vectors(wide_world.profiles)
    for name in ("worst_merchant", "merchants_mean", "addresses", "cards_devices", "cards_max", "device_ages"):
        assert np.isfinite(vectors[:, wide().plan.names.index(name)]).mean() > 0.4, name


def test_without_an_index_of_neighbours_it_decides_nothing_until_there_is_one(
    wide_world: WideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take all neighbours for missing, and compare that with the champion."""
    wide_world.write(IdentityIndex({}, wide().plan.key))
    with closing(wide_world.challenger(monkeypatch)) as own:
        assert own.evaluate(wide_world.champions).left_out == {NO_PROFILES: len(wide_world.champions)}
        wide_world.write(index_of(wide().plan))
        assert own.evaluate(wide_world.champions).left_out == {}
        assert made_vectors(own) == wide_world.vectors(wide_world.profiles)


def test_a_neighbour_that_cannot_be_read_is_missing_for_its_own_payments_alone(
    wide_world: WideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = b"merchant:m-1"
    wide_world.write(index_of(wide().plan), {damaged: b"\x06 no profile"})
    gone = {key: state for key, state in wide_world.profiles.items() if key != damaged}
    with closing(wide_world.challenger(monkeypatch)) as own:
        assert own.evaluate(wide_world.champions).left_out == {}
        vectors, flags = made_vectors(own), [entry.response.flags for entry in own._kept.entries]
    others = [place for place, one in enumerate(wide_world.champions) if one.request.merchant_id != "m-1"]
    whole, wanted = wide_world.vectors(wide_world.profiles), wide_world.vectors(gone)
    assert unlike([vectors[place] for place in others], [wanted[place] for place in others]) == []
    differ = [place for place in others if whole[place] != wanted[place]]
    assert 0 < len(differ) < len(others)
    assert all(PROFILE_UNREADABLE in flags[place] for place in differ)
