"""A configuration in a folder and the Paywarden processes that run with it, for tests with a real broker."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.schemas.settings import read_source
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.services.product import internals
from tests.services.product.processes import ROOT, PaywardenProcess, run_paywarden, wait_until


class Deployment:
    """A configuration in a folder, and the processes that run with it. `with` stops them all."""

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        topic_prefix: str,
        *,
        stream_batch_max: int = 2000,
        aerospike: str | None = None,
    ) -> None:
        """`aerospike`: `host:port` of a server to keep profiles in; None keeps them in LMDB."""
        self.folder = folder
        self.config = folder / "paywarden.toml"
        self.store, self.mirror, self.outbox = folder / "store", folder / "mirror", folder / "outbox"
        self.bundle = folder / "bundle"
        self.config.write_text(
            f'[kafka]\nbootstrap = "{bootstrap}"\ntopic_prefix = "{topic_prefix}"\n'
            "[topics]\npartitions = 4\nrepartition_partitions = 3\n"
            f'[stream]\ngroup_id = "{topic_prefix}stream"\n'
            # An objective that is seldom kept: the broker then hardly holds records back.
            "progress_every_ms = 50\nfreshness_objective_ms = 100\n"
            # Payments of simulated worlds are of 2024, and are sent today.
            f"past_ms_max = {TIME_BOUND_MS_MAX}\n[limits]\npast_ms_max = {TIME_BOUND_MS_MAX}\n"
            "[companion]\ndecisions_every_ms = 100\n"
            + (
                f'[store]\nkind = "lmdb"\n[lmdb]\npath = "{self.store}"\n'
                if aerospike is None
                else f'[store]\nkind = "aerospike"\n[aerospike]\nhosts = ["{aerospike}"]\n'
            )
            + f'[mirror]\npath = "{self.mirror}"\nsize_mb = 256\n'
            f'[outbox]\ndirectory = "{self.outbox}"\n'
            f'[answered]\npath = "{folder / "answered"}"\npayments_max = 100000\n'
            f'[serve]\nbundle = "{self.bundle}"\nmetrics = "{folder / "metrics"}"\n'
            # The default is a folder of the checkout, in which other tests leave what they deploy.
            f'runtime = "{folder / "serve"}"\n'
            "[http]\nport = 0\n[grpc]\nport = 0\n",
            encoding="utf-8",
        )
        self._internals: dict[str, dict[str, float | str]] = {}
        self.configure_internally("stream", batch_wait_ms=5, batch_max=stream_batch_max, session_timeout_ms=6000)
        self.configure_internally("companion", batch_wait_ms=5)
        self.running: list[PaywardenProcess] = []

    def start(
        self, *arguments: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, afresh: bool = False
    ) -> PaywardenProcess:
        process = PaywardenProcess(
            self.folder, self.config, *arguments, cwd=cwd, environment=environment, afresh=afresh
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return run_paywarden("--config", str(self.config), *arguments, environment=environment)

    def configure(self, section: str, lines: str) -> None:
        """Add lines to a section of the configuration, for processes that start from now on."""
        text, head = self.config.read_text(encoding="utf-8"), f"[{section}]\n"
        text = text.replace(head, head + lines) if head in text else text + head + lines
        self.config.write_text(text, encoding="utf-8")

    def configure_internally(self, section: str, **values: float | str) -> None:
        """Set fields that are no settings, likewise: waits and sizes that would make a test slow."""
        self._internals.setdefault(section, {}).update(values)
        internals.write(self.folder, self._internals)

    def create_topics(self) -> None:
        """Create the topics as `paywarden topics create` does, without the second that a process takes.

        A broker on a busy machine may not answer for longer than the command waits.
        """
        source = read_source(str(self.config))
        kafka, topics = source.section("kafka", KafkaSettings), source.section("topics", TopicSettings)
        entities = [entity.name for entity in CATALOGUE.entities]

        def created() -> bool:
            try:
                create_topics(kafka, topics, entities)
            except BrokerUnavailable:
                return False
            return True

        wait_until(created, "the topics are created")

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            if process.process.poll() is None:
                process.stop()
            else:
                process._close()
