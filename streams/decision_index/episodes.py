"""Episodes of enumeration in the index: found while decisions come in, shown in the console, raised as alerts.

A catalogue may declare `episode` features (features/catalogue/entity_words/episodes.py). Each decision carries its
vector, so the index sees which payments came while an episode was on:

    decision 1   merchant_episode 0.3
    decision 2   merchant_episode 1.4   ──►  episode_payments   (episode 5f0c…, payment, amount, action)
    decision 3   merchant_episode 1.9   ──►                     (episode 5f0c…, …)
                                             episodes           5f0c…, merchant m17, begin, end

1. `add` finds the episode that a payment belongs to, or begins one: payments of one entity belong together if less than
   QUIET_MS lies between. It runs in the transaction that adds the decisions, so each one counts once.
2. `EpisodeAlerts.step` raises an alert for each new episode, and clears it QUIET_MS after the last payment. An episode
   that goes on for ever is one row, one alert, and what its feature takes for usual in the end.

A decision has the ids of card, merchant and device, and the address, but no declared field. An entity that other fields
name stands under its merchant. Alerts leave the process, so they name the merchant alone.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.entity_words.episodes import ALARM, alarm_of, is_episode
from paywarden.models.metrics.episodes import IS_ON, QUIET_MS
from paywarden.streams.alerts.alert_records import record_of
from paywarden.streams.alerts.alerts import Alert, Severity, State
from paywarden.streams.alerts.causes import EPISODE_PREFIX
from paywarden.streams.decision_index.database import Database, Transaction
from paywarden.streams.decision_index.erasure import FIELDS
from paywarden.streams.decision_index.search import ACTIONS, key_hash

# Alerts about older episodes, as of an index that was just filled, would be no news.
_NEWS_MS = 86_400_000
_UNTOLD, _RAISED, _CLEARED = range(3)
# Alerts that are written together.
_BATCH = 500
_DECLINE = ACTIONS.index("decline")
_ID_DIGITS = 16


@dataclass(frozen=True)
class EpisodeFeature:
    """An `episode` feature: its place in the vector, and what names its entity in a decision.

    `keys`: the fields of the key. `derived`: for derived fields of the address, how their text is made of it.
    `alarm`: in nats of evidence.
    """

    name: str
    place: int
    keys: tuple[str, ...]
    derived: Mapping[str, Callable[[str], str]]
    alarm: float

    def entity_of(self, decision: Mapping[str, Any]) -> str:
        """Returns the name of the decision's entity: its merchant stands in for fields that a decision lacks."""
        parts = []
        for key in self.keys:
            text = self.derived[key](decision["ip"] or "") if key in self.derived else decision.get(key)
            parts.append(text if text and (key in FIELDS or key in self.derived) else "")
        known = [part for part in parts if part]
        if len(known) < len(parts) and "merchant_id" not in self.keys:
            known.append(decision["merchant_id"])
        return " + ".join(known)


@dataclass(frozen=True)
class EpisodeFeatures:
    """The `episode` features of a catalogue, by whose digest decisions name it."""

    digest: str
    features: tuple[EpisodeFeature, ...]

    @classmethod
    def of(cls, catalogue: Catalogue, digest: str) -> EpisodeFeatures:
        """Returns those of a catalogue; there may be none."""
        keys = {entity.name: entity.keys for entity in catalogue.entities}
        derived = {one.name: one.value_of for one in catalogue.payment.fields.derived if one.of == "ip"}
        return cls(
            digest,
            tuple(
                EpisodeFeature(feature.name, place, keys[feature.entity], derived, alarm_of(feature))
                for place, feature in enumerate(catalogue.features)
                if is_episode(feature)
            ),
        )

    def on_in(self, decision: Mapping[str, Any]) -> list[tuple[EpisodeFeature, float]]:
        """Returns the features whose episode was on when a decision was made, with their values."""
        if decision["catalogue_digest"] != self.digest:
            return []
        vector = decision["vector"]
        values = [(one, _value(vector, one.place)) for one in self.features if 4 * one.place + 4 <= len(vector)]
        return [(one, value) for one, value in values if value >= IS_ON]


NO_EPISODES = EpisodeFeatures("", ())


@dataclass(frozen=True)
class Episode:
    """An episode in the index. Money in minor units of the reference currency, without payments that have no rate."""

    episode_id: str
    feature: str
    entity: str
    merchant_id: str
    model_version: str
    begin_ms: int
    end_ms: int
    payments: int
    approved: int
    amount_minor: int
    approved_minor: int
    value_max: float

    def is_over(self, now_ms: int) -> bool:
        """Whether it has ended."""
        return now_ms - self.end_ms >= QUIET_MS


