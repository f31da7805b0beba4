"""Known breaks: each undoes one fix, and the simulator has to find it within a stated number of seeds.

A mutation replaces one function of the product by one that behaves as before the fix. While a fix is not there yet, its
mutation replaces nothing, and the product itself has to fail. `MUTATIONS[…].is_fixed` says which of the two it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import IsolationLevel


@dataclass(frozen=True)
class Patch:
    """Put `make(before)` in the place of a name of a module, or of a class in it: `Class.name`."""

    module: str
    name: str
    make: Callable[[Any], Any]

    def owner(self) -> tuple[Any, str] | None:
        """Returns the object that has the name, and the name; None if this release has none."""
        try:
            owner: Any = importlib.import_module(f"paywarden.{self.module}")
        except ModuleNotFoundError:
            return None
        *path, name = self.name.split(".")
        for part in path:
            owner = getattr(owner, part, None)
        return (owner, name) if hasattr(owner, name) else None


@dataclass(frozen=True)
class Mutation:
    """A fix undone. `faults`: kinds of faults that meet it. `seeds`: it is found within this many.

    `known`: the seed that found it last, which is tried before the others. It saves time and says nothing else.
    """

    what: str
    faults: tuple[str, ...]
    seeds: int
    kinds: frozenset[str]
    patches: tuple[Patch, ...] = ()
    known: int = 0

    @property
    def order(self) -> list[int]:
        """The seeds in the order in which they are tried."""
        return sorted(range(self.seeds), key=lambda seed: (seed != self.known, seed))

    @property
    def is_fixed(self) -> bool:
        """Whether the product has the fix that this undoes."""
        return all(patch.owner() is not None for patch in self.patches)

    @contextmanager
    def undone(self) -> Iterator[None]:
        before = []
        for patch in self.patches:
            place = patch.owner()
            if place is not None:
                before.append((*place, getattr(*place)))
                setattr(*place, patch.make(getattr(*place)))
        try:
            yield
        finally:
            for owner, name, value in reversed(before):
                setattr(owner, name, value)


def _constant(value: Any) -> Callable[[Any], Any]:
    """Returns a patch by a function that always returns `value`."""
    return lambda _: lambda *_args, **_more: value


def _by_the_time_of_day(_: Any) -> Any:
    return lambda _self: int(importlib.import_module("tests.simulation.patches").TIME.time())


def _headers_as_they_come(_: Any) -> Any:
    return lambda message: message.headers() or []


def _unreadable_ends_it(_: Any) -> Any:
    def refuse(*_args: Any) -> Any:
        module = importlib.import_module("paywarden.features.profiles.engine")
        raise module.UnreadableProfile("a stored profile cannot be read")

    return refuse


def _no_frame_ends_it(decode: Any) -> Any:
    def decoded(value: Any, partition_count: int) -> Any:
        errors = importlib.import_module("paywarden.schemas.errors")
        try:
            return decode(value, partition_count)
        except errors.InvalidEvent as error:
            raise errors.Misconfigured(str(error)) from error

    return decoded


def _claims_stay(_: Any) -> Any:
    return lambda claims, _batches: ([*claims], [])


def _later_commits_count(saw_committed: Any) -> Any:
    def saw(self: Any, offsets: Any) -> None:
        saw_committed(self, offsets)
        for each in self._rounds:
            each.committed_then = dict(self._committed)

    return saw


def _stable_ends(ask: Any) -> Any:
    return lambda admin, *where, **_: ask(admin, *(each for each in where if not isinstance(each, IsolationLevel)))


def _any_log_is_a_segment(_: Any) -> Any:
    def segments(directory: Any) -> list[int]:
        names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        return sorted(int(name.removesuffix(".log")) for name in names if name.endswith(".log"))

    return segments


def _no_cursor_ends_it(read: Any) -> Any:
    def cursor(value: bytes) -> Any:
        errors = importlib.import_module("paywarden.schemas.errors")
        try:
            return read(value)
        except errors.Misconfigured as error:
            raise errors.StoreUnavailable(str(error)) from error

    return cursor


def _readable_ends(_: Any) -> Any:
    admin = importlib.import_module("paywarden.streams.kafka.admin")
    return admin.stable_end_offsets


def _any_cursor_counts(_: Any) -> Any:
    def load(self: Any) -> int | None:
        digits = self._path.read_text(encoding="ascii").partition(",")[0] if self._path.exists() else ""
        return int(digits) if digits.isdecimal() else None

    return load


def _one_pause_for_all(pause: Any) -> Any:
    def paused(self: Any, worker: Any) -> float:
        worker.pause_s = max(each.pause_s for each in self._workers)
        pause_s: float = pause(self, worker)
        return pause_s

    return paused


def _failed_fork_ends_it(_: Any) -> Any:
    def postpone(_self: Any, _worker: Any, error: OSError) -> None:
        raise error

    return postpone


def _damaged_counts_end_it(continues: Any) -> Any:
    def insisted(path: Any, head: bytes, size: int) -> bool:
        is_there = bool(path.exists())
        if is_there and not continues(path, head, size):
            errors = importlib.import_module("paywarden.schemas.errors")
            raise errors.Misconfigured(f"metrics: {path} is damaged")
        return is_there

    return insisted


MUTATIONS = {
    "poisoned_topic": Mutation(
        "a header name that is not UTF-8 ends every stream worker",
        ("header_name",),
        10,
        frozenset({"bug", "stuck"}),
        (Patch("streams.kafka.reading", "_headers", _headers_as_they_come),),
    ),
    "poisoned_frames": Mutation(
        "a record of a repartition topic that is no frame ends every stream worker",
        ("poisoned_record",),
        40,
        frozenset({"bug", "stuck"}),
        (Patch("streams.profiles.updater", "decode_frame", _no_frame_ends_it),),
        known=1,
    ),
    "readiness": Mutation(
        "readiness does not know whether a decision can be recorded",
        ("enospc",),
        100,
        frozenset({"readiness_lied", "stuck"}),
        (Patch("scoring.state.outbox", "OutboxWriter.trouble", _constant("")),),
        known=9,
    ),
    "source_identity": Mutation(
        "payments of a topic created again are taken for replays",
        ("topic_recreated",),
        20,
        frozenset({"profiles", "stuck"}),
        (
            Patch("streams.kafka.source_register", "require_same", _constant(None)),
            Patch("streams.profiles.guards.sources", "require_same", _constant(None)),
        ),
    ),
    "batches": Mutation(
        "a refused batch leaves decisions",
        ("hostile_batch",),
        10,
        frozenset({"refused_and_decided"}),
        (Patch("scoring.engine.scorer", "whole_batches", _claims_stay),),
    ),
    "quarantine_outbox": Mutation(
        "damage in an outbox holds up all decisions behind it",
        ("damaged_outbox",),
        30,
        frozenset({"stuck", "bug"}),
        (Patch("streams.companion.shipment", "Shipment._pass_damage", _constant(False)),),
    ),
    "quarantine_profile": Mutation(
        "one unreadable profile ends the stream",
        ("damaged_profile",),
        20,
        frozenset({"stuck", "bug"}),
        (Patch("streams.profiles.updater", "Updater._apply_to_readable", _unreadable_ends_it),),
    ),
    "quarantine_labels": Mutation(
        "one payment with too many label changes ends the stream",
        ("label_changes",),
        20,
        frozenset({"stuck", "bug"}),
        (Patch("streams.profiles.events", "LABEL_CHANGES_MAX", lambda _: 1 << 30),),
    ),
    "claims_too_early": Mutation(
        "a claim takes ends that were asked for before what lies behind them was written",
        ("slow", "partition_stall", "commit_doubt", "store_away", "store_flaky", "rebalance"),
        100,
        frozenset({"watermark"}),
        (Patch("streams.profiles.progress.completeness", "CompletenessRounds.saw_committed", _later_commits_count),),
        known=4,
    ),
    "outcomes_of_held_payments": Mutation(
        "an outcome does not wait for payments behind an open transaction",
        ("open_transaction",),
        40,
        frozenset({"dead_letters", "profiles"}),
        (Patch("streams.profiles.pipeline", "end_offsets_of", _stable_ends),),
    ),
    "claims_of_held_payments": Mutation(
        "profiles are told to be complete without payments behind an open transaction",
        ("open_transaction",),
        40,
        frozenset({"watermark"}),
        (Patch("streams.profiles.pipeline", "ask_end_offsets", _stable_ends),),
    ),
    "poisoned_cursor": Mutation(
        "a record of outbox-cursors that is no cursor ends the companion at each start",
        ("poisoned_cursor",),
        20,
        frozenset({"stuck", "bug"}),
        (Patch("streams.companion.cursors", "ShippedTo.from_bytes", _no_cursor_ends_it),),
    ),
    "damaged_cursor": Mutation(
        "a damaged file of a cursor is taken for one",
        ("damaged_cursor",),
        40,
        frozenset({"stuck", "bug", "decision_lost", "decision_twice"}),
        (Patch("scoring.state.outbox.reader", "Cursor.load", _any_cursor_counts),),
        known=18,
    ),
    "damaged_counts": Mutation(
        "a damaged file of counts ends its worker at each start",
        ("damaged_counts",),
        20,
        frozenset({"stuck", "bug"}),
        (Patch("scoring.metrics.shared_metrics", "_continues", _damaged_counts_end_it),),
    ),
    "cursors_of_held_topic": Mutation(
        "cursors behind an open transaction of another are taken for those that are not there",
        ("open_transaction",),
        60,
        frozenset({"decision_twice", "stuck"}),
        (Patch("streams.companion.cursors", "written_end_offsets", _readable_ends),),
        known=15,
    ),
    "hung_worker": Mutation(
        "a worker that stands still is left alone",
        ("hung_worker",),
        20,
        frozenset({"stuck"}),
        (Patch("scoring.server.heartbeat", "HangDetector.look", _constant(False)),),
    ),
    "failed_fork": Mutation(
        "a failed fork ends the supervisor",
        ("failed_fork",),
        20,
        frozenset({"supervisor_ended"}),
        (Patch("scoring.server.supervisor", "Supervisor._postpone", _failed_fork_ends_it),),
    ),
    "crash_loop": Mutation(
        "a worker that crashes again and again holds up the start of another",
        ("crash_loop",),
        60,
        frozenset({"restart_late"}),
        (Patch("scoring.server.supervisor", "Supervisor._pause", _one_pause_for_all),),
    ),
    "arms_of_all_cards": Mutation(
        "the candidate of a rollout decides about all cards",
        ("swap",),
        40,
        frozenset({"release", "arm"}),
        (Patch("scoring.engine.arms", "ArmSplit.has", _constant(True)),),
    ),
    "index_offsets": Mutation(
        "a killed index goes on from an earlier place than it has stored",
        ("index_death",),
        40,
        frozenset({"index", "bug", "stuck"}),
        (Patch("streams.decision_index.index", "DecisionIndex.set_source", _constant(None)),),
    ),
    "window_by_the_day": Mutation(
        "a leap of the time of day ends the window of repeated payments",
        ("clock_leap",),
        150,
        frozenset({"two_answers", "decision_twice"}),
        (Patch("scoring.idempotency.decision_cache", "DecisionCache.now_s", _by_the_time_of_day),),
        known=34,
    ),
    "segments_by_the_day": Mutation(
        "after a leap of the time of day the outbox keeps no decisions for repeated payments",
        ("clock_leap",),
        100,
        frozenset({"two_answers", "decision_twice"}),
        (Patch("streams.companion.file_ages", "FileAges.are_right", _constant(True)),),
        known=17,
    ),
    "clock_behind": Mutation(
        "a stream worker whose clock is behind refuses payments of now",
        ("clock_leap",),
        60,
        frozenset({"dead_letters", "profiles"}),
        (Patch("streams.profiles.guards.broker_clock", "BrokerClock.heard", _constant(None)),),
        known=8,
    ),
    "foreign_directory": Mutation(
        "a directory that is no worker's is taken for an outbox",
        ("foreign_directory",),
        20,
        frozenset({"stuck", "bug"}),
        (
            Patch("scoring.state.outbox.reader", "is_outbox", _constant(True)),
            Patch("scoring.state.outbox.reader", "segments_in", _any_log_is_a_segment),
            Patch("scoring.state.outbox.writer", "segments_in", _any_log_is_a_segment),
        ),
    ),
}
