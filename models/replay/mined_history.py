"""Mine rules from a history, and write the replay that proves them.

1. A replay with the policy without earlier mined rules gives each payment its score, action and vector.
2. The payments that it approves go to models/replay/rule_mining.py. All missed frauds go, and of genuine payments at
   most ROWS_MAX, spread evenly: each then stands for several.
3. A replay with the same scores compares the policy as it is with the policy as it would be: the proof, which anybody
   repeats with `paywarden replay --challenger-policy`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.history.declared_columns import holds_hashes
from paywarden.features.history.history import Coded, History, final_labels
from paywarden.features.history.point_in_time import reference_amounts
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.models.metrics.evaluation import DAY_MS, date_of_day
from paywarden.models.metrics.labels import end_of_labels_ms, mature_before_ms
from paywarden.models.policy.policy import ACTIONS, APPROVE, Policy
from paywarden.models.policy.rules import TEXT_FIELDS
from paywarden.models.replay.earlier_decisions import EarlierDecisions
from paywarden.models.replay.files import DECISIONS
from paywarden.models.replay.measures import Contestant, ReplayResults
from paywarden.models.replay.replay import ReplayOptions, measured_payments, replay
from paywarden.models.replay.replayed_policy import ReplayedPolicy
from paywarden.models.replay.rule_mining import (
    MINED,
    ROWS_MAX,
    UNSAFE_FIELDS,
    MinedRules,
    MiningAsked,
    MiningPayments,
    mine,
)
from paywarden.schemas.payment_fields import Form

_RULE = "rule:"
_PERSONAL = (Form.ID, Form.CARD_TOKEN, Form.ADDRESS, Form.EMAIL)


@dataclass(frozen=True)
class ProvenRules:
    """The mined rules, the policy with them, and the replay that compares it with the policy as it is."""

    mined: MinedRules
    policy: Policy
    proof: ReplayResults


def mine_history(
    history: History,
    *,
    engine: FeatureEngine,
    catalogue: Catalogue,
    rates: RateTable,
    current: Contestant,
    proof: Path,
    options: ReplayOptions,
    settings: MiningAsked,
) -> ProvenRules:
    """Mine rules beside the policy of `current`, and write the replay that proves them to the folder `proof`.

    Raises Misconfigured where there are too few missed frauds, and as `replay` does.
    """
    rules = current.policy.settings.rules
    earlier = tuple(rule for rule in rules if rule.name.startswith(MINED))
    without = replace(current, policy=current.policy.with_rules(one for one in rules if one not in earlier))
    # An earlier rule that has ended may earn again.
    endless = [replace(rule, until="") if rule in earlier else rule for rule in rules]
    proof.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=proof, prefix="mining-") as work:
        replay(
            history,
            engine=engine,
            rates=rates,
            champion=without,
            destination=Path(work),
            options=replace(options, with_vectors=True),
        )
        decisions = Path(work) / DECISIONS
        gathered = _Gathered(history, decisions, without, rates, options)
        payments = gathered.payments(current.policy.with_rules(endless), [rule.name for rule in earlier])
        mined = mine(payments, catalogue, settings, earlier, day=date_of_day(options.window.last))
        policy = current.policy.with_rules(mined.rules_after(rules))
        results = replay(
            history,
            engine=engine,
            rates=rates,
            champion=current,
            challenger=replace(current, policy=policy, policy_name="with the mined rules"),
            destination=proof,
            options=replace(options, earlier=decisions),
        )
    return ProvenRules(mined, policy, results)


class _Gathered:
    """The payments of a window that a policy approves, and that have a label."""

    def __init__(
        self, history: History, decisions: Path, contestant: Contestant, rates: RateTable, options: ReplayOptions
    ) -> None:
        self.history = history
        window = options.window
        bounds = np.searchsorted(history.event_time_ms, [window.first * DAY_MS, (window.last + 1) * DAY_MS])
        self.first, self.last = bounds.tolist()
        self.amounts, manifest = reference_amounts(history, rates), contestant.bundle.manifest
        measured, _ = measured_payments(
            history,
            final_labels(history),
            self.amounts,
            slice(self.first, self.last),
            options,
            manifest,
            mature_ms=mature_before_ms(history, end_of_labels_ms(history)),
        )
        action = pq.read_table(decisions, columns=["action"])["action"].to_numpy()
        is_approved = action[measured.row - self.first] == ACTIONS[APPROVE]
        genuine = np.flatnonzero(is_approved & ~measured.fraud)
        self.every = -(-len(genuine) // ROWS_MAX) or 1
        kept = np.sort(np.concatenate((np.flatnonzero(is_approved & measured.fraud), genuine[:: self.every])))
        self.row, self.fraud = measured.row[kept], measured.fraud[kept]
        self.amount_minor = measured.amount_minor[kept]
        self.earlier = EarlierDecisions(
            decisions, history, model_version=manifest.model_version, feature_count=len(manifest.feature_names)
        )
        self.feature_count = len(manifest.feature_names)

    def payments(self, policy: Policy, mined: list[str]) -> MiningPayments:
        """Returns the payments. `policy`: decides where the earlier mined rules fire."""
        vectors = np.empty((len(self.row), self.feature_count), dtype=np.float32)
        fired = {name: np.zeros(len(self.row), dtype=np.bool_) for name in mined}
        replayed = ReplayedPolicy(policy, self.history, self.amounts) if mined else None
        for part in self.earlier.chunks(self.first, self.last):
            first, last = np.searchsorted(self.row, [part.chunk.first, part.chunk.last]).tolist()
            here = self.row[first:last] - part.chunk.first
            vectors[first:last] = part.chunk.vectors[here]
            if replayed is not None:
                cause = replayed.decide(part.chunk, part.score).cause[here]
                for name, column in fired.items():
                    named = [f"{_RULE}{name}" in each.reasons for each in replayed.causes]
                    column[first:last] = np.array(named, dtype=np.bool_)[cause]
        return MiningPayments(
            time_ms=self.history.event_time_ms[self.row],
            vectors=vectors,
            texts={field: self.history.texts(field, self.row) for field in self._fields()},
            fraud=self.fraud,
            amount_minor=self.amount_minor,
            card=self.history.card.codes[self.row].astype(np.int64),
            weight=np.where(self.fraud, 1.0, float(self.every)),
            fired=fired,
        )

    def _fields(self) -> list[str]:
        """Returns the text fields that rules may name: of no person, and with texts instead of keyed hashes."""
        fields, declared = self.history.fields, self.history.declared
        personal = [field.name for field in fields.declared if field.form in _PERSONAL]
        names = [*TEXT_FIELDS, *(name for name, column in declared.items() if isinstance(column, Coded))]
        safe = [name for name in names if name not in UNSAFE_FIELDS and name not in personal]
        return [name for name in safe if not holds_hashes(self.history.coded(name).names.type)]
