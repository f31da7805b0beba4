"""Real Paywarden processes for tests: started from a configuration, stopped by their pids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.schemas.settings import read_source
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.checkout import CHECKOUT

ROOT = CHECKOUT


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0, every_s: float = 0.02) -> None:
    """Poll until the condition holds. At the timeout, fail with the name of the condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(every_s)


class PaywardenProcess:
    """One running command of the command line. Its log is kept in a file."""

    def __init__(
        self,
        folder: Path,
        config: Path,
        *arguments: str,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "paywarden", "--config", str(config), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=cwd,
                env=_environment(environment),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """Send SIGKILL, as a crash would end it."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        """Send SIGTERM. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._close()
        return code

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


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
            f'[stream]\ngroup_id = "{topic_prefix}stream"\nbatch_wait_ms = 5\nbatch_max = {stream_batch_max}\n'
            "progress_every_ms = 50\nsession_timeout_ms = 6000\n"
            # Payments of simulated worlds are of 2024, and are sent today.
            f"past_ms_max = {TIME_BOUND_MS_MAX}\n[limits]\npast_ms_max = {TIME_BOUND_MS_MAX}\n"
            "[companion]\nbatch_wait_ms = 5\n"
            + (
                f'[store]\nkind = "lmdb"\n[lmdb]\npath = "{self.store}"\n'
                if aerospike is None
                else f'[store]\nkind = "aerospike"\n[aerospike]\nhosts = ["{aerospike}"]\n'
            )
            + f'[mirror]\npath = "{self.mirror}"\nsize_mb = 256\n'
            f'[outbox]\ndirectory = "{self.outbox}"\n'
            f'[answered]\npath = "{folder / "answered"}"\npayments_max = 100000\n'
            f'[serve]\nbundle = "{self.bundle}"\nmetrics = "{folder / "metrics"}"\n'
            "[http]\nport = 0\n[grpc]\nport = 0\n",
            encoding="utf-8",
        )
        self.running: list[PaywardenProcess] = []

    def start(
        self, *arguments: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
    ) -> PaywardenProcess:
        process = PaywardenProcess(self.folder, self.config, *arguments, cwd=cwd, environment=environment)
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

    def create_topics(self) -> None:
        """Create the topics as `paywarden topics create` does, without the second that a process takes."""
        source = read_source(str(self.config))
        entities = [entity.name for entity in CATALOGUE.entities]
        create_topics(source.section("kafka", KafkaSettings), source.section("topics", TopicSettings), entities)

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            if process.process.poll() is None:
                process.stop()
            else:
                process._close()


def run_paywarden(
    *arguments: str, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command of the command line to its end, with extra environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "paywarden", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=_environment(environment),
    )


def _environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns our environment. A command imports from this checkout in whatever folder it runs."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}


def get(url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Returns (status, headers, body) of a request with any status, as a page of another origin would send it."""
    request = urllib.request.Request(url, method=method, headers={"Origin": "http://elsewhere.example"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def samples(address: str) -> dict[tuple[str, ...], float]:
    """Returns the samples of /metrics by name and label values (label names in reverse order), without zeros."""
    status, headers, body = get(f"{address}/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels, reverse=True))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.value
    }


def is_ready(target: str) -> bool:
    """Returns whether /readyz answers 200."""
    try:
        with urllib.request.urlopen(f"{target}/readyz", timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def post(url: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    """Returns (status, body) of a POST with any status. Raises OSError if there is no answer."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
