"""Texts in profiles: identities that nobody can forge, and the public codes of older profiles."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import pytest

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import Attribute, card_id, channel, device_id, merchant_id
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.catalogue.windows import HOUR_MS
from paywarden.features.profiles.engine import FeatureEngine
from tests.unit.features.kernel.profiles import Change, card, of_card, payment, profile, row, vector, vectors

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
