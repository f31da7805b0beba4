"""Find rules that stop frauds which model and policy miss, and prove each on later payments.

    approved payments ──► first part: trees ──► paths ──► greedy choice ──► later part: does each rule earn?
    with their labels                                                        yes: proposed    no: noise, dropped

1. The payments are those that the policy approves. They are cut in time where MINED_SHARE of the missed frauds are
   past: rules are found before the cut and proven after it.
2. Shallow trees of LightGBM part missed frauds from genuine payments, by features and by frequent values of text
   fields. Each path from a root to a node is a candidate: `card_count_1h > 4.5 and mcc == "5816"`.
3. Candidates are chosen greedily, the largest gain first. What earlier ones stop counts no more. Together they may stop
   a share `false_positives` of the genuine payments (RIFF: L. Martins et al., "RIFF: Inducing Rules for Fraud Detection
   from Decision Trees", 2024, arXiv 2408.12989).
4. A chosen rule is proposed if its gain after the cut is above 0 by its 95 % interval. Cards are drawn again for the
   interval, because frauds of one card come together.
5. Rules of an earlier mining go first. One that earns in the last third of the time is kept, any other is retired.

The gain is money at stated costs: a stopped fraud saves its amount x `fraud_loss_share`; a review costs
`review_cost_minor`; a declined genuine payment loses its amount x `declined_margin_share`.

Example: 40 missed frauds of EUR 80, 30 of them with mcc 5816 and 6 payments of the card within an hour, as 10 genuine
payments have. With EUR 5 a review this rule gains 30 x 80 - 40 x 5 = EUR 2,200.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.entity import Catalogue
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.intervals import Z_95, Interval
from paywarden.models.policy.policy import ACTIONS, DECLINE, REVIEW, ConfiguredRule, policy_vocabulary
from paywarden.models.policy.rules import Vocabulary, compile_condition
from paywarden.schemas.errors import Misconfigured

MINED = "mined_"
"""The names of mined rules begin with it."""
ROWS_MAX = 200_000
"""Genuine payments that are looked at; with more, each of them stands for several."""
FRAUDS_MIN = 10
"""With fewer missed frauds there is nothing to find and to prove."""
MINED_SHARE = 0.6
UNSAFE_FIELDS = frozenset(("card_id", "device_id", "ip"))
"""Fields whose values are ids of people: no rule names one."""

_VALUES_MAX, _VALUE_FRAUDS_MIN = 16, 3
_RULE_FRAUDS_MIN = 3
_TREES = 25
_GROWTH: Mapping[str, Any] = {
    "objective": "binary",
    "num_leaves": 8,
    "max_depth": 3,
    "min_data_in_leaf": 5,
    "min_sum_hessian_in_leaf": 1e-3,
    "learning_rate": 0.3,
    "feature_fraction": 0.5,
    "seed": 1,
    "deterministic": True,
    "force_col_wise": True,
    "feature_pre_filter": False,
    "verbosity": -1,
}
# LightGBM parts missing values from numbers at 1e300.
_NUMBER_MAX = 1e18
# Draws of cards for an interval. With more cards than that a normal distribution is as good.
_DRAWS, _DRAWN_CARDS_MAX = 1000, 2000


@dataclass(frozen=True)
class MiningAsked:
    """`until`: the last day of the rules. `false_positives`: the share of genuine payments that they may stop."""

    until: str
    action: str = ACTIONS[REVIEW]
    false_positives: float = 0.005
    rules_max: int = 8
    costs: CostSettings = field(default_factory=CostSettings)
    threads: int = 1

    def __post_init__(self) -> None:
        if self.action not in (ACTIONS[REVIEW], ACTIONS[DECLINE]):
            raise Misconfigured(f"action of mined rules: wanted review or decline, got {self.action!r}")
        if not 0.0 < self.false_positives <= 0.1:
            raise Misconfigured(
                f"false positives of mined rules: wanted a share above 0 and at most 0.1, got {self.false_positives:g}"
            )


@dataclass(frozen=True)
class MiningPayments:
    """Payments that the policy approves, in order of time, as columns of shape (payments,); `vectors` (…, features).

    `texts`: the fields whose values rules may name, None or empty without one. `weight`: how many payments each stands
    for. `fired`: for each rule of an earlier mining, where it fires.
    """

    time_ms: NDArray[np.int64]
    vectors: NDArray[np.float32]
    texts: Mapping[str, NDArray[np.object_]]
    fraud: NDArray[np.bool_]
    amount_minor: NDArray[np.int64]
    card: NDArray[np.int64]
    weight: NDArray[np.float64]
    fired: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class RuleGain:
    """What a rule stops that nothing before it stops. Money in minor units of the reference currency."""

    payments: int
    frauds: int
    fraud_minor: int
    gain_minor: int
    gain_interval: Interval
    """The 95 % interval of `gain_minor`."""

    @property
    def earns(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.gain_interval[0] > 0

    def in_words(self) -> str:
        """Returns a phrase for people."""
        low, high = self.gain_interval
        return (
            f"{self.frauds} of {self.payments} payments fraud, gain {self.gain_minor / 100:,.2f} "
            f"(95 % interval {low / 100:,.2f} to {high / 100:,.2f})"
        )


@dataclass(frozen=True)
class WeighedRule:
    """A rule, what it gained where it was found (None for one of an earlier mining), and after that."""

    rule: ConfiguredRule
    found_on: RuleGain | None
    held_out: RuleGain


@dataclass(frozen=True)
class MinedRules:
    """The result. `cut_ms`: payments from then on proved the rules."""

    cut_ms: int
    missed_frauds: int
    kept: tuple[WeighedRule, ...] = ()
    new: tuple[WeighedRule, ...] = ()
    retired: tuple[WeighedRule, ...] = ()
    noise: tuple[WeighedRule, ...] = ()

    def in_words(self) -> Iterator[str]:
        """Yields lines for people."""
        for what, rules in (("new", self.new), ("kept", self.kept), ("retired", self.retired)):
            for each in rules:
                end = "" if what == "retired" else f" until {each.rule.until}"
                yield f"{what}: {each.rule.name}{end}: {each.rule.when}"
                yield f"    on later payments: {each.held_out.in_words()}"
        if self.noise:
            yield f"{len(self.noise)} more did not earn on later payments, and are not proposed"
        if not self.new:
            yield "no new rule earns"

    def rules_after(self, rules: Sequence[ConfiguredRule]) -> tuple[ConfiguredRule, ...]:
        """Returns a policy's rules with the kept and new ones, and without the retired."""
        own = [rule for rule in rules if not rule.name.startswith(MINED)]
        return (*own, *(each.rule for each in (*self.kept, *self.new)))


