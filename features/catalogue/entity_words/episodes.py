"""The word for episodes: bursts of tries that do not look like an entity's usual payments.

    merchant.episode("merchant_episode", "1h", of=((amount < 3_00, 0.02, 3), (declined, 0.02, 50)))

Card testing and enumeration change *what* an entity's payments are like, a flash sale only *how many* there are. So the
feature counts payments with a mark, such as a small amount, among the payments of a short window, and compares that
share with the entity's usual one:

    the last hour             12 payments, 9 of them small
    the 7 days before         300 payments, 6 of them small, and the prior: 0.06 of 3 payments, for (…, 0.02, 3)
    expected                  a share of about 6.06 / 303, uncertain as a Beta(6.06, 296.94)
    evidence                  ln P(0 of 12) - ln P(9 of 12), beta-binomial: 25.6 nats

The evidence of several marks adds up. The feature is that sum divided by `alarm`: from 1 on, an episode is on. Evidence
of x nats comes by chance about as often as e^-x, so one `alarm` is a budget of false alarms, and the same number gives
the same budget to each kind of entity. An entity without a past has the prior alone: a low weight, such as 3, says
that entities differ much, and lets no new one alarm soon.

The usual payments end `usual` / 28 ago, so a burst is not compared with itself; an episode that goes on for days
becomes the usual and ends. All counts are windows of the entity's profile, so every path computes the same value.
"""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.features.catalogue.attributes import Attribute, Condition
from paywarden.features.catalogue.entity_words.arguments import condition_of, counted_column
from paywarden.features.catalogue.entity_words.words import EntityWords, spoken, spoken_where
from paywarden.features.catalogue.expressions import (
    Column,
    Derived,
    Expression,
    Feature,
    Measure,
    Operation,
    Reduction,
)
from paywarden.features.catalogue.windows import in_units, window_of, wrong

ALARM = 20.0
"""Nats from which an episode is on. docs/benchmarks.md has the false alarms that the default gives."""
UNIT = "of an alarm"
"""The unit by which a feature is known as an episode."""
MARKS_MAX = 4
# Priors count in millionths of a payment, alarms in thousandths of a nat.
_PRIOR_SCALE, _ALARM_SCALE = 1_000_000, 1_000
_WEIGHT_MAX, _ALARM_MIN, _ALARM_MAX = 1_000_000, 1, 1_000
# The usual payments end one part of this many ago, and are counted in such parts.
_PARTS = 28
# Different values are counted in a bitmap of this many slots: each is taken or not, as a payment has a mark or not.
_SLOTS = 64
_SLOTS_WEIGHT = 640

Mark = tuple[Condition | Attribute, float, float]
"""A condition, the share of payments that usually meet it, and how many payments that prior counts as."""


