"""Decide about a payment: an action, with reasons that a person can read.

How it works:

1. If the condition of a rule with `override` is true, that rule decides alone. With several, the first in the file.
2. Otherwise the first segment whose condition is true sets the thresholds. Without one, the general thresholds apply.
3. Thresholds, flags and rules each ask for an action. The strictest action wins.
4. Every part that asked for that action is a reason: `score_at_or_above_review_threshold` (followed by `:SEGMENT` if a
   segment set it), a flag's own name, or `rule:NAME`. An approval has no reason, unless a rule overrode.

Example: the thresholds are 0.10 for review and 0.60 for decline. A payment has the score 0.25, the flag mirror_absent
(which asks for review) and amount 120_000.

    threshold    0.25 >= 0.10             asks for review
    flag         mirror_absent            asks for review
    rule large   amount > 100_000         asks for review
    rule tiny    amount < 1_00            asks for nothing: its condition is false

The action is review, with the reasons score_at_or_above_review_threshold, mirror_absent and rule:large.

Conditions are compiled at start (models/policy/rules.py), and lists are read then. A rule with `until` does nothing for
payments after that UTC day, by the time of the payment: a replay decides as the day itself did.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
from paywarden.models.policy.lists import end_of_day_ms, is_plain_name
from paywarden.models.policy.rules import ConditionFields, RuleCondition, Vocabulary, compile_condition
from paywarden.schemas.errors import Misconfigured

# From the mildest to the strictest.
ACTIONS = ("approve", "review", "decline")
APPROVE, REVIEW, DECLINE = range(3)

# Flags: circumstances that make a decision less certain.
UNKNOWN_CARD = "unknown_card"
UNKNOWN_MERCHANT = "unknown_merchant"
UNKNOWN_DEVICE = "unknown_device"
MIRROR_ABSENT = "mirror_absent"
MIRROR_STALE = "mirror_stale"
PROFILE_UNREADABLE = "profile_unreadable"
# The payments of the last seconds that are not in the mirror yet were not seen, though the overlay is on.
OVERLAY_ABSENT = "overlay_absent"
# The mirror of this host does not hold the card's profiles, or not all of them yet: they are on other hosts.
CARD_NOT_HELD = "card_not_held"
# A model failed on this payment. No model gave a score.
MODEL_ERROR = "model_error"
MODEL_ABSENT = "model_absent"
# The payment's currency has no exchange rate: its amount in the reference currency is missing.
UNKNOWN_RATE = "unknown_rate"
FLAGS = (
    UNKNOWN_CARD,
    UNKNOWN_MERCHANT,
    UNKNOWN_DEVICE,
    MIRROR_ABSENT,
    MIRROR_STALE,
    PROFILE_UNREADABLE,
    MODEL_ERROR,
    MODEL_ABSENT,
    OVERLAY_ABSENT,
    CARD_NOT_HELD,
    UNKNOWN_RATE,
)

_THRESHOLD = "score_at_or_above_"
_RULE = "rule:"
# Fields that say what kind of payment it is. A list of their values names no entity.
_KINDS_OF_PAYMENT = frozenset(("currency", "mcc", "country", "channel"))

# Each condition takes about a microsecond per payment.
CONDITIONS_MAX = 200
# The largest share of a score band that may be explored: more would be a policy, not an exploration.
SHARE_MAX = 0.5
# Each share has two propensities, and the record writer copies each model's origin for both.
SHARES_MAX = 10


def unknown_flag(entity: str) -> str:
    """Returns the flag of a payment whose entity of this kind has no profile."""
    return f"unknown_{entity}"


def threshold_reason(action: str) -> str:
    """Returns the reason for an action that the general thresholds asked for."""
    return f"{_THRESHOLD}{action}_threshold"


def is_threshold_reason(reason: str) -> bool:
    """Whether general thresholds or those of a segment asked for the action: the model's score did."""
    return reason.startswith(_THRESHOLD)


