"""Builds the evaluation of challengers in the shadow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.scoring_parts import served_release
from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import FileState, file_state
from paywarden.schemas.settings import DEFAULT_FILE, Source, read_source

if TYPE_CHECKING:
    import pyarrow as pa

    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.models.bundle.bundle import Bundle
    from paywarden.ops.wiring.releases import HostReleases
    from paywarden.scoring.server.deployment.deployment_file import ReleasePaths
    from paywarden.scoring.server.deployment.releases import Release
    from paywarden.streams.shadow.candidate import ShadowCandidate
    from paywarden.streams.shadow.host import ShadowHost
    from paywarden.streams.shadow.mirror_challenger import MirrorChallenger
    from paywarden.streams.shadow.shadow_evaluation import Challenger, ShadowEvaluator
    from paywarden.streams.shadow.shadow_settings import ConfiguredChallenger

_LOOK_EVERY_S = 2.0


@contextmanager
def shadow_host(source: Source, announce: Callable[[str], object], log: str) -> Iterator[ShadowHost]:
    """Give the host of all challengers, ready to run, and serve its health and metrics until the block ends.

    Calls `announce` with the address. `log` is the form of the log lines. Raises Misconfigured, BrokerUnavailable.
    """
    from paywarden.streams.health.health import metrics_registry
    from paywarden.streams.health.server import serving_health
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.shadow.host import ShadowHealth, ShadowHost, ShadowMetrics
    from paywarden.streams.shadow.shadow_settings import ShadowSettings

    settings = source.section("shadow", ShadowSettings)
    require_broker(stores.kafka_settings(source))
    names = [challenger.name for challenger in settings.challengers]
    registry, health = metrics_registry(), ShadowHealth()
    host = ShadowHost(
        {name: _command(source, name, log) for name in names},
        metrics=ShadowMetrics(registry, names),
        health=health,
        hang_timeout_s=settings.hang_timeout_s,
        follow=_followed(source, log),
    )
    address = (settings.http_host, settings.http_port)
    with serving_health(health, registry, host=address[0], port=address[1], section="shadow") as url:
        announce(url)
        yield host


def _followed(source: Source, log: str) -> Callable[[], dict[str, list[str]]]:
    """Returns a function that gives the command of the candidate in the shadow, by its rollout's name."""
    candidate = _candidate(source)
    return lambda: {name: _command(source, name, log) for name in candidate.look()}


def _candidate(source: Source) -> ShadowCandidate:
    from paywarden.streams.shadow.candidate import ShadowCandidate

    runtime = Path(source.section("serve", ServeSettings).runtime)
    return ShadowCandidate(runtime, lambda: stores.feature_engine(source).plan.digest)


def _command(source: Source, name: str, log: str) -> list[str]:
    """Returns the command of a challenger's process, with the configuration of this one."""
    config = [] if not source.file and source.name == DEFAULT_FILE else ["--config", source.name]
    return [sys.executable, "-P", "-m", "paywarden", *config, "--log", log, "shadow", "run", "--challenger", name]


def shadow_evaluator(source: Source, name: str) -> ShadowEvaluator:
    """Returns the evaluator of one challenger, loaded.

    Raises Misconfigured, BundleRefused, BrokerUnavailable, TemporaryFailure.
    """
    from paywarden.models.rollout.shadow import SHADOW_TOPIC
    from paywarden.schemas.avro import Encoder
    from paywarden.scoring.state.outbox import OutboxSettings
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.shadow.shadow_evaluation import ShadowEvaluator
    from paywarden.streams.shadow.shadow_settings import ShadowSettings
    from paywarden.streams.shadow.spare_time import SpareTime

    settings = source.section("shadow", ShadowSettings)
    configured = settings.challenger(name)
    take_priority(settings.priority)
    files = _candidate_files(source, name) if configured is None else _challenger_files(source, configured)
    clients = KafkaClients.of(replace(stores.kafka_settings(source), compression=settings.compression))
    # Raises unless the topic is there.
    clients.partitions(SHADOW_TOPIC)
    evaluator = ShadowEvaluator(
        name,
        files,
        outbox=source.section("outbox", OutboxSettings),
        settings=settings,
        sender=clients.sender(linger_ms=5),
        topic=clients.topic(SHADOW_TOPIC),
        encoder=Encoder(SHADOW_TOPIC, stores.schema_ids(source).id_of(SHADOW_TOPIC)),
    )
    if settings.priority == "idle":
        # A client makes its threads when it sends for the first time, and they have the priority of who does that.
        evaluator.use_spare_time(SpareTime(), clients.sender(linger_ms=5))
    return evaluator


def _challenger_files(source: Source, challenger: ConfiguredChallenger) -> ChallengerFiles:
    """Returns the files of a challenger: those of its own configuration, if it has one. Raises Misconfigured."""
    from paywarden.ops.wiring.releases import HostReleases

    own = read_source(challenger.config, source.environment) if challenger.config else source
    engine = stores.feature_engine(own)
    return ChallengerFiles(own, challenger, HostReleases(own, engine, None), engine)


def _candidate_files(source: Source, name: str) -> ChallengerFiles:
    """Returns the files of the candidate in the shadow. Raises Misconfigured if no candidate has this name."""
    from paywarden.ops.wiring.releases import HostReleases
    from paywarden.streams.shadow.shadow_settings import ConfiguredChallenger

    paths = _candidate(source).look().get(name)
    if paths is None:
        raise Misconfigured(f"[shadow] challengers: there is no {name!r}, and no rollout of this name in the shadow")
    engine = stores.feature_engine(source)
    challenger = ConfiguredChallenger(name, paths.bundle, paths.policy)
    return ChallengerFiles(source, challenger, HostReleases(source, engine, None), engine, paths=paths)


