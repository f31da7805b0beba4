"""Builds the registry of models, and the versions that are put into it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_state
from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from paywarden.models.registry.registry import BundleFacts, PolicyFacts, Registry, Signer
    from paywarden.models.registry.registry_settings import ModelRegistrySettings
    from paywarden.schemas.avro import SchemaIds
    from paywarden.streams.kafka.client import KafkaSettings
    from paywarden.streams.registry.follower import FollowerMetrics, LogFollower
    from paywarden.streams.registry.registered_deployment import RegisteredDeployment
    from paywarden.streams.registry.shared_log import SharedLog
    from paywarden.streams.registry.topic import KafkaRegistryTopic

_log = logging.getLogger(__name__)


def model_registry(source: Source) -> Registry:
    """Returns the registry of the settings `[models]`. Raises Misconfigured, also without a file of people."""
    from paywarden.models.registry.artefacts import open_store
    from paywarden.models.registry.model_log import LogFile
    from paywarden.models.registry.people import RegistryPeople
    from paywarden.models.registry.registry import Registry
    from paywarden.models.registry.registry_settings import ModelRegistrySettings

    settings = source.section("models", ModelRegistrySettings)
    if not settings.people:
        raise Misconfigured("[models] people: wanted the file of names, roles and public keys")
    return Registry(
        LogFile(settings.log_path),
        RegistryPeople.read(Path(settings.people)),
        settings.rules,
        open_store(settings.folder, Path(settings.cache)),
    )


@contextmanager
def shared_registry(source: Source, tell: Callable[[str], object]) -> Iterator[Registry]:
    """Yields the registry for commands that write: where `[models] topic` is set, its log is on Kafka as well.

    If this machine is a scoring host, it serves the log's releases when the block has ended; after a rollback before
    Kafka is asked. `tell` gets a line when a rollback is on this host only.
    """
    from paywarden.models.registry.registry_settings import ModelRegistrySettings

    registry = model_registry(source)
    if source.section("models", ModelRegistrySettings).topic:
        with shared_log(source, registry, tell) as log:
            yield replace(registry, log=log)
    else:
        yield registry
    deploy_here(source, tell)


@contextmanager
def shared_log(source: Source, registry: Registry, tell: Callable[[str], object]) -> Iterator[SharedLog]:
    """Yields the log that hosts share on Kafka. Nobody is asked before it is used."""
    from paywarden.models.registry.model_log import LogFile
    from paywarden.streams.registry.shared_log import SharedLog

    def opened() -> closing[KafkaRegistryTopic]:
        return closing(registry_topic(source))

    with opened() as topic:
        yield SharedLog(
            LogFile(registry.log.path),
            topic,
            registry.people,
            tell,
            wrote=lambda: deploy_here(source, tell),
            # On another machine no companion would send the entries that are left, and no host would have changed.
            apart=opened if _is_scoring_host(source) else None,
        )


def following_registry(source: Source, metrics: CollectorRegistry) -> AbstractContextManager[object]:
    """Returns the follower that keeps a host's log equal to the topic's, and its deployment file equal to the log.

    It works while the block runs. Without `[models] people` there is nothing to follow. Raises Misconfigured.
    """
    from paywarden.models.registry.registry_settings import ModelRegistrySettings

    settings = source.section("models", ModelRegistrySettings)
    if not (settings.people or settings.topic):
        return nullcontext()
    from paywarden.streams.registry.follower import FollowerMetrics

    # Raises at the start an error that would come back in each round.
    model_registry(source)
    return _log_follower(
        source, settings, deploy=registered_deployment(source).update, metrics=FollowerMetrics(metrics)
    )


def reading_registry(source: Source) -> LogFollower | None:
    """Returns the follower of a machine that serves nothing and reads the log, such as a console's.

    None where hosts share no log. Raises Misconfigured.
    """
    from paywarden.models.registry.registry_settings import ModelRegistrySettings

    settings = source.section("models", ModelRegistrySettings)
    if not (settings.people and settings.topic):
        return None
    return _log_follower(source, settings, deploy=None, metrics=None)


def _log_follower(
    source: Source,
    settings: ModelRegistrySettings,
    *,
    deploy: Callable[[], object] | None,
    metrics: FollowerMetrics | None,
) -> LogFollower:
    from paywarden.streams.registry.follower import LogFollower

    @contextmanager
    def opened() -> Iterator[SharedLog]:
        with shared_log(source, model_registry(source), _log.warning) as log:
            yield log

    def stamp() -> object:
        # Opening the log raises the right error for a file that is gone.
        return file_state(settings.people)

    return LogFollower(
        opened if settings.topic else None, deploy=deploy, stamp=stamp, every_s=settings.sync_s, metrics=metrics
    )


def registered_deployment(source: Source) -> RegisteredDeployment:
    """Returns the writer of this host's deployment file. Raises Misconfigured without a registry."""
    from paywarden.models.registry.registry_settings import ModelRegistrySettings
    from paywarden.ops.wiring.serve_settings import ServeSettings
    from paywarden.streams.registry.registered_deployment import RegisteredDeployment

    settings = source.section("models", ModelRegistrySettings)
    runtime = Path(source.section("serve", ServeSettings).runtime)
    return RegisteredDeployment(lambda: model_registry(source), runtime, [settings.log_path, Path(settings.people)])