class _Bound(NamedTuple):
    """A condition on a column: above `low`, at most `high`; or missing, if `missing`."""

    low: float
    high: float
    missing: bool


_Path = Mapping[int, _Bound]


class _Columns:
    """The columns of trees: features, then one for each frequent value of a text field (1 where it has the value)."""

    def __init__(self, payments: MiningPayments, catalogue: Catalogue, learn: slice) -> None:
        self.vocabulary = policy_vocabulary(catalogue)
        # A field has precedence over a feature of its name. `amount` is the exact one in a rule.
        self._features = [
            (place, feature.name, feature.unit == "minor units")
            for place, feature in enumerate(catalogue.features)
            if feature.name == "amount" or self.vocabulary.parts[feature.name].is_feature
        ]
        self._values = list(_frequent(payments, learn))
        self.table = np.empty((len(payments.fraud), len(self._features) + len(self._values)), dtype=np.float32)
        self.table[:, : len(self._features)] = payments.vectors[:, [place for place, _, _ in self._features]]
        for number, (name, value) in enumerate(self._values, len(self._features)):
            self.table[:, number] = payments.texts[name] == value

    def rounded(self, column: int, threshold: float) -> float:
        """Returns a threshold that a rule can say: whole minor units for money, else four digits.

        Above all numbers it parts missing values from the others.
        """
        if threshold > _NUMBER_MAX:
            return math.inf
        if column < len(self._features) and self._features[column][2]:
            return float(math.floor(threshold))
        return 0.0 if abs(threshold) < 1e-30 else float(f"{threshold:.4g}")

    def holds(self, path: _Path) -> NDArray[np.bool_]:
        """Returns where a path holds, as its condition would: numbers are compared as float32."""
        found = np.ones(len(self.table), dtype=np.bool_)
        for column, bound in path.items():
            values = self.table[:, column]
            here = (values > np.float32(bound.low)) & (values <= np.float32(bound.high))
            found &= here | np.isnan(values) if bound.missing else here
        return found

    def condition(self, path: _Path) -> str:
        """Returns a path in the language of rules."""
        return " and ".join(self._part(column, bound) for column, bound in sorted(path.items()))

    def _part(self, column: int, bound: _Bound) -> str:
        if column >= len(self._features):
            name, value = self._values[column - len(self._features)]
            quoted = repr(value) if '"' in value or "\\" in value else f'"{value}"'
            return f"{name} == {quoted}" if bound.low >= 0 else f"not {name} == {quoted}"
        _, name, is_money = self._features[column]
        parts = [
            f"{name} {sign} {int(limit) if is_money or limit.is_integer() else limit!r}"
            for sign, limit in ((">", bound.low), ("<=", bound.high))
            if math.isfinite(limit)
        ]
        if bound.low >= bound.high:
            return f"missing({name})"
        if not parts:
            return f"not missing({name})"
        return f"(missing({name}) or {' and '.join(parts)})" if bound.missing else " and ".join(parts)