@dataclass
class _Run:
    """An episode while payments are added to it."""

    episode_id: str
    begin_ms: int
    end_ms: int
    is_new: bool = False


def add(
    transaction: Transaction, features: EpisodeFeatures, decisions: Sequence[tuple[Mapping[str, Any], int | None]]
) -> None:
    """Add decisions, each with its amount in the reference currency, to the episodes of their entities."""
    found: dict[tuple[str, str], list[tuple[Mapping[str, Any], int | None, float]]] = {}
    for decision, worth in decisions:
        for feature, value in features.on_in(decision):
            found.setdefault((feature.name, feature.entity_of(decision)), []).append((decision, worth, value))
    rows: dict[tuple[str, str], tuple[Any, ...]] = {}
    for (feature_name, entity), of_entity in found.items():
        of_entity.sort(key=lambda one: one[0]["decided_time_ms"])
        runs = _runs_near(transaction, feature_name, entity, of_entity)
        for decision, worth, value in of_entity:
            run = _run_of(runs, feature_name, entity, decision["decided_time_ms"])
            rows[decision["decision_id"], run.episode_id] = (
                *(run.episode_id, decision["decision_id"], decision["decided_time_ms"]),
                *(key_hash("payment_id", decision["payment_id"]), decision["merchant_id"], decision["model_version"]),
                *(worth, int(ACTIONS.index(decision["action"]) < _DECLINE), value),
            )
        _write(transaction, feature_name, entity, runs)
    names = (
        *("episode_id", "decision_id", "decided_time_ms", "payment_hash", "merchant_id", "model_version"),
        *("worth_minor", "approved", "value"),
    )
    if rows:
        columns = zip(*rows.values(), strict=True)
        transaction.append("episode_payments", {n: list(c) for n, c in zip(names, columns, strict=True)})


def _runs_near(
    transaction: Transaction, feature: str, entity: str, sorted_decisions: Sequence[tuple[Any, ...]]
) -> list[_Run]:
    first_ms, last_ms = (sorted_decisions[place][0]["decided_time_ms"] for place in (0, -1))
    rows = transaction.execute(
        "SELECT episode_id, begin_ms, end_ms FROM episodes WHERE feature = ? AND entity = ? AND end_ms > ? "
        "AND begin_ms < ? ORDER BY begin_ms",
        (feature, entity, first_ms - QUIET_MS, last_ms + QUIET_MS),
    )
    return [_Run(*row) for row in rows]


def _run_of(runs: list[_Run], feature: str, entity: str, time_ms: int) -> _Run:
    """Returns the episode that a payment belongs to, longer by it; a new one if there is none."""
    for run in runs:
        if run.begin_ms - QUIET_MS < time_ms < run.end_ms + QUIET_MS:
            run.begin_ms, run.end_ms = min(run.begin_ms, time_ms), max(run.end_ms, time_ms)
            return run
    digest = hashlib.sha256(f"{feature}\0{entity}\0{time_ms}".encode(errors="surrogatepass")).hexdigest()
    runs.append(_Run(digest[:_ID_DIGITS], time_ms, time_ms, is_new=True))
    return runs[-1]


def _write(transaction: Transaction, feature: str, entity: str, runs: Sequence[_Run]) -> None:
    for run in runs:
        transaction.execute(
            "INSERT INTO episodes (episode_id, feature, entity, begin_ms, end_ms, told) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (episode_id) DO UPDATE SET begin_ms = excluded.begin_ms, end_ms = excluded.end_ms",
            (run.episode_id, feature, entity, run.begin_ms, run.end_ms, _UNTOLD),
        )


def drop_empty(transaction: Transaction) -> None:
    """Take out episodes all of whose payments were erased."""
    transaction.execute("DELETE FROM episodes WHERE episode_id NOT IN (SELECT episode_id FROM episode_payments)")


_EPISODES = """
    SELECT e.episode_id, e.feature, e.entity, min(p.merchant_id), max(p.model_version), e.begin_ms, e.end_ms,
        count(DISTINCT p.payment_hash), sum(p.approved), coalesce(sum(p.worth_minor), 0),
        coalesce(sum(p.worth_minor * p.approved), 0), max(p.value)
    FROM episodes e JOIN episode_payments p ON p.episode_id = e.episode_id WHERE {where}
    GROUP BY e.episode_id, e.feature, e.entity, e.begin_ms, e.end_ms
    ORDER BY e.begin_ms DESC, e.episode_id LIMIT {count}
"""


