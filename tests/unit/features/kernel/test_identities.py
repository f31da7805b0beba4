"""Texts in profiles: identities that nobody can forge, and the public codes of older profiles."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import Attribute, card_id, channel, device_id, merchant_id
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.profiles.engine import FeatureEngine
from tests.unit.features.kernel.profiles import Change, card, of_card, payment, profile, row, vector, vectors
from tests.worlds.stream.packed import as_before, read_packed

# A Sunday at noon.
NOON_MS = 1_530_446_400_000
FEATURES = (
    card.is_new("is_new", device_id, among=8),
    card.seconds_since_same("since", device_id, among=8),
    card.distinct("distinct_7d", device_id, "7d", bits=1024),
    card.distinct("distinct_2h", device_id, "2h", bits=1024),
    card.entropy("entropy", device_id, "7d"),
)


def engine(key: IdentityKey | None = None) -> FeatureEngine:
    return of_card(*FEATURES) if key is None else FeatureEngine(Catalogue((card,), FEATURES), key)


def features(state: bytes, device: str, time_ms: int) -> dict[str, float]:
    of = engine()
    values = vector(of, time_ms, 1, {"card": state}, device_id=device)
    return dict(zip(of.plan.names, values.tolist(), strict=True))


def as_written_before(changes: Sequence[Change]) -> bytes:
    """The profile that the code before wrote: version 4, and public codes of all texts."""
    return as_before(profile(engine(), "card", [without_identities(change) for change in changes]))


def without_identities(change: Change) -> Change:
    return replace(change, row=(*change.row[: kernel.CODE_COUNT], *[0] * kernel.IDENTITY_COUNT))


def alike(count: int) -> list[str]:
    """Ids of one CRC-32. It is linear: some 32 flips of the last bit of a character add up to no change, many times."""
    size = 44
    plain = zlib.crc32(b"0" * size)
    changes = [zlib.crc32(b"0" * at + b"1" + b"0" * (size - at - 1)) ^ plain for at in range(size)]
    # Gauss: `free` are sets of places whose flips together change nothing.
    reduced: dict[int, tuple[int, int]] = {}
    free = []
    for at, change in enumerate(changes):
        places = 1 << at
        while change and change.bit_length() in reduced:
            other, beside = reduced[change.bit_length()]
            change, places = change ^ other, places ^ beside
        if change:
            reduced[change.bit_length()] = change, places
        else:
            free.append(places)
    ids = []
    for chosen in itertools.islice(itertools.product((0, 1), repeat=len(free)), count):
        places = 0
        for each, flips in zip(chosen, free, strict=True):
            places ^= each * flips
        ids.append("".join("1" if places >> at & 1 else "0" for at in range(size)))
    assert len(set(ids)) == count
    assert len({zlib.crc32(each.encode()) for each in ids}) == 1
    return ids


def test_a_thousand_ids_of_one_crc_count_as_a_thousand() -> None:
    devices = alike(1000)
    changes = [payment(NOON_MS + number, device_id=device) for number, device in enumerate(devices)]
    state = profile(engine(), "card", changes[:-1])
    found = features(state, devices[-1], NOON_MS + HOUR_MS)
    # The code before counted one device, and took the thousandth for an old acquaintance.
    before = features(as_written_before(changes[:-1]), devices[-1], NOON_MS + HOUR_MS)
    assert (before["is_new"], round(before["distinct_7d"])) == (0, 1)
    assert found["is_new"] == 1
    assert found["distinct_7d"] == pytest.approx(999, rel=0.1)


@pytest.mark.parametrize("attribute", [card_id, merchant_id, device_id, channel], ids=lambda one: one.name)
def test_every_text_that_a_payer_may_choose_has_an_identity(attribute: Attribute) -> None:
    of = of_card(card.is_new("x", attribute, among=4))
    first, second = alike(2)
    texts: list[dict[str, Any]] = [{attribute.name: first}, {attribute.name: second}]
    rows = [row(NOON_MS + number, **text) for number, text in enumerate(texts)]
    state = profile(of, "card", [Change(kernel.PAYMENT, rows[0], 1)])
    assert vectors(of, rows, [{"card": state}] * 2)[:, 0].tolist() == [0, 1]


def test_another_key_remembers_under_other_identities() -> None:
    of = engine(IdentityKey.of_bytes(b"another key here"))
    (code,) = {row(1, device_id="d")[column] for column in [device_id.column]}
    identities = {each.plan.key.of("d") for each in (of, engine())}
    assert len(identities | {code}) == 3


# Profiles that were written before.


def test_a_text_of_a_profile_written_before_is_known() -> None:
    old = as_written_before([payment(NOON_MS, device_id="d1"), payment(NOON_MS + HOUR_MS, device_id="d2")])
    assert features(old, "d1", NOON_MS + 2 * HOUR_MS)["is_new"] == 0
    assert features(old, "d1", NOON_MS + 2 * HOUR_MS)["since"] == 7200
    assert features(old, "d3", NOON_MS + 2 * HOUR_MS)["is_new"] == 1


def test_a_text_that_is_seen_again_takes_the_place_of_its_public_code() -> None:
    devices = [f"d{number}" for number in range(8)]
    old = as_written_before([payment(NOON_MS + number, device_id=device) for number, device in enumerate(devices)])
    new = profile(engine(), "card", [payment(NOON_MS + HOUR_MS, device_id="d3")], old)
    values = read_packed(new).columns[read_packed(new).sources_at - 2]
    assert len(values) == 8
    assert [value > 2**33 for value in values] == [True] + 7 * [False]
    # All eight are still known: the one that was seen again takes no second place.
    assert [features(new, device, NOON_MS + 2 * HOUR_MS)["is_new"] for device in devices] == [0.0] * 8
    # One that looks like d3 did before is new now.
    assert values[0] == engine().plan.key.of("d3")


def test_a_late_event_does_not_make_a_text_older() -> None:
    old = as_written_before([payment(NOON_MS + HOUR_MS, device_id="d1")])
    new = profile(engine(), "card", [payment(NOON_MS, device_id="d1")], old)
    assert features(new, "d1", NOON_MS + 2 * HOUR_MS)["since"] == 3600


def test_a_device_of_before_and_after_is_counted_once() -> None:
    old = as_written_before([payment(NOON_MS + number, device_id="d") for number in range(3)])
    # In the tile of the last payment before, in later tiles, and late, in an earlier one.
    times_ms = [NOON_MS + 4, NOON_MS + DAY_MS, NOON_MS - DAY_MS, NOON_MS + 2 * DAY_MS]
    for end in range(len(times_ms) + 1):
        changes = [payment(time_ms, device_id="d") for time_ms in times_ms[:end]]
        new = profile(engine(), "card", changes, old)
        found = features(new, "d", NOON_MS + 2 * DAY_MS + HOUR_MS)
        assert found["distinct_7d"] == pytest.approx(1, abs=0.01)
        assert found["entropy"] <= 1


def test_devices_of_after_alone_are_counted_exactly() -> None:
    old = as_written_before([payment(NOON_MS, device_id="d")])
    later = NOON_MS + 3 * DAY_MS
    new = profile(engine(), "card", [payment(later + number, device_id=f"e{number}") for number in range(5)], old)
    fresh = profile(engine(), "card", [payment(later + number, device_id=f"e{number}") for number in range(5)])
    assert features(new, "d", later + 9)["distinct_2h"] == features(fresh, "d", later + 9)["distinct_2h"]
    assert features(new, "d", later + 9)["distinct_7d"] == features(fresh, "d", later + 9)["distinct_7d"]


EVENTS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["d1", "d2", "d3", "d4"])), min_size=1, max_size=12)


@settings(max_examples=100)
@given(before=EVENTS, after=EVENTS, data=st.data())
def test_order_does_not_matter_in_a_profile_of_before_either(
    before: list[tuple[int, str]], after: list[tuple[int, str]], data: st.DataObject
) -> None:
    old = as_written_before([payment(NOON_MS + hour * HOUR_MS, device_id=device) for hour, device in before])
    changes = [payment(NOON_MS + hour * HOUR_MS + 1, device_id=device) for hour, device in after]
    shuffled = data.draw(st.permutations(changes))
    cut = data.draw(st.integers(0, len(shuffled)))
    wanted = profile(engine(), "card", changes, old)
    assert profile(engine(), "card", shuffled[cut:], profile(engine(), "card", shuffled[:cut], old)) == wanted


def test_a_profile_of_another_catalogue_and_of_before_keeps_what_it_remembers() -> None:
    changes = [payment(NOON_MS, device_id="d1"), payment(NOON_MS + HOUR_MS, device_id="d2")]
    other = of_card(*FEATURES, card.count("count", "10m"))
    old = as_before(profile(other, "card", [without_identities(change) for change in changes]))
    assert read_packed(old).shape != read_packed(profile(engine(), "card", [])).shape
    found = features(old, "d1", NOON_MS + 2 * HOUR_MS)
    assert (found["is_new"], round(found["distinct_7d"])) == (0, 2)
    new = profile(engine(), "card", [payment(NOON_MS + 2 * HOUR_MS, device_id="d1")], old)
    assert features(new, "d1", NOON_MS + 3 * HOUR_MS)["distinct_7d"] == pytest.approx(2, abs=0.01)


def test_an_event_of_a_worker_of_before_is_taken_by_its_public_code() -> None:
    sent = without_identities(payment(NOON_MS, device_id="d1"))
    state = profile(engine(), "card", [sent])
    assert features(state, "d1", NOON_MS + 1)["is_new"] == 0
    assert features(state, "d2", NOON_MS + 1)["is_new"] == 1
