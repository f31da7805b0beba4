"""`paywarden models`: the registry of models, with proposers, approvals, the champion, and signatures."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.ops.options import at_most_one
from paywarden.ops.reporting import print_table, printable
from paywarden.ops.times import now_ms, spoken, time_ms_option
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from paywarden.models.bundle.version import Version
    from paywarden.models.registry.entries import Entry
    from paywarden.models.registry.registry import Registry, Signer
    from paywarden.models.registry.registry_rules import Proposal, RegistryState

_SHOWN = 12
_LINES_MAX = 20
_Command = TypeVar("_Command", bound=Callable[..., Any])
_SIGNING_KEY = click.option(
    "--key",
    type=click.Path(dir_okay=False),
    help="PEM file of your Ed25519 private key, mode 600 (default: [models] key_file).",
)


@click.group()
def models() -> None:
    """Register, approve, promote and roll back models.

    Each step is an entry in a log: signed by a person's key, and chained to the entry before it. Every reader of the
    log checks signatures and rules by itself.
    """


def _signing(command: _Command) -> _Command:
    """Add the options of a command that writes an entry."""
    options = (
        click.option("--why", metavar="TEXT", required=True, help="The reason, for later readers of the log."),
        _SIGNING_KEY,
        click.option("--json", "as_json", is_flag=True, help="The result as JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _json(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="The result as JSON.")(command)


@models.command("key")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--out", type=click.Path(dir_okay=False), help="File to write the private key to.")
@click.option("--revoke", metavar="FINGERPRINT", help="Revoke the key of this fingerprint.")
@click.option("--why", metavar="TEXT", help="With --revoke: the reason, for later readers of the log.")
@_SIGNING_KEY
@_json
@click.pass_obj
def make_or_revoke_key(
    source: Source,
    name: str | None,
    out: str | None,
    revoke: str | None,
    why: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Make a key for the person NAME, or revoke a key.

    The private key goes to a new file that only you can read. The lines printed are for the file of people. Its keeper
    adds the roles.

    Entries that a revoked key signs from now on do not count. Its approvals of open proposals do not count any more,
    and its proposals and registrations that nobody else has used are taken back. A revocation needs no Kafka, and
    counts whatever the time of other entries. Everybody may revoke their own key, and the role `admin` any.
    """
    if revoke is not None:
        if name is not None or out is not None:
            raise click.UsageError("--revoke: wanted neither NAME nor --out")
        _revoke(source, revoke, _reason(why, "--revoke"), key, as_json=as_json)
    elif name is None or out is None:
        raise click.UsageError("wanted NAME and --out, or --revoke")
    else:
        _make_key(name, out, as_json=as_json)


def _reason(why: str | None, option: str) -> str:
    if not why:
        raise click.UsageError(f"{option}: wanted --why")
    return why


def _make_key(name: str, out: str, *, as_json: bool) -> None:
    from paywarden.models.bundle.signature import fingerprint
    from paywarden.models.registry.entries import is_name
    from paywarden.models.registry.people import make_signing_key, public_text

    if not is_name(name):
        raise Misconfigured(f"NAME: wanted letters, digits and . _ @ -, at most 64, got {name!r}")
    public = make_signing_key(Path(out)).public_key()
    if as_json:
        click.echo(json.dumps({"name": name, "key": public_text(public), "fingerprint": fingerprint(public)}))
        return
    click.echo(f'[[person]]\nname = "{name}"\nroles = []\nkeys = ["{public_text(public)}"]')


@models.command()
@click.argument("bundle", type=click.Path(file_okay=False), required=False)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(dir_okay=False),
    help="TOML file whose [policy] is to decide (default: the configuration's).",
)
@_signing
@click.pass_obj
def register(
    source: Source, bundle: str | None, policy_file: str | None, why: str, key: str | None, as_json: bool
) -> None:
    """Register BUNDLE and a policy, and propose them.

    Both go into the registry, and the proposal is that they decide. The bundle is loaded and checked as `serve` does
    it. Without BUNDLE the policy is proposed for the champion's bundle.
    """
    with _opened(source, key) as (registry, signer):
        _register(source, registry, signer, bundle, policy_file, why, as_json)