def episodes(database: Database, *, since_ms: int, count: int) -> list[Episode]:
    """Returns the newest episodes that had not ended at `since_ms`."""
    with database.reading() as transaction:
        return _read(transaction, "e.end_ms >= ?", (since_ms,), count)


def _read(transaction: Transaction, where: str, values: Sequence[Any], count: int) -> list[Episode]:
    rows = transaction.execute(_EPISODES.format(where=where, count=int(count)), values)
    # PostgreSQL adds whole numbers up to decimals.
    numbers: list[list[Any]] = [[*row[:7], *map(int, row[7:11]), float(row[11])] for row in rows]
    return [Episode(*row) for row in numbers]


class AlertTeller(Protocol):
    """Writes alerts to their topic: KafkaAlerts (streams/alerts/publisher.py)."""

    def send(self, alert: Alert, record: dict[str, Any]) -> None:
        """Queue an alert."""

    def flush(self) -> None:
        """Return once all queued alerts are on the topic. Raises TemporaryFailure."""


class EpisodeAlerts:
    """Raises and clears the alerts of the episodes in an index."""

    def __init__(
        self, database: Database, features: EpisodeFeatures, teller: AlertTeller, *, now_ms: Callable[[], int]
    ) -> None:
        self._database, self._teller, self._now_ms = database, teller, now_ms
        self._alarms = {one.name: one.alarm for one in features.features}

    def step(self) -> int:
        """Write the alerts that are due; returns how many. Raises TemporaryFailure: the next call writes them again.

        An alert that is written twice has the same id, state and time.
        """
        now_ms = self._now_ms()
        self._pass_over(now_ms)
        due = self._due(now_ms)
        for told, episode in due:
            state = State.RAISED if told == _UNTOLD else State.CLEARED
            # A catalogue that has dropped the feature still clears its alerts.
            self._teller.send(*alert_of(episode, state, self._alarms.get(episode.feature, ALARM)))
        if due:
            self._teller.flush()
        with self._database.transaction() as transaction:
            for told, episode in due:
                transaction.execute(
                    "UPDATE episodes SET told = ? WHERE episode_id = ? AND told = ?",
                    (told + 1, episode.episode_id, told),
                )
        return len(due)

    def _pass_over(self, now_ms: int) -> None:
        """Note episodes as told that ended long ago."""
        with self._database.transaction() as transaction:
            transaction.execute(
                "UPDATE episodes SET told = ? WHERE told = ? AND end_ms < ?", (_CLEARED, _UNTOLD, now_ms - _NEWS_MS)
            )

    def _due(self, now_ms: int) -> list[tuple[int, Episode]]:
        with self._database.reading() as transaction:
            begun = _read(transaction, "e.told = ?", (_UNTOLD,), _BATCH)
            ended = _read(transaction, "e.told = ? AND e.end_ms <= ?", (_RAISED, now_ms - QUIET_MS), _BATCH)
        return [*((_UNTOLD, one) for one in begun), *((_RAISED, one) for one in ended)]


def alert_of(episode: Episode, state: State, alarm: float) -> tuple[Alert, dict[str, Any]]:
    """Returns the alert of an episode, and its record. Alerts give evidence as a power of ten."""
    time_ms = episode.begin_ms if state is State.RAISED else episode.end_ms + QUIET_MS
    alert = Alert(
        alert_id=f"episode-{episode.episode_id}",
        model_version=episode.model_version,
        state=state,
        severity=Severity.WARNING,
        time_ms=time_ms,
        first_seen_ms=episode.begin_ms,
        slack_ms=0,
        raised_ms=episode.begin_ms,
        subject=f"{EPISODE_PREFIX}{episode.feature}",
        statistic="share",
        segment=f"merchant_id={episode.merchant_id}",
        length_ms=episode.end_ms - episode.begin_ms,
        effect=episode.value_max,
        effect_min=IS_ON,
        value=episode.value_max,
        expected=0.0,
        count=episode.payments,
        evidence=episode.value_max * alarm / math.log(10),
        evidence_min=alarm / math.log(10),
        shift=0.0,
        window_start_ms=episode.begin_ms,
        window_end_ms=episode.end_ms,
    )
    return alert, record_of(alert)


def _value(vector: bytes, place: int) -> float:
    (value,) = struct.unpack_from("<f", vector, 4 * place)
    return float(value)
