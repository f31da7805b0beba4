"""The words for a project's own fields of a payment. They stand in its `payment.py`:

    from paywarden.features.catalogue.fields import Payment, coordinates, decimal, email, email_domain, text

    customer_id = text("customer_id", 1, personal=True)
    buyer_email = email("buyer_email", 2)
    buyer_domain = email_domain("buyer_domain", 3, of=buyer_email)
    basket_weight = decimal("basket_weight", 4, unit="kg", least=0, most=500, decimals=3)
    home = coordinates("home", 5)

    PAYMENT = Payment(customer_id, buyer_email, buyer_domain, basket_weight, home)

A catalogue uses a field as it uses those that every payment has: `Entity("customer", key="customer_id")`,
`basket_weight >= 20`.

The second argument is the field's number. It must never change, and no other field may ever get it: profiles, records
of payments and requests in protobuf know the field by it. Coordinates take two numbers, 5 and 6 above. A field that no
longer comes can be left out; a new one takes a new number.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import RESERVED_NAMES, Attribute, AttributeKind, Clock, declared_column
from paywarden.features.catalogue.windows import line_of_caller, wrong, wrong_at
from paywarden.schemas.payment_fields import (
    AMOUNT_MINOR,
    AMOUNT_MINOR_MAX,
    BANDS_MAX,
    DECIMALS_MAX,
    DECLARED_MAX,
    FIELD,
    HOUR,
    ID_BYTES_MAX,
    TIME_MS_END,
    WEEKDAY,
    WHOLE_MAX,
    Band,
    DerivedField,
    EmailDomain,
    Form,
    NetworkPrefix,
    PaymentField,
    PaymentFields,
)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
AMONG_MAX = 4095
# A unit stands in tables beside the field's name.
_UNIT_MAX = 40


@dataclass(frozen=True)
class Coordinates:
    """A place on earth: two decimal fields, `…_latitude` and `…_longitude`, in degrees."""

    name: str
    latitude: Attribute
    longitude: Attribute

    def __repr__(self) -> str:
        return f"the coordinates {self.name!r}"


def text(
    name: str, number: int, *, required: bool = False, personal: bool = False, size_max: int = ID_BYTES_MAX
) -> Attribute:
    """Returns a field for ids and other words: printable text of 1 to `size_max` bytes of UTF-8."""
    if type(size_max) is not int or not 1 <= size_max <= ID_BYTES_MAX:
        raise wrong(name, f"size_max must be 1 to {ID_BYTES_MAX}, got {size_max!r}")
    wanted = f"printable text of 1 to {size_max} bytes"
    return _text(name, number, Form.ID, wanted, required, personal, size_max)


def category(
    name: str, number: int, among: Sequence[str], *, required: bool = False, personal: bool = False
) -> Attribute:
    """Returns a field with few values. `among` lists those that are known; any other value is taken as well."""
    # A set has another order in every process, and the digest of a catalogue depends on the order.
    if type(among) not in (list, tuple) or not 0 < len(among) <= AMONG_MAX:
        got = f"{len(among)} of them" if type(among) in (list, tuple) else _told(among)
        raise wrong(name, f"`among` must be a list of 1 to {AMONG_MAX} texts, got {got}")
    wanted = f"printable text of 1 to {ID_BYTES_MAX} bytes"
    declared = _text(name, number, Form.ID, wanted, required, personal, ID_BYTES_MAX, tuple(among))
    assert declared.field is not None
    for place, one in enumerate(among, 1):
        if type(one) is not str or not declared.field.is_right(one):
            raise wrong(name, f"`among` must list values of the field; number {place} is none: wanted {wanted}")
    if len(set(among)) < len(among):
        raise wrong(name, f"`among` lists {next(one for one in among if among.count(one) > 1)!r} twice")
    return declared


def bin_number(name: str, number: int, *, required: bool = False) -> Attribute:
    """Returns a field for the first 6 to 8 digits of a card's number, which name its issuer."""
    return _text(name, number, Form.BIN, "six to eight digits (ISO/IEC 7812-1)", required, False, 8)


def country(name: str, number: int, *, required: bool = False, personal: bool = False) -> Attribute:
    """Returns a field for a country."""
    return _text(name, number, Form.COUNTRY, FIELD["country"].wanted, required, personal, 2)


