"""Keys of profiles: one for every entity and no other, and the same from a payment and from a history."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import ip
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.history.history import history_of_tables
from paywarden.features.profiles.keys import SEPARATOR, entity_key, hashed_id, key_maker
from paywarden.features.stores.base import KEY_BYTES_MAX, split_key
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import TABLE_ALONE

IDS = st.text(st.characters(exclude_characters=SEPARATOR, codec="utf-8"), min_size=1, max_size=40)
LONG_IDS = st.one_of(IDS, IDS.map(lambda text: text * 20))


def test_the_key_of_one_id_is_the_entity_a_colon_and_the_id() -> None:
    assert entity_key("card", ["4711"]) == b"card:4711"
    assert entity_key("card", ["Zürich"]) == "card:Zürich".encode()


def test_the_key_of_a_combination_has_a_separator_between_its_ids() -> None:
    assert entity_key("pair", ["c", "m"]) == b"pair:c\x1fm"
    assert entity_key("three", ["c", "m", "d"]) == b"three:c\x1fm\x1fd"


@given(ids=st.lists(LONG_IDS, min_size=2, max_size=3), others=st.lists(LONG_IDS, min_size=2, max_size=3))
def test_two_combinations_have_two_keys_that_a_store_takes(ids: list[str], others: list[str]) -> None:
    key = entity_key("pair", ids)
    assert (key == entity_key("pair", others)) == (ids == others)
    assert key == entity_key("pair", ids)
    assert split_key(key)[0] == "pair"
    assert len(key) <= KEY_BYTES_MAX


def test_moving_a_character_between_two_ids_changes_the_key() -> None:
    assert entity_key("pair", ["ab", "c"]) != entity_key("pair", ["a", "bc"])


@pytest.mark.parametrize("ids", [["4711\x1fm", "d"], ["4711", "m\x1fd"], ["4711\x1f", "\x1f"]])
def test_an_id_of_a_combination_that_holds_the_separator_is_refused(ids: list[str]) -> None:
    with pytest.raises(InvalidEvent, match="holds a control character") as refused:
        entity_key("pair", ids)
    assert "4711" not in str(refused.value)


def test_a_single_id_may_hold_the_separator() -> None:
    # Nothing is beside it to be confused with.
    assert entity_key("card", ["a\x1fb"]) == b"card:a\x1fb"


def test_a_digest_replaces_ids_that_are_too_long_together() -> None:
    room = KEY_BYTES_MAX - len("pair:") - 1
    just, over = ["a" * (room - 1), "b"], ["a" * room, "b"]
    assert entity_key("pair", just) == f"pair:{just[0]}\x1fb".encode()
    whole = f"pair:{over[0]}\x1fb".encode()
    digest = hashlib.blake2b(whole, digest_size=32).hexdigest()
    assert entity_key("pair", over) == f"pair:{digest}".encode()
    # It is refused where it comes in (streams/profiles/decoder.py), not changed to another card's.
    assert entity_key("card", ["a" * 600]) == b"card:" + b"a" * 600


# A whole history at once.

START_MS = 1_704_067_200_000


def history(**columns: list[str | None]) -> Any:
    count = len(next(iter(columns.values())))
    texts = ("card_id", "merchant_id", "device_id", "ip", "currency", "mcc", "country", "channel")
    required = ("card_id", "merchant_id", "currency")
    given_columns = {
        name: columns.get(name, ["EUR" if name == "currency" else "x"] * count if name in required else [None] * count)
        for name in texts
    }
    payments = pa.table(
        {
            "payment_id": pa.array([f"p{number}" for number in range(count)], pa.string()),
            "event_time_ms": pa.array(range(START_MS, START_MS + count), pa.int64()),
            "amount_minor": pa.array([1] * count, pa.int64()),
            **{name: pa.array(values, pa.string()) for name, values in given_columns.items()},
        }
    )
    kinds = {"payment_id": pa.string(), "outcome_time_ms": pa.int64(), "label": pa.string(), "source": pa.string()}
    return history_of_tables(payments, pa.table({name: pa.array([], kind) for name, kind in kinds.items()}))


TEXTS = st.sampled_from(["a", "b", "c", "ab", "bc", "Z" * 256])
ROWS = st.lists(st.tuples(TEXTS, TEXTS, st.one_of(st.none(), TEXTS)), max_size=12)


@given(rows=ROWS, fields=st.permutations(["card_id", "merchant_id", "device_id"]), count=st.integers(1, 3))
def test_the_entities_of_a_history_are_those_of_its_payments(
    rows: list[tuple[str, str, str | None]], fields: list[str], count: int
) -> None:
    names = ("card_id", "merchant_id", "device_id")
    asked = fields[:count]
    columns: dict[str, list[str | None]] = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    column = entity_column(history(**columns), "some", asked)
    keys = column.store_keys()
    assert len(keys) == column.count == len(set(keys))
    assert column.entity == "some"
    for number, row in enumerate(rows):
        ids = [dict(zip(names, row, strict=True))[field] for field in asked]
        code = int(column.codes[number])
        if None in ids:
            assert code == -1
        else:
            assert keys[code] == entity_key("some", [identity for identity in ids if identity is not None])
    # Numbered in the order of the ids, all used.
    present = [tuple(dict(zip(names, row, strict=True))[field] or "" for field in asked) for row in rows]
    known = sorted({ids for ids in present if "" not in ids})
    assert keys == [entity_key("some", ids) for ids in known]


def test_a_history_without_payments_has_no_entities() -> None:
    column = entity_column(history(card_id=[]), "pair", ["card_id", "device_id"])
    assert (column.count, column.codes.tolist(), column.store_keys()) == (0, [], [])


def test_a_history_in_which_no_payment_has_the_entity_has_none() -> None:
    column = entity_column(history(card_id=["a", "b"]), "device", ["device_id"])
    assert (column.count, column.codes.tolist(), column.store_keys()) == (0, [-1, -1], [])


class Names:
    """As many names as there are in a large history, without holding them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def to_pylist(self) -> Any:
        return {0: "first", self._count - 1: "last"}


