"""Words for an entity's latest payments: when they were, what they held, where they were.

    card.seconds_since_last("since_last")               600.0 for a payment ten minutes after the last one
    card.is_new("new_merchant", merchant_id)            1.0 if the card has not paid there lately
    *card.last("card", 3, of=(amount, mcc)),            the time, the amount and the category of the last three payments
    card.distance_to_last_km("card_jump_km", shop)      877.5 for a payment in Paris after one in Berlin

A profile remembers the latest distinct values of an attribute (`is_new`), or some fields of the latest payments
(`last`). Both are ordered by the payments' own times, and only payments by the time of this one count.
"""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.features.catalogue.attributes import Attribute, AttributeKind, amount, country
from paywarden.features.catalogue.entity_words.arguments import (
    at_most,
    counted_column,
    in_unit,
    number_column,
    own_number,
    spoken_most,
    spoken_number,
    unit_of,
)
from paywarden.features.catalogue.entity_words.words import EntityWords
from paywarden.features.catalogue.expressions import (
    Derived,
    EntityRecency,
    Expression,
    Feature,
    Latest,
    Operation,
    Recency,
    Recollection,
    Remembered,
)
from paywarden.features.catalogue.fields import Coordinates
from paywarden.features.catalogue.windows import wrong

# A card's last few dozen merchants or devices tell enough. Every further value adds six bytes to each profile.
MEMORY_MAX = 64
# Models take the latest payments one by one, as inputs: windows cover more of them.
LATEST_MAX, FIELDS_MAX = 8, 8


