"""Random declarations: a project's fields, entities and features, and payments of them.

    declaration = draw(declarations())
    declaration.catalogue                the catalogue, in the words of features/catalogue
    declaration.fields                   the fields of its payments (schemas/payment_fields.py)
    payments = draw(declared_payments(declaration))
    payments[0].values                   values by name, as every reader of payments takes them
    declaration.row_of(payments[0])      the row that every reader must make of them
    declaration.keys_of(payments[0])     the store keys of its entities
    declaration.plain_vectors(history)   the vectors of its payments, computed the plain way

Every kind of field is drawn, with small and large bounds, and every option of a catalogue. A field that is not required
is sometimes missing; values repeat, since features are about values that come again.
"""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue import fields as declare
from paywarden.features.catalogue.attributes import Attribute, AttributeKind, DeclaredRow, row_of
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.features.catalogue.windows import DAY_MS
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import key_maker
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import (
    AMOUNT_MINOR_MAX,
    DECIMALS_MAX,
    FIELD,
    ID_BYTES_MAX,
    WHOLE_MAX,
    Form,
    PaymentField,
    PaymentFields,
)
from tests.parity.features_worlds import (
    AMOUNTS,
    DECLARED,
    FIELDS,
    LABEL_WORDS,
    RATES,
    SPANS_MS,
    START_MS,
    SUMMING_WORDS,
    Condition,
    Joined,
    Named,
    Said,
    catalogues,
    moments,
    two_hops,
)
from tests.parity.plain import plain_vectors

NUMBERS = range(1, 65)
FIELDS_MAX = 8
ENTITIES_MAX = 16
KEYS_MAX = 4
KINDS = (
    *("text", "category", "bin", "country", "address", "email", "integer", "decimal", "money", "time", "flag"),
    *("coordinates", "network", "domain", "band"),
)
"""The kinds of field that a project can declare."""
# Texts that payments have in common, for each form. Two spellings of an e-mail address are one address.
_TEXTS: dict[Form, tuple[str, ...]] = {
    Form.ID: ("a", "b", "C-3", "Zürich"),
    Form.BIN: ("456789", "4567891", "51005100"),
    Form.COUNTRY: ("DE", "FR", "US", "ZZ"),
    Form.ADDRESS: ("192.0.2.7", "192.0.2.8", "198.51.100.1", "2001:db8::1", "2001:db8:0:9::2"),
    Form.EMAIL: ("ann@example.com", "Ann@Example.COM", "bob@example.com", "carol@mail.example.org"),
}
_WRONG_TEXTS = (
    *("", "x" * 257, "a\x00b", "4111111111111111", "192.0.2.256", "192.0.2.07", "1.2.3", "1.2.3.4.", "::1%eth0"),
    *("ann@", "@example.com", "a@b@c", "ann@exa mple.com", f"{'x' * 65}@a.b", "12345", "123456789", "de", "ÄÖ"),
)
_KEYS_OF_EVERY_PAYMENT = ("card_id", "merchant_id", "device_id", "ip", "mcc", "channel", "currency")
# Few lists that a category may have, up to the longest.
_AMONG: tuple[list[str], ...] = (["a"], ["b", "a"], ["Zürich", "C-3", "a"], [f"v{place}" for place in range(4095)])
# Bounds of whole numbers: small ones, the largest that sums allow, and the largest of all.
_BOUNDS = (
    *((-1000, 9000), (0, 1), (7, 100_007), (-kernel.NUMBER_MAX_IN_SUMS, kernel.NUMBER_MAX_IN_SUMS)),
    (-WHOLE_MAX, WHOLE_MAX),
)


@dataclass(frozen=True)
class DeclaredPayment:
    """A payment's values by name; a missing value is not there."""

    values: Mapping[str, Any]

    @property
    def time_ms(self) -> int:
        time_ms: int = self.values["event_time_ms"]
        return time_ms