def flags_of(entities: Iterable[str]) -> tuple[str, ...]:
    """Returns all flags that are possible with a catalogue of these entities."""
    return tuple(dict.fromkeys((*FLAGS, *map(unknown_flag, entities))))


@dataclass(frozen=True)
class ConfiguredRule:
    """One of `[[policy.rules]]`. If `when` is true, it asks for `action`, or with `override` decides alone.

    `until`: the last UTC day whose payments it decides about, such as 2026-12-31; empty for no end.
    """

    name: str
    when: str
    action: str
    override: bool = False
    until: str = ""


@dataclass(frozen=True)
class ConfiguredSegment:
    """One of `[[policy.segments]]`: thresholds for payments for which `when` is true. 0 means the general threshold."""

    name: str
    when: str
    review_at: float = 0.0
    decline_at: float = 0.0


@dataclass(frozen=True)
class ConfiguredShare:
    """One of `[[policy.explored]]`: the share that `[exploration]` approves of the declined with such a score.

    It holds up to the next one's `score_from`; below the first, the share of `[exploration]` does.
    """

    score_from: float
    share: float


@dataclass(frozen=True)
class PolicySettings:
    """Thresholds, and the action that each flag asks for. A new card or merchant is normal, so it asks for nothing."""

    # A score at or above the threshold asks for the action. 0 means the bundle's threshold.
    review_at: float = 0.0
    decline_at: float = 0.0
    # Profiles are stale if they lag further behind the payments stream.
    stale_after_ms: int = 30_000
    on_unknown_card: str = "approve"
    on_unknown_merchant: str = "approve"
    on_unknown_device: str = "approve"
    # For any other kind of entity in the feature catalogue.
    on_unknown_other: str = "approve"
    on_mirror_absent: str = "review"
    on_mirror_stale: str = "approve"
    on_profile_unreadable: str = "review"
    # The overlay is on, and cannot be used: the payment has not seen those of the last seconds.
    on_overlay_absent: str = "approve"
    # The card's profiles are on other hosts, with [shards].
    on_card_not_held: str = "review"
    # The next model of the chain has given the score. If there was none, the flag is `model_absent`.
    on_model_error: str = "approve"
    on_model_absent: str = "review"
    # The payment's currency has no exchange rate, so its amount is missing, and rules about amounts do not see it.
    on_unknown_rate: str = "review"
    # When a payment is not approved, at most this many features that raised the score are named.
    reason_features_max: int = 4
    rules: tuple[ConfiguredRule, ...] = ()
    segments: tuple[ConfiguredSegment, ...] = ()
    explored: tuple[ConfiguredShare, ...] = ()
    # Entries by list name. An entry that begins with @ names a file with one entry per line.
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Facts:
    """The facts about a payment that a policy decides by. Only conditions read `payment`.

    `amount`: minor units of the reference currency, None where the currency has no rate. `vector`: (features,),
    float32. `score`: None if no model gave one.
    Not frozen, so that a caller can reuse one object for many payments.
    """

    payment: ConditionFields
    amount: int | None
    vector: NDArray[np.float32]
    score: float | None
    flags: Sequence[str]


class Verdict(NamedTuple):
    """One of ACTIONS and the reasons for it. The caller may change the list."""

    action: str
    reasons: list[str]


class _ActionThresholds(NamedTuple):
    review_at: float
    decline_at: float
    review_reason: str
    decline_reason: str


class _Segment(NamedTuple):
    condition: RuleCondition
    thresholds: _ActionThresholds


class _Rule(NamedTuple):
    condition: RuleCondition
    strictness: int
    reason: str