class ChallengerFiles:
    """The files of a challenger, looked at again while it runs."""

    def __init__(
        self,
        source: Source,
        challenger: ConfiguredChallenger,
        releases: HostReleases,
        engine: FeatureEngine,
        clock: Callable[[], float] = time.monotonic,
        paths: ReleasePaths | None = None,
    ) -> None:
        """`source`: the configuration of a shadow host, or that of the host.

        `paths`: bundle and policy with the digests that they must have; None: as the challenger says.
        """
        self._fixed = paths
        self._source, self._challenger, self._releases, self._clock = source, challenger, releases, clock
        self._engine = engine
        self._seen: dict[Path, FileState | None] = {}
        self._look_at = 0.0
        self._bundle: Bundle | None = None
        self._open: MirrorChallenger | None = None

    def load(self) -> Challenger:
        """See ChallengerSource. Raises Misconfigured, BundleRefused."""
        from paywarden.streams.shadow.challenger import VectorChallenger

        challenger, paths = self._challenger, self._paths()
        self._seen = self._states(paths)
        release = self._releases.load(paths, with_fallback=False)
        made: Challenger
        if challenger.config:
            made = self._of_own_mirror(release)
        else:
            made = VectorChallenger(
                challenger.name,
                release.bundles[0],
                release.policy.policy,
                catalogue_digest=self._engine.plan.digest,
                rates=stores.rate_table(self._source),
                is_policy_alone=not challenger.bundle,
            )
        if self._bundle is not None:
            # No call is in its library: one thread evaluates and loads.
            self._bundle.close()
        self._bundle = release.bundles[0]
        return made

    def _of_own_mirror(self, release: Release) -> MirrorChallenger:
        from paywarden.scoring.requests.decoder import RequestDecoder
        from paywarden.scoring.requests.validation import RequestLimits
        from paywarden.scoring.state.mirror_file import MirrorSettings
        from paywarden.streams.shadow.mirror_challenger import MirrorChallenger

        if self._open is not None:
            # A process opens a mirror once.
            self._open.close()
        self._engine.warm_up()
        self._open = MirrorChallenger(
            self._challenger.name,
            release.bundles[0],
            release.policy.policy,
            engine=self._engine,
            mirror=self._source.section("mirror", MirrorSettings),
            decoder=RequestDecoder(
                self._engine.plan, stores.rate_table(self._source), self._source.section("limits", RequestLimits)
            ),
        )
        return self._open

    def has_changed(self) -> bool:
        """See ChallengerSource."""
        if self._clock() < self._look_at:
            return False
        self._look_at = self._clock() + _LOOK_EVERY_S
        with suppress(Misconfigured):
            return self._states(self._paths()) != self._seen
        return False

    def _paths(self) -> ReleasePaths:
        """Returns bundle and policy. A policy alone is for the bundle that decides now. Raises Misconfigured."""
        from paywarden.scoring.server.deployment.deployment_file import ReleasePaths

        if self._fixed is not None:
            return self._fixed
        challenger = self._challenger
        return ReleasePaths(
            challenger.bundle or served_release(self._source, self._engine.plan.digest).bundle, challenger.policy
        )

    def _states(self, paths: ReleasePaths) -> dict[Path, FileState | None]:
        return {path: file_state(path) for path in self._releases.files_of(paths)}


def shadow_tables(
    source: Source, archive: Path | None, since_ms: int | None, until_ms: int | None
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Returns shadow decisions, decisions and outcomes of a range of Kafka's times, from an archive or the topics.

    An archive may be without outcomes. Raises Misconfigured, BrokerUnavailable, TemporaryFailure.
    """
    from paywarden.ops.progress import scan_bar
    from paywarden.streams.archive.files import read_archive, topic_folder
    from paywarden.streams.kafka.topic_rows import OFFSET, RowBuilder, read_topic, rows_schema
    from paywarden.streams.shadow import report

    def read(topic: str, columns: Sequence[str], until_ms: int | None) -> pa.Table:
        schema = rows_schema(topic, columns=(*columns, OFFSET))
        if archive is not None:
            if topic == "outcomes" and not topic_folder(archive, topic).is_dir():
                return schema.empty_table()
            return read_archive(archive, topic, schema, since_ms=since_ms, until_ms=until_ms).table
        kafka, ids = stores.kafka_settings(source), stores.schema_ids(source)
        with scan_bar(topic) as bar:
            builder = RowBuilder(topic, ids, columns=columns)
            rows = read_topic(kafka, builder, since_ms=since_ms, until_ms=until_ms, progress=bar)
        return rows.table

    return (
        read("shadow-decisions", report.SHADOW_COLUMNS, until_ms),
        read("decisions", report.DECISION_COLUMNS, until_ms),
        read("outcomes", report.OUTCOME_COLUMNS, None),
    )


def take_priority(priority: str) -> None:
    """Let the kernel run this process and its later threads after others: see `[shadow] priority`.

    A challenger of the priority "idle" loads and compiles its files with a share of the cores.
    """
    from paywarden.streams.shadow.spare_time import take_low_priority, take_share

    if priority == "idle":
        take_share()
    elif priority == "low":
        take_low_priority()