def address(name: str, number: int, *, required: bool = False, personal: bool = True) -> Attribute:
    """Returns a field for an IPv4 or IPv6 address. `network` makes a field of its network."""
    return _text(name, number, Form.ADDRESS, "an IPv4 or IPv6 address", required, personal, 45)


def email(name: str, number: int, *, required: bool = False) -> Attribute:
    """Returns a field for an e-mail address, in small letters from here on. Only keyed hashes of it are ever kept."""
    return _text(name, number, Form.EMAIL, "an e-mail address of at most 255 bytes", required, True, 255)


def integer(
    name: str,
    number: int,
    *,
    unit: str,
    least: int = -WHOLE_MAX,
    most: int = WHOLE_MAX,
    required: bool = False,
    personal: bool = False,
) -> Attribute:
    """Returns a field for a whole number from `least` to `most`. `unit` says what it counts, as in "days"."""
    _check_bounds(name, least, most)
    wanted = f"a whole number from {least} to {most}"
    return _number(name, number, Form.INTEGER, wanted, _Range(unit, least, most), required, personal)


def decimal(
    name: str,
    number: int,
    *,
    unit: str,
    least: int,
    most: int,
    decimals: int = 2,
    required: bool = False,
    personal: bool = False,
) -> Attribute:
    """Returns a field for a number from `least` to `most`, kept to `decimals` digits after the point."""
    if type(decimals) is not int or not 0 <= decimals <= DECIMALS_MAX:
        raise wrong(name, f"decimals must be 0 to {DECIMALS_MAX}, got {decimals!r}")
    scale = 10**decimals
    if type(least) is int and type(most) is int:
        _check_bounds(name, least * scale, most * scale)
    else:
        _check_bounds(name, least, most)
    wanted = f"a number from {least} to {most}"
    scaled = _Range(unit, least * scale, most * scale, decimals)
    return _number(name, number, Form.DECIMAL, wanted, scaled, required, personal)


def money(name: str, number: int, *, required: bool = False, personal: bool = False) -> Attribute:
    """Returns a field for an amount in minor units of the payment's currency. Features see the reference currency."""
    wanted = f"a whole number of minor units from 0 to {AMOUNT_MINOR_MAX}"
    return _number(name, number, Form.MONEY, wanted, _Range("minor units", 0, AMOUNT_MINOR_MAX), required, personal)


def time(
    name: str, number: int, *, earliest: str = "2000-01-01", required: bool = False, personal: bool = False
) -> Attribute:
    """Returns a field for a moment, such as when an account was opened, in epoch milliseconds UTC.

    Moments before the day `earliest` are refused. It is at least 1900-01-01, for a date of birth. From 2000 on no count
    of milliseconds is also one of seconds: a wrong unit is noticed. With an earlier day it may not be.
    """
    least = _first_ms(name, earliest)
    wanted = f"milliseconds since 1970 UTC, {earliest} or later"
    return _number(name, number, Form.INSTANT, wanted, _Range("ms", least, TIME_MS_END - 1), required, personal)


def _first_ms(name: str, day: str) -> int:
    try:
        first = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        first = None
    if first is None or not 1900 <= first.year < 2100:
        raise wrong(name, f"earliest must be a day from 1900-01-01 to 2099-12-31, got {_told(day)}")
    return int(first.timestamp()) * 1000


def flag(name: str, number: int, *, required: bool = False, personal: bool = False) -> Attribute:
    """Returns a field that is true or false."""
    field = PaymentField(
        name, Form.FLAG, "true or false", required, number=number, is_personal=personal, column_may_lack=not required
    )
    return _attribute(field, AttributeKind.FLAG)


def coordinates(name: str, number: int, *, required: bool = False, personal: bool = True) -> Coordinates:
    """Returns the fields `name_latitude` and `name_longitude`, in degrees. They take `number` and the next one."""
    pair = [
        decimal(
            f"{name}_{side}",
            number + place,
            unit="degrees",
            least=-most,
            most=most,
            decimals=6,
            required=required,
            personal=personal,
        )
        for place, (side, most) in enumerate((("latitude", 90), ("longitude", 180)))
    ]
    return Coordinates(name, *pair)