class Policy:
    """A checked policy. Immutable and free of I/O."""

    def __init__(
        self,
        settings: PolicySettings,
        *,
        review_at: float,
        decline_at: float,
        lists: Mapping[str, Set[str]] | None = None,
        catalogue: Catalogue = CATALOGUE,
    ) -> None:
        """`review_at`, `decline_at`: the bundle's thresholds. `lists`: from `read_lists`.

        `catalogue`: declares the features of the vectors. Raises Misconfigured naming the setting, rule or segment.
        """
        self.settings, self.lists, self._catalogue = settings, lists or {}, catalogue
        self._of_bundle = review_at, decline_at
        self.stale_after_ms = settings.stale_after_ms
        _check_reason_features_max(settings)
        _check_explored(settings)
        self.reason_features_max = settings.reason_features_max
        self._thresholds = _thresholds("policy", settings.review_at or review_at, settings.decline_at or decline_at)
        self._strictness = {flag: _strictness(settings, flag) for flag in FLAGS}
        self._unknown_other = _strictness(settings, unknown_flag("other"))
        for problem in _name_problems(settings):
            raise Misconfigured(problem)
        self._segments: list[_Segment] = []
        self._overrides: list[_Rule] = []
        self._rules: list[_Rule] = []
        if settings.segments or settings.rules:
            vocabulary = policy_vocabulary(catalogue, lists)
            for segment in settings.segments:
                self._segments.append(_segment(segment, self.thresholds, vocabulary))
            for rule in settings.rules:
                (self._overrides if rule.override else self._rules).append(_rule(rule, vocabulary))

    def __reduce__(self) -> tuple[Callable[..., Policy], tuple[object, ...]]:
        # Compiled conditions cannot be sent to another process; it compiles them again.
        return _policy_of, (self.settings, *self._of_bundle, self.lists, self._catalogue)

    @cached_property
    def digest(self) -> str:
        """See `policy_digest`."""
        return _digest(self.settings, self.list_digests)

    @cached_property
    def list_digests(self) -> dict[str, str]:
        """The digest of each list, by name. To sort a million entries takes a second, so it is done when asked for."""
        return _list_digests(self.lists)

    def with_rules(self, rules: Iterable[ConfiguredRule]) -> Policy:
        """Returns this policy with other rules. Raises Misconfigured as the constructor does."""
        review_at, decline_at = self._of_bundle
        settings = dataclasses.replace(self.settings, rules=tuple(rules))
        return _policy_of(settings, review_at, decline_at, self.lists, self._catalogue)

    def is_made_with(self, *, review_at: float, decline_at: float) -> bool:
        """Whether a bundle with these thresholds would change nothing."""
        return self._of_bundle == (review_at, decline_at)

    @property
    def thresholds(self) -> tuple[float, float]:
        """The general thresholds of review and decline, for payments without a segment."""
        return self._thresholds.review_at, self._thresholds.decline_at

    @property
    def rule_count(self) -> int:
        """The number of rules, including those that override."""
        return len(self._rules) + len(self._overrides)

    @property
    def segment_count(self) -> int:
        """The number of segments."""
        return len(self._segments)

    def explored_share(self, score: float | None, share: float) -> float:
        """Returns the share that is explored of declined payments of a score. `share`: that of `[exploration]`."""
        explored = self.settings.explored
        band = 0 if score is None else bisect_right(explored, score, key=lambda each: each.score_from)
        return explored[band - 1].share if band else share

    @property
    def listed_reasons(self) -> frozenset[str]:
        """The reasons of rules that look an entity up in a list, or ask whether it has a known fraud.

        An entity is a card, a merchant, a device, an address.
        """
        rules = (*self._overrides, *self._rules)
        return frozenset(rule.reason for rule in rules if rule.condition.listed - _KINDS_OF_PAYMENT)

    @property
    def has_conditions(self) -> bool:
        """Whether there are rules or segments. Without them, the action depends on score and flags alone."""
        return bool(self._segments or self._rules or self._overrides)

    @property
    def fields(self) -> frozenset[str]:
        """The fields of a payment that rules and segments read."""
        return frozenset().union(*(condition.fields for condition in self._conditions()))

    @property
    def features_min(self) -> int:
        """How many features a vector must have for all rules and segments to read it."""
        return max((condition.features_min for condition in self._conditions()), default=0)

    def _conditions(self) -> list[RuleCondition]:
        conditions = [segment.condition for segment in self._segments]
        return [*conditions, *(rule.condition for rule in (*self._overrides, *self._rules))]

    def decide(self, facts: Facts) -> Verdict:
        """Decide about a payment. A missing score asks for nothing; the flag model_absent does. Never raises."""
        if not (self._rules or self._segments or self._overrides):
            strictness, reasons = self._by_score_and_flags(facts.score, facts.flags, self._thresholds)
            return Verdict(ACTIONS[strictness], reasons)
        return self._by_all(facts)

    def holding(self, facts: Facts) -> list[str]:
        """Return the names of all rules whose condition holds, whichever of them decides."""
        amount, score = (math.nan if value is None else value for value in (facts.amount, facts.score))
        arguments = (facts.payment, amount, facts.vector.item, score, facts.flags)
        rules = (*self._overrides, *self._rules)
        return [rule.reason.removeprefix(_RULE) for rule in rules if rule.condition.applies(*arguments)]

    def actions_of(self, scores: NDArray[np.float64]) -> NDArray[np.int8]:
        """Decide about many payments without flags: returns indexes into ACTIONS, (rows,). Needs no conditions."""
        assert not self.has_conditions
        review_at, decline_at, _, _ = self._thresholds
        return (scores >= review_at).astype(np.int8) + (scores >= decline_at).astype(np.int8)

    def _by_all(self, facts: Facts) -> Verdict:
        score, flags, amount = facts.score, facts.flags, math.nan if facts.amount is None else facts.amount
        arguments = (facts.payment, amount, facts.vector.item, math.nan if score is None else score, flags)
        for rule in self._overrides:
            if rule.condition.applies(*arguments):
                return Verdict(ACTIONS[rule.strictness], [rule.reason])
        thresholds = self._thresholds
        for segment in self._segments:
            if segment.condition.applies(*arguments):
                thresholds = segment.thresholds
                break
        strictness, reasons = self._by_score_and_flags(score, flags, thresholds)
        for rule in self._rules:
            # A milder rule cannot change the action or its reasons.
            if rule.strictness >= strictness and rule.condition.applies(*arguments):
                if rule.strictness > strictness:
                    strictness, reasons = rule.strictness, [rule.reason]
                else:
                    reasons.append(rule.reason)
        return Verdict(ACTIONS[strictness], reasons)

    def _by_score_and_flags(
        self, score: float | None, flags: Sequence[str], thresholds: _ActionThresholds
    ) -> tuple[int, list[str]]:
        strictness, reasons = APPROVE, []
        if score is not None and score >= thresholds.review_at:
            if score >= thresholds.decline_at:
                strictness, reasons = DECLINE, [thresholds.decline_reason]
            else:
                strictness, reasons = REVIEW, [thresholds.review_reason]
        for flag in flags:
            of_flag = self._strictness.get(flag, self._unknown_other)
            if of_flag > strictness:
                strictness, reasons = of_flag, [flag]
            elif of_flag == strictness and of_flag > APPROVE:
                reasons.append(flag)
        return strictness, reasons


