from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.idempotency import claim_table as claims
from paywarden.scoring.idempotency import decision_cache as answered
from paywarden.scoring.idempotency.decision_cache import (
    UNREMEMBERED,
    Claim,
    ClaimConflict,
    DecisionCache,
    DecisionCacheMetrics,
    DecisionCacheSettings,
    tag_of,
)
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter, workers
from tests.oracles.claims import claim_all, place_all
from tests.unit.scoring.state.outboxes import append_all, starts

# Milliseconds since the boot, and far from its beginning.
NOW_MS = 1_700_000_000_000
WINDOW_MS = 600_000


def payment(payment_id: str, *, card_id: str = "c", amount_minor: int = 100) -> ScoreRequest:
    return ScoreRequest(
        payment_id=payment_id, card_id=card_id, merchant_id="m", amount_minor=amount_minor, currency="EUR"
    )


def entry_of(request: ScoreRequest, decision_id: str, caller: str = "") -> OutboxEntry:
    response = ScoreResponse(payment_id=request.payment_id, decision_id=decision_id, action="approve")
    return OutboxEntry(request=request, response=response, decided_time_ms=NOW_MS, caller=caller)


def asked(requests: Sequence[ScoreRequest], caller: str = "") -> CheckedPayments:
    """Returns payments without entities and attributes, which the table does not use."""
    bodies = [request.SerializeToString() for request in requests]
    payments = CheckedPayments(
        bodies, [request.payment_id.encode() for request in requests], [], np.zeros((len(bodies), 0), dtype=np.int64)
    )
    payments.callers = [caller.encode()] * len(bodies)
    return payments


class Worker:
    """A worker that does not score. Its decisions have unique ids."""

    made = 0

    def __init__(self, host: Host, number: int) -> None:
        self.outbox = OutboxWriter(host.outbox, answered.worker_name(number))
        self.metrics = DecisionCacheMetrics.declare(MetricsRegistry())
        self.now_ms = NOW_MS
        self.answered = DecisionCache(host.answered, host.outbox, number, self.metrics, clock_ms=lambda: self.now_ms)

    def claim(self, *requests: ScoreRequest, now_ms: int = NOW_MS, caller: str = "") -> list[Claim]:
        self.now_ms = now_ms
        return [*claim_all(self.answered, asked(requests, caller))]

    def decide(self, request: ScoreRequest, slot: int, caller: str = "") -> str:
        """Place, append and settle one payment that was won. Returns the decision's id."""
        entry = self.entry(request, caller)
        self.place(slot, entry)
        self.outbox.append(entry.SerializeToString())
        self.answered.settle((slot,))
        return entry.response.decision_id

    def entry(self, request: ScoreRequest, caller: str = "") -> OutboxEntry:
        Worker.made += 1
        return entry_of(request, f"d{Worker.made}", caller)

    def place(self, slot: int, entry: OutboxEntry) -> None:
        place_all(self.answered, (slot,), starts(self.outbox, [entry.SerializeToString()]))

    def ask(self, request: ScoreRequest, now_ms: int = NOW_MS, caller: str = "") -> str | Claim:
        """Returns what a caller gets: the decision's id, or the conflict."""
        (claim,) = self.claim(request, now_ms=now_ms, caller=caller)
        if isinstance(claim, int):
            return self.decide(request, claim, caller)
        return claim.response.decision_id if isinstance(claim, OutboxEntry) else claim

    def die(self) -> None:
        """Do what the kernel does for a killed process: release the lock, leave table and outbox as they are."""
        self.answered.close()
        self.outbox.close()