def _register(
    source: Source,
    registry: Registry,
    signer: Signer,
    bundle: str | None,
    policy_file: str | None,
    why: str,
    as_json: bool,
) -> None:
    facts = None if bundle is None else wiring.bundle_facts(source, Path(bundle))
    thresholds = _thresholds(registry, bundle)
    policy = wiring.policy_facts(source, read_source(policy_file, {}) if policy_file else source, thresholds)
    entries = registry.register(signer, facts, policy, why=why, now_ms=now_ms())
    proposal = registry.state().proposals[entries[-1].digest]
    lines = [f"{entry.kind.replace('_', ' ')}: {_subject(entry)}" for entry in entries]
    lines.append(f"proposal {proposal.digest[:_SHOWN]} by {signer.name}{_still_needed(registry, proposal)}")
    _tell(as_json, entries, lines, proposal=_proposal_json(registry.state(), proposal))


def _thresholds(registry: Registry, bundle: str | None) -> tuple[float, float]:
    """Returns the thresholds of the bundle, or of the champion's."""
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.schemas.errors import RegistryRefused

    if bundle is None:
        served = registry.served(now_ms())
        if served is None:
            raise RegistryRefused("there is no champion whose bundle could be taken: name a bundle")
        bundle = str(served.bundle)
    manifest = read_manifest(Path(bundle))
    return manifest.review_at, manifest.decline_at


@models.command()
@click.argument("proposal")
@_signing
@click.pass_obj
def approve(source: Source, proposal: str, why: str, key: str | None, as_json: bool) -> None:
    """Approve PROPOSAL.

    PROPOSAL is a model version, or the first six digits or more of the digest of a proposal, version, bundle or policy.
    The person who proposed it, or registered a part of it, cannot approve it. An approval counts for [models]
    approval_days. The command prints the sha256 of each native library, which the bundle's digest leaves out.
    """
    with _opened(source, key) as (registry, signer):
        named, entry = registry.approve(signer, proposal, why=why, now_ms=now_ms())
    state = registry.state()
    now = state.proposals[named.digest]
    lines = [
        f"proposal {now.digest[:_SHOWN]} approved by {signer.name}{_still_needed(registry, now)}",
        *_libraries_in_words(state, now.version),
    ]
    _tell(as_json, [entry], lines, proposal=_proposal_json(state, now))


@models.command()
@click.argument("proposal")
@_signing
@click.pass_obj
def promote(source: Source, proposal: str, why: str, key: str | None, as_json: bool) -> None:
    """Let PROPOSAL decide from now on.

    It needs [models] approvals of people other than the proposer. The files of its bundle and policy are checked first.
    """
    with _opened(source, key) as (registry, signer):
        named, entry = registry.promote(signer, proposal, why=why, now_ms=now_ms())
    state = registry.state()
    lines = [f"champion {_spoken(named.version)}, promoted by {signer.name}"]
    if state.previous is not None:
        lines.append(f"the way back is {_spoken(state.previous)}: paywarden models rollback --why TEXT")
    _tell(as_json, [entry], lines, champion=_version_json(named.version))


@models.command()
@_signing
@click.pass_obj
def rollback(source: Source, why: str, key: str | None, as_json: bool) -> None:
    """Go back to the version before the champion.

    That version decides immediately. A rollback needs one person and no Kafka: the entry goes into this host's log, and
    to other hosts when they can be reached.
    """
    with _opened(source, key) as (registry, signer):
        good, bad, entry = registry.roll_back(signer, why=why, now_ms=now_ms())
    lines = [f"champion {_spoken(good)} again, {_spoken(bad)} rolled back by {signer.name}"]
    _tell(as_json, [entry], lines, champion=_version_json(good))


def _revoke(source: Source, fingerprint: str, why: str, key: str | None, *, as_json: bool) -> None:
    from paywarden.models.registry.entries import KEY_REVOKED

    with _opened(source, key) as (registry, signer):
        entry = registry.note(signer, KEY_REVOKED, {"revoked": fingerprint}, why=why, now_ms=now_ms())
    _tell(as_json, [entry], [f"the key {printable(fingerprint)} is revoked by {signer.name}"])


def _set_clock(source: Source, why: str, key: str | None, *, as_json: bool) -> None:
    from paywarden.models.registry.entries import CLOCK_SET

    with _opened(source, key) as (registry, signer):
        entry = registry.note(signer, CLOCK_SET, {}, why=why, now_ms=now_ms())
    _tell(as_json, [entry], [f"the newest time of the log is {spoken(entry.time_ms)} UTC"])


# Reading