def policy_digest(settings: PolicySettings, lists: Mapping[str, Set[str]]) -> str:
    """Returns the sha256 of a policy's content, 64 hex digits. `lists`: from `read_lists`.

    Equal digests mean equal policies, from whichever file. Settings that have their default do not count, so a setting
    that a later release adds changes no digest. The bundle's thresholds belong to the bundle's digest.
    """
    return _digest(settings, _list_digests(lists))


def _list_digests(lists: Mapping[str, Set[str]]) -> dict[str, str]:
    return {name: hashlib.sha256("\n".join(sorted(entries)).encode()).hexdigest() for name, entries in lists.items()}


def _digest(settings: PolicySettings, list_digests: Mapping[str, str]) -> str:
    defaults = PolicySettings()
    said = {
        field.name: [rule_fields(item) for item in value] if isinstance(value, tuple) else value
        for field in dataclasses.fields(settings)
        if field.name != "lists" and (value := getattr(settings, field.name)) != getattr(defaults, field.name)
    }
    content = json.dumps({"settings": said, "lists": list_digests}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def rule_fields(item: ConfiguredRule | ConfiguredSegment | ConfiguredShare) -> dict[str, object]:
    """Returns a rule, segment or share as a table of settings, without `until` where there is none."""
    return {name: value for name, value in dataclasses.asdict(item).items() if (name, value) != ("until", "")}


def policy_problems(
    settings: PolicySettings,
    *,
    review_at: float,
    decline_at: float,
    lists: Mapping[str, Set[str]],
    catalogue: Catalogue = CATALOGUE,
) -> list[str]:
    """Returns all problems for which `Policy` would refuse these settings, in its words; empty without a problem.

    `review_at`, `decline_at`: the bundle's thresholds; 0 if no bundle is known, and then only the settings are checked.
    """
    vocabulary = policy_vocabulary(catalogue, lists)
    general = (settings.review_at or review_at, settings.decline_at or decline_at)
    attempts: list[Callable[[], object]] = [
        partial(_check_reason_features_max, settings),
        partial(_check_explored, settings),
        partial(_thresholds, "policy", *_assumed(*general)),
        *(partial(_strictness, settings, flag) for flag in (*FLAGS, unknown_flag("other"))),
    ]
    in_parts: list[Callable[[], object]] = []
    for segment in settings.segments:
        own = _assumed(segment.review_at or general[0], segment.decline_at or general[1])
        in_parts.append(partial(_condition, "policy.segments", segment, vocabulary))
        in_parts.append(partial(_thresholds, f'policy.segments "{segment.name}"', *own))
    for rule in settings.rules:
        in_parts.append(partial(_check_action, rule))
        in_parts.append(partial(_condition, "policy.rules", rule, vocabulary))
    return [*_refusals(attempts), *_name_problems(settings), *_refusals(in_parts)]


def _assumed(review_at: float, decline_at: float) -> tuple[float, float]:
    """Returns thresholds with a valid value in place of an unknown one."""
    return review_at or decline_at or 1.0, decline_at or 1.0


def _refusals(attempts: Iterable[Callable[[], object]]) -> list[str]:
    messages = []
    for attempt in attempts:
        try:
            attempt()
        except Misconfigured as error:
            messages.append(str(error))
    return messages


def policy_vocabulary(catalogue: Catalogue, lists: Mapping[str, Set[str]] | None = None) -> Vocabulary:
    """Returns the names that conditions over a catalogue may use."""
    flags = flags_of(entity.name for entity in catalogue.entities)
    return Vocabulary(catalogue.features, flags, lists or {}, catalogue.payment.fields)


def _policy_of(
    settings: PolicySettings, review_at: float, decline_at: float, lists: Mapping[str, Set[str]], catalogue: Catalogue
) -> Policy:
    return Policy(settings, review_at=review_at, decline_at=decline_at, lists=lists, catalogue=catalogue)


def _check_reason_features_max(settings: PolicySettings) -> None:
    if settings.reason_features_max < 0:
        raise Misconfigured(f"policy.reason_features_max: wanted at least 0, got {settings.reason_features_max}")


def _check_explored(settings: PolicySettings) -> None:
    if len(settings.explored) > SHARES_MAX:
        raise Misconfigured(f"policy.explored: wanted at most {SHARES_MAX}, got {len(settings.explored)}")
    below = -1.0
    for each in settings.explored:
        if not 0.0 < each.share <= SHARE_MAX:
            raise Misconfigured(f"policy.explored share: wanted above 0 and at most {SHARE_MAX}, got {each.share:g}")
        if not max(0.0, below) <= each.score_from <= 1.0 or each.score_from == below:
            raise Misconfigured(
                f"policy.explored score_from: wanted scores of 0 to 1 that ascend, got {each.score_from:g}"
            )
        below = each.score_from


def _segment(settings: ConfiguredSegment, general: tuple[float, float], vocabulary: Vocabulary) -> _Segment:
    """`general`: the thresholds that apply if the segment sets none."""
    condition = _condition("policy.segments", settings, vocabulary)
    own = (settings.review_at or general[0], settings.decline_at or general[1])
    return _Segment(condition, _thresholds(f'policy.segments "{settings.name}"', *own, f":{settings.name}"))


def _condition(where: str, settings: ConfiguredSegment | ConfiguredRule, vocabulary: Vocabulary) -> RuleCondition:
    named = f'{where} "{settings.name}"'
    until_ms = _end_of_day_ms(named, settings.until) if isinstance(settings, ConfiguredRule) else None
    return compile_condition(settings.when, where=named, vocabulary=vocabulary, until_ms=until_ms)


def _end_of_day_ms(where: str, day: str) -> int | None:
    """Returns the first millisecond after a UTC day; None for no day."""
    if not day:
        return None
    try:
        return end_of_day_ms(day)
    except ValueError:
        raise Misconfigured(f"{where} until: wanted a day such as 2026-12-31, got {day!r}") from None


def _thresholds(where: str, review_at: float, decline_at: float, suffix: str = "") -> _ActionThresholds:
    dot = "." if where == "policy" else " "
    for name, value in (("review_at", review_at), ("decline_at", decline_at)):
        if not (math.isfinite(value) and 0.0 < value <= 1.0):
            raise Misconfigured(f"{where}{dot}{name}: wanted a score above 0 and at most 1, got {value}")
    if review_at > decline_at:
        raise Misconfigured(
            f"{where}{dot}review_at ({review_at:.4g}) must not be above {where}{dot}decline_at ({decline_at:.4g})"
        )
    reasons = (threshold_reason(action) + suffix for action in ("review", "decline"))
    return _ActionThresholds(review_at, decline_at, *reasons)


def _rule(settings: ConfiguredRule, vocabulary: Vocabulary) -> _Rule:
    _check_action(settings)
    condition = _condition("policy.rules", settings, vocabulary)
    return _Rule(condition, ACTIONS.index(settings.action), f"{_RULE}{settings.name}")


def _check_action(settings: ConfiguredRule) -> None:
    where = f'policy.rules "{settings.name}"'
    if settings.action not in ACTIONS:
        raise Misconfigured(f"{where} action: wanted one of {', '.join(ACTIONS)}, got {settings.action!r}")
    if settings.action == "approve" and not settings.override:
        raise Misconfigured(
            f'{where} action: "approve" asks for nothing; with override = true it approves whatever else is asked for'
        )


def _name_problems(settings: PolicySettings) -> Iterator[str]:
    """Yields problems with the names and the number of rules and segments."""
    yield from _problems_of_names("policy.rules", [rule.name for rule in settings.rules])
    yield from _problems_of_names("policy.segments", [segment.name for segment in settings.segments])


def _problems_of_names(where: str, names: Sequence[str]) -> Iterator[str]:
    if len(names) > CONDITIONS_MAX:
        yield f"{where}: wanted at most {CONDITIONS_MAX}, got {len(names)}"
    for number, name in enumerate(names):
        if not is_plain_name(name):
            yield f"{where}, number {number + 1}: name: wanted at most 64 of a to z, 0 to 9 and _, got {name!r}"
        elif name in names[:number]:
            yield f'{where}: there are two with the name "{name}"'


def _strictness(settings: PolicySettings, flag: str) -> int:
    action = getattr(settings, f"on_{flag}")
    if action not in ACTIONS:
        raise Misconfigured(f"policy.on_{flag}: wanted one of {', '.join(ACTIONS)}, got {action!r}")
    return ACTIONS.index(action)
