"""Interprets the log: finds the entries that count, and the version that decides because of them.

Every reader applies these rules to the log by itself, with its own file of people. No reader has to trust the
writer of the log: an entry that breaks a rule is in the log and counts for nothing.

    registered_bundle, registered_policy   somebody with the role `propose` has put files into the registry
    proposed                               a *version* (bundle, policy and catalogue) is to decide
    approved                               somebody else agrees; needs the role `approve`
    promoted                               the version decides from now on; needs `promote`, and enough approvals
    rolled_back                            the version before it decides again; needs `roll_back` and nobody else
    rollout_started                        a proposed version is tried on cards; needs `rollout`, and the approvals
    rollout_step, rollout_verdict          its finding; only by the program that leads it, with the role `lead`
    rollout_paused, _resumed, _aborted     by a person with the role `rollout`; `roll_back` may abort as well

An example with two approvals wanted:

    1  registered_bundle   anna        5  approved     cleo    of 3        champion: none
    2  registered_policy   anna        6  promoted     ben     of 3        champion: the version of 3
    3  proposed            anna        7  approved     anna    of 3        ignored: anna proposed it
    4  approved   ben      of 3        8  rolled_back  cleo                champion: the one before, if there is one

Rules that hold for every kind: the key belongs to a known person with this name, who has the role, has not left and
whose key is not revoked; and the entry is not older by more than `clock_back_ms` than the person's newest entry before
it, or than a time that two people have reached. A time ahead of all clocks therefore stops nobody but its signer:

    anna 10:00   eve 9999   ben 10:05   two people have reached 10:05 (eve and ben): others may write from 10:00 on

A rollback, a verdict, an abort and a revocation are accepted whatever their time: a wrong clock must not keep a bad
model or a stolen key in place. A revocation also takes back what nobody else has used yet: proposals without approvals,
and registrations that no version names.

A clock that was ahead ends with a `clock_set`. Approvals that are dated later count no longer: nobody knows when they
were given, so nobody knows when they expire.

While a rollout of a version decides about cards, its promotion names the rollout. A rollback of the champion ends it.

The way back is a stack. A promotion puts a version on top, a rollback takes the top off. To return to a version that
was taken off, propose it again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Final

from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import Entry, Value, is_name
from paywarden.models.registry.model_log import RegistryLog
from paywarden.models.registry.people import (
    ADMIN,
    APPROVE,
    LEAD,
    PROMOTE,
    PROPOSE,
    ROLL_BACK,
    ROLLOUT,
    RegistryPeople,
    RegistryPerson,
)
from paywarden.schemas.signed_lines import FIRST, is_digest

MODES: Final = ("shadow", "canary", "blue_green")
"""How a rollout lets a candidate in. All of them need the approvals: one that begins in the shadow gets cards by a
`resume`, which one person writes."""

_DAY_MS = 86_400_000
# Open proposals of a person: the next one takes the place of the oldest. People read them all before they approve one.
_OPEN_MAX = 20
# The roles that may write an entry: any of them.
_ROLES: Mapping[str, tuple[str, ...]] = {
    kinds.REGISTERED_BUNDLE: (PROPOSE,),
    kinds.REGISTERED_POLICY: (PROPOSE,),
    kinds.PROPOSED: (PROPOSE,),
    kinds.APPROVED: (APPROVE,),
    kinds.PROMOTED: (PROMOTE,),
    kinds.ROLLED_BACK: (ROLL_BACK,),
    kinds.ROLLOUT_STARTED: (ROLLOUT,),
    kinds.ROLLOUT_STEP: (LEAD,),
    kinds.ROLLOUT_VERDICT: (LEAD,),
    kinds.ROLLOUT_PAUSED: (ROLLOUT,),
    kinds.ROLLOUT_RESUMED: (ROLLOUT,),
    kinds.ROLLOUT_ABORTED: (ROLLOUT, ROLL_BACK),
    kinds.KEY_REVOKED: (ADMIN,),
    kinds.CLOCK_SET: (ADMIN,),
}
# Entries that count whatever their time says.
_ANY_TIME = (*kinds.LATE_KINDS, kinds.CLOCK_SET)


@dataclass(frozen=True)
class Rules:
    """The rules of a deployment. All readers must have the same.

    `approvals`: how many people besides the proposer a promotion needs; 0 asks for none. `approval_ms`: how long an
    approval counts. `clock_back_ms`: how much older an entry may be than those before it.
    """

    name: str = "paywarden"
    approvals: int = 0
    approval_ms: int = 30 * _DAY_MS
    clock_back_ms: int = 300_000

    def oldest_ms(self, newest_ms: Mapping[str, int], by: str) -> int:
        """Returns how old an entry of a person may be. `newest_ms`: the newest time of each person's entries."""
        times_ms = sorted(newest_ms.values())
        reached_ms = times_ms[-2] if len(times_ms) > 1 else 0
        return max(reached_ms, newest_ms.get(by, 0)) - self.clock_back_ms