def network(name: str, number: int, *, of: Attribute, bits: int = 24, bits_v6: int = 48) -> Attribute:
    """Returns a derived field: the network of an address, as in "192.0.2.0/24". No payment brings it."""
    source = of.field if isinstance(of, Attribute) else None
    if not isinstance(of, Attribute) or (of.name != "ip" and (source is None or source.form is not Form.ADDRESS)):
        raise wrong(name, f"`of` must be an address, such as ip, got {of!r}")
    are_whole = type(bits) is int and type(bits_v6) is int
    if not are_whole or not 0 < bits <= 32 or not 0 < bits_v6 <= 128:
        raise wrong(name, f"bits must be 1 to 32, and bits_v6 1 to 128, got {_told(bits)} and {_told(bits_v6)}")
    return _derived(NetworkPrefix(name, number, of.name, bits, bits_v6))


def email_domain(name: str, number: int, *, of: Attribute) -> Attribute:
    """Returns a derived field: the domain of an e-mail address. No payment brings it."""
    if not isinstance(of, Attribute) or of.field is None or of.field.form is not Form.EMAIL:
        raise wrong(name, f"`of` must be an e-mail field, got {of!r}")
    return _derived(EmailDomain(name, number, of.name))


def band(name: str, number: int, *, of: Attribute | Clock, bounds: Sequence[float] = ()) -> Attribute:
    """Returns a derived field: between which of the ascending `bounds` a number lies. No payment brings it.

    `of` is amount_minor, or a number or an amount of money of payment.py, in the payment's own currency: keys must not
    move with the table of rates. It may be `hour` or `weekday`, too: without bounds, each hour is a band.
    """
    listed = tuple(bounds) if type(bounds) in (list, tuple) else ()
    if isinstance(of, Clock):
        source, decimals = HOUR if of.size == 24 else WEEKDAY, 0
        listed = tuple(range(1, of.size)) if bounds == () else listed
        scaled = [bound for bound in listed if type(bound) is int and 0 < bound < of.size]
    else:
        source, decimals, scaled = _numbers_of(name, of, listed)
    ascends = all(one < later for one, later in pairwise(scaled))
    if not (0 < len(listed) < BANDS_MAX and len(scaled) == len(listed) and ascends):
        raise wrong(name, f"`bounds` must be 1 to {BANDS_MAX - 1} ascending values of {of!r}, got {_told(bounds)}")
    return _derived(Band(name, number, source, tuple(scaled), decimals))


def _numbers_of(name: str, of: Attribute, bounds: Sequence[float]) -> tuple[str, int, list[int]]:
    """Returns the field that `of` is, its digits after the point, and the bounds that it can have, in the last digit.

    Raises Misconfigured for a field that has no bands.
    """
    field = of.field if isinstance(of, Attribute) else None
    if isinstance(of, Attribute) and of.name == AMOUNT_MINOR:
        field = FIELD[AMOUNT_MINOR]
    if field is None or (field.number and field.form not in (Form.INTEGER, Form.DECIMAL, Form.MONEY)):
        raise wrong(name, f"`of` must be amount_minor, hour, weekday, or a number of payment.py, got {of!r}")
    kinds = (int, float) if field.is_decimal else (int,)
    known = [bound for bound in bounds if type(bound) in kinds and field.is_right(bound)]
    return field.name, field.decimals, list(map(field.scaled, known))


@dataclass(frozen=True, init=False)
class Payment:
    """The fields that a project declares, in the order of their declaration. `fields` joins them to the table's."""

    attributes: tuple[Attribute, ...]
    fields: PaymentFields
    line: str

    def __init__(self, *declared: Attribute | Coordinates) -> None:
        """Raises Misconfigured for a name or a number that is taken, and for a source that is not declared."""
        flat: list[Attribute] = []
        for one in declared:
            if isinstance(one, Coordinates):
                flat += [one.latitude, one.longitude]
            elif isinstance(one, Attribute) and one.column >= kernel.ATTRIBUTE_COUNT:
                flat.append(one)
            else:
                raise wrong_at(line_of_caller(), f"Payment takes declared fields one by one, got {_told(one)}")
        _check_unique(flat)
        fields = tuple(one.field for one in flat if one.field is not None)
        made = [one.derived for one in flat if one.derived is not None]
        derived = tuple(one for one in made if not isinstance(one, Band))
        bands = tuple(one for one in made if isinstance(one, Band))
        names = {field.name for field in fields} | {"ip", AMOUNT_MINOR, HOUR, WEEKDAY}
        for attribute in flat:
            if attribute.derived is not None and attribute.derived.of not in names:
                wanted = f"{attribute.name!r} derives from {attribute.derived.of!r}, which Payment does not list"
                raise wrong_at(attribute.line, wanted)
        object.__setattr__(self, "attributes", tuple(flat))
        object.__setattr__(self, "fields", PaymentFields(fields, derived, bands))
        object.__setattr__(self, "line", line_of_caller())


