"""Several scoring hosts and one log: a verdict of one reaches all, and an abort works on a host without Kafka."""

from __future__ import annotations

import http.client
import logging
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.rollout import EventKind, RolloutEvent
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.models.rollout.shares import CardSplit, arm_end
from paywarden.ops.cli import cli
from paywarden.ops.times import now_ms
from paywarden.ops.wiring.rollouts import read_rollouts, written_rollouts
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.schemas.settings import read_source
from paywarden.streams.kafka.client import KafkaSettings
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_for_listener, wait_until
from tests.services.product.scoring_server import PATIENT, PAYMENT
from tests.services.servers.kafka import KafkaServer
from tests.unit.models.rollout.test_rollout import judgement
from tests.worlds.rollout.registry import people_file
from tests.worlds.small import small_world

_log = logging.getLogger(__name__)

Note = Callable[[str, object], None]
KEYS = {"anna": ("propose", "rollout"), "ben": ("promote",), "lead": ("lead",)}
NOBODY = {"PAYWARDEN_KAFKA_BOOTSTRAP": "127.0.0.1:1"}


@dataclass
class Host:
    """One host: directories of its own, `serve` and `companion`, and a caller that never stops asking."""

    deployed: Deployment
    connection: http.client.HTTPConnection = field(init=False)
    asked: int = 0

    @classmethod
    def at(cls, folder: Path, settings: KafkaSettings, people: Path) -> Host:
        folder.mkdir()
        deployed = Deployment(folder, settings.bootstrap, settings.topic_prefix)
        shared = people.parent
        deployed.configure("companion", "fill_from_store = false\n")
        deployed.configure(
            "models", f'folder = "{shared / "registry"}"\nlog = "{folder / "log"}"\npeople = "{people}"\ntopic = true\n'
        )
        deployed.configure("rollout", 'steps = [50, 100]\nstep_hours = [1.0]\nleave_out = ["slow"]\n')
        with deployed.config.open("a", encoding="utf-8") as config:
            config.write(PATIENT)
        return cls(deployed)

    def start(self) -> None:
        """Start both, with nothing to serve but what the log says."""
        self.deployed.start("companion").first_line()
        runtime = self.deployed.folder / "serve"
        wait_until(lambda: (runtime / "deployment.json").exists(), "the companion has written what the log says")
        address = urllib.parse.urlsplit(self.deployed.start("serve").first_line()).netloc
        wait_for_listener(address)
        self.connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)

    def run(self, *arguments: str, by: str) -> str:
        key = str(self.deployed.folder.parent / f"{by}.pem")
        asked = ["--config", str(self.deployed.config), *arguments, "--key", key, "--why", "a test"]
        result = CliRunner().invoke(cli, asked, standalone_mode=False)
        assert result.exception is None, result.exception
        return result.output

    def lead(self, event: RolloutEvent) -> None:
        """Do what `rollout lead` on this host would do now."""
        source = read_source(str(self.deployed.config))
        with written_rollouts(source, _log.warning, str(self.deployed.folder.parent / "lead.pem")) as (log, _):
            RolloutKeeper(log).take(event)

    def model_of(self, card: str) -> str:
        """Returns the model that decides about a payment of this card."""
        self.asked += 1
        request = ScoreRequest.FromString(PAYMENT)
        request.payment_id, request.card_id = f"p-{self.asked}", card
        self.connection.request(
            "POST", "/v1/score", request.SerializeToString(), {"content-type": "application/x-protobuf"}
        )
        response = self.connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return ScoreResponse.FromString(body).model_version


class World:
    """Two hosts, a champion that decides on both, and a candidate."""

    def __init__(self, folder: Path, settings: KafkaSettings) -> None:
        people = people_file(folder, KEYS)
        self.hosts = [Host.at(folder / name, settings, people) for name in ("one", "two")]
        self.one = self.hosts[0]
        self.one.deployed.create_topics()
        self.champion, self.candidate = (
            read_manifest(bundle).model_version for bundle in (small_world.trained_bundle(), small_world.other_bundle())
        )
        self.one.run("models", "register", str(small_world.trained_bundle()), by="anna")
        self.one.run("models", "promote", self.champion, by="ben")
        self.one.run("models", "register", str(small_world.other_bundle()), by="anna")
        for host in self.hosts:
            host.start()

    def start(self, name: str) -> str:
        """Start a rollout of half of the cards; returns a card of the candidate once it decides on all hosts."""
        self.one.run("rollout", "start", "--candidate", self.candidate, "--name", name, by="anna")
        self.one.lead(RolloutEvent(EventKind.READY, now_ms(), "lead"))
        rollout = RolloutKeeper(read_rollouts(read_source(str(self.one.deployed.config)))).rollout
        assert rollout is not None
        split, end = CardSplit(bytes.fromhex(rollout.start.salt)), arm_end(5_000)
        cards = (f"C{number}" for number in range(1_000))
        card = next(card for card in cards if split.position(f"card:{card}".encode()) < end)
        for host in self.hosts:
            wait_until(lambda host=host: host.model_of(card) == self.candidate, "the candidate has its cards")  # type: ignore[misc]
        return card

    def seconds_to_the_end(self, card: str, hosts: Sequence[Host], work: Callable[[], object]) -> list[float]:
        """Work, and ask the hosts about a card meanwhile, until the champion decides about it on all of them.

        Returns the seconds from the beginning of the work to each host's last decision of the candidate.
        """
        begun, last = time.monotonic(), [0.0] * len(hosts)

        def is_over() -> bool:
            bad = [place for place, host in enumerate(hosts) if host.model_of(card) != self.champion]
            for place in bad:
                last[place] = time.monotonic() - begun
            return not bad

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            wait_until(is_over, "the champion decides about all cards", every_s=0.001)
            done.result()
        return last


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, kafka: KafkaServer) -> Iterator[World]:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix="rollout-hosts-")
    made = World(tmp_path_factory.mktemp("hosts"), settings)
    yield made
    for host in made.hosts:
        host.connection.close()
        host.deployed.__exit__()


def test_a_verdict_of_one_host_reaches_all_through_the_log(world: World, record_property: Note) -> None:
    card = world.start("r-1")
    look = RolloutEvent(EventKind.LOOKED, now_ms(), "lead", step=0, judgement=judgement(Finding.HARM))
    seconds = world.seconds_to_the_end(card, world.hosts, lambda: world.one.lead(look))
    record_property("seconds_after_a_verdict", seconds)


def test_an_abort_without_kafka_works_on_its_host_at_once_and_on_the_others_later(
    world: World, monkeypatch: pytest.MonkeyPatch, record_property: Note
) -> None:
    card, told = world.start("r-2"), list[str]()
    with monkeypatch.context() as patched:
        for name, value in NOBODY.items():
            patched.setenv(name, value)
        seconds = world.seconds_to_the_end(
            card, [world.one], lambda: told.append(world.one.run("rollout", "abort", by="anna"))
        )
    assert "this host goes by it already; Kafka has not confirmed it" in told[0]
    assert "aborted by anna" in told[0]
    record_property("seconds_after_an_abort", seconds)
    # The companion of the host can reach Kafka.
    world.seconds_to_the_end(card, world.hosts, lambda: None)


def test_a_host_is_where_the_log_says_after_kill_9_of_its_processes(world: World) -> None:
    card = world.start("r-3")
    two = world.hosts[1]
    two.connection.close()
    for process in two.deployed.running:
        process.kill()
    two.deployed.running.clear()
    world.one.run("rollout", "abort", by="anna")
    two.start()
    world.seconds_to_the_end(card, world.hosts, lambda: None)