@dataclass(frozen=True)
class Registered:
    """A bundle or policy that was put into the registry, by whom and when. `facts` are those in the entry."""

    digest: str
    by: str
    key: str
    time_ms: int
    facts: Mapping[str, Value]

    @property
    def files(self) -> dict[str, str]:
        """The sha256 of each of its files, by path."""
        return files_of(self.facts)


@dataclass(frozen=True)
class Approval:
    """A person's agreement. `until_ms`: it counts before this time."""

    by: str
    key: str
    time_ms: int
    until_ms: int


@dataclass(frozen=True)
class Proposal:
    """A version that is to decide, until it does. `digest` is that of the entry, which approvals name.

    `not_approvers`: who may not approve it, because they proposed it or registered a part of it.
    """

    digest: str
    version: Version
    by: str
    key: str
    time_ms: int
    why: str
    not_approvers: frozenset[str]
    approvals: tuple[Approval, ...] = ()

    def approvers(self, at_ms: int) -> list[str]:
        """Returns who agrees at a time, each person once."""
        return sorted({approval.by for approval in self.approvals if approval.until_ms > at_ms})


@dataclass(frozen=True)
class RegisteredRollout:
    """A rollout that is under way. `events`: its entries so far, the first is that of the start.

    `champion`: the digest of the version that it is compared with.
    """

    name: str
    mode: str
    version: Version
    champion: str
    is_paused: bool
    events: tuple[Entry, ...]


@dataclass(frozen=True)
class Decided:
    """A version that became champion. `entry` is the promotion or rollback that did it, `time_ms` when it took
    effect."""

    version: Version
    entry: Entry
    time_ms: int


@dataclass(frozen=True)
class Ignored:
    """An entry that breaks a rule. `number`: its line in the log, from 1."""

    number: int
    entry: Entry
    reason: str


