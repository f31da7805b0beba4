"""The companion marks payments, or doubts its marks, before the mirror has their profiles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.features.profiles.payment_tags import MARK_DTYPE
from paywarden.schemas.avro import Decoder
from paywarden.schemas.errors import TemporaryFailure
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay_files import MARKS_FILE
from paywarden.streams.companion.companion import Companion
from paywarden.streams.companion.overlay_marks import OverlayMarks
from paywarden.streams.kafka.reading import Consumed, Record
from tests.unit.streams.companion.test_changelog_reader import ENTITIES, IDS, named, record, state
from tests.worlds.small import small_world

TAG = 4127


class Host:
    """A companion without Kafka. Its mirror notes what the marks say at the moment when profiles come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "mirror").mkdir()
        self.settings = settings = OverlaySettings(
            enabled=True, path=str(folder / "overlay"), payments_max=64, marks_max=64
        )
        self.clock_ms = 50_000
        self.marks = self.new_marks()
        self.clock_ms += settings.doubt_ms + 1
        self.seen: list[tuple[bool, bool]] = []
        self.counted: list[tuple[int, int]] = []

    def new_marks(self) -> OverlayMarks:
        """Open the marks beside the mirror."""
        plan = small_world.engine().plan
        return OverlayMarks(self.settings, plan, str(self.folder / "mirror"), clock_ms=lambda: self.clock_ms)

    def apply(self, _profiles: Mapping[bytes, bytes | None], *_: object) -> None:
        """Take profiles, as the mirror does."""
        self.seen.append((self.marks.is_unsure, TAG in self.marks._marks[tables.MARK_HEAD_SIZE :]))

    def bring(self, *records: Record, read_to: int = 0) -> tuple[bool, bool]:
        """Let records come. Returns whether the marks were in doubt, and had the payment, when the mirror got them."""
        companion: Any = SimpleNamespace(
            _moves=None, _decoder=Decoder("profiles", IDS), _entities=ENTITIES, _topic="profiles",
            _to_reach={}, _read_to={0: read_to}, _complete_to_ms=lambda *_: 0, _now_ms=lambda: 0,
            _marks=self.marks, _mark=lambda marks, changes: Companion._mark(companion, marks, changes),
            _mirror=self, health=SimpleNamespace(complete_to_ms=0), profiles_applied=0,
            _metrics=SimpleNamespace(
                applied=lambda *_: None, marks=lambda named, unnamed: self.counted.append((named, unnamed))
            ),
        )  # fmt: skip
        held = SimpleNamespace(records=list(records), ended={}, left_out=frozenset())
        Companion._apply(companion, cast(Consumed, held))
        return self.seen[-1]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("size", [None, 0, 5000])
def test_marks_that_are_deleted_or_cut_short_end_the_companion(host: Host, size: int | None) -> None:
    """The companion went on in a file without a name, and the flag overlay_absent was on all answers for ever."""
    companion: Any = SimpleNamespace(_marks=host.marks)
    Companion._look_at_marks(companion)
    path = host.folder / "mirror" / MARKS_FILE
    whole = path.stat().st_size
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    with pytest.raises(TemporaryFailure, match="marks were deleted or cut short"):
        Companion._look_at_marks(companion)
    made = host.new_marks()
    made.open_mirror(7)
    assert (made.is_in_place, made.is_unsure, path.stat().st_size) == (True, True, whole)
    host.clock_ms += 20_001
    assert not made.is_unsure


def payments(*tags: int) -> bytes:
    return np.array([(tag, 88, 6) for tag in tags], dtype=MARK_DTYPE).tobytes()


def test_payments_are_marked_before_the_mirror_has_their_profiles(host: Host) -> None:
    assert host.bring(named(state(b"card:1"), payments(TAG))) == (False, True)
    assert host.counted == [(1, 0)]


@pytest.mark.parametrize(
    ("records", "read_to"),
    [
        pytest.param([state(b"card:1")], 0, id="without hashes: an older stream"),
        pytest.param([named(state(b"card:1"), payments(TAG)[1:])], 0, id="hashes of a format that nobody knows"),
        pytest.param([named(state(b"card:1", offset=7), payments(TAG))], 3, id="a gap before it"),
        pytest.param([record(b"card:1", b"no avro")], 0, id="unreadable"),
    ],
)
def test_changes_that_do_not_name_payments_put_marks_in_doubt_before_the_mirror_has_them(
    host: Host, records: list[Record], read_to: int
) -> None:
    assert host.bring(*records, read_to=read_to)[0]
    assert host.counted[0][1] == 1
    # It is over after two lifetimes, as nothing else is unnamed.
    host.clock_ms += 20_001
    assert host.bring(named(state(b"card:2", offset=9), payments(TAG)), read_to=9) == (False, True)