class Host:
    """The table and the outboxes of a host, in a folder."""

    def __init__(self, folder: Path, payments_max: int = 1000) -> None:
        self.answered = DecisionCacheSettings(path=str(folder / "answered"), payments_max=payments_max)
        self.outbox = OutboxSettings(directory=str(folder / "outbox"))
        answered.prepare(self.answered)
        self.alive: dict[int, Worker] = {}

    def start(self, number: int) -> Worker:
        self.alive[number] = Worker(self, number)
        return self.alive[number]

    def kill(self, number: int) -> None:
        self.alive.pop(number).die()

    def decisions(self) -> dict[str, list[str]]:
        """Returns the ids of all decisions in all outboxes, by payment."""
        found: dict[str, list[str]] = {}
        for worker in workers(self.outbox):
            for _, payload in OutboxReader(self.outbox, worker).read(0, 1_000_000):
                entry = OutboxEntry.FromString(payload)
                found.setdefault(entry.request.payment_id, []).append(entry.response.decision_id)
        return found

    def close(self) -> None:
        for number in list(self.alive):
            self.kill(number)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("count", [1, 1 << 40, -1])
def test_a_damaged_head_neither_ends_a_worker_nor_decides_a_payment_twice(host: Host, count: int) -> None:
    worker = host.start(0)
    decided = [worker.ask(payment(f"p{number}")) for number in range(50)]
    worker.answered._table[claims.BUCKET_COUNT_AT] = count
    assert [worker.ask(payment(f"p{number}")) for number in range(50)] == decided


def test_within_the_window_it_is_the_same_decision_and_after_it_a_new_one(host: Host) -> None:
    worker = host.start(0)
    decided = worker.ask(payment("p"))
    assert worker.ask(payment("p"), NOW_MS + WINDOW_MS) == decided
    assert worker.ask(payment("p"), NOW_MS + WINDOW_MS + 1000) != decided


@pytest.mark.parametrize("other", [payment("p", card_id="d"), payment("p", amount_minor=101)])
def test_the_id_of_another_payment_is_refused(host: Host, other: ScoreRequest) -> None:
    one, another = host.start(0), host.start(1)
    one.ask(payment("p"))
    assert another.ask(other) is ClaimConflict.OTHER_PAYMENT
    assert another.metrics.other_payment.value == 1


def test_two_callers_may_use_one_id_and_get_decisions_of_their_own(host: Host) -> None:
    one, another = host.start(0), host.start(1)
    asked_by = {
        caller: [worker.ask(request, caller=caller) for worker in (one, another)]
        for caller, request in (
            ("checkout", payment("p")),
            ("wallet", payment("p", amount_minor=7)),
            ("kiosk", payment("p")),
            ("", payment("p", card_id="another")),
        )
    }
    assert all(first == again for first, again in asked_by.values())
    assert len({first for first, _ in asked_by.values()}) == 4
    assert one.ask(payment("p", amount_minor=8), caller="wallet") is ClaimConflict.OTHER_PAYMENT
    assert len(host.decisions()["p"]) == 4


def test_a_chunk_tells_callers_apart_even_if_their_hashes_are_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "tag_of", lambda _: 7)
    worker = host.start(0)
    both = asked([payment("p"), payment("p")])
    both.callers = [b"checkout", b"wallet"]
    slot, other = claim_all(worker.answered, both)
    assert isinstance(slot, int)
    assert other == UNREMEMBERED
    worker.decide(payment("p"), slot, "checkout")
    assert worker.claim(payment("p"), caller="wallet") == [UNREMEMBERED]


def test_a_payment_is_in_flight_until_the_other_worker_settles_it(host: Host) -> None:
    one, another = host.start(0), host.start(1)
    (slot,) = one.claim(payment("p"))
    assert isinstance(slot, int)
    assert another.claim(payment("p")) == [ClaimConflict.IN_FLIGHT]
    entry = one.entry(payment("p"))
    one.place(slot, entry)
    assert another.claim(payment("p")) == [ClaimConflict.IN_FLIGHT]
    one.outbox.append(entry.SerializeToString())
    # The outbox may still truncate the record, for example when fsync fails.
    assert another.claim(payment("p")) == [ClaimConflict.IN_FLIGHT]
    one.answered.settle((slot,))
    assert another.claim(payment("p")) == [entry]
    assert another.metrics.in_flight.value == 3


