"""Mines rules from the index's decisions of the last week: `paywarden policy mine` without a history.

The sample of a replay (replays.py) gives the genuine payments, and the index all known frauds. Both are decided again
by the policy without mined rules; those that it approves go to models/replay/rule_mining.py.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paywarden.models.metrics.costs import CostSettings
from paywarden.models.policy.policy import ACTIONS, APPROVE, Facts
from paywarden.models.policy.text import policy_text
from paywarden.ops.console.policy.drafts import IndexedDecisions
from paywarden.ops.console.policy.replays import MinedDraft, Tally
from paywarden.ops.extras import require
from paywarden.streams.decision_index.search import Place

if TYPE_CHECKING:
    from paywarden.models.replay.rule_mining import MiningPayments

DAYS_HELD = 14
_FRAUDS_MAX = 5_000
_AT_ONCE = 500
_RULE = "rule:"
_FIELDS = ("merchant_id", "currency", "mcc", "country", "channel")


class RuleMiner(Tally):
    """Goes through a week, keeps the payments that the policy approves, and mines rules from them."""

    def __init__(self, decided: IndexedDecisions, costs: CostSettings, *, last_ms: int) -> None:
        """Raises Misconfigured if a package is missing, or the policy of the settings is wrong."""
        require("policy mine", ("train",))
        from paywarden.models.replay.rule_mining import MINED

        policy, rules = decided.policy(), decided.policy().settings.rules
        self._earlier = [rule for rule in rules if rule.name.startswith(MINED)]
        endless = [replace(rule, until="") if rule in self._earlier else rule for rule in rules]
        own = policy.with_rules([rule for rule in rules if rule not in self._earlier])
        super().__init__(own, policy.with_rules(endless), decided, last_ms=last_ms)
        self._policy, self._costs = policy, costs
        self._features_min = len(decided.catalogue.features)
        self._rows: dict[str, tuple[Any, ...]] = {}
        self._takes_frauds = False

    def run(self, decisions_max: int) -> Iterator[float]:
        """Yield after each batch the share of the week that is done."""
        yield from super().run(decisions_max)
        self._takes_frauds = True
        index = self._decided.index()
        places = index.known_frauds(self._first_ms, self._last_ms, _FRAUDS_MAX)
        for start in range(0, len(places), _AT_ONCE):
            self._add(index, index.bodies_at(places[start : start + _AT_ONCE]), 1.0)
            yield 1.0

    def _take(self, place: Place, decision: Mapping[str, Any], facts: Facts, outcome: str, weight: float) -> None:
        del place
        own, all_rules = self._policies
        # The sample has few of the frauds: all of them come afterwards.
        if (outcome == "fraud") is not self._takes_frauds or own.decide(facts).action != ACTIONS[APPROVE]:
            return
        fired = {one.removeprefix(_RULE) for one in all_rules.decide(facts).reasons if one.startswith(_RULE)}
        texts = tuple(str(getattr(facts.payment, field)) for field in _FIELDS)
        row = (decision["event_time_ms"], facts.vector, texts, facts.amount or 0, decision["card_id"], weight, fired)
        self._rows[decision["payment_id"]] = (*row, outcome == "fraud")

    def draft(self) -> MinedDraft:
        """Return the policy with mined rules, once the week is done. Raises Misconfigured with too few frauds."""
        from paywarden.models.replay.rule_mining import MiningAsked, mine

        today = datetime.datetime.fromtimestamp(self._last_ms / 1000, datetime.UTC).date()
        until = (today + datetime.timedelta(days=DAYS_HELD)).isoformat()
        settings = MiningAsked(until=until, costs=self._costs)
        mined = mine(self._gathered(), self._decided.catalogue, settings, self._earlier, day=today.isoformat())
        policy = self._policy.with_rules(mined.rules_after(self._policy.settings.rules))
        return MinedDraft(policy_text(policy.settings, policy.lists), policy.digest, tuple(mined.in_words()))

    def _gathered(self) -> MiningPayments:
        from paywarden.models.replay.rule_mining import MiningPayments

        rows = sorted(self._rows.values(), key=lambda row: int(row[0]))
        time_ms, vectors, texts, amount, card, weight, fired, fraud = zip(*rows, strict=True) if rows else ((),) * 8
        width = len(self._decided.catalogue.features)
        return MiningPayments(
            time_ms=np.array(time_ms, dtype=np.int64),
            vectors=np.array([vector[:width] for vector in vectors], dtype=np.float32).reshape(len(rows), width),
            texts={
                field: np.array([text[place] for text in texts], dtype=object) for place, field in enumerate(_FIELDS)
            },
            fraud=np.array(fraud, dtype=np.bool_),
            amount_minor=np.array(amount, dtype=np.int64),
            card=np.unique(np.array(card, dtype=object), return_inverse=True)[1].astype(np.int64),
            weight=np.array(weight, dtype=np.float64),
            fired={rule.name: np.array([rule.name in one for one in fired], dtype=np.bool_) for rule in self._earlier},
        )
