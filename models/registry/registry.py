"""The registry as programs use it: the version that decides now, and each act of a person.

    registry.served(now_ms)            bundle folder and policy file of the champion, checked; None before a promotion
    registry.state(at_ms)              everything that holds at a time
    registry.register(signer, …)       and approve, promote, roll_back, note: append one entry or raise RegistryRefused

The registry tries an entry on the log before it signs and appends it: it writes no entry that readers would ignore.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from paywarden.models.bundle.signature import fingerprint
from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.artefacts import (
    BUNDLES,
    POLICIES,
    POLICY_FILE,
    ArtefactStore,
    checksums_of,
    processors_of,
)
from paywarden.models.registry.entries import Entry, Value, signed_entry
from paywarden.models.registry.model_log import GrowingLog, Log, RegistryLog
from paywarden.models.registry.people import RegistryPeople, read_signing_key
from paywarden.models.registry.registry_rules import (
    Proposal,
    Registered,
    RegistryState,
    Rules,
    files_of,
    find,
    refusal_of,
    state_of,
    version_of,
)
from paywarden.schemas.errors import Misconfigured, RegistryRefused
from paywarden.schemas.settings import read_source

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# Enough digits to name an entry among millions.
SHOWN: Final = 12
# A person reads no longer list.
_NAMED_MAX = 10


@dataclass(frozen=True)
class Signer:
    """A person with their key."""

    name: str
    key: Ed25519PrivateKey

    @classmethod
    def of(cls, key_file: Path, people: RegistryPeople) -> Signer:
        """Returns whose key a file holds. Raises Misconfigured if it is nobody's, or the file cannot be used."""
        key = read_signing_key(key_file)
        person = people.owner(fingerprint(key.public_key()))
        if person is None:
            raise Misconfigured(
                f"the key {key_file} ({fingerprint(key.public_key())}) belongs to nobody in the file of people"
            )
        return cls(person.name, key)


@dataclass(frozen=True)
class ServedVersion:
    """The version that decides, the folder of its bundle and the file of its policy, as they were registered."""

    version: Version
    bundle: Path
    policy: Path


@dataclass(frozen=True)
class BundleFacts:
    """The facts about a bundle for its entry. `files`: its contents by path."""

    digest: str
    model_version: str
    catalogue: str
    identity: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class PolicyFacts:
    """A policy to be registered: its digest, and the text of its own file (models/policy/text.py)."""

    digest: str
    text: str