def test_the_claim_of_a_worker_killed_before_it_appended_is_taken_over(host: Host) -> None:
    one, another = host.start(0), host.start(1)
    (slot,) = one.claim(payment("p"))
    assert isinstance(slot, int)
    one.place(slot, one.entry(payment("p")))
    host.kill(0)
    restarted = host.start(0)
    # Another payment now has its position in the outbox.
    restarted.ask(payment("q"))
    decided = another.ask(payment("p"))
    assert isinstance(decided, str)
    assert restarted.ask(payment("p")) == decided
    assert host.decisions()["p"] == [decided]
    assert another.metrics.taken_over.value == 1


def test_a_record_of_a_killed_worker_is_the_decision_even_if_unanswered(host: Host) -> None:
    one, another = host.start(0), host.start(1)
    (slot,) = one.claim(payment("p"))
    assert isinstance(slot, int)
    entry = one.entry(payment("p"))
    one.place(slot, entry)
    one.outbox.append(entry.SerializeToString())
    host.kill(0)
    assert another.claim(payment("p")) == [ClaimConflict.IN_FLIGHT]
    restarted = host.start(0)
    assert another.ask(payment("p")) == restarted.ask(payment("p")) == entry.response.decision_id
    assert host.decisions()["p"] == [entry.response.decision_id]


