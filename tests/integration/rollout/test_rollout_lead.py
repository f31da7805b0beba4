"""`paywarden rollout lead` on a real Kafka: harm rolls back, and this host's deployment file follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paywarden.features.profiles.money import load_rates
from paywarden.models.rollout.judgement import Finding, Judgement
from paywarden.models.rollout.plan import RolloutPlan, plan_of
from paywarden.models.rollout.rollout import EventKind, Phase, Rollout, RolloutEvent
from paywarden.models.rollout.shares import CardSplit, arm_end
from paywarden.ops.wiring.registry import registered_deployment
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import read_source
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, read_deployment
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.rollouts.leader import RolloutLeader
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment as Deployed
from tests.services.product.processes import wait_until
from tests.worlds.rollout.signed_rollouts import SALT, SignedRollouts
from tests.worlds.stream.decision_records import decision
from tests.worlds.stream.transactions import left_open, look_quickly

PLAN = plan_of([50, 100], step_hours=(0.01,), settle_s=0.0)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class World:
    """Decisions of 2,000 cards on a topic of this test, and a registry in a folder."""

    def __init__(self, settings: KafkaSettings, deployed: Deployed) -> None:
        self.settings, self.deployed = settings, deployed
        self.signed = SignedRollouts.at(deployed.folder, begin_ms=now_ms() - 3_600_000)
        deployed.configure("models", self.signed.settings.removeprefix("[models]\n"))
        self.runtime = deployed.folder / "serve"
        self.champion, self.candidate = (version.bundle for version in self.signed.versions)
        self._producer = make_producer(settings, linger_ms=5)
        ids = LocalSchemaIds()
        self._encoder = Encoder("decisions", ids.id_of("decisions"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self._random = np.random.default_rng(1)
        self._made = 0
        self.gone = ""

    @property
    def rollout(self) -> Rollout:
        return self.signed.rollout

    @property
    def deployment(self) -> Deployment | None:
        return read_deployment(self.runtime / DEPLOYMENT)

    def start(self, name: str = "r-1", plan: RolloutPlan = PLAN) -> None:
        # A decision that the broker has got in the same millisecond is none of before the rollout.
        time.sleep(0.02)
        self.signed.start(plan, now_ms(), name)

    def decide(
        self, count: int, *, rollout: str = "", share: int = 0, declines: float = 0.02, frauds: float | None = None
    ) -> None:
        """Send decisions. The candidate declines this share of its payments, the champion 2 %.

        `frauds`: one in five payments of the champion's cards is fraud, and this share of the candidate's; the outcomes
        of all follow. None: no outcomes.
        """
        split, end = CardSplit(bytes.fromhex(SALT)), arm_end(share)
        for card in self._random.integers(0, 2_000, count):
            self._made += 1
            ours = split.position(f"card:C{card}".encode()) < end
            is_declined = self._random.random() < (declines if ours else 0.02)
            record = decision(
                f"p{self._made}",
                decided_time_ms=now_ms(),
                card_id=f"C{card}",
                score=float(self._random.random()),
                latency_us=int(self._random.gamma(4.0, 100.0)),
                action="decline" if is_declined else "approve",
                rollout=rollout,
                arm=("candidate" if ours else "champion") if rollout else "",
            )
            self._producer.produce(self.settings.topic("decisions"), self._encoder.encode(record))
            if frauds is not None:
                is_fraud = self._random.random() < (frauds if ours else 0.2)
                label = {
                    "payment_id": record["payment_id"],
                    "outcome_time_ms": now_ms(),
                    "label": "fraud" if is_fraud else "genuine",
                }
                self._producer.produce(self.settings.topic("outcomes"), self._outcomes.encode(label))
        assert self._producer.flush(PATIENCE_S) == 0

    def leader(self) -> RolloutLeader:
        source = read_source(str(self.deployed.config))
        return RolloutLeader(
            self.settings,
            LocalSchemaIds(),
            self.signed.keeper("lead"),
            registered_deployment(source).update,
            rates=load_rates(),
            gone=lambda _: self.gone,
            look_every_s=0.1,
        )

    def phase_after(self, count: int) -> Phase:
        """Send decisions of the rollout before any card is the candidate's, and return where it is."""
        self.decide(count, rollout="r-1")
        return self.rollout.phase

    def step_after(self, count: int) -> int:
        """Send decisions of a rollout whose candidate has a fifth of the cards, and return its step."""
        self.decide(count, rollout="r-1", share=2_000)
        return self.rollout.step

    @contextmanager
    def led(self) -> Iterator[threading.Thread]:
        leader = self.leader()
        stop = threading.Event()
        thread = threading.Thread(target=leader.run, args=(stop,))
        thread.start()
        try:
            yield thread
        finally:
            stop.set()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.fixture
