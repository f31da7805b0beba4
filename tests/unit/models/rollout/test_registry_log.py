"""Rollouts in the signed log: who may write what, what counts for nothing, and what comes late."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.artefacts import FolderStore
from paywarden.models.registry.copies import merge
from paywarden.models.registry.entries import Entry, Value
from paywarden.models.registry.model_log import LogFile, Overtaken, RegistryLog
from paywarden.models.registry.people import APPROVE, LEAD, PROMOTE, PROPOSE, ROLL_BACK, ROLLOUT
from paywarden.models.registry.registry import Registry, Signer
from paywarden.models.registry.registry_rules import MODES, Rules
from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.registry_log import RegistryRolloutLog, kind_of
from paywarden.models.rollout.rollout import ClockBehind, EventKind, Phase, Rollout, RolloutEvent, Start
from paywarden.models.rollout.rollout_log import RolloutKeeper, RolloutLog, event_record
from paywarden.schemas.errors import Misconfigured, RegistryRefused
from tests.unit.models.rollout.test_rollout import DAY_MS, MINUTE_MS, PLAN, look, outcomes
from tests.worlds.rollout.memory_log import MemoryRolloutLog
from tests.worlds.rollout.registry import START_MS, Writer, digest, key_of, people_of

PEOPLE = people_of(
    {
        "anna": frozenset((PROPOSE, ROLLOUT)),
        "ben": frozenset((APPROVE, PROMOTE)),
        "cleo": frozenset((ROLL_BACK, PROPOSE)),
        "lead": frozenset((LEAD,)),
    }
)
RULES = Rules(approvals=1)
# Writers of logs count the minutes from START_MS on, with twenty for what comes before a rollout.
BEGIN_MS = START_MS + 20 * MINUTE_MS


def version_of(name: str) -> Version:
    return Version(digest(f"bundle {name}"), digest(f"policy {name}"), model=name)


START = Start("r-1", "00" * 16, version_of("old"), version_of("new"), PLAN)


@dataclass
class Hosts:
    """A registry with a champion and an approved candidate, as each person opens it."""

    file: LogFile

    @classmethod
    def at(cls, folder: Path, *, approved: bool = True) -> Hosts:
        file, writer = LogFile(folder / "log.jsonl"), Writer()
        for name in ("old", "new"):
            proposal = writer.proposal(name)
            if approved or name == "old":
                writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
            if name == "old":
                writer.add(kinds.PROMOTED, "ben", proposal=proposal.digest)
        file.append(lambda _: writer.log.entries)
        return cls(file)

    def registry(self) -> Registry:
        return Registry(self.file, PEOPLE, RULES, FolderStore(self.file.path.parent))

    def of(self, name: str) -> RolloutKeeper:
        return RolloutKeeper(RegistryRolloutLog(self.registry(), Signer(name, key_of(name))))

    def start(self, start: Start = START) -> None:
        self.of("anna").take(event(EventKind.STARTED, 0, start=start))

    def add(self, make: Callable[[Writer], Entry]) -> None:
        """Append an entry whose rules nobody has checked."""

        def one(log: RegistryLog) -> Sequence[Entry]:
            return [make(Writer(log, BEGIN_MS + DAY_MS))]

        self.file.append(one)


def event(kind: EventKind, after_ms: int, *, start: Start | None = None) -> RolloutEvent:
    return RolloutEvent(kind, BEGIN_MS + after_ms, "anna", "a test", start)


def at(found: RolloutEvent) -> RolloutEvent:
    return replace(found, time_ms=BEGIN_MS + found.time_ms)


def whole_life() -> list[tuple[str, RolloutEvent]]:
    """A rollout that stays within, with a pause, to its promotion: who does it, and the event."""
    events = [("anna", event(EventKind.STARTED, 0, start=START)), ("lead", event(EventKind.READY, 1))]
    events.append(("anna", event(EventKind.PAUSED, 2)))
    events.append(("anna", event(EventKind.RESUMED, 3)))
    looks = [look(Finding.WITHIN, minute * MINUTE_MS, 0 if minute < 32 else 1) for minute in range(1, 75)]
    events.extend(("lead", at(each)) for each in looks)
    mature_ms = 75 * MINUTE_MS + DAY_MS
    events.append(("lead", at(outcomes(Finding.WITHIN, mature_ms))))
    events.append(("ben", event(EventKind.PROMOTED, mature_ms + 1)))
    return events


def test_a_rollout_in_the_signed_log_is_what_it_is_in_memory(tmp_path: Path) -> None:
    hosts, plain = Hosts.at(tmp_path), RolloutKeeper(MemoryRolloutLog())
    keepers = {name: hosts.of(name) for name in ("anna", "ben", "lead")}
    for by, each in whole_life():
        found, wanted = keepers[by].take(replace(each, by=by)), plain.take(replace(each, by=by))
        assert (found.phase, found.step, found.elapsed_ms, found.share) == (
            wanted.phase, wanted.step, wanted.elapsed_ms, wanted.share,
        )  # fmt: skip
    reader = RolloutKeeper(RegistryRolloutLog(hosts.registry(), None))
    assert reader.rollout is not None
    assert plain.rollout is not None
    assert reader.rollout.line == plain.rollout.line == "r-1: promoted, promoted by ben: a test"
    state = hosts.registry().state()
    assert (state.ignored, state.rollout) == ((), None)
    assert state.champion is not None
    assert state.champion.bundle == digest("bundle new")
    # A few entries for an hour of looks, each signed by who did it.
    entries = [entry for entry in hosts.file.read().entries if entry.text("rollout")]
    assert len(entries) < 30
    assert {entry.by for entry in entries if entry.kind == kinds.ROLLOUT_STEP} == {"lead"}


def test_killed_at_any_byte_the_rollout_is_where_the_whole_lines_say(tmp_path: Path) -> None:
    hosts = Hosts.at(tmp_path)
    begin = hosts.file.path.stat().st_size
    for by, each in whole_life()[:8]:
        hosts.of(by).take(replace(each, by=by))
    content = hosts.file.path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n") and place + 1 >= begin]
    states = {end: _rollout_in(hosts, content[:end]) for end in ends}
    assert [states[ends[0]], states[ends[-1]]] == [None, hosts.of("anna").rollout]
    for size in {*range(begin, len(content), 97), *(end + more for end in ends[:-1] for more in (-1, 0, 1))}:
        if size >= begin:
            assert _rollout_in(hosts, content[:size]) == states[max(end for end in ends if end <= size)]
    # The next writer cuts off the torn line.
    hosts.file.path.write_bytes(content[:-1])
    hosts.of("anna").take(event(EventKind.ABORTED, DAY_MS))
    assert hosts.file.path.read_bytes().startswith(content[: ends[-2]] + b'{"by":"anna"')
    found = hosts.of("anna").rollout
    assert found is not None
    assert found.phase is Phase.ABORTED


def _rollout_in(hosts: Hosts, content: bytes) -> Rollout | None:
    """Returns the rollout in a log with this content."""
    hosts.file.path.write_bytes(content)
    return hosts.of("anna").rollout


@pytest.mark.parametrize(
    ("by", "kind", "told"),
    [
        ("anna", EventKind.READY, "anna lacks the role lead"),
        ("anna", EventKind.GONE, "anna lacks the role lead"),
        ("lead", EventKind.PAUSED, "lead lacks the role rollout"),
        ("ben", EventKind.ABORTED, "ben lacks the role rollout or roll_back"),
    ],
)
def test_people_decide_nothing_for_the_lead_and_the_lead_nothing_for_people(
    tmp_path: Path, by: str, kind: EventKind, told: str
) -> None:
    hosts = Hosts.at(tmp_path)
    hosts.start()
    if kind is EventKind.PAUSED:
        hosts.of("lead").take(event(EventKind.READY, 1))
    with pytest.raises(RegistryRefused, match=told):
        hosts.of(by).take(event(kind, 2))


def test_one_person_aborts_alone_and_needs_no_role_for_rollouts(tmp_path: Path) -> None:
    hosts = Hosts.at(tmp_path)
    hosts.start()
    assert hosts.of("cleo").take(replace(event(EventKind.ABORTED, -DAY_MS), by="cleo")).phase is Phase.ABORTED


def test_an_unapproved_version_cannot_be_tried_on_cards(tmp_path: Path) -> None:
    hosts = Hosts.at(tmp_path, approved=False)
    with pytest.raises(RegistryRefused, match="it needs the approval of 1, nobody approved it"):
        hosts.start()
    with pytest.raises(Misconfigured, match="there is no open proposal of the bundle"):
        hosts.start(replace(START, candidate=version_of("unknown")))


def started_by_hand(hosts: Hosts, **what: Value) -> None:
    """Append a start whose rules nobody has checked, with the event START in it."""
    state = hosts.registry().state()
    assert state.champion is not None
    (proposal,) = state.proposals.values()
    record = event_record(event(EventKind.STARTED, 0, start=START))
    text = json.dumps({name: record[name] for name in ("kind", "start", "step", "judgement")})
    whole = {"rollout": "r-1", "event": text, "mode": "canary", "champion": state.champion.digest} | what
    hosts.add(partial(Writer.entry, kind=kinds.ROLLOUT_STARTED, by="anna", what=whole, proposal=proposal.digest))


@pytest.mark.parametrize("mode", MODES)
def test_no_kind_of_start_gets_around_the_approvals(tmp_path: Path, mode: str) -> None:
    """A shadow needed none: an entry of one, with the event of a canary, gave cards to what nobody had approved."""
    hosts = Hosts.at(tmp_path, approved=False)
    started_by_hand(hosts, mode=mode)
    assert hosts.of("lead").rollout is None
    assert [one.reason for one in hosts.registry().state().ignored] == [
        "it needs the approval of 1, nobody approved it"
    ]


@pytest.mark.parametrize(
    ("plan", "rest"),
    [
        ({"steps": [10_000, 10_000]}, {}),
        ({"steps": [1_000, 20_000]}, {}),
        ({"steps": [0, 10_000]}, {}),
        ({"steps": [100.5, 10_000]}, {}),
        ({"steps": [100, 5_000]}, {}),
        ({"steps": ["<b>", 10_000]}, {}),
        ({}, {"salt": "AB" * 16}),
        ({}, {"salt": "00"}),
    ],
)
def test_a_signed_start_with_steps_or_a_salt_that_no_host_can_use_counts_for_nothing(
    tmp_path: Path, plan: dict[str, object], rest: dict[str, object]
) -> None:
    hosts = Hosts.at(tmp_path)
    record = event_record(event(EventKind.STARTED, 0, start=START))
    start = {**record["start"], **rest, "plan": {**record["start"]["plan"], "step_hours": [1.0], **plan}}
    started_by_hand(hosts, event=json.dumps({"kind": "started", "start": start, "step": -1, "judgement": None}))
    assert hosts.of("lead").rollout is None


@pytest.mark.parametrize(
    ("kind", "by", "text"),
    [
        (kinds.ROLLOUT_VERDICT, "lead", "{}"),
        (kinds.ROLLOUT_ABORTED, "anna", ""),
        # It names the rollout, and says nothing of outcomes.
        (kinds.PROMOTED, "ben", ""),
    ],
)
def test_what_ends_a_rollout_for_the_registry_ends_it_for_everybody(
    tmp_path: Path, kind: str, by: str, text: str
) -> None:
    """The rollout ran on for its readers: it could not be aborted, and no other could start."""
    hosts = Hosts.at(tmp_path)
    hosts.start()
    hosts.of("lead").take(event(EventKind.READY, 1))
    (proposal,) = hosts.registry().state().proposals.values()
    what = {"rollout": "r-1", "event": text, "proposal": proposal.digest}
    hosts.add(partial(Writer.entry, kind=kind, by=by, what=what))
    rollout = hosts.of("anna").rollout
    assert rollout is not None
    assert (rollout.phase, hosts.registry().state().rollout) == (Phase.ABORTED, None)
    assert f"aborted by {by}: ended by an entry ({kind.replace('_', ' ')}) without an event that counts" in rollout.line


def test_a_start_that_nobody_can_read_can_be_aborted(tmp_path: Path) -> None:
    """One of a later release, for example. The registry has it under way, and refuses every other one."""
    hosts = Hosts.at(tmp_path)
    abort = replace(event(EventKind.ABORTED, DAY_MS), by="cleo")
    cleo = RegistryRolloutLog(hosts.registry(), Signer("cleo", key_of("cleo")))
    assert cleo.abort_unread(abort) == ""
    started_by_hand(hosts, event='{"kind": "started", "of": "a later release"}')
    assert hosts.of("anna").rollout is None
    with pytest.raises(RegistryRefused, match="the rollout r-1 is under way"):
        hosts.of("anna").take(event(EventKind.STARTED, DAY_MS, start=replace(START, name="r-2")))
    ben = RegistryRolloutLog(hosts.registry(), Signer("ben", key_of("ben")))
    with pytest.raises(RegistryRefused, match="ben lacks the role rollout or roll_back"):
        ben.abort_unread(abort)
    assert cleo.abort_unread(abort) == "r-1"
    found = hosts.of("anna").take(event(EventKind.STARTED, DAY_MS, start=replace(START, name="r-2")))
    assert found.phase is Phase.PENDING
    assert cleo.abort_unread(abort) == ""
    hosts.of("cleo").take(abort)
    started_by_hand(hosts, rollout="r-2")
    assert cleo.abort_unread(abort) == "r-2"
    assert hosts.registry().state().rollout is None


def test_another_host_that_is_faster_ends_no_lead(tmp_path: Path) -> None:
    """A person approves a model in the moment in which the lead notes a look."""

    class Shared(LogFile):
        """A log whose next entry is another host's."""

        def append(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> list[Entry]:
            if not self.read().entries[-1].text("faster"):
                super().append(lambda log: [Writer(log, BEGIN_MS).entry(kinds.ROLLOUT_STEP, "lead", faster="yes")])
                raise Overtaken("another host's entry came first")
            return super().append(make)

    hosts = Hosts.at(tmp_path)
    hosts.start()
    registry = replace(hosts.registry(), log=Shared(hosts.file.path))
    lead = RolloutKeeper(RegistryRolloutLog(registry, Signer("lead", key_of("lead"))))
    assert lead.take(event(EventKind.READY, 1)).phase is Phase.RUNNING
    assert hosts.file.read().entries[-2].text("faster") == "yes"


def test_a_lead_whose_clock_is_behind_the_registry_waits_and_finds_harm(tmp_path: Path) -> None:
    """Its step was refused as an entry that is too old, and the lead ended: nobody looked any more."""
    hosts = Hosts.at(tmp_path)
    hosts.start()
    lead = hosts.of("lead")
    lead.take(event(EventKind.READY, 1))
    for by in ("anna", "cleo"):
        policy: dict[str, Value] = {"policy": digest(by), "files": {"policy.toml": digest(by)}}
        hosts.add(partial(Writer.entry, kind=kinds.REGISTERED_POLICY, by=by, what=policy))
    with pytest.raises(ClockBehind, match=r"rollout not looked: the clock is \d+ s too far behind the newest entry"):
        lead.take(at(look(Finding.INCONCLUSIVE, 2)))
    assert lead.take(at(look(Finding.HARM, 3))).phase is Phase.ROLLED_BACK


def test_a_name_that_is_markup_starts_no_rollout(tmp_path: Path) -> None:
    hosts = Hosts.at(tmp_path)
    started_by_hand(hosts, rollout="<script>alert(1)</script>")
    assert hosts.registry().state().ignored[0].reason.startswith("rollout, mode: wanted a name of letters")
    assert hosts.registry().state().rollout is None


def test_a_start_of_another_candidate_than_the_approved_one_counts_for_nothing(tmp_path: Path) -> None:
    hosts = Hosts.at(tmp_path)
    hosts.start()
    (entry,) = [one for one in hosts.file.read().entries if one.kind == kinds.ROLLOUT_STARTED]
    forged = json.loads(entry.text("event"))
    forged["start"] |= {"name": "r-2", "candidate": {**forged["start"]["candidate"], "bundle": "e" * 64}}
    hosts.of("anna").take(event(EventKind.ABORTED, 5))
    what = {**entry.what, "rollout": "r-2", "event": json.dumps(forged)}
    hosts.add(lambda writer: writer.entry(kinds.ROLLOUT_STARTED, "anna", what))
    rollout = hosts.of("lead").rollout
    assert rollout is not None
    assert (rollout.start.name, rollout.phase) == ("r-1", Phase.ABORTED)


def test_a_verdict_in_the_clothes_of_a_step_counts_for_nothing(tmp_path: Path) -> None:
    """And so does anything else that nobody can read."""
    hosts = Hosts.at(tmp_path)
    hosts.start()
    hosts.of("lead").take(event(EventKind.READY, 1))
    for text in ('{"kind": "gone", "start": null, "step": 0, "judgement": null}', "[]", "{", '{"kind": 3}'):
        hosts.add(partial(Writer.entry, kind=kinds.ROLLOUT_STEP, by="lead", what={"rollout": "r-1", "event": text}))
    rollout = hosts.of("anna").rollout
    assert rollout is not None
    assert rollout.phase is Phase.RUNNING


def test_a_signed_event_without_its_parts_ends_no_reader(tmp_path: Path) -> None:
    """One line of a lead raised AssertionError or IndexError on every host, and nobody could roll back any more."""
    hosts = Hosts.at(tmp_path)
    hosts.start()
    hosts.of("lead").take(event(EventKind.READY, 1))
    for name in ("looked", "outcomes"):
        text = json.dumps({"kind": name, "start": None, "step": 0, "judgement": None})
        hosts.add(partial(Writer.entry, kind=kinds.ROLLOUT_STEP, by="lead", what={"rollout": "r-1", "event": text}))
    assert hosts.of("anna").rollout == hosts.of("lead").rollout
    # Harm counts, at whatever step the lead says that it was.
    harm = replace(at(look(Finding.HARM, 2)), step=99)
    text = json.dumps(event_record(harm))
    hosts.add(partial(Writer.entry, kind=kind_of(harm), by="lead", what={"rollout": "r-1", "event": text}))
    rollout = hosts.of("anna").rollout
    assert rollout is not None
    assert rollout.phase is Phase.ROLLED_BACK


def test_a_rollback_of_the_champion_ends_the_rollout(tmp_path: Path) -> None:
    hosts = Hosts.at(tmp_path)
    # A second champion, so that there is a way back.
    hosts.of("anna")
    registry, cleo = hosts.registry(), Signer("cleo", key_of("cleo"))

    def newer(log: RegistryLog) -> Sequence[Entry]:
        writer = Writer(log, START_MS + 10 * MINUTE_MS)
        proposal = writer.proposal("newer")
        writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
        writer.add(kinds.PROMOTED, "ben", proposal=proposal.digest)
        return writer.log.entries[len(log.entries) :]

    hosts.file.append(newer)
    hosts.start(replace(START, champion=version_of("newer")))
    registry.roll_back(cleo, why="declines doubled", now_ms=BEGIN_MS)
    rollout = hosts.of("anna").rollout
    assert rollout is not None
    assert rollout.line == "r-1: aborted, aborted by cleo: rolled back: declines doubled"
    assert registry.state().rollout is None


def test_a_verdict_from_a_time_without_kafka_counts_behind_whatever_others_wrote(tmp_path: Path) -> None:
    """And a keeper that has seen the other order starts again."""
    hosts = Hosts.at(tmp_path)
    hosts.start()
    lead = hosts.of("lead")
    lead.take(event(EventKind.READY, 1))
    shared = hosts.file.read()
    lead.take(at(look(Finding.HARM, 2)))
    own = hosts.file.read()
    hosts.file.replace(lambda _: shared.entries)
    hosts.of("anna").take(event(EventKind.PAUSED, 3))
    topic = hosts.file.read()
    merged = merge(own, topic)
    assert (len(merged.to_send), merged.lost) == (1, ())
    hosts.file.replace(lambda _: merged.log.entries)
    for keeper in (lead, hosts.of("anna")):
        rollout = keeper.refresh()
        assert rollout is not None
        assert rollout.phase is Phase.ROLLED_BACK
    assert [one.kind for one in lead.events][-2:] == [EventKind.PAUSED, EventKind.LOOKED]
    # Once more, behind the end of the rollout: it changes nothing, and is noted.
    hosts.file.replace(lambda _: topic.entries)
    hosts.of("anna").take(event(EventKind.ABORTED, 4))
    late = merge(own, hosts.file.read()).log
    hosts.file.replace(lambda _: late.entries)
    state = hosts.registry().state()
    assert state.notes == (f"line {len(late.entries)}: the rollout r-1 had ended before this late entry",)
    ended = lead.refresh()
    assert ended is not None
    assert ended.phase is Phase.ABORTED


def test_without_a_key_a_log_is_only_read(tmp_path: Path) -> None:
    log: RolloutLog = RegistryRolloutLog(Hosts.at(tmp_path).registry(), None)
    with pytest.raises(Misconfigured, match=r"\[models\] key_file: wanted the PEM file of your private key"):
        log.append(event(EventKind.STARTED, 0, start=START), 0)
    assert log.events() == []


MOVES: Sequence[tuple[str, str, EventKind | RolloutEvent]] = (
    (kinds.ROLLOUT_STEP, "lead", EventKind.READY),
    (kinds.ROLLOUT_STEP, "lead", look(Finding.WITHIN, 1)),
    (kinds.ROLLOUT_STEP, "lead", outcomes(Finding.WITHIN, 1)),
    (kinds.ROLLOUT_VERDICT, "lead", look(Finding.HARM, 1)),
    (kinds.ROLLOUT_VERDICT, "lead", EventKind.GONE),
    (kinds.ROLLOUT_PAUSED, "anna", EventKind.PAUSED),
    (kinds.ROLLOUT_RESUMED, "anna", EventKind.RESUMED),
    (kinds.ROLLOUT_ABORTED, "anna", EventKind.ABORTED),
    (kinds.PROMOTED, "ben", EventKind.PROMOTED),
)


@pytest.mark.parametrize("seed", range(4))
def test_a_rollout_that_lives_for_a_reader_is_under_way_for_the_registry(tmp_path: Path, seed: int) -> None:
    """This holds for any signed entry with any event: otherwise nobody could end it, and no other could start."""
    random, lived = Random(seed), 0
    for sequence in range(6):
        hosts = Hosts.at(tmp_path / str(sequence))
        hosts.start()
        proposal = next(iter(hosts.registry().state().proposals))
        for _ in range(8):
            name = random.choice(("r-1", "r-1", "r-2"))
            if random.random() < 0.3:
                start = replace(START, name=name, shadow=random.random() < 0.3)
                record = event_record(event(EventKind.STARTED, 0, start=start))
                kind, by = kinds.ROLLOUT_STARTED, "anna"
            else:
                kind, by, what = random.choice(MOVES)
                record = event_record(event(what, 0) if isinstance(what, EventKind) else what)
            text = json.dumps({name: record[name] for name in ("kind", "start", "step", "judgement")})
            champion = hosts.registry().state().champion
            assert champion is not None
            said = {
                "rollout": name,
                "mode": random.choice(MODES),
                "champion": champion.digest,
                "proposal": proposal,
                "event": random.choice((text, text, text, "{}", "")),
            }
            hosts.add(partial(Writer.entry, kind=kind, by=by, what=said))
            rollout, state = hosts.of("lead").rollout, hosts.registry().state()
            if rollout is not None and not rollout.has_ended:
                lived += 1
                assert state.rollout is not None
                assert state.rollout.name == rollout.start.name
    assert lived > 5