@models.command("list")
@click.option("--log", "whole", is_flag=True, help="Every entry of the log, the oldest first.")
@click.option(
    "--at", "time", metavar="TIME", help="The version that decided at a date or a time, and by whose promotion."
)
@_json
@click.pass_obj
def list_models(source: Source, whole: bool, time: str | None, as_json: bool) -> None:
    """List the champion and the proposals.

    It shows the way back and the approvals of each proposal. It also names entries that break a rule and therefore
    count for nothing, and those of a clock that was ahead: they count from their time on.
    """
    asked_ms, present_ms = time_ms_option("--at", time), now_ms()
    registry = wiring.model_registry(source)
    log, state = registry.log.read(), registry.state(present_ms if asked_ms is None else asked_ms)
    ahead = [entry for entry in log.entries if entry.time_ms > present_ms]
    if as_json:
        entries = {"entries": [_entry_json(entry) for entry in log.entries]} if whole else {}
        content = {**_state_json(registry, state), "ahead": [_entry_json(entry) for entry in ahead], **entries}
        click.echo(json.dumps(content, indent=2))
        return
    if asked_ms is not None:
        _print_champion(state, asked_ms)
        return
    if whole:
        ignored = {one.number: one.reason for one in state.ignored}
        for number, entry in enumerate(log.entries, 1):
            told = f"  IGNORED: {ignored[number]}" if number in ignored else ""
            subject = f"{entry.kind.replace('_', ' ')} {_subject(entry)}"
            click.echo(printable(f"{spoken(entry.time_ms)}  {entry.by:<12} {subject}: {entry.why}{told}"))
        return
    _print_state(registry, state)
    lines = [
        f"ahead     {entry.kind.replace('_', ' ')} {_subject(entry)} by {entry.by} is of {spoken(entry.time_ms)} UTC: "
        "a clock jumped"
        for entry in ahead
    ]
    for line in _newest_of(lines):
        click.echo(printable(line))


def _print_champion(state: RegistryState, at_ms: int) -> None:
    if state.champion is None:
        click.echo(f"{spoken(at_ms)} UTC: nothing was promoted")
        return
    decided = state.history[-1]
    entry = decided.entry
    click.echo(f"{spoken(at_ms)} UTC: {_spoken(state.champion)}")
    click.echo(
        printable(f"since {spoken(decided.time_ms)} UTC, {entry.kind.replace('_', ' ')} by {entry.by}: {entry.why}")
    )


@models.command()
@click.option("--head", metavar="DIGEST", default="", help="A head that you remember: it must be in the log.")
@click.option("--topic", is_flag=True, help="Compare with the copy on Kafka: each entry there must be in the log.")
@click.option("--files/--no-files", default=True, help="Whether to check the files of all bundles and policies.")
@_json
@click.pass_obj
def verify(source: Source, head: str, topic: bool, files: bool, as_json: bool) -> None:
    """Look for damage in the log and the files.

    Anything that was changed, removed or moved in the log is found, and any changed file. Entries that are cut off at
    the end leave a log that is whole, without the head that its last writer noted in LOG.head. A person who can cut the
    log can change that file, too: keep the head that this command prints elsewhere, and give it the next time. Ends
    with status 1 if anything is wrong. Entries that break a rule are named: they count for nothing.
    """
    from paywarden.models.registry.model_log import LogFile
    from paywarden.models.registry.verification import problems_of
    from paywarden.schemas.errors import RegistryRefused

    registry = wiring.model_registry(source)
    path = registry.log.path
    try:
        content = read_regular(path, None)
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise Misconfigured(f"cannot read the log {path}: {error.strerror}") from error
    elsewhere = _entries_on_topic(source, registry) if topic else ()
    heads, noted = [head] if head else [], LogFile(path).remembered()
    problems = problems_of(content, registry.people, heads=heads, noted=noted, elsewhere=elsewhere, where=str(path))
    state = None
    try:
        state = registry.state()
        problems += _file_problems(registry, state) if files else []
    except RegistryRefused as error:
        # The problems name its line already.
        problems = problems or [str(error)]
    if as_json:
        told = {"problems": problems, "head": state.head if state else None, "entries": content.count(b"\n")}
        ignored = [{"line": one.number, "reason": one.reason} for one in state.ignored] if state else []
        click.echo(json.dumps({**told, "ignored": ignored}, indent=2))
    elif state is not None:
        click.echo("\n".join([*_ignored_lines(state), f"{content.count(bytes([10]))} entries, head {state.head}"]))
    for problem in problems:
        click.echo(f"paywarden: {problem}", err=True)
    if problems:
        sys.exit(1)