@dataclass(frozen=True, eq=False)
class Declaration:
    """A project's declaration. `entities` are (name, key fields); `said` are the features."""

    payment: declare.Payment
    entities: tuple[tuple[str, tuple[str, ...]], ...]
    said: tuple[Said, ...]
    label_delay: str = "7d"
    seconds_most: str = ""

    @property
    def fields(self) -> PaymentFields:
        return self.payment.fields

    @cached_property
    def catalogue(self) -> Catalogue:
        own: dict[str, object] = {one.name: one for one in self.payment.attributes}
        own |= {one.name: one for one in places_of(self.payment)}
        words = types.SimpleNamespace(**{**vars(DECLARED), **own})
        return Catalogue(*self._read(words), self.payment, self.label_delay, self.seconds_most)

    @cached_property
    def engine(self) -> FeatureEngine:
        return FeatureEngine(self.catalogue)

    def row_of(self, payment: DeclaredPayment) -> tuple[int, ...]:
        """Returns the payment's row, made the slow way."""
        values = payment.values
        row = row_of(
            values,
            event_time_ms=payment.time_ms,
            amount=_converted(values["amount_minor"], values),
            amount_minor=values["amount_minor"],
            declared=DeclaredRow(self.fields, _converted),
        )
        return tuple(row)

    def keys_of(self, payment: DeclaredPayment) -> dict[str, bytes]:
        """Returns the store key of each entity that the payment has, by the entity's name."""
        keys = {name: make(payment.values) for name, make in self._key_makers.items()}
        return {name: key for name, key in keys.items() if key}

    def plain_vectors(self, heard: Sequence[Event]) -> NDArray[np.float32]:
        """Returns the vectors of payments, computed the plain way."""
        told = [(self.keys_of(payment), self.row_of(payment), weight) for payment, weight in heard]
        return plain_vectors(self.catalogue, told)

    @cached_property
    def _key_makers(self) -> dict[str, Callable[[Mapping[str, Any]], bytes]]:
        return {name: key_maker(name, keys, self.fields, LAPTOP_KEY) for name, keys in self.entities}

    def _read(self, words: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Returns the entities and features, read with these words."""
        entities = {name: words.Entity(name, key=keys[0] if len(keys) == 1 else keys) for name, keys in self.entities}
        spoken = {"request": words.request, **entities}
        features = [words.request.amount("amount")]
        for feature in self.said:
            made = feature.read(words, spoken)
            features += made if isinstance(made, tuple) else [made]
        features.append(words.ratio("ratio", features[-1].name, features[len(features) // 2].name))
        return tuple(entities.values()), tuple(features)


def places_of(payment: declare.Payment) -> list[declare.Coordinates]:
    """Returns the coordinates among the fields of a payment."""
    by_name = {one.name: one for one in payment.attributes}
    names = [name.removesuffix("_latitude") for name in by_name if name.endswith("_latitude")]
    return [declare.Coordinates(name, by_name[f"{name}_latitude"], by_name[f"{name}_longitude"]) for name in names]


def _converted(amount_minor: int, values: Mapping[str, Any]) -> int | None:
    return RATES.convert(amount_minor, values["currency"], values["event_time_ms"])


# Fields.


@st.composite
def payment_declarations(draw: st.DrawFn, fields_max: int = FIELDS_MAX, kinds: Sequence[str] = ()) -> declare.Payment:
    """Draws a list of fields with numbers of any order, and gaps between them. The first ones are of `kinds`."""
    count = draw(st.integers(max(1, len(kinds)), fields_max))
    # Coordinates take the next number, too: with a gap after each number no two fields need the same one.
    apart = st.sampled_from(NUMBERS[:-1:2]) if kinds else st.sampled_from(NUMBERS)
    numbers = draw(st.lists(apart, min_size=count, max_size=count, unique=True))
    listed: list[Attribute | declare.Coordinates] = []
    for place, number in enumerate(numbers):
        listed.append(_field(draw, f"x{place}", number, listed, kinds[place] if place < len(kinds) else ""))
    try:
        return declare.Payment(*listed)
    except Misconfigured:
        # The second number of coordinates is taken: without them, then.
        return declare.Payment(*(one for one in listed if not isinstance(one, declare.Coordinates)))


def _field(
    draw: st.DrawFn, name: str, number: int, others: Sequence[Any], kind: str
) -> Attribute | declare.Coordinates:
    options: dict[str, bool] = {"required": draw(st.booleans()), "personal": draw(st.booleans())}
    addresses, emails = (
        [one for one in others if isinstance(one, Attribute) and one.field is not None and one.field.form is form]
        for form in (Form.ADDRESS, Form.EMAIL)
    )
    kind = kind or draw(st.sampled_from([one for one in KINDS if one != "domain" or emails]))
    if kind == "text":
        return declare.text(name, number, size_max=draw(st.sampled_from([1, 8, 255, ID_BYTES_MAX])), **options)
    if kind == "category":
        return declare.category(name, number, draw(st.sampled_from(_AMONG)), **options)
    if kind == "bin":
        return declare.bin_number(name, number, required=options["required"])
    if kind == "email":
        return declare.email(name, number, required=options["required"])
    if kind == "network":
        of = draw(st.integers(0, len(addresses)))
        bits = {"bits": draw(st.integers(1, 32)), "bits_v6": draw(st.integers(1, 128))}
        return declare.network(name, number, of=[attributes.ip, *addresses][of], **bits)
    if kind == "domain":
        return declare.email_domain(name, number, of=emails[draw(st.integers(0, len(emails) - 1))])
    if kind == "band":
        return _band(draw, name, number, others)
    if kind == "coordinates":
        return declare.coordinates(name, min(number, 63), **options)
    if kind == "integer":
        least, most = draw(st.sampled_from(_BOUNDS))
        return declare.integer(name, number, unit="units", least=least, most=most, **options)
    if kind == "decimal":
        decimals = draw(st.sampled_from([0, 1, 2, 6, DECIMALS_MAX]))
        small = [(least, most) for least, most in _BOUNDS if most * 10**decimals <= WHOLE_MAX]
        least, most = draw(st.sampled_from(small))
        return declare.decimal(name, number, unit="units", least=least, most=most, decimals=decimals, **options)
    plain = {
        "country": declare.country,
        "address": declare.address,
        "money": declare.money,
        "time": declare.time,
        "flag": declare.flag,
    }
    return plain[kind](name, number, **options)


def _band(draw: st.DrawFn, name: str, number: int, others: Sequence[Any]) -> Attribute:
    """Returns bands of a number of these fields, of the amount or of the payer's time."""
    forms = (Form.INTEGER, Form.DECIMAL, Form.MONEY)
    numbers = [
        one for one in others if isinstance(one, Attribute) and one.field is not None and one.field.form in forms
    ]
    of: Any = draw(st.sampled_from([attributes.amount_minor, attributes.hour, attributes.weekday, *numbers]))
    if of is attributes.hour or of is attributes.weekday:
        chosen = draw(st.lists(st.integers(1, of.size - 1), max_size=3, unique=True))
        return declare.band(name, number, of=of, bounds=tuple(sorted(chosen)))
    values = st.integers(0, 5_000) if of is attributes.amount_minor else values_of(of.field)
    least = draw(st.lists(values, min_size=1, max_size=3))
    scaled = dict(sorted((FIELD.get(of.name, of.field).scaled(one), one) for one in least))
    return declare.band(name, number, of=of, bounds=tuple(scaled.values()))


# Features: those of features_worlds, with other entities and with declared fields in place of some attributes.


@st.composite
def declarations(
    draw: st.DrawFn,
    *,
    fields_max: int = FIELDS_MAX,
    entities_max: int = ENTITIES_MAX,
    features_max: int = 6,
    kinds: Sequence[str] = (),
    hops_max: int = 0,
) -> Declaration:
    """Draws declarations. Entities have one or more key fields each, declared and derived ones among them.

    `kinds` are kinds of field that are certainly declared. There is then a feature of each field. `hops_max`: the most
    features two hops away; a caller must find the profiles of neighbours.
    """
    payment = draw(payment_declarations(fields_max, kinds))
    keys = [*_KEYS_OF_EVERY_PAYMENT, *(one.name for one in payment.attributes if one.kind is AttributeKind.TEXT)]
    choices = st.lists(st.sampled_from(keys), min_size=1, max_size=KEYS_MAX, unique=True).map(tuple)
    # Seldom as many as there may be: each needs time.
    most = draw(st.sampled_from([min(5, entities_max)] * 4 + [entities_max]))
    chosen = draw(st.lists(choices, min_size=1 if most < ENTITIES_MAX else most, max_size=most, unique=True))
    if draw(st.booleans()):
        # An entity that comes again in nearly every history.
        chosen = list(dict.fromkeys([("card_id",), *chosen]))[:entities_max]
    entities = tuple((f"e{place}", names) for place, names in enumerate(chosen))
    said = tuple(_with_fields(draw, one, payment, entities) for one in draw(catalogues(features_max)))
    said += tuple(
        Said(f"holds{place}", "request", "holds", (condition,), ())
        for place, condition in enumerate(draw(st.lists(_conditions(payment), max_size=2)))
    )
    asked = draw(st.lists(st.sampled_from(_request_words(payment)), max_size=3))
    said += tuple(_of_request(draw, f"asked{place}", word, payment) for place, word in enumerate(asked))
    if kinds:
        said += tuple(_about(draw, f"about_{one.name}", one, entities) for one in payment.attributes)
    said += tuple(_left_to_the_catalogue(draw, entities))
    said += tuple(draw(two_hops(dict(entities), said, hops_max))) if hops_max else ()
    label_delay = draw(st.sampled_from(["1d", "2d", "7d"]))
    seconds_most = draw(st.sampled_from(["", "1s", "1h", "2d"]))
    return Declaration(payment, entities, said, label_delay, seconds_most)


def _with_fields(
    draw: st.DrawFn, said: Said, payment: declare.Payment, entities: Sequence[tuple[str, tuple[str, ...]]]
) -> Said:
    """Returns a feature of the shared worlds as one of these entities, and often about declared fields."""
    entity, _ = draw(st.sampled_from(entities))
    texts = [one.name for one in payment.attributes if one.kind in (AttributeKind.TEXT, AttributeKind.COUNTRY)]

    numbers = [one for one in payment.attributes if one.kind is AttributeKind.NUMBER]
    if said.word in SUMMING_WORDS:
        numbers = [one for one in numbers if _has_sums(one)]
    places = places_of(payment)

    def changed(argument: object) -> object:
        if isinstance(argument, tuple):
            return tuple(dict.fromkeys(map(changed, argument)))
        if getattr(argument, "name", "") == "amount" and numbers and draw(st.booleans()):
            return Named(draw(st.sampled_from(numbers)).name)
        is_text = isinstance(argument, Named) and argument.name not in ("declined", "amount")
        if is_text and texts and draw(st.booleans()):
            return Named(draw(st.sampled_from(texts)))
        is_condition = isinstance(argument, Condition) or getattr(argument, "name", "") == "declined"
        if isinstance(argument, Joined):
            return replace(argument, parts=tuple(map(changed, argument.parts)))
        return draw(_conditions(payment)) if is_condition and draw(st.booleans()) else argument

    if places and draw(st.integers(0, 4)) == 0:
        place = Named(draw(st.sampled_from(places)).name)
        return Said(said.name, entity, draw(st.sampled_from(["distance_to_last_km", "speed_kmh"])), (place,), ())
    arguments = tuple(map(changed, said.arguments))
    options = {name: changed(one) for name, one in said.options}
    # The catalogue's own delay is whole hops of these.
    if said.word in LABEL_WORDS and options["hop"] in ("6h", "1d") and draw(st.booleans()):
        del options["delay"]
    return replace(said, entity=entity, arguments=arguments, options=tuple(options.items()))


def _about(draw: st.DrawFn, name: str, one: Attribute, entities: Sequence[tuple[str, tuple[str, ...]]]) -> Said:
    """Returns a feature that needs the attribute."""
    entity, _ = draw(st.sampled_from(entities))
    if one.kind is AttributeKind.FLAG:
        return Said(name, entity, "count", ("1d",), (("where", Condition(one.name, "==", True)),))
    if one.kind is AttributeKind.NUMBER:
        word = draw(st.sampled_from(["last_value", "difference_to_last"]))
        return Said(name, entity, word, (), (("of", Named(one.name)),))
    attribute = Named(one.name)
    if draw(st.booleans()):
        return Said(name, entity, "seconds_since_same", (attribute,), ())
    return Said(name, entity, "distinct", (attribute, "30d"), (("bits", 64),))


def _left_to_the_catalogue(draw: st.DrawFn, entities: Sequence[tuple[str, tuple[str, ...]]]) -> list[Said]:
    """Returns features whose delay and whose bound are those of the catalogue."""
    frauds = draw(st.sampled_from(["fraud_count", "fraud_share", "seconds_since_fraud"]))
    window = draw(st.sampled_from(["90d", "30d"]))
    age = draw(st.sampled_from(["seconds_since_first", "seconds_since_last", "last"]))
    entity, _ = min(entities, key=lambda one: one[1] != ("card_id",))
    return [
        Said("known", entity, frauds, (window,), ()),
        Said("age", entity, age, (2,) if age == "last" else (), ()),
    ]


def _has_sums(number: Attribute) -> bool:
    """Returns whether a number's bounds allow sums of it. Money and ages have bounds of their own."""
    assert number.field is not None
    largest = max(-number.field.minimum, number.field.maximum)
    return number.field.form in (Form.MONEY, Form.INSTANT) or largest <= kernel.NUMBER_MAX_IN_SUMS


def _request_words(payment: declare.Payment) -> list[str]:
    """Returns the words for a request's own features that these fields allow, `holds` apart."""
    words = ["hour", "night", "weekend", "weekday", "round_zeros", "below_limit", "category"]
    forms = [one.field.form for one in payment.attributes if one.field is not None]
    words += ["number"] if {Form.INTEGER, Form.DECIMAL, Form.MONEY} & set(forms) else []
    words += ["seconds_since"] if Form.INSTANT in forms else []
    words += ["equal"] if _pairs(payment) else []
    return [*words, *(["distance_km"] if len(places_of(payment)) > 1 else [])]


def _pairs(payment: declare.Payment) -> list[tuple[str, str]]:
    """Returns the names of two attributes whose values may be equal. Hashes are compared with hashes alone."""
    kinds = (AttributeKind.TEXT, AttributeKind.COUNTRY, AttributeKind.FLAG, AttributeKind.NUMBER)
    told = [one for one in payment.attributes if one.kind in kinds]
    of_every_payment = [attributes.country, attributes.merchant_id, attributes.channel, attributes.declined]
    pairs = [*itertools.combinations(told, 2), *itertools.product(of_every_payment, told)]
    return [(one.name, other.name) for one, other in pairs if _alike(one) == _alike(other) and _both_told(one, other)]


def _alike(one: Attribute) -> tuple[object, ...]:
    form = one.field.form if one.field is not None else None
    if one.kind is not AttributeKind.NUMBER:
        return one.kind, form is Form.EMAIL
    assert one.field is not None
    return one.kind, "number" if form in (Form.INTEGER, Form.DECIMAL) else form, one.field.decimals


def _both_told(one: Attribute, other: Attribute) -> bool:
    both_are_declared = bool(one.number and other.number)
    return both_are_declared or (one.has_public_code and other.has_public_code)


def _of_request(draw: st.DrawFn, name: str, word: str, payment: declare.Payment) -> Said:
    if word == "below_limit":
        return Said(name, "request", word, ((50_00, 100_00),), ())
    if word == "category":
        texts = [one for one in payment.attributes if one.has_public_code and one.field is not None]
        named = {one.name: _texts_of(one.field) for one in texts if one.field is not None and one.field.is_text}
        named |= {"channel": ("pos", "ecom"), "mcc": ("5411", "4829"), "country": ("NZ", "DE"), "currency": ("EUR",)}
        chosen = draw(st.sampled_from(sorted(named)))
        among = named[chosen]
        return Said(name, "request", word, (Named(chosen), draw(st.permutations(among)).copy()), ())
    if word == "equal":
        return Said(name, "request", word, tuple(map(Named, draw(st.sampled_from(_pairs(payment))))), ())
    if word == "distance_km":
        chosen_places = draw(st.permutations(places_of(payment)))[:2]
        return Said(name, "request", word, tuple(Named(one.name) for one in chosen_places), ())
    if word not in ("number", "seconds_since"):
        return Said(name, "request", word, (), ())
    is_moment = word == "seconds_since"
    fitting = [
        one
        for one in payment.attributes
        if one.kind is AttributeKind.NUMBER
        if one.field is not None and (one.field.form is Form.INSTANT) is is_moment
    ]
    most = (("most", draw(st.sampled_from(["10m", "2d"]))),) if is_moment and draw(st.booleans()) else ()
    return Said(name, "request", word, (Named(draw(st.sampled_from(fitting)).name),), most)


def _conditions(payment: declare.Payment) -> st.SearchStrategy[object]:
    """Draws conditions about declared fields, and about those of every payment."""
    asked = [_conditions_on(one) for one in payment.attributes if one.has_public_code]
    of_every_payment = [("channel", "ecom"), ("mcc", "5411"), ("currency", "EUR"), ("merchant_id", "m1")]
    usual = st.builds(
        lambda of, operator: Condition(of[0], operator, of[1]),
        st.sampled_from(of_every_payment),
        st.sampled_from(["==", "!="]),
    )
    return st.one_of(usual, *asked)


def _conditions_on(one: Attribute) -> st.SearchStrategy[object]:
    assert one.field is not None
    if one.kind is AttributeKind.NUMBER:
        return st.builds(Condition, st.just(one.name), st.sampled_from([">=", "<", "=="]), _kept(one.field))
    values = st.booleans() if one.kind is AttributeKind.FLAG else st.sampled_from(_texts_of(one.field))
    return st.builds(Condition, st.just(one.name), st.sampled_from(["==", "!="]), values)


# Payments.


def _texts_of(field: PaymentField) -> tuple[str, ...]:
    """Returns texts that a field takes, the longest ones among them."""
    if field.form is not Form.ID:
        return _TEXTS[field.form]
    # Two bytes each, and one more where the size is odd.
    longest = "é" * (field.size_max // 2) + "z" * (field.size_max % 2)
    return tuple(text for text in (*_TEXTS[Form.ID], longest) if field.is_right(text))


def values_of(field: PaymentField) -> st.SearchStrategy[Any]:
    """Draws values that a declared field takes."""
    if field.is_text:
        return st.sampled_from(_texts_of(field))
    if field.form is Form.FLAG:
        return st.booleans()
    if field.is_decimal:
        # Values between two that can be kept, too: they are rounded.
        scale = 10**field.decimals
        finer = st.floats(field.minimum / scale, field.maximum / scale)
        return st.one_of(_kept(field), finer, st.sampled_from([field.minimum / scale, field.maximum / scale]))
    return _kept(field)


def _kept(field: PaymentField) -> st.SearchStrategy[Any]:
    """Draws numbers of a field as they are kept: few, so that conditions meet them."""
    if field.form is Form.MONEY:
        return AMOUNTS
    if field.form is Form.INSTANT:
        # Before and behind the payments, and as far away as there are moments.
        near = st.integers(START_MS - 400 * DAY_MS, START_MS + 100 * DAY_MS)
        return st.one_of(st.sampled_from([field.minimum, field.maximum]), near, moments(2 * DAY_MS))
    span = min(field.maximum - field.minimum, 10_000)
    edges = st.sampled_from([field.minimum, field.minimum + span // 2, field.maximum])
    whole = st.one_of(edges, st.integers(field.minimum, field.minimum + span))
    return whole.map(lambda number: number / 10**field.decimals) if field.is_decimal else whole


def wrong_values_of(field: PaymentField) -> st.SearchStrategy[Any]:
    """Draws values of the field's type; the field refuses most of them."""
    if field.is_text:
        return st.sampled_from(_WRONG_TEXTS)
    if field.is_decimal:
        scale = 10**field.decimals
        beyond = [field.minimum / scale - 0.6 / scale, field.maximum / scale + 0.6 / scale]
        return st.sampled_from([math.nan, math.inf, -math.inf, 1e300, *beyond])
    if field.form is Form.FLAG:
        return st.booleans()
    return st.sampled_from([-(2**63), field.minimum - 1, 2**62, 2**63 - 1])


def maybe_values_of(field: PaymentField) -> st.SearchStrategy[Any]:
    """Draws right values, and often None where the field is not required."""
    return values_of(field) if field.is_required else st.one_of(st.none(), values_of(field), values_of(field))


@st.composite
def declared_payments(
    draw: st.DrawFn, declaration: Declaration, *, count_min: int = 1, count_max: int = 8
) -> list[DeclaredPayment]:
    """Draws payments of a declaration in order of time. Their ids are p0, p1, …

    Most are like an earlier one but for a few fields: an entity of several fields hardly ever comes again by chance.
    """
    # Label delays are days: in most histories some labels are old enough to count.
    span_ms = draw(st.sampled_from([*SPANS_MS, 30 * DAY_MS, SPANS_MS[-1]]))
    times = sorted(draw(st.lists(moments(span_ms), min_size=count_min, max_size=count_max)))
    own = st.fixed_dictionaries({field.name: maybe_values_of(field) for field in declaration.fields.declared})
    ips = st.sampled_from([None, *_TEXTS[Form.ADDRESS]])
    drawn: list[dict[str, Any]] = []
    payments = []
    for place, time_ms in enumerate(times):
        told = {**draw(FIELDS), "ip": draw(ips), **draw(own)}
        if drawn and draw(st.sampled_from([False, True, True, True])):
            fresh = draw(st.sets(st.sampled_from(sorted(told)), max_size=3))
            earlier: dict[str, Any] = draw(st.sampled_from(drawn))
            told = {**earlier, **{name: told[name] for name in fresh}}
        drawn.append(told)
        values = {"payment_id": f"p{place}", "event_time_ms": time_ms, "amount_minor": draw(AMOUNTS), **told}
        payments.append(DeclaredPayment({name: value for name, value in values.items() if value is not None}))
    assert all(payment.values["amount_minor"] <= AMOUNT_MINOR_MAX for payment in payments)
    return payments


Event = tuple[DeclaredPayment, int | None]
"""A payment, or with a number a change of its label: +1 it is a fraud, -1 it is none after all."""


@st.composite
def heard_histories(
    draw: st.DrawFn, declaration: Declaration, *, count_min: int = 1, count_max: int = 8
) -> list[Event]:
    """Draws payments and changes of their labels, in the order in which they are heard.

    Payments come before changes of the same millisecond.
    """
    payments = draw(declared_payments(declaration, count_min=count_min, count_max=count_max))
    events: list[tuple[int, int, Event]] = [(one.time_ms, 0, (one, None)) for one in payments]
    for payment in payments:
        known_ms = payment.time_ms
        for weight in (1, -1)[: draw(st.sampled_from([1, 1, 2, 0]))]:
            known_ms += draw(st.one_of(st.integers(0, 12 * DAY_MS), st.just(0)))
            events.append((known_ms, 1, (payment, weight)))
    return [event for *_, event in sorted(events, key=lambda event: event[:2])]


def column_types(fields: PaymentFields) -> dict[str, pa.DataType]:
    """Returns the columns of payments.parquet with the types in which a project would write them."""
    other = {Form.FLAG: pa.bool_(), Form.DECIMAL: pa.float64()}
    return {field.name: pa.string() if field.is_text else other.get(field.form, pa.int64()) for field in fields.all}
