"""`paywarden decisions`: what decided about a payment, and whether it would decide the same again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.reporting import printable
from paywarden.ops.times import spoken
from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from paywarden.models.bundle.bundle import Bundle
    from paywarden.models.policy.policy import Policy

_WHO = ("rollout", "arm", "propensity", "caller", "variant", "profile_set", "catalogue_digest")


@click.group()
def decisions() -> None:
    """Look at decisions that were made."""


@decisions.command()
@click.argument("payment_id")
@click.option("--archive", type=click.Path(path_type=Path), help="Look in this archive of the topic decisions.")
@click.option("--topic", is_flag=True, help="Look on the topic decisions, which is read from its beginning.")
@click.option("--bundles", type=click.Path(path_type=Path), help="A folder of bundles to look for the digest in.")
@click.option("--policies", type=click.Path(path_type=Path), help="A folder of policies (*.toml), likewise.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_obj
def explain(
    source: Source,
    payment_id: str,
    archive: Path | None,
    topic: bool,
    bundles: Path | None,
    policies: Path | None,
    as_json: bool,
) -> None:
    """Say what decided about a payment, and decide again.

    It looks in this host's outboxes, or where an option says. Score, action and reasons are computed again from the
    stored vector, with the bundle and the policy whose digests the decision names. Both are looked for in [serve], in
    the releases below [serve] runtime, and in the folders of the options.

    The exit status is 0 if every decision about the payment is equal to the bit, otherwise 1.
    """
    if archive is not None and topic:
        raise click.UsageError("use either --archive or --topic")
    if archive is not None:
        place, found = str(archive), _archived(archive, payment_id)
    elif topic:
        place, found = "the topic decisions", _on_topic(source, payment_id)
    else:
        place, found = "the outboxes of this host", _in_outboxes(source, payment_id)
    by_id = {decision["decision_id"]: decision for decision in found}
    if not by_id:
        raise click.ClickException(f"there is no decision about payment {printable(payment_id)} in {place}")
    known = _Known(source, bundles, policies)
    told = [_explained(source, decision, known) for decision in by_id.values()]
    is_equal = all(each["equal"] for each in told)
    if as_json:
        click.echo(json.dumps({"payment_id": payment_id, "equal": is_equal, "decisions": told}, indent=2))
    else:
        for each in told:
            _print(each)
    sys.exit(0 if is_equal else 1)


def _explained(source: Source, decision: Mapping[str, Any], known: _Known) -> dict[str, Any]:
    from paywarden.scoring.engine.recomputed import decide_again, outcome_of

    stored = outcome_of(decision)
    names = ("decision_id", "decided_time_ms", "model_version", "bundle_digest", "policy_digest", *_WHO, "flags")
    told: dict[str, Any] = {name: decision[name] for name in names}
    told |= {"stored": vars(stored), "recomputed": None, "equal": False, "why": ""}
    try:
        if not decision["policy_digest"]:
            raise Misconfigured("the decision names no policy: it was made by an earlier release")
        digest = decision["bundle_digest"]
        bundle, folder = known.bundle(digest, decision["catalogue_digest"]) if digest else (None, None)
        policy = known.policy(decision["policy_digest"], folder)
        again = decide_again(decision, bundle, policy, wiring.rate_table(source))
    except PaywardenError as error:
        return told | {"why": str(error)}
    told |= {"recomputed": vars(again), "equal": stored.is_equal(again), "bundle": str(folder or "")}
    if not told["equal"]:
        told["why"] = ", ".join(
            name for name in ("score", "action", "reasons") if getattr(stored, name) != getattr(again, name)
        )
        told["why"] = f"not the same: {told['why'] or 'the last bits of the score'}"
    return told


def _print(told: Mapping[str, Any]) -> None:
    click.echo(f"decision {told['decision_id']}, {spoken(told['decided_time_ms'])} UTC")
    click.echo(f"  model    {printable(told['model_version']) or '(none)'}, bundle {told['bundle_digest'] or '(none)'}")
    click.echo(f"  policy   {told['policy_digest'] or '(not named)'}")
    who = [f"{name} {printable(str(told[name]))}" for name in _WHO if told[name] not in ("", 1.0)]
    click.echo(f"  with     {', '.join(who)}")
    for title in ("stored", "recomputed"):
        if (said := told[title]) is not None:
            reasons = ", ".join(map(printable, said["reasons"]))
            click.echo(f"  {title:<10} {said['score']!r} {said['action']} {reasons}".rstrip())
    click.echo(f"  {'equal to the bit' if told['equal'] else 'NOT equal: ' + told['why']}")


# Where decisions are


def _in_outboxes(source: Source, payment_id: str) -> Iterator[dict[str, Any]]:
    from google.protobuf.message import DecodeError

    from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
    from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, workers
    from paywarden.streams.companion.shipping import decision_of

    settings, wanted = source.section("outbox", OutboxSettings), payment_id.encode()
    for worker in workers(settings):
        reader = OutboxReader(settings, worker)
        position = reader.oldest()
        while records := reader.read(position, 10_000):
            position = records[-1][0]
            for _, payload in records:
                # To look for the text is much faster than to parse every record.
                if wanted not in payload:
                    continue
                try:
                    entry = OutboxEntry.FromString(payload)
                except DecodeError:
                    continue
                if entry.request.payment_id == payment_id:
                    yield decision_of(entry)


def _on_topic(source: Source, payment_id: str) -> Iterator[dict[str, Any]]:
    from paywarden.schemas.avro import Decoder
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.kafka.reading import records_to_end

    clients = KafkaClients.of(wiring.kafka_settings(source))
    decoder, key = Decoder("decisions", wiring.schema_ids(source)), payment_id.encode()
    with closing(clients.consumer(group_id="paywarden-decisions")) as consumer:
        for records in records_to_end(consumer, clients.topic("decisions"), clients.partitions("decisions")):
            for record in records:
                if record.key != key or record.value is None:
                    continue
                try:
                    yield decoder.decode(record.value)
                except InvalidEvent:
                    continue


def _archived(archive: Path, payment_id: str) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc

    from paywarden.schemas.avro import topic_schema
    from paywarden.streams.archive.files import read_archive
    from paywarden.streams.kafka.topic_rows import rows_schema

    schema = rows_schema("decisions")
    # Files of earlier releases lack the fields that were added since.
    added = {field["name"]: field["default"] for field in topic_schema("decisions")["fields"] if "default" in field}
    for number, field in enumerate(schema):
        if field.name in added:
            schema = schema.set(number, field.with_nullable(True))
    table = read_archive(archive, "decisions", schema, optional=tuple(added)).table
    for row in table.filter(pc.equal(pc.cast(table["payment_id"], "string"), payment_id)).to_pylist():
        yield row | {name: default for name, default in added.items() if row[name] is None}


# Bundles and policies by digest


class _Known:
    """Bundles and policies that this host can find, by digest."""

    def __init__(self, source: Source, bundles: Path | None, policies: Path | None) -> None:
        from paywarden.ops.wiring import ServeSettings
        from paywarden.scoring.server.deployment import READY

        self._source, self._policies = source, policies
        settings = source.section("serve", ServeSettings)
        self._ready = Path(settings.runtime) / READY
        self._folders = [Path(settings.bundle), *map(Path, filter(None, [settings.fallback_bundle]))]
        self._folders += [folder / "bundle" for folder in _inside(self._ready)]
        self._folders += [*_inside(bundles)] if bundles is not None else []

    def bundle(self, digest: str, catalogue_digest: str) -> tuple[Bundle, Path]:
        """Returns the bundle of a manifest's digest, and its folder. Raises Misconfigured, BundleRefused."""
        from paywarden.models.bundle.bundle import load_bundle, read_manifest

        for folder in self._folders:
            try:
                if read_manifest(folder).digest != digest:
                    continue
            except PaywardenError:
                continue
            return load_bundle(folder, catalogue_digest=catalogue_digest), folder
        raise Misconfigured(f"there is no bundle of digest {digest}: name a folder that holds it with --bundles")

    def policy(self, digest: str, bundle: Path | None) -> Policy:
        """Returns the policy of a digest, with the thresholds of the bundle. Raises Misconfigured."""
        from paywarden.models.bundle.bundle import read_manifest
        from paywarden.models.policy.prepared import load_policy

        thresholds = (0.5, 0.5) if bundle is None else _thresholds(read_manifest(bundle))
        for source in self._policy_sources():
            try:
                policy = wiring.policy(
                    source,
                    review_at=thresholds[0],
                    decline_at=thresholds[1],
                    catalogue=wiring.catalogue(self._source),
                )
            except PaywardenError:
                continue
            if policy.digest == digest:
                return policy
        for folder in _inside(self._ready):
            try:
                prepared = load_policy(folder, wiring.catalogue(self._source))
            except PaywardenError:
                continue
            if prepared.digest == digest and (bundle is None or _is_of(prepared.policy, thresholds)):
                return prepared.policy
        raise Misconfigured(f"there is no policy of digest {digest}: name a folder that holds it with --policies")

    def _policy_sources(self) -> Iterable[Source]:
        yield self._source
        if self._policies is not None:
            for path in sorted(self._policies.glob("**/*.toml")):
                yield read_source(str(path), {}, check_sections=False)


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _thresholds(manifest: Any) -> tuple[float, float]:
    return manifest.review_at, manifest.decline_at


def _is_of(policy: Policy, thresholds: tuple[float, float]) -> bool:
    """Whether a policy, whose settings may leave thresholds to the bundle, has those of this bundle."""
    own = (policy.settings.review_at or thresholds[0], policy.settings.decline_at or thresholds[1])
    return own == policy.thresholds
