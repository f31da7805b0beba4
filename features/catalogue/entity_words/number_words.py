"""Words for numbers over a window: `amount`, or a number, an amount of money or a moment of payment.py.

    card.mean("card_weight_mean_30d", "30d", of=basket_weight)          1.25 kg
    mcc.zscore("weight_to_mcc_30d", "30d", of=basket_weight)            2.0: two standard deviations above the mean
    card.max("card_oldest_account_30d", "30d", of=account_opened)       a moment is taken as its age at its payment

A payment that lacks the number does not count. One whose amount is not known (its currency has no rate) adds 0 to sums,
but counts in means and deviations. Values are in the field's own unit, ages in seconds.
"""

from __future__ import annotations

from paywarden.features.catalogue.attributes import Attribute, AttributeKind, Condition
from paywarden.features.catalogue.entity_words.arguments import (
    condition_of,
    in_unit,
    number_column,
    own_number,
    quotient,
    spoken_number,
    summed_column,
    unit_of,
)
from paywarden.features.catalogue.entity_words.words import EntityWords, spoken, spoken_half_life, spoken_where
from paywarden.features.catalogue.expressions import (
    Column,
    Derived,
    Expression,
    Feature,
    Measure,
    Operation,
    Reduction,
    WindowedMeasure,
)

Where = Condition | Attribute | None


class NumberWords(EntityWords):
    """Words for the numbers of an entity's payments."""

    def sum(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        """Returns the sum of the numbers in the window."""
        value = in_unit(self._sums(name, of, where, window, hop)[1], of)
        meaning = f"sum of {spoken_number(of)} over {self._payments(where, window)}"
        return self._feature(name, value, meaning, unit_of(of), window=window)

    def mean(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        """Returns the mean of the numbers in the window; missing without any."""
        count, total = self._sums(name, of, where, window, hop)
        meaning = f"mean of {spoken_number(of)} over {self._payments(where, window)}"
        value = in_unit(quotient(total, count), of)
        return self._feature(name, value, meaning, unit_of(of), f"no {of.name} in the window", window)

    def std(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        """Returns the sample standard deviation (n - 1) of the numbers in the window; missing for fewer than two."""
        value = in_unit(self._deviation_of(name, of, where, window, hop), of)
        meaning = f"standard deviation of {spoken_number(of)} over {self._payments(where, window)}"
        return self._feature(name, value, meaning, unit_of(of), f"fewer than two {of.name} in the window", window)

    def zscore(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        """Returns how many standard deviations this payment's number is above the mean of the window's."""
        count, total = self._sums(name, of, where, window, hop)
        deviation = self._deviation_of(name, of, where, window, hop)
        value = Derived(Operation.STANDARD_SCORE, (own_number(of), quotient(total, count), deviation))
        meaning = f"how far {spoken_number(of)} is above the mean of {self._payments(where, window)}"
        missing = f"fewer than two {of.name} in the window, or all the same"
        if of.kind is not AttributeKind.AMOUNT:
            missing += f"; the payment has no {of.name}"
        return self._feature(name, value, meaning, "standard deviations", missing, window)

    def max(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        """Returns the largest number in the window; missing without any."""
        value = in_unit(self._extreme(name, of, where, window, hop, is_largest=True), of)
        meaning = f"largest {spoken_number(of)} of {self._payments(where, window)}"
        return self._feature(name, value, meaning, unit_of(of), f"no {of.name} in the window", window)

    def min(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        """Returns the smallest number in the window; missing without any."""
        value = in_unit(self._extreme(name, of, where, window, hop, is_largest=False), of)
        meaning = f"smallest {spoken_number(of)} of {self._payments(where, window)}"
        return self._feature(name, value, meaning, unit_of(of), f"no {of.name} in the window", window)

    def sum_decayed(
        self, name: str, half_life: str, window: str, *, of: Attribute, where: Where = None, hop: str = ""
    ) -> Feature:
        """Returns the sum of the window's numbers, each weighted by its tile's age: half for every half-life."""
        measure = Measure.AMOUNT_SUM if of.kind is AttributeKind.AMOUNT else Measure.NUMBER_SUM
        column = self._column(measure, summed_column(name, of), condition_of(name, where))
        value = in_unit(self._decayed(name, column, half_life, window, hop), of)
        meaning = f"sum of {spoken_number(of)} over {self._payments(where, window)}{spoken_half_life(half_life)}"
        return self._feature(name, value, meaning, unit_of(of), window=window)

    def _payments(self, where: Where, window: str) -> str:
        return f"the {self.name}'s payments{spoken_where(where)} in {spoken(window)}"

    def _column(self, measure: Measure, column: int, condition: Condition | None) -> Column:
        """Returns a column; measures of amounts name no attribute."""
        is_amount = measure in _OF_AMOUNTS
        return Column(measure, condition) if is_amount else Column(measure, condition, column)

    def _sums(
        self, name: str, of: Attribute, where: Where, window: str, hop: str
    ) -> tuple[WindowedMeasure, WindowedMeasure]:
        """Returns how many numbers the window has, and their sum."""
        count, total, *_ = self._deviation_sums(name, of, where, window, hop)
        return count, total

    def _deviation_sums(
        self, name: str, of: Attribute, where: Where, window: str, hop: str
    ) -> tuple[WindowedMeasure, ...]:
        column, condition = summed_column(name, of), condition_of(name, where)
        measures = _OF_AMOUNTS[:4] if of.kind is AttributeKind.AMOUNT else _OF_NUMBERS
        return tuple(
            self._over(name, self._column(measure, column, condition), window, "", hop) for measure in measures
        )

    def _deviation_of(self, name: str, of: Attribute, where: Where, window: str, hop: str) -> Derived:
        return Derived(Operation.DEVIATION, self._deviation_sums(name, of, where, window, hop))

    def _extreme(
        self, name: str, of: Attribute, where: Where, window: str, hop: str, *, is_largest: bool
    ) -> Expression:
        measures = (Measure.AMOUNT_MIN, Measure.AMOUNT_MAX), (Measure.NUMBER_MIN, Measure.NUMBER_MAX)
        reductions = (Reduction.SMALLEST, Reduction.LARGEST), (Reduction.SMALLEST_NUMBER, Reduction.LARGEST_NUMBER)
        is_declared = of.kind is not AttributeKind.AMOUNT
        column = self._column(measures[is_declared][is_largest], number_column(name, of), condition_of(name, where))
        return self._over(name, column, window, "", hop, reductions[is_declared][is_largest])


_OF_AMOUNTS = (
    Measure.COUNT,
    Measure.AMOUNT_SUM,
    Measure.SQUARES_LOW,
    Measure.SQUARES_HIGH,
    Measure.AMOUNT_MAX,
    Measure.AMOUNT_MIN,
)
_OF_NUMBERS = (
    Measure.NUMBER_COUNT,
    Measure.NUMBER_SUM,
    Measure.NUMBER_SQUARES_LOW,
    Measure.NUMBER_SQUARES_HIGH,
)
