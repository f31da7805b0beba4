"""Upgrade and rollback with the release before: two hosts and the stream, each reads what the other wrote.

    PAYWARDEN_RELEASE_BEFORE=COMMIT pytest tests/e2e/test_release_before.py

The steps are those of docs/operate/upgrade.md. Without a commit nothing runs: a clone of CI has no history, and a build
and a dozen starts of a release that is not loaded yet take minutes.
"""

from __future__ import annotations

import os
import shutil
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, wait_until
from tests.services.product.release_before import NoSuchRelease, built_release
from tests.worlds.small import small_world as trained
from tests.worlds.stream.topics import (
    Topics,
    assert_profiles_equal,
    batch_profiles,
    read_store,
    read_topic,
    small_world,
    wait_until_worked_in,
)

COMMIT = os.environ.get("PAYWARDEN_RELEASE_BEFORE", "")
START_S = 600.0

pytestmark = [
    pytest.mark.skipif(not COMMIT, reason="wanted a commit in PAYWARDEN_RELEASE_BEFORE: the release before"),
    pytest.mark.timeout(7200),
]


@pytest.fixture(scope="module")
def before() -> Mapping[str, str]:
    """The environment in which `python -m paywarden` is the release before."""
    try:
        packages = built_release(COMMIT)
    except NoSuchRelease as error:
        pytest.skip(str(error))
    return {"PYTHONPATH": str(packages)}


class Host:
    """A scoring host that runs one release or the other on the same folders. `release` None is this one."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.companion: PaywardenProcess | None = None
        self.serve: PaywardenProcess | None = None
        self.target = ""

    def start(self, release: Mapping[str, str] | None) -> None:
        self.companion = self.deployment.start("companion", environment=release, afresh=True)
        self.serve = self.deployment.start("serve", environment=release, afresh=True)
        self.target = self.serve.first_line()
        assert self.target.startswith("http://"), self.serve.log.read_text(encoding="utf-8")
        ready = f"{self.companion.first_line()}/readyz"
        for url in (ready, f"{self.target}/readyz"):
            wait_until(lambda url=url: answers(url), f"{url} is ready", timeout_s=START_S)  # type: ignore[misc]

    def stop(self) -> None:
        """In the page's order: what answers first, then what ships."""
        for process in (self.serve, self.companion):
            assert process is not None
            assert process.stop() == 0, process.log.read_text(encoding="utf-8")

    def become(self, release: Mapping[str, str] | None) -> None:
        self.stop()
        self.start(release)

    def pay(self, payment_id: str) -> ScoreResponse:
        body = ScoreRequest(
            payment_id=payment_id,
            event_time_ms=time.time_ns() // 1_000_000,
            card_id="card-1",
            merchant_id="merchant-1",
            amount_minor=100,
            currency="EUR",
        ).SerializeToString()
        headers = {"Content-Type": "application/x-protobuf"}
        request = urllib.request.Request(f"{self.target}/v1/score", body, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return ScoreResponse.FromString(reply.read())


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture
def hosts(tmp_path: Path, settings: KafkaSettings) -> Iterator[list[Host]]:
    """Two hosts with folders of their own, one store and one set of topics."""
    with ExitStack() as stack:
        made = []
        for name in ("a", "b"):
            folder = tmp_path / name
            folder.mkdir()
            deployment = stack.enter_context(Deployment(folder, settings.bootstrap, settings.topic_prefix))
            text = deployment.config.read_text(encoding="utf-8")
            shared = text.replace(str(folder / "store"), str(tmp_path / "a" / "store"))
            # A setting of this release, which the release before refuses.
            deployment.config.write_text(shared.replace("decisions_every_ms = 100\n", ""), encoding="utf-8")
            deployment.configure("admission", "deadline_ms = 60000\nwait_ms_max = 50000\n")
            shutil.copytree(trained.trained_bundle(), deployment.bundle)
            made.append(Host(deployment))
        made[0].deployment.create_topics()
        yield made


def test_a_host_and_the_stream_go_to_this_release_and_back(
    hosts: list[Host], settings: KafkaSettings, before: Mapping[str, str]
) -> None:
    payments, outcomes = small_world()
    part, group = len(payments) // 4, f"{settings.topic_prefix}stream"
    topics, (first, second) = Topics(settings), hosts
    stream = first.deployment.start("stream", environment=before, afresh=True)
    topics.send_payments(payments.slice(0, part).to_pylist())
    wait_until_worked_in(settings, group, timeout_s=START_S)
    for host in hosts:
        host.start(before)
    decided: dict[str, str] = {}

    def pay(stage: str) -> None:
        """Pay at both hosts, then ask again for all that the first one has ever decided."""
        for host, name in ((first, "first"), (second, "second")):
            for number in range(5):
                payment_id = f"{stage}-{name}-{number}"
                decided[payment_id] = host.pay(payment_id).decision_id
        for payment_id, decision_id in decided.items():
            if "-first-" in payment_id:
                assert first.pay(payment_id).decision_id == decision_id, payment_id

    pay("before")
    first.become(None)
    pay("upgraded")
    first.become(before)
    pay("rolled-back")
    # The stream likewise, after the hosts.
    for host in hosts:
        host.become(None)
    for number, release in enumerate((None, before, None), start=1):
        assert stream.stop() == 0, stream.log.read_text(encoding="utf-8")
        stream = first.deployment.start("stream", environment=release, afresh=True)
        topics.send_payments(payments.slice(number * part, part if number < 3 else len(payments)).to_pylist())
        wait_until_worked_in(settings, group, timeout_s=START_S)
    topics.send_outcomes(outcomes.to_pylist())
    wait_until_worked_in(settings, group, timeout_s=START_S)
    pay("whole")
    assert stream.stop() == 0
    assert_profiles_equal(read_store(first.deployment.store), batch_profiles(payments, outcomes))
    for host in hosts:
        host.stop()
    decoder = Decoder("decisions", LocalSchemaIds())
    rows = [decoder.decode(record.value) for record in read_topic(settings, "decisions") if record.value is not None]
    assert {row["payment_id"]: row["decision_id"] for row in rows} == decided
    assert set(Counter(row["payment_id"] for row in rows).values()) == {1}