def _entries_on_topic(source: Source, registry: Registry) -> Sequence[Entry]:
    from paywarden.models.registry.copies import TopicReader

    reader = TopicReader(registry.people)
    with closing(wiring.registry_topic(source)) as topic:
        reader.take(topic.read())
    return reader.log.entries


def _file_problems(registry: Registry, state: RegistryState) -> list[str]:
    from paywarden.models.registry.artefacts import BUNDLES, POLICIES

    found = []
    for kind, parts in ((BUNDLES, state.bundles), (POLICIES, state.policies)):
        for digest, part in parts.items():
            try:
                registry.store.folder(kind, digest, part.files)
            except Misconfigured as error:
                # A store that does not answer proves nothing: the rest is checked all the same.
                found.append(str(error))
    return found


@models.command()
@click.option("--set-aside", is_flag=True, help="Take entries that another host's came before out of this host's log.")
@click.option("--set-clock", is_flag=True, help="Go on after an entry from a wrong clock.")
@click.option("--why", metavar="TEXT", help="With --set-clock: the reason, for later readers of the log.")
@_SIGNING_KEY
@_json
@click.pass_obj
def sync(source: Source, set_aside: bool, set_clock: bool, why: str | None, key: str | None, as_json: bool) -> None:
    """Make this host's log and the topic equal.

    It sends entries that only this host has, such as a rollback from a time without Kafka, and takes over those of
    other hosts. If the log has forked, the entries that were on the topic first count. The others are named, and
    nothing is changed; with --set-aside they go to a file beside the log.

    Entries that are older than the person's newest one, or than a time that two people have reached, are refused.
    --set-clock writes an entry after which no time before it is newer than its own. It needs the role `admin`, and no
    topic.
    """
    at_most_one(set_aside=set_aside, set_clock=set_clock)
    if set_clock:
        _set_clock(source, _reason(why, "--set-clock"), key, as_json=as_json)
        return
    registry = wiring.model_registry(source)
    with wiring.shared_log(source, registry, _warn) as log:
        done = log.sync(set_aside=set_aside)
    counts = {"sent": len(done.sent), "received": len(done.received), "set_aside": len(done.set_aside)}
    if as_json:
        told = {"refused": [one.reason for one in done.refused], "refused_count": done.refused_count}
        click.echo(json.dumps({**counts, **told, "head": registry.log.read().head}, indent=2))
        return
    if done.refused:
        click.echo(f"{done.refused_count} records of the topic count for nothing, the newest for these reasons:")
    for refused in done.refused:
        click.echo(printable(f"  {refused.reason}"))
    click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    click.echo(f"head {registry.log.read().head}")


