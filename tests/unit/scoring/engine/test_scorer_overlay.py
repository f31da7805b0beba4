"""A scorer with an overlay: the next payment sees the one before, and the answers say when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.models.policy.policy import OVERLAY_ABSENT, Policy, PolicySettings
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.overlay.overlay import Overlay
from paywarden.scoring.state.overlay.overlay_files import monotonic_ms, prepare
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.companion.overlay_marks import OverlayMarks
from paywarden.streams.shadow.challenger import VectorChallenger
from paywarden.streams.shadow.mirror_challenger import MirrorChallenger
from tests.unit.scoring.engine.test_scorer import NOW_MS, PLAN, STRANGER, Host, default_intake
from tests.worlds.small import small_world


class OverlaidHost(Host):
    """A host with an overlay. Its clock stands still; the marks say nothing of a mirror until they are opened."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.settings = OverlaySettings(
            enabled=True, path=str(folder / "overlay"), payments_max=512, marks_max=512, lifetime_ms=10_000
        )
        self.clock_ms = monotonic_ms()
        prepare(self.settings, PLAN)
        self.fill({})
        self.overlay = Overlay(self.settings, small_world.engine(), rows_max=ROWS_MAX, clock_ms=lambda: self.clock_ms)
        self.options = replace(self.options, overlay=self.overlay)

    def open_marks(self) -> OverlayMarks:
        """The companion starts, and a lifetime passes."""
        marks = OverlayMarks(self.settings, PLAN, self.mirror.path, clock_ms=lambda: self.clock_ms)
        marks.open_mirror(1_000)
        self.clock_ms += self.settings.doubt_ms + 1
        return marks


@pytest.fixture
def host(tmp_path: Path) -> Iterator[OverlaidHost]:
    made = OverlaidHost(tmp_path)
    made.open_marks()
    yield made
    made.close()


def payment(name: str, **changed: object) -> ScoreRequest:
    request = ScoreRequest()
    request.CopyFrom(STRANGER)
    request.payment_id = name
    for field, value in changed.items():
        setattr(request, field, value)
    return request


def counts(host: OverlaidHost) -> list[float]:
    """The number of the card's payments in the last hour, as each decision saw it."""
    place = PLAN.names.index("card_count_1h")
    return [float(np.frombuffer(entry.vector, dtype="<f4")[place]) for entry in host.outbox.entries]


@pytest.mark.parametrize(("jump_ms", "is_added"), [(9_000, True), (11_000, False)])
def test_pending_payments_stay_when_the_hosts_time_of_day_jumps_back(
    host: OverlaidHost, jump_ms: int, is_added: bool
) -> None:
    """How long they are pending is measured by a clock that nobody sets. A payment that is not added is counted."""
    host.score(payment("before", event_time_ms=NOW_MS))
    now_ms = NOW_MS - jump_ms
    host.score(payment("after", event_time_ms=NOW_MS), now_ms)
    host.score(payment("later", event_time_ms=NOW_MS), now_ms)
    # The time of day is right again.
    host.score(payment("last", event_time_ms=NOW_MS))
    assert counts(host) == ([0, 1, 2, 3] if is_added else [0, 1, 1, 1])
    assert host.overlay.metrics.untimely.value == (0 if is_added else 2)
    host.clock_ms += host.settings.lifetime_ms
    host.score(payment("much later", event_time_ms=NOW_MS))
    assert counts(host)[-1] == 0


def test_what_challengers_decide_in_the_shadow_is_pending_nowhere(host: OverlaidHost, tmp_path: Path) -> None:
    for number in range(3):
        host.score(payment(f"p{number}"))
    host.close()
    table, bundle = Path(host.settings.path), small_world.loaded_bundle()
    policy, before = Policy(PolicySettings(), review_at=0.5, decline_at=0.9), table.read_bytes()
    (tmp_path / "shadow").mkdir()
    shadow = Host(tmp_path / "shadow")
    shadow.fill({}, NOW_MS - 300)
    of_vectors = VectorChallenger("same", bundle, policy, catalogue_digest=PLAN.digest, rates=small_world.rates())
    of_mirror = MirrorChallenger(
        "other",
        bundle,
        policy,
        engine=small_world.engine(),
        mirror=shadow.mirror,
        decoder=default_intake(),
        now_ms=lambda: NOW_MS,
    )
    for challenger in (of_vectors, of_mirror):
        assert len(challenger.evaluate(host.outbox.entries).records) == 3
    assert table.read_bytes() == before


def test_without_marks_answers_say_that_the_last_seconds_were_not_seen(tmp_path: Path) -> None:
    host = OverlaidHost(tmp_path)
    for name in ("first", "second"):
        assert OVERLAY_ABSENT in host.score(payment(name)).flags
    assert host.counted()[OVERLAY_ABSENT] == 2
    # The companion comes: the payments before it are still there.
    marks = host.open_marks()
    host.clock_ms -= host.settings.lifetime_ms
    assert host.scorer.open_mirror()
    assert OVERLAY_ABSENT in host.score(payment("too early")).flags
    host.clock_ms += host.settings.lifetime_ms
    assert OVERLAY_ABSENT not in host.score(payment("third")).flags
    marks.note_unnamed()
    assert OVERLAY_ABSENT in host.score(payment("fourth")).flags
    host.close()


def test_a_mirror_that_somebody_else_wrote_is_not_trusted(tmp_path: Path) -> None:
    host = OverlaidHost(tmp_path)
    writer = MirrorWriter(MirrorSettings(path=host.mirror.path, size_mb=64))
    marks = OverlayMarks(host.settings, PLAN, host.mirror.path, clock_ms=lambda: host.clock_ms)
    marks.open_mirror(writer.newest_transaction())
    host.clock_ms += host.settings.doubt_ms + 1
    # An older companion knows nothing of marks.
    writer.apply({}, {0: 2}, NOW_MS)
    newest = writer.newest_transaction()
    writer.close()
    assert OVERLAY_ABSENT in host.score(payment("first")).flags
    marks.begin(newest)
    assert OVERLAY_ABSENT not in host.score(payment("second")).flags
    host.close()
