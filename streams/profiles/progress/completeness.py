"""Find how complete the profiles are, by questions to the broker alone: no record travels with the payments for it.

The group commits an offset only after everything that comes of the records before it is written. If the group has
committed up to where a topic ended, its records up to there are through:

    at T    payments ends at 120, 98 …           "every payment from before T is before these"
    wait    the group has committed these        their frames are on the repartition topics
    then    repartition-card ends at 7, 40 …     "and these frames are before these"
    wait    the group has committed these        their profiles are on the changelog
    then    profiles ends at 510, 733 …          "and these profiles are before these"

    a record on the changelog tells: complete to T, once 510, 733 … are read          (`Claim`)

If nothing was behind when the first question was asked, the first answer is the last one. While no payments come,
rounds begin half as often. A whole deployment at rest therefore costs one request and one record each second, however
many partitions it has.

A claim rests on the broker's answer, not on this worker's belief about itself. It stays true when the worker has lost
its partitions since, was frozen, or comes back late; when a client has silently lost a partition, there is none.

What can go wrong:

- The broker does not answer: the worker asks again, and claims nothing new meanwhile.
- Committed offsets go back: the claim stays true, because the offsets were committed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaException

from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.profiles.progress.watermarks import Claim

# While no payments come, twice as much time is between two rounds.
_REST_FACTOR = 2
# While the group is behind, at most this many rounds are under way.
_ROUNDS_MAX = 4
# While no claim can be made, the last one is repeated this often. Companions then know that it is their workers who are
# behind, also companions that have just started.
REPEAT_EVERY_MS = 5_000


@dataclass
class _Round:
    """One search for a claim, from its moment on."""

    moment_ms: int
    # The stage whose ends the group must have committed next.
    stage: int = 0
    # An answer that is on its way, and the committed offsets that were known when it was asked for.
    asked: Mapping[PartitionId, Future[Any]] = field(default_factory=dict)
    committed_then: Mapping[PartitionId, int] = field(default_factory=dict)
    # Where payments ended at the first question.
    arrived_to: Mapping[PartitionId, int] = field(default_factory=dict)
    # The ends that the group must have committed before the next question.
    to_reach: Mapping[PartitionId, int] = field(default_factory=dict)


class CompletenessRounds:
    """Makes claims, one after the other. Never waits. Not thread-safe.

    The stages of a round are payments, repartition topics and changelog, in this order.
    """

    def __init__(
        self,
        stages: Sequence[Collection[PartitionId]],
        *,
        ask: Callable[[Iterable[PartitionId]], Mapping[PartitionId, Future[Any]]],
        every_ms: int,
    ) -> None:
        """`ask` starts a request for the ends of partitions (streams/kafka/admin.py). A round begins `every_ms`."""
        self._stages, self._ask, self._every_ms = [list(places) for places in stages], ask, every_ms
        self._last = len(stages) - 1
        # The highest offset of each partition that the group was seen to have committed.
        self._committed: dict[PartitionId, int] = {}
        self._rounds: deque[_Round] = deque()
        self._begun_ms = 0
        # Where payments ended at the last round that led to a claim, and whether that was so at the one before, too.
        self._arrived_to: Mapping[PartitionId, int] = {}
        self._is_at_rest = False
        self._told, self._told_ms = Claim(0, {}), 0

    @property
    def is_asking(self) -> bool:
        """Whether an answer of the broker is on its way."""
        return any(each.asked for each in self._rounds)

    def saw_committed(self, offsets: Mapping[PartitionId, int]) -> None:
        """Note offsets that the group has committed."""
        for place, offset in offsets.items():
            if offset > self._committed.get(place, 0):
                self._committed[place] = offset

    def awaited(self) -> set[PartitionId]:
        """Returns the partitions whose committed offsets a round waits for."""
        return {place for each in self._rounds for place in self._behind(each.to_reach, self._committed)}

    def stop(self) -> None:
        """Give up all rounds: another worker makes the claims now."""
        self._rounds.clear()

    def due_ms(self) -> int:
        """Returns when the next round may begin, in epoch milliseconds."""
        return self._begun_ms + self._pause_ms()

    def look(self, now_ms: int, *, is_good_moment: bool = True) -> Claim | None:
        """Returns the newest claim to tell since the last call. Call it often: it asks and takes answers.

        At a good moment the payments that are on Kafka now are about to be read. A round that is due waits for such a
        moment, at most half of the distance between rounds: one that begins just after a batch was read waits as long
        for the next one.
        """
        self._begin(now_ms, is_good_moment=is_good_moment)
        claim = None
        for each in list(self._rounds):
            try:
                made = self._go_on(each)
            except KafkaException:
                self._rounds.remove(each)
                continue
            if made is not None:
                claim = made
                while self._rounds.popleft() is not each:
                    pass
        if claim is None and self._told_ms <= now_ms < self._told_ms + REPEAT_EVERY_MS:
            return None
        self._told, self._told_ms = claim or self._told, now_ms
        return self._told

    def _pause_ms(self) -> int:
        return self._every_ms * (_REST_FACTOR if self._is_at_rest else 1)

    def _begin(self, now_ms: int, *, is_good_moment: bool) -> None:
        pause_ms = self._pause_ms()
        if not is_good_moment:
            pause_ms += self._every_ms // 2
        if self._rounds:
            # While the group is behind, a round takes long, and the next ones begin at equal distances.
            pause_ms = max(pause_ms, (now_ms - self._rounds[0].moment_ms) // _ROUNDS_MAX)
        # A clock that was set back must not end the rounds.
        if len(self._rounds) < _ROUNDS_MAX and not self._begun_ms <= now_ms < self._begun_ms + pause_ms:
            self._begun_ms = now_ms
            self._rounds.append(_Round(now_ms))
            self._ask_from(self._rounds[-1], 0)

    def _go_on(self, each: _Round) -> Claim | None:
        """Take the next steps of a round that can be taken. Raises KafkaException if the broker has not answered."""
        while True:
            if each.to_reach:
                if self._behind(each.to_reach, self._committed):
                    return None
                each.to_reach = {}
                self._ask_from(each, each.stage + 1)
            if not all(answer.done() for answer in each.asked.values()):
                return None
            ends = {place: int(answer.result().offset) for place, answer in each.asked.items()}
            each.asked = {}
            if each.stage == 0:
                each.arrived_to = {place: ends[place] for place in self._stages[0]}
            if self._is_last_answer(each, ends):
                self._is_at_rest, self._arrived_to = each.arrived_to == self._arrived_to, each.arrived_to
                return Claim(each.moment_ms, {place[1]: ends[place] for place in self._stages[self._last]})

    def _is_last_answer(self, each: _Round, ends: Mapping[PartitionId, int]) -> bool:
        """Returns whether the changelog's ends in this answer lie behind all that the round is about.

        If not, `to_reach` has what must be committed before the next question.
        """
        while each.stage < self._last:
            to_reach = {place: ends[place] for place in self._stages[each.stage]}
            if self._behind(to_reach, each.committed_then):
                # The further ends in this answer may lie before the results of these records.
                each.to_reach = to_reach
                return False
            each.stage += 1
        return True

    def _ask_from(self, each: _Round, stage: int) -> None:
        """Ask where everything from this stage on ends now."""
        each.stage, each.committed_then = stage, dict(self._committed)
        each.asked = self._ask([place for places in self._stages[stage:] for place in places])

    @staticmethod
    def _behind(ends: Mapping[PartitionId, int], committed: Mapping[PartitionId, int]) -> list[PartitionId]:
        return [place for place, end in ends.items() if committed.get(place, 0) < end]
