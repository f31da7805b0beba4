"""Entities and catalogues: the words for features of a card, a merchant, a device, or a combination of fields.

    card = Entity("card", key="card_id")
    CATALOGUE = Catalogue(
        entities=(card,),
        features=(
            request.amount("amount"),                                   from the payment itself (request.py)
            card.amount_mean("card_amount_mean_30d", "30d"),            from the card's earlier payments (this file)
            ratio("amount_to_mean", "amount", "card_amount_mean_30d"),  from two earlier features (request.py)
        ),
    )

All words of a catalogue can be imported from this module.

Windows are sawtooth windows. Time is cut into tiles, each one `hop` long. A window of length L at time t holds every
whole tile that touches (t - L, t], so it reaches back between L and L + hop. It counts too much by at most what
happened in one hop. For example, with a hop of 1 hour and a window of 1 day:

    payment at 14:35   tiles from 14:00 yesterday on   the window is 24 h 35 min long
    payment at 14:59   the same tiles                  24 h 59 min
    payment at 15:00   tiles from 15:00 yesterday on   24 h

A window with a `delay` holds only tiles that lie wholly before t - delay. It is exactly L long and ends between
`delay` and `delay + hop` ago: a label that takes `delay` to arrive is then known. Without a given `hop`, the hop is at
most a quarter of the window.

Words for counts, shares, amounts, distinct values and frauds also take windows of up to three years, and "ever": one
tile that never ends. Until `delay` ago, "ever" is all time without the tiles of the last `delay`.

A payment never counts itself, unless a feature says `including_this`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from paywarden.features.catalogue.attributes import Attribute, Condition, amount
from paywarden.features.catalogue.checks import BESIDE_PROFILES, check_declared, check_entities, check_features
from paywarden.features.catalogue.entity_words.arguments import (
    at_most,
    attribute_value,
    check_including,
    condition_of,
    counted_column,
    quotient,
    spoken_most,
)
from paywarden.features.catalogue.entity_words.episodes import EpisodeWords
from paywarden.features.catalogue.entity_words.frauds import FraudWords
from paywarden.features.catalogue.entity_words.last_values import LATEST_MAX, MEMORY_MAX, LatestWords
from paywarden.features.catalogue.entity_words.neighbour_words import NeighbourWords
from paywarden.features.catalogue.entity_words.number_words import NumberWords
from paywarden.features.catalogue.entity_words.words import spoken, spoken_half_life, spoken_including, spoken_where
from paywarden.features.catalogue.expressions import (
    Column,
    Derived,
    Feature,
    Measure,
    Neighbours,
    Operation,
    Reduction,
    WindowedMeasure,
    knows_fraud,
    stored_values,
)
from paywarden.features.catalogue.fields import NO_FIELDS, Payment
from paywarden.features.catalogue.neighbour_reads import with_neighbours
from paywarden.features.catalogue.request import CATEGORIES_MAX, difference, product_of, ratio, request
from paywarden.features.catalogue.windows import HOUR_MS, line_of_caller, window_of, wrong, wrong_at
from paywarden.schemas.errors import Misconfigured

__all__ = [
    "BESIDE_PROFILES",
    "CATEGORIES_MAX",
    "LATEST_MAX",
    "MEMORY_MAX",
    "Catalogue",
    "Entity",
    "difference",
    "distinct_error",
    "grows_with_age",
    "product_of",
    "ratio",
    "request",
]


@dataclass(frozen=True)
class Entity(NumberWords, FraudWords, LatestWords, NeighbourWords, EpisodeWords):
    """Something that payments have in common, such as a card. Its methods are the words for its features.

    `key` is the payment field that identifies the entity, or a tuple of fields that identify it together. A payment
    that lacks one of these fields has no such entity: all features of the entity are then missing.
    """

    # How many payments, and how often.

    def count(
        self,
        name: str,
        window: str,
        *,
        where: Condition | Attribute | None = None,
        delay: str = "",
        hop: str = "",
        including_this: bool = False,
    ) -> Feature:
        """Returns the number of payments in the window; with `including_this`, this payment counts too."""
        count = self._total(name, Column(Measure.COUNT, condition_of(name, where)), window, delay, hop)
        check_including(name, including_this, where)
        if including_this:
            count = Derived(Operation.ADD, (count, Derived(Operation.NUMBER, numbers=(1,))))
        meaning = f"number of the {self.name}'s payments{spoken_where(where)} in {spoken(window, delay)}"
        return self._feature(name, count, meaning + spoken_including(including_this), "payments", window=window)

    def rate(self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = "") -> Feature:
        """Returns the payments per hour over the window."""
        length_ms = window_of(name, window, "", hop).length_ms
        count = self._over(name, Column(Measure.COUNT, condition_of(name, where)), window, "", hop)
        value = Derived(Operation.SCALE, (count,), (HOUR_MS, length_ms))
        meaning = f"the {self.name}'s payments{spoken_where(where)} per hour in {spoken(window)}"
        return self._feature(name, value, meaning, "payments per hour", window=window)

    def share(self, name: str, window: str, *, of: Condition | Attribute, delay: str = "", hop: str = "") -> Feature:
        """Returns the share of the window's payments for which a condition holds; missing without payments."""
        held = self._total(name, Column(Measure.COUNT, condition_of(name, of)), window, delay, hop)
        count = self._total(name, Column(Measure.COUNT), window, delay, hop)
        meaning = f"share of the {self.name}'s payments in {spoken(window, delay)}{spoken_where(of)}"
        return self._feature(name, quotient(held, count), meaning, "share", "no payments in the window", window)

    def count_decayed(
        self, name: str, half_life: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns the number of payments in the window, each weighted by its tile's age.

        The weight halves with every half-life: a payment of two half-lives ago counts 0.25.
        """
        column = Column(Measure.COUNT, condition_of(name, where))
        value = self._decayed(name, column, half_life, window, hop)
        meaning = f"number of the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        meaning += spoken_half_life(half_life)
        return self._feature(name, value, meaning, "payments", window=window)

    def count_trend(self, name: str, short: str, long: str) -> Feature:
        """Returns the rate of payments over the short window divided by the rate over the long window.

        1 means as often as usual. Missing when the long window has no payments.
        """
        column = Column(Measure.COUNT)
        recent, usual = self._over(name, column, short, "", ""), self._over(name, column, long, "", "")
        if recent.window.length_ms >= usual.window.length_ms:
            raise wrong(name, f"the first window, {short!r}, must be shorter than the second, {long!r}")
        share = quotient(recent, usual)
        value = Derived(Operation.SCALE, (share,), (usual.window.length_ms, recent.window.length_ms))
        meaning = f"the {self.name}'s rate of payments in {spoken(short)} divided by its rate in {spoken(long)}"
        return self._feature(name, value, meaning, "ratio", "no payments in the long window", f"{short} : {long}")

    def distinct(
        self,
        name: str,
        of: Attribute,
        window: str,
        *,
        bits: int = 64,
        where: Condition | Attribute | None = None,
        hop: str = "",
    ) -> Feature:
        """Returns how many different values an attribute has, by linear counting in a bitmap of `bits`.

        With n values in m bits the standard error is sqrt(m (e^(n/m) - n/m - 1)) / n: under 12 % up to n = 64 for
        64 bits, under 4 % up to n = 1024 for 1024. The result is at most m ln m.
        """
        if bits not in (64, 128, 256, 512, 1024):
            raise wrong(name, f"bits must be 64, 128, 256, 512 or 1024, got {bits!r}")
        column = Column(Measure.DISTINCT_BITS, condition_of(name, where), counted_column(name, of), bits // 64)
        value = self._over(name, column, window, "", hop, Reduction.UNION, is_long=True)
        meaning = (
            f"number of different {of.name} among the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        )
        return self._feature(name, value, meaning, f"values, ± {distinct_error(bits, bits):.0%}", window=window)

    def entropy(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        """Returns the entropy of an attribute's values, hashed to `buckets`: 0 bits for a single value."""
        counts = self._buckets(name, of, window, buckets, hop)
        value = Derived(Operation.ENTROPY, (counts,), (buckets,))
        meaning = f"entropy of {of.name} over the {self.name}'s payments in {spoken(window)}: 0 when all are the same"
        return self._feature(name, value, meaning, f"bits, over {buckets} buckets", "no payments in the window", window)

    def top_share(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        """Returns the share of an attribute's most frequent value, hashed to `buckets`.

        Values in the same bucket count together.
        """
        counts = self._buckets(name, of, window, buckets, hop)
        value = Derived(Operation.TOP_SHARE, (counts,), (buckets,))
        meaning = f"share of the most frequent {of.name} among the {self.name}'s payments in {spoken(window)}"
        return self._feature(
            name, value, meaning, f"share, over {buckets} buckets", "no payments in the window", window
        )

    # Amounts, in minor units of the reference currency.

    def amount_sum(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns the sum of the amounts in the window."""
        value = self._total(name, Column(Measure.AMOUNT_SUM, condition_of(name, where)), window, "", hop)
        meaning = f"sum of the amounts of the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        return self._feature(name, value, meaning, "minor units", window=window)

    def amount_mean(
        self,
        name: str,
        window: str,
        *,
        where: Condition | Attribute | None = None,
        hop: str = "",
        including_this: bool = False,
    ) -> Feature:
        """Returns the mean amount of the payments in the window; missing without payments.

        With `including_this`, this payment counts too.
        """
        condition = condition_of(name, where)
        check_including(name, including_this, where)
        total = self._total(name, Column(Measure.AMOUNT_SUM, condition), window, "", hop)
        count = self._total(name, Column(Measure.COUNT, condition), window, "", hop)
        if including_this:
            total = Derived(Operation.ADD, (total, attribute_value(amount)))
            count = Derived(Operation.ADD, (count, Derived(Operation.NUMBER, numbers=(1,))))
        meaning = f"mean amount of the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        missing = "" if including_this else "no payments in the window"
        meaning += spoken_including(including_this)
        return self._feature(name, quotient(total, count), meaning, "minor units", missing, window)

    def amount_std(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns the sample standard deviation (n - 1) of the amounts in the window; missing for fewer than two."""
        value = self._deviation(name, condition_of(name, where), window, hop)
        payments = f"the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        meaning = f"standard deviation of the amounts of {payments}"
        return self._feature(name, value, meaning, "minor units", "fewer than two payments in the window", window)

    def amount_zscore(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns how many standard deviations this amount is above the mean of the window's amounts."""
        condition = condition_of(name, where)
        total = self._over(name, Column(Measure.AMOUNT_SUM, condition), window, "", hop)
        count = self._over(name, Column(Measure.COUNT, condition), window, "", hop)
        deviation = self._deviation(name, condition, window, hop)
        value = Derived(Operation.STANDARD_SCORE, (attribute_value(amount), quotient(total, count), deviation))
        payments = f"the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        meaning = f"how far the amount is above the mean of {payments}"
        missing = "fewer than two payments in the window, or all of one amount"
        return self._feature(name, value, meaning, "standard deviations", missing, window)

    def amount_max(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns the largest amount in the window; missing without payments."""
        column = Column(Measure.AMOUNT_MAX, condition_of(name, where))
        value = self._over(name, column, window, "", hop, Reduction.LARGEST, is_long=True)
        meaning = f"largest amount of the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        return self._feature(name, value, meaning, "minor units", "no payments in the window", window)

    def amount_min(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns the smallest amount in the window; missing without payments."""
        column = Column(Measure.AMOUNT_MIN, condition_of(name, where))
        value = self._over(name, column, window, "", hop, Reduction.SMALLEST, is_long=True)
        meaning = f"smallest amount of the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"
        return self._feature(name, value, meaning, "minor units", "no payments in the window", window)

    def amount_decayed(self, name: str, half_life: str, window: str, *, hop: str = "") -> Feature:
        """Returns the sum of the window's amounts, each weighted by its tile's age: half for every half-life."""
        value = self._decayed(name, Column(Measure.AMOUNT_SUM), half_life, window, hop)
        meaning = f"sum of the amounts of the {self.name}'s payments in {spoken(window)}{spoken_half_life(half_life)}"
        return self._feature(name, value, meaning, "minor units", window=window)

    def _deviation(self, name: str, condition: Condition | None, window: str, hop: str) -> Derived:
        measures = (Measure.COUNT, Measure.AMOUNT_SUM, Measure.SQUARES_LOW, Measure.SQUARES_HIGH)
        sums = tuple(self._over(name, Column(measure, condition), window, "", hop) for measure in measures)
        return Derived(Operation.DEVIATION, sums)

    def _buckets(self, name: str, of: Attribute, window: str, buckets: int, hop: str) -> WindowedMeasure:
        if buckets not in (2, 4, 8, 16, 32):
            raise wrong(name, f"buckets must be 2, 4, 8, 16 or 32, got {buckets!r}")
        column = Column(Measure.BUCKET_COUNTS, None, counted_column(name, of), buckets)
        return self._over(name, column, window, "", hop)


@dataclass(frozen=True)
class Catalogue:
    """Entities and features, checked. The order of `features` is the order of the feature vector.

    `payment` has the fields that a project declares besides those of every payment. `label_delay` is how old a payment
    must be before its label counts, for the words for frauds that do not say it themselves. `seconds_most`, such as
    "30d", bounds every feature in seconds that does not say `most` itself and is not bounded by a window. Otherwise its
    range grows with the age of the data: a card's age where cards begin with the data, the last payment of a card that
    is hardly used, the age of an account. An empty text bounds nothing.
    """

    entities: Sequence[Entity]
    features: Sequence[Feature]
    payment: Payment = NO_FIELDS
    label_delay: str = "7d"
    seconds_most: str = ""
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Raises Misconfigured, with the file and line of the catalogue, for the first thing that is wrong."""
        # A catalogue is code that no type checker reads.
        told: dict[str, object] = {"entities": self.entities, "features": self.features}
        for name, listed in told.items():
            if not isinstance(listed, Iterable):
                got = f"{name} must be a list, got a {type(listed).__name__}; one alone needs a comma: {name}=(…,)"
                raise wrong_at(line_of_caller(), got)
        object.__setattr__(self, "entities", tuple(self.entities))
        entities: Sequence[object] = self.entities
        for place, entity in enumerate(entities, 1):
            if not isinstance(entity, Entity):
                got = f"entities must be a list of entities; number {place} is a {type(entity).__name__}"
                raise wrong_at(line_of_caller(), got)
        payment: object = self.payment
        if not isinstance(payment, Payment):
            raise wrong_at(line_of_caller(), f"payment must be a Payment(…), got a {type(payment).__name__}")
        # A generator gives its features once.
        object.__setattr__(self, "features", tuple(self.features))
        given: Sequence[object] = self.features
        for place, feature in enumerate(given, 1):
            if not isinstance(feature, Feature):
                also = "; words that make several features need a star: *card.last(…)" if type(feature) is tuple else ""
                got = f"features must be a list of features; number {place} is a {type(feature).__name__}{also}"
                raise wrong_at(line_of_caller(), got)
        features = tuple(self._bounded(self._with_delay(feature)) for feature in self.features)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "names", tuple(feature.name for feature in self.features))
        check_entities(self.entities, self.payment.attributes)
        check_features(self.features, {entity.name for entity in self.entities})
        keys = {entity.name: entity.keys for entity in self.entities}
        object.__setattr__(self, "features", with_neighbours(self.features, keys, self.payment.attributes))
        check_declared(self.features, self.payment.attributes)

    def _with_delay(self, feature: Feature) -> Feature:
        """Returns the feature with the catalogue's label delay, if it waits for one."""
        if feature.with_delay is None:
            return feature
        try:
            made = feature.with_delay(delay=self.label_delay)
            # It stays one that waits, so that a copy of the catalogue may have another delay.
            return replace(made, line=feature.line, with_delay=feature.with_delay)
        except Misconfigured as error:
            raise _at_line_of(feature, error) from None

    def _bounded(self, feature: Feature) -> Feature:
        """Returns the feature with the catalogue's bound of seconds, if its range grows with the age of the data."""
        if not self.seconds_most or not grows_with_age(feature):
            return feature
        try:
            value = at_most(feature.name, feature.value, self.seconds_most)
        except Misconfigured as error:
            raise _at_line_of(feature, error) from None
        return replace(feature, value=value, meaning=feature.meaning + spoken_most(self.seconds_most))


def grows_with_age(feature: Feature) -> bool:
    """Returns whether the range of a feature grows with the age of the data: times since something, without a bound.

    Times of known frauds are those of a window, and bounded by it. A ratio is bounded where its features are, and so is
    a feature of neighbours.
    """
    if (
        isinstance(feature.value, Neighbours)
        or feature.unit != "seconds"
        or (isinstance(feature.value, Derived) and feature.value.operation is Operation.CLIP)
    ):
        return False
    return not any(knows_fraud(stored) for stored in stored_values(feature.value))


def _at_line_of(feature: Feature, error: Misconfigured) -> Misconfigured:
    """Returns the error with the line of the feature: its own names the line of the catalogue as a whole."""
    _, _, what = str(error).partition(": ")
    return wrong_at(feature.line, what)


def distinct_error(count: int, bits: int) -> float:
    """Returns the relative standard error of linear counting with `count` values in `bits` (Whang et al. 1990)."""
    load = count / bits
    return float((bits * (2.718281828459045**load - load - 1)) ** 0.5 / count)
