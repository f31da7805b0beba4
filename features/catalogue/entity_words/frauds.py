"""Words for an entity's known frauds.

    merchant.fraud_share("merchant_fraud_share_7d", "7d", delay="7d")    frauds of payments 7 to 14 days old
    card.fraud_count("card_frauds_90d", "90d")                           with the catalogue's own delay

Labels arrive days later: `delay` says how old a payment must be before its label counts. `Catalogue(label_delay=…)` is
the delay of words that have none. No payment sees its own label, or one that was not known at its time: training needs
no folds.
"""

from __future__ import annotations

from paywarden.features.catalogue.attributes import Attribute, Condition, amount
from paywarden.features.catalogue.entity_words.arguments import (
    attribute_value,
    condition_of,
    quotient,
    waits_for_label_delay,
)
from paywarden.features.catalogue.entity_words.words import EntityWords, spoken, spoken_half_life, spoken_where
from paywarden.features.catalogue.expressions import (
    Column,
    Derived,
    Feature,
    Measure,
    Operation,
    Reduction,
    WindowedMeasure,
)
from paywarden.features.catalogue.windows import window_of, wrong

# A prior counts in millionths of a payment.
_PRIOR_SCALE = 1_000_000
_PRIOR_WEIGHT_MAX = 1_000_000