@dataclass(frozen=True)
class Registry:
    """A registry: its log, the people and rules by which this reader decides, and its files."""

    log: Log
    people: RegistryPeople
    rules: Rules
    store: ArtefactStore

    def state(self, at_ms: int | None = None) -> RegistryState:
        """Returns the state at a time, or after the last entry. Raises RegistryRefused if the log is damaged."""
        return state_of(self.log.read(), self.people, self.rules, at_ms=at_ms)

    def served(self, at_ms: int) -> ServedVersion | None:
        """Returns the version that decides at a time; None if nothing was promoted. Reads and checks the files.

        Raises RegistryRefused if the log or a file is damaged, or the bundle has no library for this processor.
        """
        state = self.state(at_ms)
        return None if state.champion is None else self.files_of(state, state.champion)

    def files_of(self, state: RegistryState, version: Version, *, any_processor: bool = False) -> ServedVersion:
        """Returns the folder and the file of a version. Raises RegistryRefused as `served`.

        With `any_processor` the bundle need not have a library for this machine.
        """
        bundle = state.bundles[version.bundle]
        policy = state.policies[version.policy]
        processors = processors_of(bundle.files)
        if not any_processor and processors and platform.machine() not in processors:
            raise RegistryRefused(
                f"the bundle {version.bundle[:SHOWN]} was registered with libraries for {', '.join(processors)}, "
                f"this machine is {platform.machine()}"
            )
        served = ServedVersion(
            version,
            self.store.folder(BUNDLES, version.bundle, bundle.files),
            self.store.folder(POLICIES, version.policy, policy.files) / POLICY_FILE,
        )
        _require_named(served)
        return served

    def register(
        self, signer: Signer, bundle: BundleFacts | None, policy: PolicyFacts, *, why: str, now_ms: int
    ) -> list[Entry]:
        """Keep the files of a bundle and a policy, and propose them as a version. Without a bundle: the champion's.

        A part that is registered already is not registered again. Returns the entries, the proposal last. Raises
        RegistryRefused if it was registered with other files: a bundle's digest leaves out its native libraries.
        """

        def make(log: RegistryLog) -> list[Entry]:
            state = state_of(log, self.people, self.rules)
            drafts: list[tuple[str, Mapping[str, Value]]] = []
            if bundle is None:
                if state.champion is None:
                    raise RegistryRefused("there is no champion whose bundle could be taken: name a bundle")
                version = replace(state.champion, policy=policy.digest)
            else:
                version = Version(bundle.digest, policy.digest, bundle.catalogue, bundle.model_version)
                record = _bundle_record(bundle)
                if not _is_known(state.bundles.get(bundle.digest), "bundle", record):
                    drafts.append((kinds.REGISTERED_BUNDLE, record))
            files = {POLICY_FILE: policy.text.encode()}
            record = {"policy": policy.digest, "files": checksums_of(files)}
            if not _is_known(state.policies.get(policy.digest), "policy", record):
                drafts.append((kinds.REGISTERED_POLICY, record))
            proposal = {"bundle": version.bundle, "policy": version.policy, "catalogue": version.catalogue}
            made = self.signed(log, signer, [*drafts, (kinds.PROPOSED, proposal)], why, now_ms)
            # The files come first: no entry ever names files that are not there.
            if bundle is not None:
                self.store.put(BUNDLES, bundle.digest, bundle.files)
            self.store.put(POLICIES, policy.digest, files)
            return made

        return self.log.append(make)

    def is_here(self, version: Version) -> bool:
        """Returns whether `files_of` a version asks nobody outside this host."""
        return self.store.is_here(BUNDLES, version.bundle) and self.store.is_here(POLICIES, version.policy)

    def approve(self, signer: Signer, text: str, *, why: str, now_ms: int) -> tuple[Proposal, Entry]:
        """Approve a proposal. `text` names it: see `proposal_named`."""
        return self._about(signer, kinds.APPROVED, text, why, now_ms)

    def promote(self, signer: Signer, text: str, *, why: str, now_ms: int) -> tuple[Proposal, Entry]:
        """Let a proposed version decide from now on. Its files are checked first."""

        def check(state: RegistryState, proposal: Proposal) -> None:
            self.files_of(state, proposal.version)

        return self._about(signer, kinds.PROMOTED, text, why, now_ms, check)

    def roll_back(self, signer: Signer, *, why: str, now_ms: int) -> tuple[Version, Version, Entry]:
        """Let the version before the champion decide again; returns it, the version that it replaces, and the entry."""
        found: list[Version] = []

        def make(log: RegistryLog) -> list[Entry]:
            state = state_of(log, self.people, self.rules)
            if state.champion is None or state.previous is None:
                raise RegistryRefused("there is no version to go back to")
            found[:] = [state.previous, state.champion]
            what = {"from": state.champion.digest, "to": state.previous.digest}
            return self.signed(log, signer, [(kinds.ROLLED_BACK, what)], why, now_ms)

        (entry,) = self.log.append_now(make)
        return found[0], found[1], entry

    def note(self, signer: Signer, kind: str, what: Mapping[str, Value], *, why: str, now_ms: int) -> Entry:
        """Append an entry of any other kind: a key that is revoked, a clock that is set."""

        def make(log: RegistryLog) -> list[Entry]:
            log.check_signatures(self.people)
            return self.signed(log, signer, [(kind, what)], why, now_ms)

        (entry,) = (self.log.append_now if kind in kinds.LATE_KINDS else self.log.append)(make)
        return entry

    def _about(
        self,
        signer: Signer,
        kind: str,
        text: str,
        why: str,
        now_ms: int,
        check: Callable[[RegistryState, Proposal], None] | None = None,
    ) -> tuple[Proposal, Entry]:
        found: list[Proposal] = []

        def make(log: RegistryLog) -> list[Entry]:
            state = state_of(log, self.people, self.rules)
            proposal = proposal_named(state, text)
            found[:] = [proposal]
            made = self.signed(log, signer, [(kind, {"proposal": proposal.digest})], why, now_ms)
            if check is not None:
                check(state, proposal)
            return made

        (entry,) = self.log.append(make)
        return found[0], entry

    def signed(
        self,
        log: RegistryLog,
        signer: Signer,
        drafts: Sequence[tuple[str, Mapping[str, Value]]],
        why: str,
        now_ms: int,
    ) -> list[Entry]:
        """Returns signed entries that all count behind the log, whose signatures the caller has checked.

        Raises RegistryRefused if one breaks a rule.
        """
        made = []
        for kind, what in drafts:
            entry = signed_entry(
                signer.key,
                registry=self.rules.name,
                previous=log.head,
                time_ms=now_ms,
                kind=kind,
                by=signer.name,
                why=why,
                what=what,
            )
            full = GrowingLog(log.entries).refusal(entry, self.people)
            if reason := full or refusal_of(log, entry, self.people, self.rules):
                raise RegistryRefused(f"{kind.replace('_', ' ')} by {signer.name} is refused: {reason}")
            longer = log.followed_by(entry)
            assert longer is not None
            log = longer
            made.append(entry)
        return made