class LatestWords(EntityWords):
    """Words for earlier payments: when they were, and what they held."""

    def seconds_since_last(self, name: str, *, most: str = "") -> Feature:
        """Returns the seconds since the newest payment, at most `most`; 0 if it is later than this one.

        Missing without any payment.
        """
        return self._recency(name, Recency.SINCE_LAST, "last", most)

    def seconds_since_first(self, name: str, *, most: str = "") -> Feature:
        """Returns the seconds since the oldest payment ever, at most `most`; 0 if it is later than this one.

        Missing without any payment. Without `most` its range grows with the age of the data.
        """
        return self._recency(name, Recency.SINCE_FIRST, "first", most)

    def last_amount(self, name: str) -> Feature:
        """Returns the amount of the previous payment. Among payments of the same millisecond, the largest counts."""
        value = Remembered(self.name, amount.column, 1, Recollection.LAST_VALUE)
        meaning = f"amount of the {self.name}'s previous payment"
        return self._feature(name, value, meaning, "minor units", f"first payment of the {self.name}")

    def is_new(self, name: str, attribute: Attribute, *, among: int = 32) -> Feature:
        """Returns 1 if the attribute's value is not among the entity's latest `among` different values, else 0."""
        value = self._remembered(name, attribute, among, Recollection.IS_NEW)
        meaning = f"whether {attribute.name} is not among the latest {among} different values of the {self.name}"
        return self._feature(name, value, meaning, "0 or 1", f"the payment has no {attribute.name}")

    def seconds_since_same(self, name: str, attribute: Attribute, *, among: int = 32, most: str = "") -> Feature:
        """Returns the seconds since the last payment with the same value of an attribute, at most `most`.

        Missing if the value is not among the latest `among` different values.
        """
        value = at_most(name, self._remembered(name, attribute, among, Recollection.SINCE_SAME), most)
        meaning = f"time since the {self.name}'s last payment with the same {attribute.name}{spoken_most(most)}"
        return self._feature(
            name, value, meaning, "seconds", f"{attribute.name} is not among the latest {among} values"
        )

    def travel_kmh(self, name: str, *, among: int = 8) -> Feature:
        """Returns the speed of a journey from the last payment's country to this one's, between the countries' middles.

        0 in the same country. A journey counts as at least one minute long. Nobody travels faster than 1,000 km/h.
        """
        value = self._remembered(name, country, among, Recollection.TRAVEL_KMH)
        meaning = f"speed of travel from the country of the {self.name}'s last payment to this one's"
        return self._feature(name, value, meaning, "km/h", "one of the two countries is not known")

    def last(self, prefix: str, payments: int, *, of: Sequence[Attribute] = (), most: str = "") -> tuple[Feature, ...]:
        """Returns features of each of the latest payments: how long ago it was, and a value for each attribute.

        Example: `*card.last("card", 2, of=(amount, mcc))` makes card_1_seconds, card_1_amount and card_1_mcc of the
        last payment, and card_2_… of the one before. A number has its own unit. A text, or a country, is 1 if it is
        that of this payment, else 0. Each attribute adds a number to each remembered payment of a profile. `most`
        bounds how long ago: the payment itself stays.
        """
        if type(payments) is not int or not 1 <= payments <= LATEST_MAX:
            raise wrong(prefix, f"wanted 1 to {LATEST_MAX} payments, got {payments!r}")
        if isinstance(of, Attribute) or not isinstance(of, Sequence) or len(of) > FIELDS_MAX:
            raise wrong(prefix, f"`of` must list at most {FIELDS_MAX} attributes")
        kept = tuple(self._kept(prefix, attribute) for attribute in of)
        features = []
        for place in range(payments):
            which = "last payment" if place == 0 else f"payment number {place + 1}, counted from the last"
            never = f"the {self.name} has no such payment"
            ago = at_most(prefix, Latest(self.name, kept, payments, False, Recollection.AGO, place), most)
            meaning = f"time since the {self.name}'s {which}{spoken_most(most)}"
            features.append(self._feature(f"{prefix}_{place + 1}_seconds", ago, meaning, "seconds", never))
            for field, attribute in enumerate(of):
                is_number = kept[field][1]
                question = Recollection.NUMBER_OF if is_number else Recollection.IS_SAME
                value: Expression = Latest(self.name, kept, payments, False, question, place, field)
                unit, meaning = "0 or 1", f"whether {attribute.name} is that of the {self.name}'s {which}"
                missing = f"{never}, or one of the two payments has no {attribute.name}"
                if is_number:
                    value, unit = in_unit(value, attribute), unit_of(attribute)
                    meaning = f"{spoken_number(attribute)} of the {self.name}'s {which}"
                    missing = never if attribute.name == amount.name else f"{never}, or it has no {attribute.name}"
                features.append(self._feature(f"{prefix}_{place + 1}_{attribute.name}", value, meaning, unit, missing))
        return tuple(features)

    def last_value(self, name: str, *, of: Attribute) -> Feature:
        """Returns a number of the latest payment that has it; of payments of one millisecond, the largest."""
        meaning = f"{spoken_number(of)} of the {self.name}'s last payment that has it"
        missing = f"no earlier payment of the {self.name} has {of.name}"
        return self._feature(name, in_unit(self._last_number(name, of), of), meaning, unit_of(of), missing)

    def difference_to_last(self, name: str, *, of: Attribute) -> Feature:
        """Returns this payment's number minus that of the latest payment that has it."""
        difference = Derived(Operation.SUBTRACT, (own_number(of), self._last_number(name, of)))
        meaning = f"{spoken_number(of)} minus that of the {self.name}'s last payment that has it"
        missing = f"this payment, or every earlier one of the {self.name}, has no {of.name}"
        return self._feature(name, in_unit(difference, of), meaning, unit_of(of), missing)

    def median(self, name: str, *, of: Attribute, last: int = 20, same: Attribute | None = None) -> Feature:
        """Returns the median of a number over the latest `last` payments that have it; missing without any.

        With `same`, only those of them count that have this payment's value of an attribute.
        """
        return self.quantile(name, of=of, share=0.5, last=last, same=same)

    def quantile(
        self, name: str, *, of: Attribute, share: float, last: int = 20, same: Attribute | None = None
    ) -> Feature:
        """Returns the number that a `share` of the latest payments' numbers do not exceed, interpolated.

        `share` has at most three digits after the point. With `same`, as in `median`.
        """
        if type(share) is not float or not 0 < share < 1 or abs(round(share * 1000) - share * 1000) > 1e-9:
            raise wrong(name, f"share must be from 0.001 to 0.999 in thousandths, as in 0.5 or 0.95, got {share!r}")
        fields: tuple[tuple[int, bool], ...] = ((number_column(name, of), True),)
        if same is not None:
            fields = (*fields, (counted_column(name, same), False))
        self._check_last(name, last)
        value = Latest(self.name, fields, last, True, Recollection.QUANTILE, round(share * 1000))
        which = "median" if share == 0.5 else f"quantile {share:g}"
        meaning = f"{which} of {spoken_number(of)} over the {self.name}'s latest {last} payments that have it"
        missing = f"no earlier payment of the {self.name} has {of.name}"
        if same is not None:
            meaning += f", of those with the same {same.name}"
            missing = f"none of these has {of.name} and the same {same.name}"
        return self._feature(name, in_unit(value, of), meaning, unit_of(of), missing)

    def count_same(self, name: str, attribute: Attribute, *, last: int = 20) -> Feature:
        """Returns how many of the latest `last` payments that have an attribute have this payment's value of it."""
        self._check_last(name, last)
        fields = ((counted_column(name, attribute), False),)
        value = Latest(self.name, fields, last, True, Recollection.COUNT_SAME)
        meaning = f"number of the {self.name}'s latest {last} payments with the same {attribute.name}"
        return self._feature(name, value, meaning, "payments", f"the payment has no {attribute.name}")

    def _check_last(self, name: str, last: int) -> None:
        if type(last) is not int or not 1 <= last <= MEMORY_MAX:
            raise wrong(name, f"`last` must be 1 to {MEMORY_MAX} payments, got {last!r}")

    def distance_to_last_km(self, name: str, place: Coordinates) -> Feature:
        """Returns the great-circle distance from the latest payment that has coordinates to this one."""
        value = self._journey(name, place, Recollection.DISTANCE_KM)
        meaning = f"distance from {place.name} of the {self.name}'s last payment that has it"
        return self._feature(name, value, meaning, "km", f"this payment, or every earlier one, has no {place.name}")

    def speed_kmh(self, name: str, place: Coordinates) -> Feature:
        """Returns the speed of a journey from the latest payment that has coordinates to this one.

        A journey counts as at least one minute long. Nobody travels faster than 1,000 km/h.
        """
        value = self._journey(name, place, Recollection.SPEED_KMH)
        meaning = f"speed of travel from {place.name} of the {self.name}'s last payment that has it"
        return self._feature(name, value, meaning, "km/h", f"this payment, or every earlier one, has no {place.name}")

    def _recency(self, name: str, recency: Recency, which: str, most: str) -> Feature:
        value = at_most(name, EntityRecency(self.name, recency), most)
        meaning = f"time since the {self.name}'s {which} payment{spoken_most(most)}"
        return self._feature(name, value, meaning, "seconds", f"first payment of the {self.name}")

    def _remembered(self, name: str, attribute: Attribute, among: int, recollection: Recollection) -> Remembered:
        if type(among) is not int or not 1 <= among <= MEMORY_MAX:
            raise wrong(name, f"`among` must be 1 to {MEMORY_MAX}, got {among!r}")
        return Remembered(self.name, counted_column(name, attribute), among, recollection)

    def _last_number(self, name: str, of: Attribute) -> Latest:
        return Latest(self.name, ((number_column(name, of), True),), 1, True, Recollection.NUMBER_OF)

    def _journey(self, name: str, place: Coordinates, question: Recollection) -> Latest:
        if not isinstance(place, Coordinates):
            raise wrong(name, f"wanted coordinates of payment.py, got {place!r}")
        fields = ((place.latitude.column, True), (place.longitude.column, True))
        return Latest(self.name, fields, 1, True, question)

    def _kept(self, name: str, attribute: Attribute) -> tuple[int, bool]:
        if isinstance(attribute, Attribute) and attribute.kind in (AttributeKind.TEXT, AttributeKind.COUNTRY):
            return attribute.column, False
        return number_column(name, attribute), True