@models.command()
@click.argument("version", required=False)
@click.option("--out", type=click.Path(dir_okay=False), help="File to write, NAME.md (default: stdout).")
@_json
@click.pass_obj
@needs("history")
def document(source: Source, version: str | None, out: str | None, as_json: bool) -> None:
    """Write the document of VERSION (default: the champion).

    It holds data, method, metrics with intervals, calibration, features, policy, limits, approvals and overrides, in
    Markdown. The same registry gives the same bytes. VERSION is a model version, or the first six digits or more of the
    digest of a version, bundle, policy or proposal.
    """
    text = wiring.model_paper(source, version)
    if out is not None:
        try:
            Path(out).write_text(text, encoding="utf-8")
        except OSError as error:
            raise Misconfigured(f"cannot write {out}: {error.strerror}") from error
    if as_json:
        told = {"file": out, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        click.echo(json.dumps(told if out else {**told, "text": text}, indent=2))
    elif out is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{out}: {len(text.encode())} bytes")


# The printed text


@contextmanager
def _opened(source: Source, key: str | None) -> Iterator[tuple[Registry, Signer]]:
    with wiring.shared_registry(source, _warn) as registry:
        yield registry, wiring.signer(source, key, registry)


def _warn(line: str) -> None:
    click.echo(f"paywarden: {line}", err=True)


def _tell(as_json: bool, entries: Sequence[Entry], lines: Iterable[str], **more: Any) -> None:
    head = entries[-1].digest
    if as_json:
        click.echo(json.dumps({"entries": [_entry_json(entry) for entry in entries], "head": head, **more}, indent=2))
        return
    click.echo("\n".join([*map(printable, lines), f"head {head}"]))


def _subject(entry: Entry) -> str:
    """Returns the subject of an entry, in one word or two."""
    for name in ("model_version", "bundle", "policy", "proposal", "rollout", "revoked", "from"):
        if text := entry.text(name):
            return text if name in ("model_version", "rollout", "revoked") else text[:_SHOWN]
    return ""


def _spoken(version: Version) -> str:
    return f"{version.digest[:_SHOWN]} ({version.model}, policy {version.policy[:_SHOWN]})"


def _still_needed(registry: Registry, proposal: Proposal) -> str:
    wanted = registry.rules.approvals
    agreed = len(proposal.approvers(now_ms()))
    if agreed >= wanted:
        return ": it can be promoted"
    return f": {agreed} of {wanted} approvals"


def _print_state(registry: Registry, state: RegistryState) -> None:
    if state.champion is None:
        click.echo("nothing was promoted")
    else:
        decided = state.history[-1]
        since = f"since {spoken(decided.time_ms)} UTC by {decided.entry.by}"
        click.echo(f"champion  {_spoken(state.champion)}, {since}")
    if state.previous is not None:
        click.echo(f"way back  {_spoken(state.previous)}")
    if state.rollout is not None:
        paused = ", paused" if state.rollout.is_paused else ""
        click.echo(
            f"rollout   {printable(state.rollout.name)} ({state.rollout.mode}{paused}) of "
            f"{_spoken(state.rollout.version)}"
        )
    rows = [
        (
            proposal.digest[:_SHOWN],
            _spoken(proposal.version),
            proposal.by,
            f"{', '.join(proposal.approvers(now_ms())) or 'nobody'}{_still_needed(registry, proposal)}",
        )
        for proposal in state.proposals.values()
    ]
    if rows:
        print_table(("proposal", "version", "by", "approved by"), rows, text_columns=4)
    click.echo("\n".join([*_ignored_lines(state), f"head      {state.head}"]))


def _ignored_lines(state: RegistryState) -> list[str]:
    ignored = [
        f"line {one.number} counts for nothing: {one.entry.kind} by {one.entry.by}: {one.reason}"
        for one in state.ignored
    ]
    return [*map(printable, _newest_of(ignored)), *map(printable, _newest_of(state.notes))]


def _newest_of(lines: Sequence[str]) -> list[str]:
    """Returns the newest of the lines about entries. Each person can write any number of entries."""
    more = [f"{len(lines) - _LINES_MAX} more, see `paywarden models list --log`"] if len(lines) > _LINES_MAX else []
    return [*more, *lines[-_LINES_MAX:]]


def _libraries_in_words(state: RegistryState, version: Version) -> list[str]:
    """Returns a line for each native library of a version's bundle: the files that its digest leaves out."""
    by = state.bundles[version.bundle].by
    return [f"{name} of {by}: sha256 {checksum}" for name, checksum in state.libraries(version).items()]


def _entry_json(entry: Entry) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(entry.line)
    return {"digest": entry.digest, **whole}


def _version_json(version: Version) -> dict[str, Any]:
    return {
        "version": version.digest,
        "bundle": version.bundle,
        "policy": version.policy,
        "catalogue": version.catalogue,
        "model_version": version.model,
    }


def _proposal_json(state: RegistryState, proposal: Proposal) -> dict[str, Any]:
    return {
        "proposal": proposal.digest,
        **_version_json(proposal.version),
        "by": proposal.by,
        "time_ms": proposal.time_ms,
        "why": proposal.why,
        "approved_by": proposal.approvers(now_ms()),
        "registered_by": state.bundles[proposal.version.bundle].by,
        "libraries": state.libraries(proposal.version),
    }


def _state_json(registry: Registry, state: RegistryState) -> dict[str, Any]:
    versions = {
        name: None if version is None else _version_json(version)
        for name, version in (("champion", state.champion), ("previous", state.previous))
    }
    rollout = state.rollout and {
        "rollout": state.rollout.name,
        "mode": state.rollout.mode,
        "is_paused": state.rollout.is_paused,
        **_version_json(state.rollout.version),
    }
    return {
        **versions,
        "since_ms": state.history[-1].time_ms if state.history else None,
        "approvals_needed": registry.rules.approvals,
        "proposals": [_proposal_json(state, proposal) for proposal in state.proposals.values()],
        "bundles": [{"bundle": one.digest, "by": one.by, "time_ms": one.time_ms} for one in state.bundles.values()],
        "policies": [{"policy": one.digest, "by": one.by, "time_ms": one.time_ms} for one in state.policies.values()],
        "rollout": rollout,
        "ignored": [{"line": one.number, "reason": one.reason} for one in state.ignored],
        "head": state.head,
    }
