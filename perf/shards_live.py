"""Scoring hosts that hold a part of the cards each, and one of them is killed while payments come.

Each host is a network namespace with `paywarden serve` and `companion`. Kafka, the stream and Envoy are real
(perf/rolling_upgrade.py). Every call has its card's routing header. After some seconds the host that owns most cards is
killed, all its processes with SIGKILL. Later it is taken out of `[shards] hosts`, as docs/operate/shards.md says for a
host that is lost: the other companions start anew, and copy the shards that they gain.

    failed_calls           calls without an answer, or with another status than 200
    failed_for_s           from the kill to the last of them
    flagged_answers        answers with the flag card_not_held. flagged_before: before the kill; flagged_while_changed:
                           while hosts changed
    failover_s             from the kill to the first answer for a card of the dead host
    complete_after_s       from the start of the change of hosts until all companions have all their shards
    wrong_profiles         profiles in a mirror that differ from the store's in the end, of what a host holds
    foreign_profiles       profiles in a mirror of cards that its host does not hold
    mirror_share           the cards in the fullest mirror, of all cards

    python -m perf.shards_live [--hosts N] [--rate N] [--json FILE]

Used for: whether a host can be lost without a card that nobody knows. It needs root, `ip`, Envoy and the services that
`make services` fetches.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import itertools
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.ops import wiring
from paywarden.ops.demo.demo import prepare_world
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.schemas.settings import read_source
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView
from paywarden.scoring.state.shards import CardShards, ShardSettings, mask_of, ranked_hosts
from paywarden.streams.companion.shard_moves import unheld
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from perf.rolling_upgrade import (
    COMPANION,
    KEY,
    Host,
    HubKafka,
    gateway_before,
    missing_here,
    namespaces,
    running,
    status_of,
    wait_for,
)
from perf.tools.measuring import arguments_of, finish

_COUNT, _COPIES = 256, 2
_ROUTE_KEY = b"the route key of a measurement."
_QUIET_S = 8.0
_CALLERS = 8
_SETTLE_TIMEOUT_S = 120.0
_SHARDS = """\
[shards]
count = {count}
copies = {copies}
host = "{host}"
hosts = {hosts}
route_key_file = "{folder}/route-key"
"""


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--hosts", {"type": int, "default": 3, "choices": (3, 4), "help": "scoring hosts"}),
        ("--rate", {"type": float, "default": 100.0, "help": "calls a second"}),
    )
    if missing := missing_here():
        raise SystemExit(f"shards_live: {missing}")
    finish(measured(arguments.hosts, arguments.rate), arguments.json)


def measured(host_count: int, rate: float) -> dict[str, float]:
    """Build everything, lose a host under load, and count."""
    addresses = {f"scoring-{number}": f"10.213.7.{number + 1}" for number in range(1, host_count + 1)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-perf-")))
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-perf-", dir="/dev/shm")))
        world = prepare_world(folder, CATALOGUE, seconds=10, rate=rate, seed=1, console=Console(stderr=True))
        (folder / "route-key").write_text(_ROUTE_KEY.hex(), encoding="ascii")
        stack.enter_context(namespaces(addresses))
        kafka = stack.enter_context(HubKafka(folder / "kafka"))
        settings = KafkaSettings(bootstrap=kafka.bootstrap)
        create_topics(settings, TopicSettings(), [entity.name for entity in CATALOGUE.entities])
        url = stack.enter_context(gateway_before(addresses, folder, f"[shards]\ncount = {_COUNT}\n"))
        hosts = [
            Host.made(name, address, folder, memory, kafka.bootstrap, stack, _shards(folder, name, list(addresses)))
            for name, address in addresses.items()
        ]
        stream = stack.enter_context(running([], folder, hosts[0].config, "stream"))
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_until_ready()
        wait_for(lambda: status_of(url, "POST", b"") != 0, "the gateway listens")
        # The gateway asks each host for its health before it sends it calls.
        time.sleep(_QUIET_S)
        load = _Load(url, world.requests, rate, settings)
        figures = _lost(hosts, load)
        if stream.poll() is not None:
            raise RuntimeError("the stream has ended")
        return figures


def _shards(folder: Path, name: str, hosts: list[str]) -> str:
    return _SHARDS.format(count=_COUNT, copies=_COPIES, host=name, hosts=json.dumps(hosts), folder=folder)


@dataclass
class _Answer:
    """One call: when it was made, the card's owner, its status (0: none), and its flags."""

    at: float
    owner: str
    status: int
    flags: tuple[str, ...] = ()


