"""The rules of the log, held against a second and plainer reading of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.bundle.signature import fingerprint
from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import FORM, Entry, Value, entry_of
from paywarden.models.registry.model_log import RegistryLog
from paywarden.models.registry.people import ADMIN, APPROVE, PROMOTE, PROPOSE, ROLL_BACK, RegistryPeople
from paywarden.models.registry.registry_rules import MODES, RegistryState, Rules, refusal_of, state_of
from paywarden.schemas.errors import RegistryRefused
from tests.worlds.rollout.registry import CATALOGUE, NAMES, START_MS, Writer, digest, key_of, people_of

EVERYBODY = people_of()
TWO = Rules(approvals=2)
DAY_MS = 86_400_000


def version(name: str) -> Version:
    return Version(digest(f"bundle {name}"), digest(f"policy {name}"), CATALOGUE)


def champion(writer: Writer, name: str) -> Entry:
    """Propose a version, let two people approve it and promote it."""
    proposal = writer.proposal(name)
    for approver in ("ben", "cleo"):
        writer.add(kinds.APPROVED, approver, proposal=proposal.digest)
    return writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)


def taking(bad: str, good: str) -> dict[str, Value]:
    return {"from": version(bad).digest, "to": version(good).digest}


def roll_back(writer: Writer, bad: str, good: str, *, time_ms: int | None = None, previous: str = "") -> Entry:
    return writer.add(kinds.ROLLED_BACK, "dora", taking(bad, good), time_ms=time_ms, previous=previous)


def reasons(writer: Writer, people: RegistryPeople = EVERYBODY, rules: Rules = TWO) -> list[str]:
    return [ignored.reason for ignored in state_of(writer.log, people, rules).ignored]


# A plain second reading: it looks through all that counted so far, each time again.


def counts(past: list[Entry], entry: Entry, rules: Rules) -> bool:
    def of(kind: str) -> list[Entry]:
        return [earlier for earlier in past if earlier.kind == kind]

    stack: list[str] = []
    for earlier in past:
        if earlier.kind == kinds.PROMOTED:
            stack.append(earlier.text("proposal"))
        if earlier.kind == kinds.ROLLED_BACK:
            stack.pop()
    made = {earlier.digest: earlier for earlier in of(kinds.PROPOSED)}
    named = {mine: identity(made[mine]) for mine in made}
    promoted = {earlier.text("proposal") for earlier in of(kinds.PROMOTED)}
    if any(earlier.text("revoked") == entry.key for earlier in of(kinds.KEY_REVOKED)):
        return False
    match entry.kind:
        case kinds.REGISTERED_BUNDLE:
            return entry.text("bundle") not in {earlier.text("bundle") for earlier in of(kinds.REGISTERED_BUNDLE)}
        case kinds.REGISTERED_POLICY:
            return entry.text("policy") not in {earlier.text("policy") for earlier in of(kinds.REGISTERED_POLICY)}
        case kinds.PROPOSED:
            is_open = identity(entry) in {named[mine] for mine in made.keys() - promoted}
            is_champion = bool(stack) and named[stack[-1]] == identity(entry)
            return registrars(past, entry) is not None and not is_open and not is_champion
        case kinds.APPROVED:
            mine = made.get(entry.text("proposal"))
            if mine is None or mine.digest in promoted or entry.by in (mine.by, *(registrars(past, mine) or ())):
                return False
            return entry.by not in agreed(past, mine, entry.time_ms, rules)
        case kinds.PROMOTED:
            mine = made.get(entry.text("proposal"))
            if mine is None or mine.digest in promoted:
                return False
            return len(agreed(past, mine, entry.time_ms, rules)) >= rules.approvals
        case kinds.ROLLED_BACK:
            ways = [named[mine] for mine in stack[-2:]]
            return len(ways) == 2 and [entry.text("to"), entry.text("from")] == ways
        case _:
            return True


def identity(entry: Entry) -> str:
    return Version(entry.text("bundle"), entry.text("policy"), entry.text("catalogue")).digest


def registrars(past: list[Entry], proposal: Entry) -> tuple[str, str] | None:
    bundle = [one.by for one in past if one.kind == kinds.REGISTERED_BUNDLE and same(one, proposal, "bundle")]
    policy = [one.by for one in past if one.kind == kinds.REGISTERED_POLICY and same(one, proposal, "policy")]
    return (bundle[0], policy[0]) if bundle and policy else None


def same(one: Entry, other: Entry, part: str) -> bool:
    return one.text(part) == other.text(part)


def agreed(past: list[Entry], proposal: Entry, at_ms: int, rules: Rules) -> set[str]:
    revoked = {one.text("revoked") for one in past if one.kind == kinds.KEY_REVOKED}
    return {
        one.by
        for one in past
        if one.kind == kinds.APPROVED
        and one.text("proposal") == proposal.digest
        and one.key not in revoked
        and one.time_ms + rules.approval_ms > at_ms
    }


MOVES = st.lists(
    st.tuples(
        st.sampled_from(("register", "propose", *("approve",) * 4, *("promote",) * 3, "roll_back", "revoke")),
        st.sampled_from(NAMES),
        st.integers(0, 2),
        st.sampled_from((60_000, DAY_MS)),
    ),
    min_size=8,
    max_size=24,
)
# Sequences begin with two proposals, or most of them would be about nothing.
BEGINNING = [(move, by, number, 60_000) for number, by in ((0, "anna"), (1, "ben")) for move in ("register", "propose")]


@given(moves=MOVES, approvals=st.integers(0, 2))
def test_random_sequences_mean_what_the_plain_reading_says(
    moves: list[tuple[str, str, int, int]], approvals: int
) -> None:
    rules = Rules(approvals=approvals, approval_ms=2 * DAY_MS)
    writer, past, expected = Writer(), list[Entry](), set[str]()
    proposals: list[str] = ["0" * 64]
    for move, by, number, later_ms in [*BEGINNING, *moves]:
        writer.now_ms += later_ms
        for kind, what in entries_of(writer, rules, move, number, proposals):
            entry = writer.add(kind, by, what)
            if kind == kinds.PROPOSED:
                proposals.append(entry.digest)
            if counts(past, entry, rules):
                past.append(entry)
            else:
                expected.add(entry.digest)
    state = state_of(writer.log, EVERYBODY, rules)
    assert {ignored.entry.digest for ignored in state.ignored} == expected
    assert state.head == writer.log.head
    # At the time of an entry the champion is that of the log up to it.
    length = len(writer.log.entries) // 2
    if length:
        shorter = RegistryLog(writer.log.entries[:length])
        at_ms = shorter.entries[-1].time_ms
        assert state_of(shorter, EVERYBODY, rules).way_back == (
            state_of(writer.log, EVERYBODY, rules, at_ms=at_ms).way_back
        )


def entries_of(
    writer: Writer, rules: Rules, move: str, number: int, proposals: list[str]
) -> list[tuple[str, dict[str, Value]]]:
    """The entries of a move. They are often wrong: about nothing, of nobody, or twice."""
    mine = version(str(number))
    parts: dict[str, Value] = {"bundle": mine.bundle, "policy": mine.policy, "catalogue": CATALOGUE}
    files: dict[str, str] = {"manifest.json": mine.digest}
    proposal: dict[str, Value] = {"proposal": proposals[-1 - number % len(proposals)]}
    match move:
        case "register":
            return [
                (kinds.REGISTERED_BUNDLE, {"bundle": mine.bundle, "catalogue": CATALOGUE, "files": files}),
                (kinds.REGISTERED_POLICY, {"policy": mine.policy, "files": files}),
            ]
        case "propose":
            return [(kinds.PROPOSED, parts)]
        case "approve":
            return [(kinds.APPROVED, proposal)]
        case "promote":
            return [(kinds.PROMOTED, proposal)]
        case "roll_back":
            state = state_of(writer.log, EVERYBODY, rules)
            bad = state.champion.digest if state.champion and number else mine.digest
            good = state.previous.digest if state.previous and number < 2 else mine.digest
            return [(kinds.ROLLED_BACK, {"from": bad, "to": good})]
        case _:
            return [(kinds.KEY_REVOKED, {"revoked": fingerprint(key_of("cleo").public_key())})]


def test_who_proposed_or_registered_cannot_approve() -> None:
    writer = Writer()
    proposal = writer.proposal("one", by="anna")
    writer.add(kinds.APPROVED, "anna", proposal=proposal.digest)
    writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
    writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
    assert reasons(writer) == [
        "anna proposed or registered it, and cannot approve it",
        "ben has approved it already",
        "it needs the approval of 2, ben approved it",
    ]
    assert state_of(writer.log, EVERYBODY, TWO).champion is None
    writer.add(kinds.APPROVED, "cleo", proposal=proposal.digest)
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
    assert state_of(writer.log, EVERYBODY, TWO).champion == version("one")
    # Another reader with stricter rules decides for itself.
    assert state_of(writer.log, EVERYBODY, Rules(approvals=3)).champion is None


def test_an_approval_expires_and_can_then_be_given_again() -> None:
    writer = Writer()
    proposal = writer.proposal("one")
    for approver in ("ben", "cleo"):
        writer.add(kinds.APPROVED, approver, proposal=proposal.digest)
    writer.now_ms += 30 * DAY_MS
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
    assert reasons(writer) == [
        "it needs the approval of 2, nobody approved it; the approval of ben, cleo has expired",
    ]
    for approver in ("ben", "cleo"):
        writer.add(kinds.APPROVED, approver, proposal=proposal.digest)
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
    assert state_of(writer.log, EVERYBODY, TWO).champion == version("one")


def test_a_rollback_needs_one_person_and_takes_the_champion_off_the_stack() -> None:
    writer = Writer()
    for name in ("one", "two", "three"):
        champion(writer, name)
    roll_back(writer, "two", "one")
    roll_back(writer, "three", "one")
    assert reasons(writer)[0].endswith("is not the champion")
    assert "the way back leads to" in reasons(writer)[1]
    roll_back(writer, "three", "two")
    state = state_of(writer.log, EVERYBODY, TWO)
    assert (state.champion, state.previous) == (version("two"), version("one"))
    roll_back(writer, "two", "one")
    roll_back(writer, "one", "two")
    state = state_of(writer.log, EVERYBODY, TWO)
    assert (state.champion, state.previous) == (version("one"), None)
    assert state.ignored[-1].reason == "there is no version to go back to"
    assert [decided.version for decided in state.history] == [*map(version, ("one", "two", "three", "two", "one"))]


def test_a_rollback_that_was_made_apart_is_accepted_behind_what_came_meanwhile() -> None:
    writer = Writer()
    champion(writer, "one")
    fork = champion(writer, "two").digest
    behind = writer.now_ms
    champion(writer, "three")
    late = roll_back(writer, "two", "one", time_ms=behind, previous=fork)
    state = state_of(writer.log, EVERYBODY, TWO)
    # The third version was promoted by people who knew of no rollback. It stays; its way back is no longer the second.
    assert (state.champion, state.previous, state.ignored) == (version("three"), version("one"), ())
    assert state.notes == (f"line {len(writer.log.entries)}: a late rollback, made before entries in front of it",)
    assert writer.log.late == {len(writer.log.entries) - 1}
    again = Writer(writer.log).entry(kinds.ROLLED_BACK, "ben", taking("two", "one"), previous=fork)
    longer = writer.log.followed_by(again)
    assert longer is not None
    assert state_of(longer, EVERYBODY, TWO).way_back == state.way_back
    # The times of what was promoted do not move.
    assert [decided.time_ms for decided in state.history] == [
        decided.entry.time_ms for decided in state_of(RegistryLog(writer.log.entries[:-1]), EVERYBODY, TWO).history
    ]
    assert late.time_ms < state.history[-1].time_ms


def test_only_a_rollback_may_name_an_earlier_entry() -> None:
    writer = Writer()
    first = writer.proposal("one")
    writer.add(kinds.APPROVED, "ben", proposal=first.digest)
    fork = writer.entry(kinds.APPROVED, "cleo", previous=first.digest, proposal=first.digest)
    assert writer.log.followed_by(fork) is None
    stranger = writer.entry(kinds.ROLLED_BACK, "cleo", previous=digest("another log"))
    assert writer.log.followed_by(stranger) is None
    assert "does not name the last entry" in refusal_of(writer.log, fork, EVERYBODY, TWO)


def test_a_clock_that_jumps_is_refused_until_an_admin_sets_it() -> None:
    writer = Writer()
    champion(writer, "one")
    champion(writer, "two")
    proposal = writer.proposal("three")
    wrong = writer.now_ms + 365 * DAY_MS
    writer.add(kinds.APPROVED, "ben", time_ms=wrong, proposal=proposal.digest)
    # One person's clock stops this person alone.
    assert refusal_of(writer.log, writer.entry(kinds.CLOCK_SET, "cleo"), EVERYBODY, TWO) == ""
    same: dict[str, Value] = {"policy": digest("same clock"), "files": {"policy.toml": digest("same clock")}}
    assert "older than" in refusal_of(writer.log, writer.entry(kinds.REGISTERED_POLICY, "ben", same), EVERYBODY, TWO)
    writer.add(kinds.REGISTERED_POLICY, "anna", same, time_ms=wrong)
    refused = writer.entry(kinds.APPROVED, "cleo", proposal=proposal.digest)
    assert "older than an entry before it" in refusal_of(writer.log, refused, EVERYBODY, TWO)
    # A wrong clock keeps nobody from going back.
    roll_back(writer, "two", "one")
    assert state_of(writer.log, EVERYBODY, TWO).champion == version("one")
    writer.add(kinds.CLOCK_SET, "dora")
    writer.add(kinds.APPROVED, "cleo", proposal=proposal.digest)
    assert refusal_of(writer.log, writer.entry(kinds.CLOCK_SET, "dora"), EVERYBODY, TWO) == ""
    # A little older is usual: two machines never have the same time.
    near = writer.entry(kinds.CLOCK_SET, "dora", time_ms=writer.now_ms - 299_000)
    assert refusal_of(writer.log, near, EVERYBODY, TWO) == ""


def test_an_approval_dated_ahead_counts_no_longer_once_the_clock_is_set() -> None:
    """It counted for as long as the clock was ahead and a month more: approved once, promoted a year later."""
    writer = Writer()
    proposal = writer.proposal("one")
    ahead_ms = writer.now_ms + 365 * DAY_MS
    near = writer.add(kinds.APPROVED, "cleo", time_ms=writer.now_ms + 200_000, proposal=proposal.digest)
    writer.add(kinds.APPROVED, "ben", time_ms=ahead_ms, proposal=proposal.digest)
    writer.add(kinds.CLOCK_SET, "dora")
    state = state_of(writer.log, EVERYBODY, TWO)
    # A machine that is a little ahead is usual, and its approval stays.
    assert [[approval.by for approval in one.approvals] for one in state.proposals.values()] == [["cleo"]]
    assert state.proposals[proposal.digest].approvals[0].time_ms == near.time_ms
    assert state.notes == (
        f"line {len(writer.log.entries)}: the approval of ben counts no longer, its clock was "
        f"{(ahead_ms - writer.now_ms) // 1000} s ahead: approve again",
    )
    writer.now_ms += 29 * DAY_MS
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
    assert reasons(writer) == ["it needs the approval of 2, cleo approved it"]
    writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
    assert state_of(writer.log, EVERYBODY, TWO).champion == version("one")
    # A promotion made while the clock was ahead stays.
    later = Writer()
    other = later.proposal("one")
    for by, kind in (("ben", kinds.APPROVED), ("cleo", kinds.APPROVED), ("dora", kinds.PROMOTED)):
        later.add(kind, by, time_ms=later.now_ms + 365 * DAY_MS, proposal=other.digest)
    later.add(kinds.CLOCK_SET, "dora")
    assert state_of(later.log, EVERYBODY, TWO).champion == version("one")


def test_roles_names_keys_and_the_last_day_decide_who_counts() -> None:
    roles = {"anna": {PROPOSE}, "ben": {APPROVE}, "cleo": {APPROVE, ROLL_BACK}, "dora": {PROMOTE, ADMIN}}
    people = people_of({name: frozenset(held) for name, held in roles.items()})
    writer = Writer()
    writer.add(kinds.REGISTERED_BUNDLE, "ben", bundle=digest("x"), catalogue=CATALOGUE, files={"a": digest("x")})
    writer.add(kinds.CLOCK_SET, "eve")
    writer.add(kinds.KEY_REVOKED, "anna", revoked=fingerprint(key_of("ben").public_key()))
    assert [reason.replace(fingerprint(key_of("eve").public_key()), "KEY") for reason in reasons(writer, people)] == [
        "ben lacks the role propose",
        "the key KEY belongs to nobody in the file of people",
        "anna lacks the role admin",
    ]
    proposal = writer.proposal("one")
    writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
    writer.add(kinds.APPROVED, "cleo", proposal=proposal.digest)
    # All people may revoke a key of their own. Its approvals no longer count.
    writer.add(kinds.KEY_REVOKED, "ben", revoked=fingerprint(key_of("ben").public_key()))
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
    writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
    assert reasons(writer, people)[-2] == "it needs the approval of 2, cleo approved it"
    assert reasons(writer, people)[-1].endswith("of ben was revoked")
    key = fingerprint(key_of("cleo").public_key())
    gone = RegistryPeople({**people.people, key: replace(people.people[key], until_ms=START_MS)}, people.keys)
    assert "cleo had left by then" in reasons(writer, gone)
    renamed = RegistryPeople({**people.people, key: replace(people.people[key], name="zoe")}, people.keys)
    assert f"the key {key} belongs to zoe, not to cleo" in reasons(writer, renamed)


def test_an_entry_of_another_registry_or_kind_counts_for_nothing() -> None:
    writer = Writer()
    writer.proposal("one")
    assert set(reasons(writer, rules=Rules(name="production"))) == {
        "it is of the registry paywarden, this one is production"
    }
    line = writer.entry(kinds.CLOCK_SET, "anna").line.replace(b"clock_set", b"paused_all")
    later = entry_of(FORM.read(line))
    with pytest.raises(RegistryRefused, match="signature of anna is wrong"):
        refusal_of(writer.log, later, EVERYBODY, TWO)


def test_a_version_of_another_catalogue_or_of_unknown_parts_is_not_proposed() -> None:
    writer = Writer()
    writer.proposal("one")
    parts = {"bundle": digest("bundle one"), "policy": digest("policy one"), "catalogue": CATALOGUE}
    for change, told in (
        ({"catalogue": "0" * 16}, "is for the catalogue c0ffee00c0ff, the version names 000000000000"),
        ({"bundle": digest("unknown")}, "the bundle .* was not registered"),
        ({"policy": ""}, r"the policy \(none\) was not registered"),
        ({}, "is proposed already"),
    ):
        entry = writer.entry(kinds.PROPOSED, "anna", {**parts, **change})
        assert re.search(told, refusal_of(writer.log, entry, EVERYBODY, TWO))


def test_one_rollout_at_a_time_and_only_an_approved_version_decides_in_it() -> None:
    writer = Writer()
    champion(writer, "one")
    proposal, other = writer.proposal("two"), writer.proposal("three")

    def start(name: str, of: Entry, mode: str) -> Entry:
        what = {"rollout": name, "mode": mode, "proposal": of.digest, "champion": version("one").digest}
        return writer.entry(kinds.ROLLOUT_STARTED, "anna", what)

    # One that begins in the shadow, too: the person who starts it could give it cards alone.
    for mode in MODES:
        assert "needs the approval of 2" in refusal_of(writer.log, start("r1", proposal, mode), EVERYBODY, TWO)
    for approver in ("ben", "cleo"):
        writer.add(kinds.APPROVED, approver, proposal=proposal.digest)
        writer.add(kinds.APPROVED, approver, proposal=other.digest)
    begun = {"rollout": "r1", "mode": "canary", "proposal": proposal.digest}
    told = refusal_of(writer.log, writer.entry(kinds.ROLLOUT_STARTED, "anna", begun), EVERYBODY, TWO)
    assert told == "champion: wanted the digest of the version that decides, got (none)"
    writer.add(kinds.ROLLOUT_STARTED, "anna", {**begun, "champion": version("one").digest})
    assert refusal_of(writer.log, start("r2", other, "shadow"), EVERYBODY, TWO) == "the rollout r1 is under way"
    writer.add(kinds.ROLLOUT_STEP, "anna", rollout="r1", share_ppm=10_000)
    writer.add(kinds.ROLLOUT_PAUSED, "anna", rollout="r1")
    state = state_of(writer.log, EVERYBODY, TWO)
    assert state.rollout is not None
    assert (state.rollout.is_paused, len(state.rollout.events), state.ignored) == (True, 3, ())
    promotion = writer.entry(kinds.PROMOTED, "dora", proposal=other.digest)
    assert "the rollout r1 of another version is under way" in refusal_of(writer.log, promotion, EVERYBODY, TWO)
    writer.add(kinds.ROLLOUT_RESUMED, "anna", rollout="r1")
    promotion = writer.entry(kinds.PROMOTED, "dora", proposal=proposal.digest)
    assert "the rollout r1 of it is under way" in refusal_of(writer.log, promotion, EVERYBODY, TWO)
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest, rollout="r1")
    state = state_of(writer.log, EVERYBODY, TWO)
    assert (state.rollout, state.champion) == (None, version("two"))
    writer.add(kinds.ROLLOUT_STEP, "anna", rollout="r1")
    assert reasons(writer)[-1] == "there is no rollout r1 under way"


def test_the_champion_at_any_time_is_that_of_the_entries_before_it() -> None:
    writer = Writer()
    first = champion(writer, "one").time_ms
    second = champion(writer, "two").time_ms
    back = roll_back(writer, "two", "one").time_ms

    def at(time_ms: int) -> RegistryState:
        return state_of(writer.log, EVERYBODY, TWO, at_ms=time_ms)

    assert at(first - 1).champion is None
    assert [at(time).champion for time in (first, second - 1)] == [version("one")] * 2
    assert [at(time).champion for time in (second, back - 1)] == [version("two")] * 2
    assert at(back).champion == version("one")