def _check_unique(attributes: Sequence[Attribute]) -> None:
    names: dict[str, str] = {}
    numbers: dict[int, Attribute] = {}
    for one in attributes:
        if one.name in names:
            raise wrong_at(one.line, f"the field {one.name!r} is declared twice, first in {names[one.name]}")
        if (other := numbers.setdefault(one.number, one)) is not one:
            raise wrong_at(one.line, f"{one.name!r} has the number {one.number}, which {other.name!r} has already")
        names[one.name] = one.line


def _text(
    name: str,
    number: int,
    form: Form,
    wanted: str,
    required: bool,
    personal: bool,
    size_max: int,
    among: tuple[str, ...] = (),
) -> Attribute:
    field = PaymentField(
        name,
        form,
        wanted,
        required,
        size_max=size_max,
        number=number,
        among=among,
        is_personal=personal,
        column_may_lack=not required,
    )
    return _attribute(field, AttributeKind.COUNTRY if form is Form.COUNTRY else AttributeKind.TEXT)


class _Range(NamedTuple):
    unit: str
    least: int
    most: int
    decimals: int = 0


def _number(name: str, number: int, form: Form, wanted: str, kept: _Range, required: bool, personal: bool) -> Attribute:
    unit = kept.unit
    if type(unit) is not str or not 0 < len(unit) <= _UNIT_MAX or not unit.isprintable():
        raise wrong(name, f"unit must say what the number counts, as in 'days', got {_told(unit)}")
    field = PaymentField(
        name,
        form,
        wanted,
        required,
        minimum=kept.least,
        maximum=kept.most,
        number=number,
        decimals=kept.decimals,
        unit=unit,
        is_personal=personal,
        column_may_lack=not required,
    )
    return _attribute(field, AttributeKind.NUMBER)


def _check_bounds(name: str, least: int, most: int) -> None:
    if type(least) is not int or type(most) is not int or not -WHOLE_MAX <= least < most <= WHOLE_MAX:
        raise wrong(name, f"least and most must be whole numbers, the first one smaller, got {least!r} and {most!r}")


def _attribute(field: PaymentField, kind: AttributeKind) -> Attribute:
    _check_name(field.name, field.number)
    for option, value in (("required", field.is_required), ("personal", field.is_personal)):
        if type(value) is not bool:
            raise wrong(field.name, f"{option} must be True or False, got {_told(value)}")
    return Attribute(field.name, declared_column(field.number), kind, field, None, line_of_caller())


def _derived(derived: DerivedField | Band) -> Attribute:
    _check_name(derived.name, derived.number)
    return Attribute(derived.name, declared_column(derived.number), AttributeKind.TEXT, None, derived, line_of_caller())


def _check_name(name: str, number: int) -> None:
    if type(name) is not str or not _NAME.fullmatch(name):
        raise wrong(name, "a field's name is lower_case, and has at most 63 characters")
    if keyword.iskeyword(name):
        raise wrong(name, "is a word of Python, which no condition of a policy can use as a name; wanted another name")
    if name in RESERVED_NAMES:
        raise wrong(name, "every payment has a field of this name; wanted another name")
    if type(number) is not int or not 1 <= number <= DECLARED_MAX:
        raise wrong(name, f"a field's number is 1 to {DECLARED_MAX}, got {number!r}")


def _told(value: object) -> str:
    """Returns a wrong value in a few words."""
    text = repr(value)
    return text if len(text) <= 60 and text.isprintable() else f"a {type(value).__name__}"


NO_FIELDS = Payment()
"""The declaration of a project that has no fields of its own."""