@dataclass
class _Load:
    """Callers that each send the payments of their share one after the other, and the answered ones to Kafka."""

    url: str
    requests: list[ScoreRequest]
    rate: float
    kafka: KafkaSettings
    answers: list[_Answer] = field(default_factory=list)
    owners: tuple[str, ...] = ()

    def run(self, over: threading.Event) -> None:
        """Send until it is over. Returns when the last call is answered."""
        callers = [threading.Thread(target=self._call, args=(number, over)) for number in range(_CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    def _call(self, caller: int, over: threading.Event) -> None:
        ids = LocalSchemaIds()
        producer, payments = make_producer(self.kafka, linger_ms=5), Encoder("payments", ids.id_of("payments"))
        address, begun, pause_s = self.url.removeprefix("http://"), time.monotonic(), _CALLERS / self.rate
        connection = http.client.HTTPConnection(address, timeout=20)
        for number in itertools.count():
            over.wait(max(0.0, begun + number * pause_s - time.monotonic()))
            if over.is_set():
                break
            request = ScoreRequest()
            request.CopyFrom(self.requests[(number * _CALLERS + caller) % len(self.requests)])
            request.payment_id = f"live-{caller}-{number}"
            request.event_time_ms = time.time_ns() // 1_000_000
            route = hmac.new(_ROUTE_KEY, request.card_id.encode(), hashlib.sha256).hexdigest()[:32]
            answer = _Answer(time.monotonic(), self.owners[int(route[:8], 16) % _COUNT], 0)
            self.answers.append(answer)
            headers = {
                "Authorization": f"Bearer {KEY}",
                "Content-Type": "application/x-protobuf",
                "x-paywarden-route": route,
            }
            try:
                connection.request("POST", "/v1/score", request.SerializeToString(), headers)
                reply = connection.getresponse()
                body, answer.status = reply.read(), reply.status
            except (OSError, http.client.HTTPException):
                connection.close()
                continue
            if answer.status == 200:
                answer.flags = tuple(ScoreResponse.FromString(body).flags)
                producer.produce("payments", payments.encode(_record(request)), key=request.card_id)
                producer.poll(0)
        producer.flush(30)
        connection.close()


def _record(request: ScoreRequest) -> dict[str, object]:
    return {
        descriptor.name: getattr(request, descriptor.name)
        if not descriptor.has_presence or request.HasField(descriptor.name)
        else None
        for descriptor in ScoreRequest.DESCRIPTOR.fields
    }


def _lost(hosts: list[Host], load: _Load) -> dict[str, float]:
    names = tuple(sorted(host.name for host in hosts))
    load.owners = tuple(order[0] for order in ranked_hosts(_COUNT, names))
    dead = max(hosts, key=lambda host: load.owners.count(host.name))
    left = [host for host in hosts if host is not dead]
    over = threading.Event()
    sender = threading.Thread(target=load.run, args=(over,))
    sender.start()
    try:
        time.sleep(_QUIET_S)
        killed_at = time.monotonic()
        _kill(dead)
        time.sleep(2 * _QUIET_S)
        changed_at = time.monotonic()
        for host in left:
            _take_out(host, dead)
        for host in left:
            wait_for(lambda host=host: _has_all(host), f"{host.name} has its shards", host.stopped)  # type: ignore[misc]
        complete_at = time.monotonic()
        time.sleep(_QUIET_S)
    finally:
        over.set()
        sender.join()
    failed = [answer.at for answer in load.answers if answer.status != 200]
    flagged = [answer.at for answer in load.answers if "card_not_held" in answer.flags]
    again = [
        answer.at
        for answer in load.answers
        if answer.owner == dead.name and answer.at > killed_at and answer.status == 200
    ]
    figures = {
        "calls": float(len(load.answers)),
        "failed_calls": float(len(failed)),
        "failed_for_s": max([0.0, *(at - killed_at for at in failed)]),
        "flagged_answers": float(len(flagged)),
        "flagged_before": float(sum(at < killed_at for at in flagged)),
        "flagged_while_changed": float(sum(changed_at <= at <= complete_at for at in flagged)),
        "failover_s": min(again) - killed_at,
        "complete_after_s": complete_at - changed_at,
    }
    return figures | _mirrors(left)


def _kill(host: Host) -> None:
    """Kill every process of a host: those that run in its namespace."""
    found = subprocess.run(["ip", "netns", "pids", f"pw-{host.name}"], check=True, capture_output=True, text=True)
    for process in map(int, found.stdout.split()):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _take_out(host: Host, dead: Host) -> None:
    """Take the dead host out of a host's settings, and start its companion anew."""
    text = host.config.read_text(encoding="utf-8")
    host.config.write_text(text.replace(f'"{dead.name}"', "").replace(", ,", ",").replace("[, ", "["), encoding="utf-8")
    names = read_source(str(host.config)).section("shards", ShardSettings).hosts
    assert dead.name not in names, names
    assert host.companion is not None
    host.companion.send_signal(signal.SIGTERM)
    host.ends.append(host.companion.wait(120))
    prefix = ["ip", "netns", "exec", f"pw-{host.name}"]
    host.companion = host.stack.enter_context(running(prefix, host.folder, host.config, "companion"))


def _has_all(host: Host) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host.address}:{COMPANION}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return False
    samples = {
        sample.labels.get("state"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "paywarden_companion_shards"
    }
    return samples.get("catching_up") == 0


def _mirrors(left: list[Host]) -> dict[str, float]:
    """Compare mirrors with the store, when the stream has worked everything in and companions have followed."""
    cards = CardShards(_COUNT, _ROUTE_KEY, {"card": 1})
    figures: dict[str, float] = {}
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while True:
        figures = _compared(left, cards)
        if figures["wrong_profiles"] == 0 or time.monotonic() > deadline:
            return figures
        time.sleep(2)


def _compared(left: list[Host], cards: CardShards) -> dict[str, float]:
    source = read_source(str(left[0].config))
    store = wiring.open_live_store(source, readonly=True)
    try:
        profiles = {key: state for entity in CATALOGUE.entities for key, state in store.scan(entity.name)}
    finally:
        store.close()
    wrong = foreign = 0
    share = 0.0
    all_cards = sum(key.startswith(b"card:") for key in profiles)
    for host in left:
        shards = read_source(str(host.config)).section("shards", ShardSettings)
        not_held = unheld(list(profiles), cards, mask_of(shards.wanted(), _COUNT))
        mirror = MirrorView(MirrorSettings(path=str(_mirror_of(host)), size_mb=256))
        try:
            found = mirror.read(profiles)
        finally:
            mirror.close()
        foreign += sum(found[key] is not None for key in not_held)
        wrong += sum(found[key] != state for key, state in profiles.items() if key not in not_held)
        share = max(share, (all_cards - len(not_held)) / all_cards)
    return {"wrong_profiles": float(wrong), "foreign_profiles": float(foreign), "mirror_share": share}


def _mirror_of(host: Host) -> Path:
    return Path(read_source(str(host.config)).section("mirror", MirrorSettings).path)


if __name__ == "__main__":
    main()