def world(tmp_path: Path, settings: KafkaSettings) -> Iterator[World]:
    with Deployed(tmp_path, settings.bootstrap, settings.topic_prefix) as deployed:
        deployed.create_topics()
        yield World(settings, deployed)


def test_a_rollout_begins_grows_and_is_rolled_back_for_harm(world: World) -> None:
    world.decide(2_000)
    world.start()
    with world.led() as leader:
        wait_until(lambda: world.deployment is not None, "the candidate is ordered to be loaded")
        loaded = world.deployment
        assert loaded is not None
        assert (loaded.active.bundle_digest, loaded.share, loaded.rollout) == (world.champion, 0, "r-1")
        assert loaded.candidate is not None
        # A host has the candidate loaded: its decisions name the rollout.
        world.decide(10, rollout="r-1")
        wait_until(lambda: world.rollout.phase is Phase.RUNNING, "the rollout runs")
        wait_until(lambda: (world.deployment or loaded).share == 5_000, "half of the cards are the candidate's")
        world.decide(3_000, rollout="r-1", share=5_000, declines=0.3)
        leader.join(PATIENCE_S)
        assert not leader.is_alive(), "it ends with the rollout"
    assert world.rollout.phase is Phase.ROLLED_BACK
    assert "decline" in world.rollout.cause
    ended = world.deployment
    assert ended is not None
    assert (ended.active.bundle_digest, ended.candidate, ended.share) == (world.champion, None, 0)


