from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import example, given
from hypothesis import strategies as st

from paywarden.streams.profiles.progress.completeness import REPEAT_EVERY_MS, CompletenessRounds
from paywarden.streams.profiles.progress.watermarks import Claim, CopyProgress, claim_of

Place = tuple[str, int]
PAYMENTS: list[Place] = [("payments", 0), ("payments", 1)]
FRAMES: list[Place] = [("repartition-card", 0), ("repartition-card", 1)]
CHANGELOG: list[Place] = [("profiles", 0), ("profiles", 1)]
STAGES = [PAYMENTS, FRAMES, CHANGELOG]
EVERY_MS = 1


class System:
    """A stream, its broker and a copy of its profiles. A record is the number of a payment."""

    def __init__(self) -> None:
        self.now_ms = 1
        self.logs: dict[Place, list[int]] = {place: [] for stage in STAGES for place in stage}
        self.committed: dict[Place, int] = {}
        self.arrived_ms: list[int] = []
        self.pending: list[tuple[Place, Future[Any]]] = []
        self.rounds = CompletenessRounds(STAGES, ask=self._ask, every_ms=EVERY_MS)
        self.claims: list[Claim] = []
        self.asked = 0
        self.copy = CopyProgress()
        self.read_to: dict[int, int] = {0: 0, 1: 0}

    def _ask(self, places: Iterable[Place]) -> Mapping[Place, Future[Any]]:
        self.asked += 1
        answers: dict[Place, Future[Any]] = {place: Future() for place in places}
        self.pending += answers.items()
        return answers

    def answer(self, _: int = 0, count: int = 100) -> None:
        """The broker answers some of what it was asked, with the ends of this moment."""
        for place, future in self.pending[:count]:
            future.set_result(type("Result", (), {"offset": len(self.logs[place])}))
        del self.pending[:count]

    def fail(self) -> None:
        for _, future in self.pending:
            future.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
        self.pending.clear()

    def arrive(self, partition: int, count: int) -> None:
        for _ in range(min(count, 2)):
            self.logs[PAYMENTS[partition]].append(len(self.arrived_ms))
            self.arrived_ms.append(self.now_ms)

    def route(self, partition: int, count: int, *, commits: bool = True) -> None:
        """A worker sends payments on, and dies before its commit or not."""
        self._work(PAYMENTS[partition], FRAMES, count, commits)

    def apply(self, partition: int, count: int, *, commits: bool = True) -> None:
        self._work(FRAMES[partition], CHANGELOG, count, commits)

    def _work(self, source: Place, targets: list[Place], count: int, commits: bool) -> None:
        first = self.committed.get(source, 0)
        records = self.logs[source][first : first + count]
        for payment in records:
            self.logs[targets[payment % 3 % 2]].append(payment)
        if commits and records:
            self.committed[source] = first + len(records)

    def read(self, partition: int, count: int) -> None:
        self.read_to[partition] = min(self.read_to[partition] + count, len(self.logs[CHANGELOG[partition]]))

    def look_and_tell(self, *_: int) -> None:
        self.look()
        self.tell()

    def look(self, *_: int) -> None:
        self.rounds.saw_committed(self.committed)
        if (claim := self.rounds.look(self.now_ms)) is not None:
            self.claims.append(claim)

    def tell(self, *_: int) -> None:
        """The copy reads a claim."""
        if self.claims:
            self.copy.claimed(self.claims.pop(0), self.now_ms)

    def complete_to_ms(self) -> int:
        complete_to_ms = self.copy.complete_to_ms(self.read_to)
        have = {payment for number, end in self.read_to.items() for payment in self.logs[CHANGELOG[number]][:end]}
        lacks = [at_ms for payment, at_ms in enumerate(self.arrived_ms) if payment not in have]
        assert complete_to_ms <= min(lacks, default=self.now_ms), "the copy claims a payment that it lacks"
        return complete_to_ms

    def settle(self) -> None:
        """Do all that is left to do."""
        for _ in range(8):
            for partition in (0, 1):
                self.route(partition, 1000)
                self.apply(partition, 1000)
                self.read(partition, 1000)
            self.look()
            self.answer()
            self.look()
            self.tell()
            self.now_ms += 1


# Those that matter together come most often, so that short histories meet the dangerous orders.
OFTEN = ("arrive", "route", "look_and_tell", "answer")
ACTIONS = (*OFTEN * 3, "apply", "read", "look", "tell", "die_routing", "die_applying")
COUNTS = (100, 100, 2, 1)


# The ends of a later stage were asked for before what comes of the earlier one was there.
_FRAMES_TOO_EARLY = [("arrive", 0, 1), ("look", 0, 1), ("answer", 0, 100), ("route", 0, 100), ("look_and_tell", 0, 1)]
_CHANGELOG_TOO_EARLY = [
    *[("arrive", 0, 1), ("route", 0, 100), ("look", 0, 1), ("answer", 0, 100), ("apply", 0, 100)],
    ("look_and_tell", 0, 1),
]


@example(_FRAMES_TOO_EARLY)
@example(_CHANGELOG_TOO_EARLY)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1), st.sampled_from(COUNTS)), max_size=80))
def test_a_copy_has_every_payment_from_before_its_moment(actions: list[tuple[str, int, int]]) -> None:
    system = System()
    for action, partition, count in actions:
        if action == "die_routing":
            system.route(partition, count, commits=False)
        elif action == "die_applying":
            system.apply(partition, count, commits=False)
        else:
            getattr(system, action)(partition, count)
        system.now_ms += 1
        system.complete_to_ms()
    moment_ms = system.now_ms
    system.settle()
    system.settle()
    assert system.complete_to_ms() >= moment_ms