def deploy_here(source: Source, tell: Callable[[str], object]) -> None:
    """Make the scoring host on this machine serve the log's releases, without waiting for its companion.

    A machine without the folder `[serve] runtime` is no scoring host. `tell` gets a line if it cannot be done.
    """
    if not _is_scoring_host(source):
        return
    try:
        registered_deployment(source).update()
    except Misconfigured as error:
        tell(f"the deployment file of this host is not changed yet: {error}")


def _is_scoring_host(source: Source) -> bool:
    from paywarden.ops.wiring.serve_settings import ServeSettings

    return Path(source.section("serve", ServeSettings).runtime).is_dir()


def registry_topic(source: Source) -> KafkaRegistryTopic:
    """Returns the topic. Its first use raises BrokerUnavailable if no broker answers, Misconfigured."""
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.registry.topic import KafkaRegistryTopic

    def connect() -> tuple[KafkaSettings, SchemaIds]:
        kafka = stores.kafka_settings(source)
        require_broker(kafka)
        return kafka, stores.schema_ids(source)

    return KafkaRegistryTopic(connect)


def signer(source: Source, key_file: str | None, registry: Registry) -> Signer:
    """Returns who signs: the owner of `key_file` or of `[models] key_file`. Raises Misconfigured."""
    from paywarden.models.registry.registry import Signer
    from paywarden.models.registry.registry_settings import ModelRegistrySettings

    path = key_file or source.section("models", ModelRegistrySettings).key_file
    if not path:
        raise Misconfigured("[models] key_file: wanted the PEM file of your private key, or give --key")
    return Signer.of(Path(path), registry.people)


def bundle_facts(source: Source, bundle: Path) -> BundleFacts:
    """Returns a bundle that this deployment can serve, with its files.

    Raises BundleRefused if it is unsigned where `[bundles] trusted_keys` asks for it, damaged, or for another catalogue
    or key of identities; RegistryRefused if it lacks the library of a processor.
    """
    from paywarden.models.bundle.bundle import load_bundle
    from paywarden.models.bundle.signature import BundleSettings, TrustedKeys
    from paywarden.models.registry.artefacts import bundle_files, processors_of
    from paywarden.models.registry.registry import BundleFacts
    from paywarden.models.registry.registry_settings import ModelRegistrySettings
    from paywarden.schemas.errors import RegistryRefused

    engine = stores.feature_engine(source)
    files = bundle_files(bundle)
    built, wanted = processors_of(files), source.section("models", ModelRegistrySettings).processors
    # A machine without a compiler has no library at all, and scores with the interpreter.
    for processor in wanted or ((platform.machine(),) if built else ()):
        if processor not in built:
            raise RegistryRefused(
                f"bundle {bundle}: it has no library for {processor} (it has {', '.join(built) or 'none'}): "
                "run `paywarden compile` on such a machine"
            )
    manifest = load_bundle(
        bundle,
        catalogue_digest=engine.plan.digest,
        identity_digest=engine.plan.key.digest,
        trusted=TrustedKeys.read(source.section("bundles", BundleSettings)),
    ).manifest
    return BundleFacts(
        manifest.digest, manifest.model_version, manifest.catalogue_digest, manifest.identity_digest, files
    )


def policy_facts(source: Source, policy: Source, thresholds: tuple[float, float]) -> PolicyFacts:
    """Returns the policy of `[policy]` in `policy`, with its lists. `thresholds`: the bundle's, for review and decline.

    `source` is the deployment, whose catalogue conditions name. Raises Misconfigured with the first thing that is
    wrong with it.
    """
    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import PolicySettings, policy_digest, policy_problems
    from paywarden.models.policy.text import policy_text
    from paywarden.models.registry.registry import PolicyFacts

    settings = policy.section("policy", PolicySettings)
    lists = read_lists(settings.lists)
    review_at, decline_at = thresholds
    for problem in policy_problems(
        settings, review_at=review_at, decline_at=decline_at, lists=lists, catalogue=stores.catalogue(source)
    ):
        raise Misconfigured(problem)
    return PolicyFacts(policy_digest(settings, lists), policy_text(settings, lists))


def model_paper(source: Source, text: str | None) -> str:
    """Returns the document of the version that a text names, of the champion without one. Raises RegistryRefused."""
    from paywarden.features.profiles.feature_docs import listed_features
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import PolicySettings
    from paywarden.models.registry.document import Paper
    from paywarden.models.registry.registry import version_named
    from paywarden.models.registry.registry_rules import state_of

    registry = model_registry(source)
    log = registry.log.read()
    state = state_of(log, registry.people, registry.rules)
    version = version_named(log, state, text)
    served = registry.files_of(state, version, any_processor=True)
    policy = read_source(str(served.policy), {}).section("policy", PolicySettings)
    engine = stores.feature_engine(source)
    meanings = (
        {feature.name: feature.meaning for feature in listed_features(stores.catalogue(source))}
        if engine.plan.digest == version.catalogue
        else {}
    )
    sizes = {name: len(entries) for name, entries in read_lists(policy.lists).items()}
    return Paper(version, read_manifest(served.bundle), policy, sizes, log, state, registry.rules, meanings).text()