def test_behind_an_open_transaction_no_step_goes_on_and_it_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps went on in silence, without what stood behind it."""
    look_quickly(monkeypatch)
    world.decide(500)
    world.start(plan=PLAN_OF_MANY_STEPS)
    with world.led():
        with left_open(world.settings, "decisions"):
            wait_until(lambda: "holds up" in caplog.text, "the leader says what is held up")
            wait_until(lambda: world.phase_after(20) is Phase.RUNNING, "the other partitions have decisions")
            # Enough for a step, were it whole.
            world.decide(500, rollout="r-1", share=2_000)
            time.sleep(1.0)
            world.decide(500, rollout="r-1", share=2_000)
            time.sleep(1.0)
            assert (world.rollout.phase, world.rollout.step) == (Phase.RUNNING, 0)
        # Of both arms: decisions of the champion alone would be a split that is wrong.
        wait_until(lambda: world.step_after(20) > 0, "the step goes on")
    assert f"holds up {world.settings.topic('decisions')}/0 since" in caplog.text


# Labels are mature after a tenth of a second, and a candidate with at most three times the fraud is within.
PLAN_WITH_OUTCOMES = plan_of([50, 100], step_hours=(1e-9,), margin=2.0, label_days=1e-6, settle_s=0.0)
WITHIN = Judgement(Finding.WITHIN, "decline", -1.0, (500, 500), ())


def reach_all_cards(world: World, name: str, *, frauds: float) -> None:
    """Bring a rollout to 100 %, with decisions and outcomes of the step with half of the cards."""
    world.start(name, PLAN_WITH_OUTCOMES)
    world.signed.take(RolloutEvent(EventKind.READY, now_ms(), "host"))
    world.decide(4_000, rollout=name, share=5_000, declines=0.02, frauds=frauds)
    world.signed.take(RolloutEvent(EventKind.LOOKED, now_ms() + 1, "analysis", step=0, judgement=WITHIN))
    assert world.rollout.phase is Phase.PROVISIONAL


def test_mature_outcomes_roll_back_a_provisional_rollout_or_let_a_person_promote_it(world: World) -> None:
    reach_all_cards(world, "r-1", frauds=0.4)
    with world.led() as leader:
        leader.join(PATIENCE_S)
    assert world.rollout.phase is Phase.ROLLED_BACK
    assert "fraud_approved is more frequent" in world.rollout.cause
    assert world.rollout.outcomes is not None
    assert world.rollout.outcomes.money is not None
    reach_all_cards(world, "r-2", frauds=0.2)
    promoted = RolloutEvent(EventKind.PROMOTED, now_ms() + 1_000, "ann", "outcomes are fine")
    assert "none was looked at" in _raised(lambda _: world.signed.take(promoted))
    with world.led() as leader:
        wait_until(lambda: world.rollout.outcomes is not None, "outcomes are judged")
        assert world.rollout.outcomes is not None
        assert world.rollout.outcomes.finding is Finding.WITHIN
        world.signed.take(replace(promoted, time_ms=now_ms()))
        leader.join(PATIENCE_S)
        assert not leader.is_alive()
    deployed = world.deployment
    assert deployed is not None
    assert (deployed.active.bundle_digest, deployed.candidate, deployed.share) == (world.candidate, None, 0)


# Events that less than half of the cards have are rare enough here, so every step goes on after a few dozen cards.
PLAN_OF_MANY_STEPS = plan_of(
    [20, 50, 80, 100], step_hours=(1e-9,) * 3, rare_share=0.9, margin=9.0, cards_min=10, settle_s=0.5
)


def test_a_leader_that_is_killed_again_and_again_skips_no_step_and_takes_none_twice(world: World) -> None:
    """The deployment file is never ahead of the log, and follows it after each start."""
    world.decide(500)
    world.start(plan=PLAN_OF_MANY_STEPS)
    random, kills = np.random.default_rng(5), 0
    lead = ("rollout", "lead", "--look-every", "0.1", "--key", str(world.deployed.folder / "lead.pem"))
    leader = world.deployed.start(*lead)
    wait_until(lambda: world.deployment is not None, "the candidate is ordered to be loaded")
    second = world.deployed.run(*lead)
    assert second.returncode == 1
    assert f"process {leader.pid} leads the rollouts of {world.signed.path} already" in second.stderr
    with deciding(world):
        while (seen := world.rollout).phase is not Phase.PROVISIONAL:
            assert seen.phase in (Phase.PENDING, Phase.RUNNING), seen.line
            if kills < 4:
                time.sleep(float(random.uniform(0.0, 1.0)))
                leader.kill()
                kills += 1
                deployed, logged = world.deployment, world.rollout
                assert deployed is not None
                shares = [0, *PLAN_OF_MANY_STEPS.steps]
                # It is the log's, or that of the step before if the leader died in between.
                assert deployed.share in shares[max(0, shares.index(logged.share) - 1) : shares.index(logged.share) + 1]
                leader = world.deployed.start(*lead)
            time.sleep(0.05)
    wait_until(lambda: world.deployment is not None and world.deployment.share == 10_000, "the host has followed")
    leader.kill()
    steps = [event.step for event in world.signed.log.events() if event.kind is EventKind.LOOKED]
    assert sorted(set(steps)) == [0, 1, 2]
    assert steps == sorted(steps)
    assert len(world.signed.keeper("lead").steps_ms) == 4


@contextmanager
def deciding(world: World) -> Iterator[None]:
    """Let a host decide all the time, with the share that its deployment file has.

    While the file is behind the log it decides nothing. After the kill of a leader that may take longer than `settle_s`
    on a busy machine, and decisions with the share of before would stop the rollout then.
    """
    stop = threading.Event()

    def decide() -> None:
        while not stop.wait(0.1):
            deployed = world.deployment
            assert deployed is not None
            if deployed.share == world.rollout.share:
                world.decide(20, rollout="r-1", share=deployed.share)

    thread = threading.Thread(target=decide)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def _raised(run: Callable[[threading.Event], object]) -> str:
    with pytest.raises(Misconfigured) as refused:
        run(threading.Event())
    return str(refused.value)
