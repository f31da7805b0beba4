"""The store key of an entity's profile, from the ids in a payment.

entity_key("card", ["C1"])                      b"card:C1"
entity_key("card_merchant", ["C1", "M7"])       b"card_merchant:C1\\x1fM7"

Keys stand in stores, on the changelog and in mirrors. A field that must not be read there gives a keyed hash in place
of its value:

key_text(customer_id, "c-9", key)               "c-9", or "53f8d7a2c04b916e" if the field is personal
key_text(buyer_email, "Ann@Example.com", key)   "4b1c60f2a9d3e875", and the same for ann@example.com
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.stores.base import KEY_BYTES_MAX
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import Band, DerivedField, Form, PaymentField, PaymentFields

# Stands between the ids of a combination. It is ASCII's unit separator; no id may contain it.
SEPARATOR = "\x1f"


def entity_key(entity: str, ids: Sequence[str]) -> bytes:
    """Returns the store key: `entity:id`. For a combination, SEPARATOR stands between the ids.

    If the ids of a combination are too long for a key, a digest replaces them. A single id is never replaced.
    Raises InvalidEvent if an id of a combination contains SEPARATOR.
    """
    if len(ids) == 1:
        return f"{entity}:{ids[0]}".encode()
    if any(SEPARATOR in identity for identity in ids):
        raise InvalidEvent("holds a control character")
    key = f"{entity}:{SEPARATOR.join(ids)}".encode()
    if len(key) <= KEY_BYTES_MAX:
        return key
    return f"{entity}:{hashlib.blake2b(key, digest_size=32).hexdigest()}".encode()


def has_hashed_key(field: PaymentField | DerivedField | Band) -> bool:
    """Returns whether keys hold a keyed hash of the field's value: of personal, e-mail and derived fields, bands."""
    return not isinstance(field, PaymentField) or field.is_personal or field.form is Form.EMAIL


def key_text(field: PaymentField | DerivedField | Band, value: str, key: IdentityKey) -> str:
    """Returns the id that a field's value gives a key. `value` of a derived field is the derived text, not its source.

    It is the value itself, or hashed_id of the value's identity: the number in the field's identity column.
    """
    if not has_hashed_key(field):
        return value
    is_email = isinstance(field, PaymentField) and field.form is Form.EMAIL
    return hashed_id(key.of(value.lower() if is_email else value))


def hashed_id(identity: int) -> str:
    """Returns an identity (features/catalogue/identity.py) as the id of a key: 16 hex digits."""
    return f"{identity:016x}"


def key_maker(
    entity: str, names: Sequence[str], fields: PaymentFields, key: IdentityKey
) -> Callable[[Mapping[str, Any]], bytes]:
    """Returns a function that makes one entity's store key from a payment's values by name.

    `names` are the entity's key fields. The key is empty if the payment lacks one of them; a derived field comes from
    its source. This is the slow way: tests compare the compiled readers with it. The function raises InvalidEvent as
    `entity_key` does.
    """
    makers = [_id_maker(name, fields, key) for name in names]

    def key_of(values: Mapping[str, Any]) -> bytes:
        ids = [make(values) for make in makers]
        return entity_key(entity, ids) if all(ids) else b""

    return key_of


def _id_maker(name: str, fields: PaymentFields, key: IdentityKey) -> Callable[[Mapping[str, Any]], str]:
    """Returns a function that gives one field's id, empty if the payment lacks the field."""
    field = field_named(name, fields)
    if isinstance(field, Band):
        band, hashed = field, {text: key_text(field, text, key) for text in field.texts}
        return lambda values: hashed.get(band.value_of(values), "")
    if isinstance(field, PaymentField):
        return lambda values: key_text(field, values[name], key) if values.get(name) else ""

    def of_source(values: Mapping[str, Any]) -> str:
        source = values.get(field.of)
        text = field.value_of(source) if source else ""
        return key_text(field, text, key) if text else ""

    return of_source


def field_named(name: str, fields: PaymentFields) -> PaymentField | DerivedField | Band:
    """Returns the field of a payment with a name, a derived one or a band too."""
    found = fields.by_name.get(name)
    return found if found is not None else next(one for one in (*fields.derived, *fields.bands) if one.name == name)