def _frequent(payments: MiningPayments, learn: slice) -> Iterator[tuple[str, str]]:
    """Yields the values of text fields that several of the missed frauds have, with their fields."""
    fraud = payments.fraud[learn]
    for name, texts in sorted(payments.texts.items()):
        for value, count in Counter(filter(None, texts[learn][fraud].tolist())).most_common(_VALUES_MAX):
            # A condition cannot hold the sign of a comment.
            if count >= _VALUE_FRAUDS_MIN and "#" not in value:
                yield name, value


def mine(
    payments: MiningPayments,
    catalogue: Catalogue,
    settings: MiningAsked,
    earlier: Sequence[ConfiguredRule] = (),
    *,
    day: str,
) -> MinedRules:
    """Find, choose and prove rules. `day`: of the newest payment, for their names. `earlier`: the rules of `fired`.

    Raises Misconfigured with fewer than FRAUDS_MIN missed frauds.
    """
    frauds = np.flatnonzero(payments.fraud)
    if len(frauds) < FRAUDS_MIN and not earlier:
        raise Misconfigured(
            f"wanted at least {FRAUDS_MIN} frauds that the policy approves, got {len(frauds)}: give more days, or wait"
        )
    cut = int(frauds[int(MINED_SHARE * len(frauds))]) if len(frauds) else 0
    learn, prove, whole = slice(0, cut), slice(cut, None), slice(None)
    first_ms, last_ms = payments.time_ms[[0, -1]].tolist() if len(payments.time_ms) else (0, 0)
    recent = slice(int(np.searchsorted(payments.time_ms, last_ms - (last_ms - first_ms) // 3)), None)
    weighing = _Weighing(payments, settings)
    kept: list[WeighedRule] = []
    retired: list[WeighedRule] = []
    new: list[WeighedRule] = []
    noise: list[WeighedRule] = []
    stopped = np.zeros(len(payments.fraud), dtype=np.bool_)
    for rule in earlier:
        fires = payments.fired[rule.name]
        weighed = WeighedRule(replace(rule, until=settings.until), None, weighing.gain(fires & ~stopped, recent))
        if weighed.held_out.earns:
            kept.append(weighed)
            stopped |= fires
        else:
            retired.append(WeighedRule(rule, None, weighed.held_out))
    if np.count_nonzero(payments.fraud[learn] & ~stopped[learn]) >= _RULE_FRAUDS_MIN:
        columns = _Columns(payments, catalogue, learn)
        left = weighing.budget(whole)
        for path, fires in _chosen(columns, weighing, stopped.copy(), learn):
            name = f"{MINED}{day.replace('-', '')}_{len(new) + 1}"
            rule = ConfiguredRule(name, columns.condition(path), settings.action, until=settings.until)
            fresh = fires & ~stopped
            weighed = WeighedRule(rule, weighing.gain(fresh, learn), weighing.gain(fresh, prove))
            false_positives = weighing.false_positives(fresh, whole)
            if weighed.held_out.earns and false_positives <= left and _can_be_said(rule, columns.vocabulary):
                new.append(weighed)
                stopped |= fires
                left -= false_positives
            else:
                noise.append(weighed)
    cut_ms = int(payments.time_ms[cut]) if len(payments.time_ms) else 0
    return MinedRules(cut_ms, len(frauds), tuple(kept), tuple(new), tuple(retired), tuple(noise))


def _can_be_said(rule: ConfiguredRule, vocabulary: Vocabulary) -> bool:
    try:
        compile_condition(rule.when, where=f'policy.rules "{rule.name}"', vocabulary=vocabulary)
    except Misconfigured:
        return False
    return True


class _Weighing:
    """Money, counts and intervals of payments that a rule stops."""

    def __init__(self, payments: MiningPayments, settings: MiningAsked) -> None:
        self.payments, self.settings = payments, settings
        costs, amount = settings.costs, payments.amount_minor
        saved = amount * costs.fraud_loss_share
        if settings.action == ACTIONS[REVIEW]:
            gain = np.where(payments.fraud, saved, 0.0) - costs.review_cost_minor
        else:
            gain = np.where(payments.fraud, saved, -amount * costs.declined_margin_share)
        self.money = gain * payments.weight
        self.genuine = np.where(payments.fraud, 0.0, payments.weight)

    def budget(self, part: slice) -> float:
        """Returns how many genuine payments of a part may be stopped."""
        return self.settings.false_positives * float(self.genuine[part].sum())

    def false_positives(self, stops: NDArray[np.bool_], part: slice) -> float:
        """Returns how many genuine payments of a part are stopped."""
        return float(self.genuine[part][stops[part]].sum())

    def gain(self, stops: NDArray[np.bool_], part: slice) -> RuleGain:
        """Returns what stopping these payments of a part gains."""
        rows = np.flatnonzero(stops[part]) + (part.start or 0)
        fraud, money = self.payments.fraud[rows], self.money[rows]
        return RuleGain(
            payments=round(float(self.payments.weight[rows].sum())),
            frauds=int(np.count_nonzero(fraud)),
            fraud_minor=int(self.payments.amount_minor[rows][fraud].sum()),
            gain_minor=round(float(money.sum())),
            gain_interval=_interval(money, self.payments.card[rows]),
        )


def _interval(money: NDArray[np.float64], card: NDArray[np.int64]) -> Interval:
    """Returns the 95 % interval of a sum over payments whose cards are independent of each other."""
    if not len(money):
        return 0.0, 0.0
    _, number = np.unique(card, return_inverse=True)
    # In order of their money: how a source numbers its cards does not matter.
    of_cards = np.sort(np.bincount(number, weights=money))
    if len(of_cards) > _DRAWN_CARDS_MAX:
        spread = Z_95 * math.sqrt(float(of_cards @ of_cards))
        return float(money.sum()) - spread, float(money.sum()) + spread
    drawn = np.random.default_rng(1).poisson(1.0, size=(_DRAWS, len(of_cards))) @ of_cards
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return low, high


def _chosen(
    columns: _Columns, weighing: _Weighing, stopped: NDArray[np.bool_], learn: slice
) -> Iterator[tuple[_Path, NDArray[np.bool_]]]:
    """Yields the chosen paths and where they fire, the largest gain first. `stopped`: what is stopped already."""
    fraud, money, genuine = weighing.payments.fraud[learn], weighing.money[learn], weighing.genuine[learn]
    candidates = []
    for path in _paths(columns, weighing, learn):
        fires = columns.holds(path)
        rows = np.flatnonzero(fires[learn])
        if money[rows].sum() > 0:
            candidates.append((path, fires, rows))
    left = weighing.budget(learn)
    for _ in range(weighing.settings.rules_max):
        best, most = None, 0.0
        for path, fires, rows in candidates:
            fresh = rows[~stopped[rows]]
            gain = float(money[fresh].sum())
            is_enough = np.count_nonzero(fraud[fresh]) >= _RULE_FRAUDS_MIN
            if gain > most and is_enough and float(genuine[fresh].sum()) <= left:
                best, most = (path, fires, fresh), gain
        if best is None:
            return
        path, fires, fresh = best
        left -= float(genuine[fresh].sum())
        stopped |= fires
        yield path, fires


def _paths(columns: _Columns, weighing: _Weighing, learn: slice) -> list[_Path]:
    """Returns the paths of shallow trees, each once, the shortest first.

    Half of the trees weigh frauds as much as all genuine payments together, and find wide rules; half do not, and find
    pure ones.
    """
    fraud, weight = weighing.payments.fraud[learn], weighing.payments.weight[learn]
    balance = float(weight[~fraud].sum() / max(1.0, weight[fraud].sum()))
    found: dict[tuple[tuple[int, _Bound], ...], _Path] = {}
    for fraud_weight in (1.0, max(1.0, balance)):
        data = lightgbm.Dataset(
            columns.table[learn],
            fraud.astype(np.int8),
            weight=np.where(fraud, fraud_weight, 1.0) * weight,
            params=dict(_GROWTH),
        )
        model = lightgbm.train({**_GROWTH, "num_threads": weighing.settings.threads}, data, _TREES)
        for tree in model.dump_model()["tree_info"]:
            for path in _paths_below(tree["tree_structure"], {}, columns):
                found.setdefault(tuple(sorted(path.items())), path)
    return sorted(found.values(), key=len)


def _paths_below(node: Mapping[str, Any], path: _Path, columns: _Columns) -> Iterator[_Path]:
    if path:
        yield path
    if "split_feature" not in node:
        return
    column = node["split_feature"]
    threshold = columns.rounded(column, node["threshold"])
    before = path.get(column, _Bound(-math.inf, math.inf, missing=True))
    may_miss = node["missing_type"] == "NaN"
    for side, is_left in (("left_child", True), ("right_child", False)):
        missing = before.missing and may_miss and node["default_left"] is is_left
        if is_left:
            bound = _Bound(before.low, min(before.high, threshold), missing)
        else:
            bound = _Bound(max(before.low, threshold), before.high, missing)
        if bound.missing or bound.low < bound.high:
            yield from _paths_below(node[side], {**path, column: bound}, columns)