class FraudWords(EntityWords):
    """Words for known frauds."""

    @waits_for_label_delay
    def fraud_count(
        self, name: str, window: str, *, delay: str = "", where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns how many of the window's payments are known to be fraud."""
        value = self._total(name, Column(Measure.FRAUD_COUNT, condition_of(name, where)), window, delay, hop)
        meaning = f"number of the {self.name}'s known frauds{spoken_where(where)} in {spoken(window, delay)}"
        return self._feature(name, value, meaning, "payments", window=window)

    @waits_for_label_delay
    def fraud_share(
        self,
        name: str,
        window: str,
        *,
        delay: str = "",
        where: Condition | Attribute | None = None,
        hop: str = "",
        labelled_only: bool = False,
    ) -> Feature:
        """Returns the share of the window's payments that are known to be fraud; missing without payments.

        With `labelled_only`, the share is one of payments that are known to be fraud or genuine: where most payments
        are never looked at, the share of all says how many were.
        """
        condition = condition_of(name, where)
        frauds = self._total(name, Column(Measure.FRAUD_COUNT, condition), window, delay, hop)
        count = self._total(name, _counted(name, condition, labelled_only), window, delay, hop)
        payments = f"the {self.name}'s {_spoken_payments(labelled_only)}{spoken_where(where)}"
        meaning = f"share of known fraud among {payments} in {spoken(window, delay)}"
        missing = f"no {_spoken_payments(labelled_only)} in the window"
        return self._feature(name, quotient(frauds, count), meaning, "share", missing, window)

    @waits_for_label_delay
    def fraud_share_smoothed(
        self,
        name: str,
        window: str,
        *,
        prior: float | str,
        prior_weight: int,
        delay: str = "",
        where: Condition | Attribute | None = None,
        hop: str = "",
        labelled_only: bool = False,
    ) -> Feature:
        """Returns `fraud_share` as if `prior_weight` more payments had been seen, a share of `prior` of them fraud.

        For a prior of 0.01 and a weight of 50, a value with 2 frauds in 10 payments has (2 + 0.5) / 60 = 0.042, and a
        value that was never seen has 0.01. Few payments then say little, and the share is never missing.

        A `prior` that names an earlier feature is learnt from the data: a merchant's share leans on that of its
        category as of this payment. It is missing where that feature is.
        """
        is_share = type(prior) in (int, float) and 0 <= prior <= 1  # type: ignore[operator]
        is_weight = type(prior_weight) is int and 0 < prior_weight <= _PRIOR_WEIGHT_MAX
        if not is_weight or not (is_share or isinstance(prior, str)):
            wanted = "a `prior` from 0 to 1, or the name of an earlier feature, "
            wanted += f"and a whole `prior_weight` from 1 to {_PRIOR_WEIGHT_MAX}"
            raise wrong(name, f"wanted {wanted}, got {prior!r} and {prior_weight!r}")
        condition = condition_of(name, where)
        frauds = self._total(name, Column(Measure.FRAUD_COUNT, condition), window, delay, hop)
        count = self._total(name, _counted(name, condition, labelled_only), window, delay, hop)
        if isinstance(prior, str):
            expected = Derived(Operation.SCALE, (prior,), (prior_weight, 1))
        else:
            one = Derived(Operation.NUMBER, numbers=(1,))
            expected = Derived(Operation.SCALE, (one,), (round(prior * prior_weight * _PRIOR_SCALE), _PRIOR_SCALE))
        weight = Derived(Operation.NUMBER, numbers=(prior_weight,))
        value = quotient(Derived(Operation.ADD, (frauds, expected)), Derived(Operation.ADD, (count, weight)))
        payments = f"the {self.name}'s {_spoken_payments(labelled_only)}{spoken_where(where)}"
        meaning = f"share of known fraud among {payments} in "
        share = prior if isinstance(prior, str) else f"{prior:g}"
        meaning += f"{spoken(window, delay)}, with {prior_weight} more payments at a share of {share}"
        missing = f"{prior} is missing" if isinstance(prior, str) else ""
        return self._feature(name, value, meaning, "share", missing, window)

    @waits_for_label_delay
    def fraud_amount_sum(
        self, name: str, window: str, *, delay: str = "", where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns the sum of the amounts of the window's known frauds."""
        value = self._total(name, Column(Measure.FRAUD_AMOUNT, condition_of(name, where)), window, delay, hop)
        meaning = f"sum of the amounts of {self._known_frauds(where, window, delay)}"
        return self._feature(name, value, meaning, "minor units", window=window)

    @waits_for_label_delay
    def fraud_amount_mean(
        self, name: str, window: str, *, delay: str = "", where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns the mean amount of the window's known frauds; missing without any."""
        measures = (Measure.FRAUD_AMOUNT, Measure.FRAUD_COUNT)
        columns = [Column(measure, condition_of(name, where)) for measure in measures]
        value = quotient(*(self._total(name, column, window, delay, hop) for column in columns))
        meaning = f"mean amount of {self._known_frauds(where, window, delay)}"
        return self._feature(name, value, meaning, "minor units", "no known fraud in the window", window)

    @waits_for_label_delay
    def fraud_amount_zscore(
        self, name: str, window: str, *, delay: str = "", where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Returns how many standard deviations this amount is above the mean of the window's known frauds."""
        measures = (
            *(Measure.FRAUD_COUNT, Measure.FRAUD_AMOUNT),
            *(Measure.FRAUD_SQUARES_LOW, Measure.FRAUD_SQUARES_HIGH),
        )
        columns = [Column(measure, condition_of(name, where)) for measure in measures]
        sums = tuple(self._over(name, column, window, delay, hop) for column in columns)
        deviation = Derived(Operation.DEVIATION, sums)
        value = Derived(Operation.STANDARD_SCORE, (attribute_value(amount), quotient(sums[1], sums[0]), deviation))
        meaning = f"how far the amount is above the mean of {self._known_frauds(where, window, delay)}"
        missing = "fewer than two known frauds in the window, or all of one amount"
        return self._feature(name, value, meaning, "standard deviations", missing, window)

    def _known_frauds(self, where: Condition | Attribute | None, window: str, delay: str) -> str:
        return f"the {self.name}'s known frauds{spoken_where(where)} in {spoken(window, delay)}"

    @waits_for_label_delay
    def fraud_share_decayed(self, name: str, half_life: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Returns `fraud_share` with each payment weighted by its tile's age: half for every half-life."""
        frauds = self._decayed(name, Column(Measure.FRAUD_COUNT), half_life, window, hop, delay)
        count = self._decayed(name, Column(Measure.COUNT), half_life, window, hop, delay)
        meaning = f"share of known fraud among the {self.name}'s payments in {spoken(window, delay)}"
        meaning += spoken_half_life(half_life)
        return self._feature(name, quotient(frauds, count), meaning, "share", "no payments in the window", window)

    @waits_for_label_delay
    def seconds_since_fraud(self, name: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Returns the age of the newest tile in the window with a known fraud, in seconds (whole hops)."""
        value = self._over(name, Column(Measure.FRAUD_COUNT), window, delay, hop, Reduction.NEWEST)
        meaning = f"time since the {self.name}'s last known fraud in {spoken(window, delay)}"
        return self._feature(name, value, meaning, "seconds", "no known fraud in the window", window)

    @waits_for_label_delay
    def seconds_since_first_fraud(self, name: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Returns the age of the oldest tile in the window with a known fraud, in seconds (whole hops)."""
        value = self._over(name, Column(Measure.FRAUD_COUNT), window, delay, hop, Reduction.OLDEST)
        meaning = f"time since the {self.name}'s first known fraud in {spoken(window, delay)}"
        return self._feature(name, value, meaning, "seconds", "no known fraud in the window", window)

    @waits_for_label_delay
    def seconds_since_genuine(self, name: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Returns the age of the newest tile in the window with a payment not known to be fraud, in seconds."""
        value = self._fraud_beside(name, window, delay, hop, Reduction.NEWEST_OTHER)
        meaning = f"time since the {self.name}'s last payment not known to be fraud in {spoken(window, delay)}"
        return self._feature(name, value, meaning, "seconds", "no such payment in the window", window)

    @waits_for_label_delay
    def fraud_streak(self, name: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Returns the known frauds since the newest tile with a payment not known to be fraud: the current streak.

        A compromised terminal has a streak: every payment is fraud until someone finds out.
        """
        value = self._fraud_beside(name, window, delay, hop, Reduction.STREAK)
        meaning = f"number of the {self.name}'s known frauds in a row at the end of {spoken(window, delay)}"
        return self._feature(name, value, meaning, "payments", window=window)

    @waits_for_label_delay
    def fraud_streak_seconds(self, name: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Returns the age of the current streak's oldest tile, in seconds (whole hops); missing without a streak."""
        value = self._fraud_beside(name, window, delay, hop, Reduction.STREAK_AGE)
        meaning = (
            f"time since the first of the {self.name}'s known frauds in a row at the end of {spoken(window, delay)}"
        )
        return self._feature(name, value, meaning, "seconds", "no frauds in a row", window)

    @waits_for_label_delay
    def fraud_streak_amount_mean(self, name: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Returns the mean amount of the current streak's frauds; missing without a streak.

        At a compromised terminal the amounts are as usual. A streak of unusual amounts points to stolen cards instead.
        """
        total = self._fraud_beside(name, window, delay, hop, Reduction.STREAK_SUM, Column(Measure.FRAUD_AMOUNT))
        count = self._fraud_beside(name, window, delay, hop, Reduction.STREAK)
        meaning = f"mean amount of the {self.name}'s known frauds in a row at the end of {spoken(window, delay)}"
        return self._feature(name, quotient(total, count), meaning, "minor units", "no frauds in a row", window)

    def _fraud_beside(
        self, name: str, window: str, delay: str, hop: str, reduction: Reduction, summed: Column | None = None
    ) -> WindowedMeasure:
        over = window_of(name, window, delay, hop)
        fraud, payments = Column(Measure.FRAUD_COUNT), Column(Measure.COUNT)
        return WindowedMeasure(self.name, fraud, over, reduction, beside=payments, summed=summed)


def _counted(name: str, condition: Condition | None, labelled_only: bool) -> Column:
    """Returns the column that counts the payments of a share."""
    if type(labelled_only) is not bool:
        raise wrong(name, f"labelled_only must be True or False, got {labelled_only!r}")
    return Column(Measure.LABELLED_COUNT if labelled_only else Measure.COUNT, condition)


def _spoken_payments(labelled_only: bool) -> str:
    return "labelled payments" if labelled_only else "payments"