def test_a_worker_that_is_dead_and_not_started_again_holds_up_nobody(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, another = host.start(0), host.start(1)
    one.claim(payment("p"))
    host.kill(0)
    assert another.claim(payment("p")) == [ClaimConflict.IN_FLIGHT]
    # All workers of this test are one process, which is alive.
    monkeypatch.setattr(answered, "_started", lambda _: -1)
    assert isinstance(another.ask(payment("p")), str)


def test_a_worker_without_a_free_descriptor_takes_nobody_for_dead(host: Host) -> None:
    """It cannot read /proc then. The other worker lives, and would decide as well."""
    one, another = host.start(0), host.start(1)
    (slot,) = one.claim(payment("p"))
    assert isinstance(slot, int)
    with no_free_descriptor():
        assert another.claim(payment("p")) == [ClaimConflict.IN_FLIGHT]
    assert another.claim(payment("p")) == [ClaimConflict.IN_FLIGHT]
    decided = one.decide(payment("p"), slot)
    assert another.ask(payment("p")) == decided


def test_a_worker_that_cannot_say_who_it_is_does_not_start(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would take it for dead, and decide about the payments that it is deciding about."""

    def no_descriptor(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(answered, "_started", no_descriptor)
    with pytest.raises(Misconfigured, match="Too many open files"):
        DecisionCache(host.answered, host.outbox, 5)


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Let this process open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_ended_process_is_dead_even_if_nobody_has_waited_for_it() -> None:
    assert answered._started(os.getpid()) > 0
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert answered._started(pid) == -1
    os.waitpid(pid, 0)
    assert answered._started(pid) == -1


def test_two_ids_with_one_hash_both_get_their_own_decision(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "tag_of", lambda _: 7)
    one, another = host.start(0), host.start(1)
    assert one.claim(payment("p"), payment("q"))[1] == UNREMEMBERED
    one.answered.release([slot for slot in one.claim(payment("p")) if isinstance(slot, int)])
    host.kill(0)
    decided = host.start(0).ask(payment("p"))
    assert another.claim(payment("q")) == [UNREMEMBERED]
    assert another.ask(payment("p")) == decided
    assert another.metrics.collisions.value == 1


def test_a_full_table_still_decides_and_keeps_all_live_claims(tmp_path: Path) -> None:
    host = Host(tmp_path, payments_max=16)
    worker = host.start(0)
    decided = {f"p{number}": worker.ask(payment(f"p{number}")) for number in range(20)}
    assert worker.metrics.full.value == 4
    kept = [name for name, decision in decided.items() if worker.ask(payment(name)) == decision]
    assert len(kept) == 16
    # Once they are older than the window their slots are free.
    later = NOW_MS + WINDOW_MS + 1000
    again = worker.ask(payment("new"), later)
    assert worker.ask(payment("new"), later) == again
    host.close()


def test_a_claim_of_a_live_worker_is_not_forgotten_however_old(host: Host) -> None:
    # As from a process that was stopped and may still append.
    one, another = host.start(0), host.start(1)
    one.claim(payment("p"))
    assert another.claim(payment("p"), now_ms=NOW_MS + 10 * WINDOW_MS) == [ClaimConflict.IN_FLIGHT]


def test_a_decision_that_the_outbox_has_lost_is_made_again(host: Host) -> None:
    one, another = host.start(0), host.start(1)
    first = one.ask(payment("p"))
    (segment,) = (Path(host.outbox.directory) / "worker-0").glob("*.log")
    segment.write_bytes(b"")
    assert another.ask(payment("p")) not in (first, ClaimConflict.IN_FLIGHT)


def test_of_two_claims_at_once_the_lower_slot_stays_and_the_other_sees_it(host: Host) -> None:
    """The second look finds a tag that appears after another worker has passed its slot."""
    one, another = host.start(0), host.start(1)
    table, tag = one.answered._table, tag_of(b"p")
    (lower,) = one.claim(payment("p"))
    assert isinstance(lower, int)
    word = claims.load(table, lower + claims.WORDS)
    tentative = word & ~(3 << claims.STATE_SHIFT) | claims.TENTATIVE << claims.STATE_SHIFT
    # The other claim is TENTATIVE in a higher slot; this one is CLAIMED.
    higher = lower + 1
    claims.store(table, higher + claims.TAGS, tag)
    mine = another.answered._owner | NOW_MS // 1000
    claims.store(table, higher + claims.WORDS, mine | claims.TENTATIVE << claims.STATE_SHIFT)
    contest = (tag, mine, NOW_MS // 1000, 600)
    assert claims._contest(table, higher, *contest) == claims.FOUND | lower
    assert claims.load(table, higher + claims.WORDS) == 0
    # Both are TENTATIVE: the lower one frees the higher one, which must begin again.
    claims.store(table, lower + claims.WORDS, tentative)
    claims.store(table, higher + claims.WORDS, mine | claims.TENTATIVE << claims.STATE_SHIFT)
    assert claims._contest(table, lower, tag, one.answered._owner | NOW_MS // 1000, NOW_MS // 1000, 600) == lower
    assert claims.load(table, higher + claims.WORDS) == 0
    assert claims._contest(table, higher, *contest) == claims.FOUND | lower
    # Even if the lower claim is gone by now, the higher one has not won.
    one.answered.release((lower,))
    assert claims._contest(table, higher, *contest) == claims._LOST
    assert claims.load(table, higher + claims.WORDS) == 0


def test_the_table_is_kept_over_starts_and_made_anew_in_another_size(host: Host) -> None:
    decided = host.start(0).ask(payment("p"))
    host.kill(0)
    answered.prepare(host.answered)
    assert host.start(0).ask(payment("p")) == decided
    host.kill(0)
    answered.prepare(DecisionCacheSettings(path=host.answered.path, payments_max=2000))
    assert host.start(0).ask(payment("p")) != decided


def test_the_table_of_an_earlier_boot_is_made_anew(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times are of another clock: on a disk, its claims would not expire for as long as that boot lasted."""
    worker = host.start(0)
    decided = worker.ask(payment("p"), now_ms=10 * WINDOW_MS)
    host.kill(0)
    monkeypatch.setattr(answered, "boot_id", lambda: "another")
    answered.prepare(host.answered)
    again = host.start(0).ask(payment("p"), now_ms=1000)
    assert again != decided
    assert host.alive[0].ask(payment("p"), now_ms=2 * WINDOW_MS) != again


@pytest.mark.parametrize(
    "wrong",
    [
        DecisionCacheSettings(window_s=0),
        DecisionCacheSettings(payments_max=7),
        DecisionCacheSettings(path="/proc/none/x"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_the_start(wrong: DecisionCacheSettings) -> None:
    with pytest.raises(Misconfigured, match="answered"):
        answered.prepare(wrong)


def test_a_table_that_memory_has_no_room_for_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    # 24 PB, which no file system has.
    with pytest.raises(Misconfigured, match="22888183593 MiB"):
        answered.prepare(DecisionCacheSettings(path=str(tmp_path / "answered"), payments_max=10**15))
    assert not (tmp_path / "answered").exists()


def test_seven_tenths_of_the_slots_find_room_for_all_but_a_few() -> None:
    bucket_count = 1 << 15
    table = np.zeros(claims.BUCKETS_AT + bucket_count * claims.BUCKET_SIZE, dtype=np.int64)
    table[claims.BUCKET_COUNT_AT], table[claims.WORKERS_AT] = bucket_count, 1
    count = bucket_count * claims.BUCKET_SLOTS * 7 // 10
    tags = np.array([tag_of(b"payment-%d" % number) for number in range(count)])
    slots = np.zeros(count, dtype=np.int64)
    won = claims.claim_all(table, tags, count, answered._owner(0, 1) | 1, 1, 600, slots)
    assert count - won == np.count_nonzero(slots == claims.FULL) < count / 10_000
    assert len(np.unique(slots[slots >= 0])) == won


class Crashes(RuleBasedStateMachine):
    """Three workers are killed between any two steps. All answers for one payment are the same decision."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.host = Host(Path(self.folder.name), payments_max=16)
        self.seen: dict[str, set[str]] = {}
        # For each worker, the operation in progress: the step, the entry, its slot.
        self.doing: dict[int, list[tuple[str, OutboxEntry, int]]] = {}
        for number in range(3):
            self.host.start(number)

    numbers = st.integers(0, 2)
    ids = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3)

    def answer(self, entry: OutboxEntry) -> None:
        self.seen.setdefault(entry.request.payment_id, set()).add(entry.response.decision_id)

    @rule(number=numbers, ids=ids)
    def ask(self, number: int, ids: list[str]) -> None:
        if number not in self.host.alive or self.doing.get(number):
            return
        worker = self.host.alive[number]
        doing = []
        for payment_id, claim in zip(ids, worker.claim(*map(payment, ids)), strict=True):
            if isinstance(claim, OutboxEntry):
                self.answer(claim)
            elif isinstance(claim, int):
                assert claim >= 0
                doing.append(("claimed", worker.entry(payment(payment_id)), claim))
        self.doing[number] = doing

    @precondition(lambda self: any(self.doing.values()))
    @rule(number=numbers, fails=st.booleans())
    def go_on(self, number: int, fails: bool) -> None:
        """Advance one step for the whole chunk."""
        if not self.doing.get(number):
            return
        worker, doing = self.host.alive[number], self.doing[number]
        (step,) = {step for step, _, _ in doing}
        slots, payloads = [slot for _, _, slot in doing], [entry.SerializeToString() for _, entry, _ in doing]
        following = {"claimed": "placed", "placed": "appended", "appended": ""}[step]
        if step == "claimed" and not fails:
            place_all(worker.answered, slots, starts(worker.outbox, payloads))
        elif step == "placed" and not fails:
            append_all(worker.outbox, payloads)
        elif step == "appended":
            worker.answered.settle(slots)
            for _, entry, _ in doing:
                self.answer(entry)
        else:
            worker.answered.release(slots)
            following = ""
        self.doing[number] = [(following, entry, slot) for _, entry, slot in doing] if following else []

    @rule(number=numbers)
    def kill(self, number: int) -> None:
        if number in self.host.alive:
            self.host.kill(number)
            self.doing[number] = []

    @rule(number=numbers)
    def restart(self, number: int) -> None:
        if number not in self.host.alive:
            self.host.start(number)

    @invariant()
    def a_payment_has_one_decision_and_that_is_what_was_answered(self) -> None:
        made = self.host.decisions()
        for payment_id, decisions in made.items():
            assert len(decisions) == 1, payment_id
        for payment_id, seen in self.seen.items():
            assert seen == set(made[payment_id])

    def teardown(self) -> None:
        self.host.close()
        self.folder.cleanup()


Crashes.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCrashes = Crashes.TestCase