class Large:
    """A history of two payments, with the first and the last of `count` values in every field."""

    fields = TABLE_ALONE

    def __init__(self, count: int) -> None:
        codes = np.array([0, count - 1], dtype=np.int32)
        self._column = SimpleNamespace(codes=codes, names=Names(count))

    def __len__(self) -> int:
        return 2

    def coded(self, _: str) -> Any:
        return self._column


def test_combinations_of_three_fields_of_millions_of_values_are_told_apart() -> None:
    # Their codes put into one number used to outgrow 64 bits, and the last combination became the first.
    large: Any = Large(2**22)
    column = entity_column(large, "three", ["card_id", "merchant_id", "device_id"])
    assert column.store_keys() == [entity_key("three", [name] * 3) for name in ("first", "last")]


CUSTOMER = fields.text("customer_id", 1)
PERSON = fields.text("person_id", 2, personal=True)
EMAIL = fields.email("buyer_email", 3)
DOMAIN = fields.email_domain("buyer_domain", 4, of=EMAIL)
NETWORK = fields.network("ip_network", 5, of=ip)
DECLARED = fields.Payment(CUSTOMER, PERSON, EMAIL, DOMAIN, NETWORK).fields


def made(names: tuple[str, ...], **values: str) -> bytes:
    return key_maker("e", names, DECLARED, LAPTOP_KEY)(values)


def test_a_key_of_a_personal_field_holds_a_keyed_hash_and_no_value() -> None:
    assert made(("customer_id",), customer_id="c-9") == b"e:c-9"
    assert made(("person_id",), person_id="c-9") == b"e:" + hashed_id(LAPTOP_KEY.of("c-9")).encode()
    of_email = made(("buyer_email",), buyer_email="Ann@Example.com")
    assert of_email == made(("buyer_email",), buyer_email="ann@example.com")
    assert of_email == f"e:{LAPTOP_KEY.of('ann@example.com'):016x}".encode()
    assert len(of_email) == 18
    assert made(("buyer_domain",), buyer_email="Ann@Example.com") == f"e:{LAPTOP_KEY.of('example.com'):016x}".encode()
    assert made(("ip_network",), ip="192.0.2.7") == f"e:{LAPTOP_KEY.of('192.0.2.0/24'):016x}".encode()
    other = IdentityKey.of_bytes(b"another key here")
    assert key_maker("e", ["person_id"], DECLARED, other)({"person_id": "c-9"}) != made(("person_id",), person_id="c-9")


def test_a_combination_of_hidden_and_other_fields_has_one_key() -> None:
    both = made(("customer_id", "buyer_email"), customer_id="c-9", buyer_email="ann@example.com")
    assert both == f"e:c-9{SEPARATOR}{LAPTOP_KEY.of('ann@example.com'):016x}".encode()


def test_a_payment_that_lacks_a_key_field_has_no_key() -> None:
    assert made(("customer_id", "buyer_email"), customer_id="c-9") == b""
    assert made(("ip_network",), ip="no address") == b""
    assert made(("buyer_domain",)) == b""