@dataclass(frozen=True)
class RegistryState:
    """The state after a log. `way_back`: the versions of the stack, the champion last.

    `newest_ms`: the newest time of each person's entries, for `Rules.oldest_ms`.
    """

    way_back: tuple[Version, ...] = ()
    bundles: Mapping[str, Registered] = field(default_factory=dict)
    policies: Mapping[str, Registered] = field(default_factory=dict)
    proposals: Mapping[str, Proposal] = field(default_factory=dict)
    rollout: RegisteredRollout | None = None
    history: tuple[Decided, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    notes: tuple[str, ...] = ()
    newest_ms: Mapping[str, int] = field(default_factory=dict)
    head: str = FIRST

    @property
    def champion(self) -> Version | None:
        """The version that decides; None before the first promotion."""
        return self.way_back[-1] if self.way_back else None

    @property
    def previous(self) -> Version | None:
        """The version that a rollback goes back to; None if there is no way back."""
        return self.way_back[-2] if len(self.way_back) > 1 else None

    def libraries(self, version: Version) -> dict[str, str]:
        """Returns the sha256 of the native libraries of a version's bundle, which its digest leaves out, by path."""
        files = self.bundles[version.bundle].files
        return {name: checksum for name, checksum in sorted(files.items()) if name.endswith(".so")}

    def is_approved(self, proposal: Proposal, rules: Rules, at_ms: int) -> bool:
        """Returns whether a proposal could be promoted at that time."""
        return len(proposal.approvers(at_ms)) >= rules.approvals


def state_of(log: RegistryLog, people: RegistryPeople, rules: Rules, *, at_ms: int | None = None) -> RegistryState:
    """Returns the state of the log for a reader with these people and rules, at a time or after the last entry.

    An entry takes effect at its time, but never after the entries behind it: order decides. Entries that break a rule
    are in `ignored`. Raises RegistryRefused if a signature is wrong.
    """
    log.check_signatures(people)
    return _state(log, people, rules, at_ms)


def refusal_of(log: RegistryLog, entry: Entry, people: RegistryPeople, rules: Rules) -> str:
    """Returns why an entry would not count behind a log whose signatures were checked; empty if it would.

    Raises RegistryRefused if the signature of the entry is wrong.
    """
    longer = log.followed_by(entry)
    if longer is None:
        return "it does not name the last entry of the log as the one before"
    RegistryLog((entry,)).check_signatures(people)
    ignored = _state(longer, people, rules, None).ignored
    return ignored[-1].reason if ignored and ignored[-1].entry is entry else ""


def _state(log: RegistryLog, people: RegistryPeople, rules: Rules, at_ms: int | None) -> RegistryState:
    fold = _folded(log, people, rules, len(log.entries))
    times_ms = _effect_times_ms(log, fold.ignored_positions())
    # They never fall.
    length = len(times_ms) if at_ms is None else bisect_right(times_ms, at_ms)
    if length < len(times_ms):
        fold = _folded(log, people, rules, length)
    return fold.state(times_ms)


def _folded(log: RegistryLog, people: RegistryPeople, rules: Rules, length: int) -> _Fold:
    """Returns the state after the first `length` entries."""
    fold = _Fold(people, rules)
    for position, entry in enumerate(log.entries[:length]):
        fold.take(entry, position + 1, is_late=position in log.late)
    return fold


def _effect_times_ms(log: RegistryLog, ignored: Collection[int]) -> list[int]:
    """Returns when each entry takes effect: at its time, at the latest when the first entry behind it does.

    The time of an ignored entry moves no other.
    """
    times_ms: list[int] = []
    later: int | None = None
    for position in reversed(range(len(log.entries))):
        time_ms = log.entries[position].time_ms
        if position in ignored:
            times_ms.append(0)
        # A late rollback was made before entries that stand in front of it, and says nothing about their time.
        elif position in log.late:
            times_ms.append(time_ms if later is None else min(later, time_ms))
        else:
            later = time_ms if later is None else min(later, time_ms)
            times_ms.append(later)
    return [*accumulate(reversed(times_ms), max)]


class _Fold:
    """Takes entries in order and keeps the state after them."""

    def __init__(self, people: RegistryPeople, rules: Rules) -> None:
        self._people, self._rules = people, rules
        self._stack: list[Version] = []
        self._bundles: dict[str, Registered] = {}
        self._policies: dict[str, Registered] = {}
        self._proposals: dict[str, Proposal] = {}
        self._rollout: RegisteredRollout | None = None
        self._revoked: set[str] = set()
        # Each version that became champion, its entry, and the entry's number.
        self._decided: list[tuple[Version, Entry, int]] = []
        self._ignored: list[Ignored] = []
        self._notes: list[str] = []
        self._newest_ms: dict[str, int] = {}
        self._head = FIRST
        self._takes: Mapping[str, Callable[[Entry], str]] = {
            kinds.REGISTERED_BUNDLE: self._registered_bundle,
            kinds.REGISTERED_POLICY: self._registered_policy,
            kinds.PROPOSED: self._proposed,
            kinds.APPROVED: self._approved,
            kinds.PROMOTED: self._promoted,
            kinds.ROLLED_BACK: self._rolled_back,
            kinds.ROLLOUT_STARTED: self._rollout_started,
            kinds.ROLLOUT_STEP: self._rollout_went_on,
            kinds.ROLLOUT_VERDICT: self._rollout_went_on,
            kinds.ROLLOUT_PAUSED: self._rollout_went_on,
            kinds.ROLLOUT_RESUMED: self._rollout_went_on,
            kinds.ROLLOUT_ABORTED: self._rollout_went_on,
            kinds.KEY_REVOKED: self._key_revoked,
            kinds.CLOCK_SET: self._clock_set,
        }
        self._is_late = False
        self._number = 0

    def take(self, entry: Entry, number: int, *, is_late: bool) -> None:
        """Take the next entry: `number` is its line."""
        self._is_late, self._number = is_late, number
        before = self._stack[-1] if self._stack else None
        reason = self._refusal(entry) or self._takes[entry.kind](entry)
        self._head = entry.digest
        if reason:
            self._ignored.append(Ignored(number, entry, reason))
            return
        if entry.kind == kinds.CLOCK_SET:
            self._newest_ms = {name: min(time_ms, entry.time_ms) for name, time_ms in self._newest_ms.items()}
        if entry.kind not in kinds.LATE_KINDS:
            self._newest_ms[entry.by] = max(self._newest_ms.get(entry.by, 0), entry.time_ms)
        after = self._stack[-1] if self._stack else None
        if after is not None and after != before:
            self._decided.append((after, entry, number))

    def ignored_positions(self) -> set[int]:
        """Returns the positions of the entries that break a rule, from 0."""
        return {ignored.number - 1 for ignored in self._ignored}

    def state(self, times_ms: Sequence[int]) -> RegistryState:
        """Returns the present state. `times_ms`: when each entry takes effect."""
        return RegistryState(
            way_back=tuple(self._stack),
            bundles=dict(self._bundles),
            policies=dict(self._policies),
            proposals=dict(self._proposals),
            rollout=self._rollout,
            history=tuple(Decided(version, entry, times_ms[number - 1]) for version, entry, number in self._decided),
            ignored=tuple(self._ignored),
            notes=tuple(self._notes),
            newest_ms=dict(self._newest_ms),
            head=self._head,
        )

    def _refusal(self, entry: Entry) -> str:
        """Returns the rule for every kind that the entry breaks; empty if it breaks none."""
        if entry.registry != self._rules.name:
            return f"it is of the registry {entry.registry}, this one is {self._rules.name}"
        person = self._people.owner(entry.key)
        if person is None:
            return f"the key {entry.key} belongs to nobody in the file of people"
        if person.name != entry.by:
            return f"the key {entry.key} belongs to {person.name}, not to {entry.by}"
        if entry.key in self._revoked:
            return f"the key {entry.key} of {person.name} was revoked"
        if person.until_ms is not None and entry.time_ms >= person.until_ms:
            return f"{person.name} had left by then"
        if entry.kind not in _ROLES:
            return f"this release knows no entry of the kind {entry.kind}"
        if problem := _role_problem(person, entry):
            return problem
        behind_ms = self._rules.oldest_ms(self._newest_ms, entry.by) - entry.time_ms
        if behind_ms > 0 and entry.kind not in _ANY_TIME:
            allowed_ms = self._rules.clock_back_ms
            return (
                f"it is {(behind_ms + allowed_ms) // 1000} s older than an entry before it, at most "
                f"{allowed_ms // 1000} s are allowed: a clock jumped"
            )
        return ""

    def _registered_bundle(self, entry: Entry) -> str:
        for name in ("bundle", "catalogue"):
            if not entry.text(name):
                return f"{name}: wanted a digest"
        return _register(self._bundles, "bundle", entry)

    def _registered_policy(self, entry: Entry) -> str:
        return _register(self._policies, "policy", entry)

    def _proposed(self, entry: Entry) -> str:
        version = version_of(entry, self._bundles)
        bundle, policy = self._bundles.get(version.bundle), self._policies.get(version.policy)
        if bundle is None:
            return f"the bundle {_short(version.bundle)} was not registered"
        if policy is None:
            return f"the policy {_short(version.policy)} was not registered"
        if bundle.facts.get("catalogue") != version.catalogue:
            return (
                f"the bundle {_short(version.bundle)} is for the catalogue {_short(str(bundle.facts['catalogue']))}, "
                f"the version names {_short(version.catalogue)}"
            )
        if self._stack and self._stack[-1] == version:
            return f"the version {_short(version.digest)} is the champion"
        if any(proposal.version == version for proposal in self._proposals.values()):
            return f"the version {_short(version.digest)} is proposed already"
        authors = frozenset((entry.by, bundle.by, policy.by))
        self._proposals[entry.digest] = Proposal(
            entry.digest, version, entry.by, entry.key, entry.time_ms, entry.why, authors
        )
        own = [proposal for proposal in self._proposals.values() if proposal.by == entry.by]
        if len(own) > _OPEN_MAX:
            # `min` takes the first of equals: the oldest without an approval.
            del self._proposals[min(own, key=lambda proposal: bool(proposal.approvals)).digest]
        return ""

    def _approved(self, entry: Entry) -> str:
        proposal = self._proposals.get(entry.text("proposal"))
        if proposal is None:
            return f"there is no open proposal {_short(entry.text('proposal'))}"
        if entry.by in proposal.not_approvers:
            return f"{entry.by} proposed or registered it, and cannot approve it"
        if entry.by in proposal.approvers(entry.time_ms):
            return f"{entry.by} has approved it already"
        approval = Approval(entry.by, entry.key, entry.time_ms, entry.time_ms + self._rules.approval_ms)
        self._proposals[proposal.digest] = replace(proposal, approvals=(*proposal.approvals, approval))
        return ""

    def _promoted(self, entry: Entry) -> str:
        proposal = self._proposals.get(entry.text("proposal"))
        if proposal is None:
            return f"there is no open proposal {_short(entry.text('proposal'))}"
        if problem := self._approval_problem(proposal, entry.time_ms):
            return problem
        rollout = self._rollout
        if rollout is not None and rollout.version != proposal.version:
            return f"the rollout {rollout.name} of another version is under way: abort it first"
        named = entry.text("rollout")
        if rollout is not None and named != rollout.name:
            return (
                f"the rollout {rollout.name} of it is under way: `paywarden rollout promote` ends it, or abort it first"
            )
        if named and rollout is None:
            return f"there is no rollout {named} under way"
        del self._proposals[proposal.digest]
        self._rollout = None
        self._stack.append(proposal.version)
        return ""

    def _rolled_back(self, entry: Entry) -> str:
        versions = {version.digest: version for version in self._stack}
        bad, good = entry.text("from"), entry.text("to")
        if self._is_late:
            return self._take_off(versions.get(bad))
        if len(self._stack) < 2:
            return "there is no version to go back to"
        if self._stack[-1].digest != bad:
            return f"the version {_short(bad)} is not the champion"
        if self._stack[-2].digest != good:
            return f"the way back leads to {_short(self._stack[-2].digest)}, not to {_short(good)}"
        return self._take_off(self._stack[-1])

    def _take_off(self, version: Version | None) -> str:
        """Take a version off the stack, the uppermost of its places. The last one stays: something must decide."""
        if version is None:
            self._notes.append(f"line {self._number}: a late rollback of a version that was taken back already")
            return ""
        if len(self._stack) < 2:
            return "there is no version to go back to"
        place = max(place for place, other in enumerate(self._stack) if other == version)
        del self._stack[place]
        # Two places of one version that now touch are one.
        if 0 < place < len(self._stack) and self._stack[place] == self._stack[place - 1]:
            del self._stack[place]
        if self._is_late:
            self._notes.append(f"line {self._number}: a late rollback, made before entries in front of it")
        if self._rollout is not None and version.digest in (self._rollout.version.digest, self._rollout.champion):
            # The version that the candidate was compared with is gone.
            self._rollout = None
        return ""

    def _rollout_started(self, entry: Entry) -> str:
        proposal = self._proposals.get(entry.text("proposal"))
        mode, name = entry.text("mode"), entry.text("rollout")
        if mode not in MODES or not is_name(name):
            return f"rollout, mode: wanted a name of letters, digits and . _ @ -, and one of {', '.join(MODES)}"
        if self._rollout is not None:
            return f"the rollout {self._rollout.name} is under way"
        if proposal is None:
            return f"there is no open proposal {_short(entry.text('proposal'))}"
        if problem := self._approval_problem(proposal, entry.time_ms):
            return problem
        champion = entry.text("champion")
        if not self._stack or champion != self._stack[-1].digest:
            return f"champion: wanted the digest of the version that decides, got {_short(champion)}"
        self._rollout = RegisteredRollout(name, mode, proposal.version, champion, is_paused=False, events=(entry,))
        return ""

    def _rollout_went_on(self, entry: Entry) -> str:
        rollout, name = self._rollout, entry.text("rollout") or "of this name"
        if rollout is None or rollout.name != name:
            if self._is_late:
                self._notes.append(f"line {self._number}: the rollout {name} had ended before this late entry")
                return ""
            return f"there is no rollout {name} under way"
        is_paused = entry.kind == kinds.ROLLOUT_PAUSED or (rollout.is_paused and entry.kind != kinds.ROLLOUT_RESUMED)
        ended = entry.kind in (kinds.ROLLOUT_ABORTED, kinds.ROLLOUT_VERDICT)
        self._rollout = None if ended else replace(rollout, is_paused=is_paused, events=(*rollout.events, entry))
        return ""

    def _key_revoked(self, entry: Entry) -> str:
        key = entry.text("revoked")
        if self._people.owner(key) is None:
            return f"the key {key or '(none)'} belongs to nobody in the file of people"
        self._revoked.add(key)
        self._withdraw(lambda approval: approval.key == key)
        self._take_back_unused(key)
        return ""

    def _take_back_unused(self, key: str) -> None:
        """Take back proposals of a key that nobody approved, and registrations of it that no version uses.

        Others can then register the same bundle with their files.
        """
        used = {version for version, _, _ in self._decided}
        if self._rollout is not None:
            used.add(self._rollout.version)
        for proposal in list(self._proposals.values()):
            if proposal.key == key and not proposal.approvals and proposal.version not in used:
                del self._proposals[proposal.digest]
        used.update(proposal.version for proposal in self._proposals.values())
        digests = {digest for version in used for digest in (version.bundle, version.policy)}
        for known in (self._bundles, self._policies):
            for registered in list(known.values()):
                if registered.key == key and registered.digest not in digests:
                    del known[registered.digest]

    def _clock_set(self, entry: Entry) -> str:
        # Two machines never have the same time.
        latest_ms = entry.time_ms + self._rules.clock_back_ms
        for approval in self._withdraw(lambda approval: approval.time_ms > latest_ms):
            self._notes.append(
                f"line {self._number}: the approval of {approval.by} counts no longer, its clock was "
                f"{(approval.time_ms - entry.time_ms) // 1000} s ahead: approve again"
            )
        return ""

    def _withdraw(self, is_open_again: Callable[[Approval], bool]) -> list[Approval]:
        """Take approvals away that no promotion has used yet, and return them."""
        gone = list[Approval]()
        for proposal in self._proposals.values():
            gone += filter(is_open_again, proposal.approvals)
            kept = tuple(approval for approval in proposal.approvals if not is_open_again(approval))
            self._proposals[proposal.digest] = replace(proposal, approvals=kept)
        return gone

    def _approval_problem(self, proposal: Proposal, at_ms: int) -> str:
        agreed, wanted = proposal.approvers(at_ms), self._rules.approvals
        if len(agreed) >= wanted:
            return ""
        expired = sorted({approval.by for approval in proposal.approvals} - set(agreed))
        told = f"{', '.join(agreed) or 'nobody'} approved it"
        if expired:
            told += f"; the approval of {', '.join(expired)} has expired"
        return f"it needs the approval of {wanted}, {told}"


def _role_problem(person: RegistryPerson, entry: Entry) -> str:
    roles = _ROLES[entry.kind]
    if not person.roles.isdisjoint(roles):
        return ""
    # Everybody may withdraw their own key at once, with that key.
    if entry.kind == kinds.KEY_REVOKED and entry.text("revoked") == entry.key:
        return ""
    return f"{person.name} lacks the role {' or '.join(roles)}"


def _register(known: dict[str, Registered], part: str, entry: Entry) -> str:
    digest = entry.text(part)
    if not is_digest(digest):
        return f"{part}: wanted a digest of 64 hex digits"
    if digest in known:
        return f"the {part} {_short(digest)} is registered already, by {known[digest].by}"
    files = entry.what.get("files")
    if not isinstance(files, dict) or not files or not all(map(_is_file, files.items())):
        return "files: wanted the sha256 of each file"
    known[digest] = Registered(digest, entry.by, entry.key, entry.time_ms, entry.what)
    return ""


def version_of(entry: Entry, bundles: Mapping[str, Registered]) -> Version:
    """Returns the version that an entry proposes. `bundles`: those that are registered, with the names of models."""
    bundle = bundles.get(entry.text("bundle"))
    model = None if bundle is None else bundle.facts.get("model_version")
    named = model if isinstance(model, str) else ""
    return Version(entry.text("bundle"), entry.text("policy"), entry.text("catalogue"), named)


def files_of(facts: Mapping[str, Value]) -> dict[str, str]:
    """Returns the sha256 of each file that an entry registers, by path."""
    files = facts.get("files")
    return dict(files) if isinstance(files, dict) else {}


def _is_file(item: tuple[str, str]) -> bool:
    path, checksum = item
    return is_digest(checksum) and all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path


def _short(digest: str) -> str:
    return digest[:12] or "(none)"


def find(digests: Iterable[str], text: str) -> list[str]:
    """Returns the digests that a text names: all of one, or at least the first six digits of some."""
    return sorted({digest for digest in digests if digest == text or (len(text) >= 6 and digest.startswith(text))})