def _require_named(served: ServedVersion) -> None:
    """Raise RegistryRefused if files are those of another bundle or policy than the digest that people approved.

    The person who registered the files wrote their digests into the log, which could be those of any files.
    """
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import PolicySettings, policy_digest

    manifest = read_manifest(served.bundle)
    settings = read_source(str(served.policy), {}).section("policy", PolicySettings)
    policy = policy_digest(settings, read_lists(settings.lists))
    for kind, found, wanted in (
        ("bundle", manifest.digest, served.version.bundle),
        ("policy", policy, served.version.policy),
        # Whose name people may have approved it by.
        ("model", manifest.model_version, served.version.model or manifest.model_version),
    ):
        if found != wanted:
            raise RegistryRefused(
                f"the {kind} that was registered as {wanted[:SHOWN]} is another one, {found[:SHOWN]}: "
                "wrong files were named when it was registered"
            )


def proposal_named(state: RegistryState, text: str) -> Proposal:
    """Returns the open proposal that a text names, by its model's version or the first six digits of a digest.

    The digest may be that of the proposal, its version, its bundle or its policy. Raises RegistryRefused. The whole
    digest of a proposal names that proposal alone: nobody can choose it, while other names are the proposers' words.
    """
    if text in state.proposals:
        return state.proposals[text]
    named = []
    for proposal in state.proposals.values():
        version = proposal.version
        digests = (proposal.digest, version.digest, version.bundle, version.policy)
        if find(digests, text) or version.model == text:
            named.append(proposal)
    if len(named) == 1:
        return named[0]
    if named:
        those = ", ".join(f"{proposal.digest} by {proposal.by}" for proposal in named[:_NAMED_MAX])
        raise RegistryRefused(f"{text!r} names {len(named)} proposals: {those}; give the whole digest of one")
    for version in state.way_back:
        if find((version.digest, version.bundle), text) or version.model == text:
            raise RegistryRefused(f"{text!r} was promoted already; to let it decide again, register it again")
    raise RegistryRefused(f"there is no open proposal {text!r}: `paywarden models list` has them")


def version_named(log: RegistryLog, state: RegistryState, text: str | None) -> Version:
    """Returns the version that a text names, among all that were ever proposed; the champion without a text.

    If several versions have that bundle or policy, the last proposed one counts. Raises RegistryRefused.
    """
    if text is None:
        if state.champion is None:
            raise RegistryRefused("nothing was promoted: name a version")
        return state.champion
    ignored = {one.number for one in state.ignored}
    proposed = [
        (entry.digest, version_of(entry, state.bundles))
        for number, entry in reversed([*enumerate(log.entries, 1)])
        if entry.kind == kinds.PROPOSED and number not in ignored
    ]
    known = [
        (digest, version)
        for digest, version in proposed
        if version.bundle in state.bundles and version.policy in state.policies
    ]
    # Whole digests first: other names are the proposers' words.
    for digest, version in known:
        if text in (digest, version.digest):
            return version
    for digest, version in known:
        if find((digest, version.digest, version.bundle, version.policy), text):
            return version
        if version.model == text:
            return version
    raise RegistryRefused(f"there is no version {text!r}: `paywarden models list --log` has them")


def _is_known(registered: Registered | None, part: str, record: Mapping[str, Value]) -> bool:
    """Returns whether a part is registered. Raises RegistryRefused if it is, with other files or facts."""
    if registered is None:
        return False
    theirs, ours = ({**facts, **files_of(facts)} for facts in (registered.facts, record))
    different = sorted(name for name in {*theirs, *ours} - {"files"} if theirs.get(name) != ours.get(name))
    if not different:
        return True
    name = different[0]
    raise RegistryRefused(
        f"the {part} {registered.digest[:SHOWN]} is registered already, by {registered.by}, with another {name} "
        f"({theirs.get(name, 'none')}, yours is {ours.get(name, 'none')}): register a copy of the registered files, or "
        f"let an admin revoke the key {registered.key} if they must not be used"
    )


def _bundle_record(bundle: BundleFacts) -> Mapping[str, Value]:
    return {
        "bundle": bundle.digest,
        "catalogue": bundle.catalogue,
        "identity": bundle.identity,
        "model_version": bundle.model_version,
        "files": checksums_of(bundle.files),
    }
