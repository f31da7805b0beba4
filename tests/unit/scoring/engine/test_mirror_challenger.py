"""A challenger with a mirror of its own decides as a worker on that mirror, and never after the payment is in it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.challenger import FAILED, LATE, NO_PROFILES
from paywarden.scoring.engine.mirror_challenger import LATE_MS, MirrorChallenger
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror import MirrorSettings
from tests.unit.scoring.engine.test_scorer import NOW_MS, Host, requests, score_many
from tests.worlds.small import small_world
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