class EpisodeWords(EntityWords):
    """The word for episodes."""

    def episode(
        self,
        name: str,
        window: str,
        *,
        of: Sequence[Mark],
        many: tuple[Attribute, float] | None = None,
        usual: str = "7d",
        alarm: float = ALARM,
    ) -> Feature:
        """Returns the evidence that the window's payments are a burst of tries; an episode is on from 1 on.

        `of`: marks of tries, each with the share of payments that usually have it and the weight of that prior.
        `many`: an attribute such as card_id and how many different values a window usually has: more are evidence, too.
        """
        marks = self._checked(name, of, many, alarm)
        length_ms = window_of(name, usual, "", "").length_ms
        if length_ms % (_PARTS * 1000) or length_ms <= window_of(name, window, "", "").length_ms:
            raise wrong(name, f"`usual` must be longer than the window, and whole seconds in {_PARTS} parts")
        part = in_units(length_ms // _PARTS)
        tries = self._over(name, Column(Measure.COUNT), window, "", "")
        past = self._over(name, Column(Measure.COUNT), usual, part, part)
        parts: list[Expression] = []
        for where, share, weight in marks:
            column = Column(Measure.COUNT, condition_of(name, where))
            marked = self._over(name, column, window, "", "")
            earlier = self._over(name, column, usual, part, part)
            parts.append(
                Derived(Operation.SURPRISE, (marked, tries, _more(earlier, share * weight), _more(past, weight)))
            )
        if many is not None:
            attribute, values = many
            column = Column(Measure.DISTINCT_BITS, None, counted_column(name, attribute))
            taken = self._over(name, column, window, "", "", Reduction.UNION)
            expected = _constant(_SLOTS_WEIGHT * values / _SLOTS)
            slots, weight_of_slots = _constant(_SLOTS), _constant(_SLOTS_WEIGHT)
            parts.append(Derived(Operation.SURPRISE, (taken, slots, expected, weight_of_slots)))
        evidence = parts[0]
        for one in parts[1:]:
            evidence = Derived(Operation.ADD, (evidence, one))
        value = Derived(Operation.SCALE, (evidence,), (_ALARM_SCALE, round(alarm * _ALARM_SCALE)))
        spoken_marks = " and".join(spoken_where(where) for where, _, _ in marks)
        more = f"; and for more than {many[1]:g} different {many[0].name}" if many is not None else ""
        meaning = (
            f"evidence for a burst of the {self.name}'s payments{spoken_marks} in {spoken(window)}, against its usual "
            f"share in {spoken(usual, part)}{more}: from 1 on an episode is on"
        )
        return self._feature(name, value, meaning, UNIT, window=f"{window} : {usual}")

    def _checked(
        self, name: str, of: Sequence[Mark], many: tuple[Attribute, float] | None, alarm: float
    ) -> tuple[Mark, ...]:
        """Returns the marks. Raises Misconfigured for a mark, a prior or an alarm that cannot be."""
        is_list = isinstance(of, Sequence) and not isinstance(of, str)
        marks = tuple(of) if is_list else ()
        if not is_list or not 1 <= len(marks) <= MARKS_MAX:
            raise wrong(name, f"`of` must list 1 to {MARKS_MAX} marks: (condition, usual share, weight)")
        for mark in marks:
            if not isinstance(mark, tuple) or len(mark) != 3:
                raise wrong(name, f"a mark is (condition, usual share, weight), got {mark!r}")
            _, share, weight = mark
            if not _is_number(share) or not 0.000001 <= share <= 0.99:
                raise wrong(name, f"a mark's usual share must be from 0.000001 to 0.99, got {share!r}")
            if not _is_number(weight) or not 0.1 <= weight <= _WEIGHT_MAX:
                raise wrong(name, f"a mark's weight must be from 0.1 to {_WEIGHT_MAX} payments, got {weight!r}")
        if many is not None:
            is_pair = isinstance(many, tuple) and len(many) == 2
            if not is_pair or not _is_number(many[1]) or not 0.1 <= many[1] <= _SLOTS // 2:
                raise wrong(name, f"`many` must be (attribute, usual number from 0.1 to {_SLOTS // 2}), got {many!r}")
        if not _is_number(alarm) or not _ALARM_MIN <= alarm <= _ALARM_MAX:
            raise wrong(name, f"`alarm` must be from {_ALARM_MIN} to {_ALARM_MAX} nats, got {alarm!r}")
        return marks


def is_episode(feature: Feature) -> bool:
    """Returns whether a feature is an episode's evidence."""
    return feature.unit == UNIT


def alarm_of(feature: Feature) -> float:
    """Returns the `alarm` of an episode's feature, in nats."""
    assert isinstance(feature.value, Derived)
    return feature.value.numbers[1] / _ALARM_SCALE


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _constant(value: float) -> Derived:
    number = Derived(Operation.NUMBER, numbers=(round(value * _PRIOR_SCALE),))
    return Derived(Operation.SCALE, (number,), (1, _PRIOR_SCALE))


def _more(count: Expression, payments: float) -> Derived:
    """Returns a count with the payments of a prior."""
    return Derived(Operation.ADD, (count, _constant(payments)))