def test_at_rest_a_claim_takes_one_question() -> None:
    system = System()
    system.settle()
    asked = system.asked
    for _ in range(10):
        system.now_ms += EVERY_MS
        system.look()
        system.answer()
        system.look()
    # Without payments every second round is left out.
    assert system.asked - asked == 5
    assert len(system.claims) >= 5


def test_rounds_begin_at_the_usual_distance_once_payments_come() -> None:
    system = System()
    system.settle()
    system.settle()
    claims = len(system.claims)
    for _ in range(10):
        system.arrive(1, 1)
        system.route(1, 1)
        system.apply(0, 1)
        system.apply(1, 1)
        system.now_ms += EVERY_MS
        system.look()
        system.answer()
        system.look()
    # The first may still be late.
    assert len(system.claims) - claims >= 9


@given(st.lists(st.booleans(), min_size=60, max_size=60))
def test_a_round_waits_for_a_good_moment_at_most_half_of_the_distance(moments: list[bool]) -> None:
    system = System()
    rounds, begun = CompletenessRounds(STAGES, ask=system._ask, every_ms=10), [0]
    for number, is_good in enumerate(moments):
        now_ms, asked = 1_000 + number, system.asked
        system.arrive(0, 1)
        due_ms = rounds.due_ms()
        rounds.look(now_ms, is_good_moment=is_good)
        if system.asked > asked:
            assert due_ms <= now_ms
            assert is_good or now_ms - begun[-1] >= 15
            begun.append(now_ms)
        else:
            assert now_ms < due_ms + 5
            assert now_ms < due_ms or not is_good
        system.answer()
        rounds.saw_committed({place: len(log) for place, log in system.logs.items()})
        rounds.look(now_ms, is_good_moment=False)
        system.answer()
        rounds.look(now_ms, is_good_moment=False)


def test_a_worker_that_can_claim_nothing_repeats_its_last_claim() -> None:
    system = System()
    system.settle()
    complete_to_ms = system.complete_to_ms()
    system.claims.clear()
    system.arrive(0, 1)
    for _ in range(4):
        system.now_ms += REPEAT_EVERY_MS
        system.look()
        system.answer()
        system.tell()
        assert system.complete_to_ms() == complete_to_ms


def test_a_silent_broker_is_asked_again_and_nothing_is_claimed() -> None:
    system = System()
    system.look()
    system.fail()
    system.look()
    assert told(system) == []
    system.settle()
    assert system.complete_to_ms() > 0


def told(system: System) -> list[Claim]:
    """Returns the claims that say something."""
    return [claim for claim in system.claims if claim.ends]


def test_a_client_that_has_lost_a_partition_makes_no_claim() -> None:
    system = System()
    system.arrive(0, 1)
    for _ in range(20):
        system.now_ms += 1
        system.look()
        system.answer()
    assert told(system) == []
    assert system.rounds.awaited() == {PAYMENTS[0]}


def test_a_group_that_is_behind_has_few_rounds_under_way() -> None:
    system = System()
    system.arrive(0, 1)
    for _ in range(1000):
        system.now_ms += 1
        system.look()
        system.answer()
    assert system.asked <= 4
    system.settle()
    # The rounds are spread over the time that the group was behind.
    assert system.complete_to_ms() > 900


def test_a_clock_that_was_set_back_does_not_end_the_rounds() -> None:
    system = System()
    system.now_ms = 1_000_000
    system.settle()
    system.now_ms = 500_000
    system.settle()
    assert system.complete_to_ms() > 0


def test_a_claim_survives_its_encoding() -> None:
    claim = Claim(7, {3: 1 << 40, 0: 0})
    assert claim_of(7, claim.encoded_ends()) == claim


@pytest.mark.parametrize("ends", [b"", b"\x02", b"\x01\x00"])
def test_a_claim_of_another_format_is_none(ends: bytes) -> None:
    assert claim_of(7, ends) is None


def test_a_copy_goes_by_claims() -> None:
    copy = CopyProgress()
    assert copy.complete_to_ms({0: 0}) == 0
    copy.claimed(Claim(900, {0: 5}), 20_000)
    assert copy.complete_to_ms({0: 4}) == 0
    assert copy.complete_to_ms({0: 5}) == 900


def test_a_copy_that_stays_behind_reaches_a_claim_all_the_same() -> None:
    copy = CopyProgress()
    for number in range(1, 2_000):
        copy.claimed(Claim(number, {0: number}), 20_000)
        assert copy.complete_to_ms({0: number - 500}) >= number - 1_100


def test_a_claim_that_cannot_be_reached_holds_up_no_later_one() -> None:
    """A worker asked where the changelog ended before it was created again."""
    copy = CopyProgress()
    copy.claimed(Claim(800, {0: 1_000_000}), 20_000)
    copy.claimed(Claim(900, {0: 5}), 20_000)
    assert copy.complete_to_ms({0: 5}) == 900


def test_a_claim_from_the_future_counts_up_to_now() -> None:
    copy = CopyProgress()
    copy.claimed(Claim(9_000_000, {0: 5}), 20_000)
    assert copy.complete_to_ms({0: 5}) == 20_000
