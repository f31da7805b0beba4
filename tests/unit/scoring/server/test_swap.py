"""New workers serve another bundle or policy while the old ones answer: `kill -HUP`, or another deployment file."""

from __future__ import annotations

import http.client
import os
import select
import shutil
import signal
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from paywarden.models.bundle.bundle import read_manifest
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT
from paywarden.scoring.state.outbox import OutboxReader, workers
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.patience import PATIENCE_S
from tests.services.product.processes import samples, wait_until
from tests.services.product.scoring_server import PATIENT, PAYMENT, Server
from tests.worlds.small import small_world

STRICT = "\n[policy]\nreview_at = 1e-9\n"


class Swapping:
    """A host with two workers and a caller that keeps its connections. `[serve] bundle` is a link."""

    def __init__(self, folder: Path) -> None:
        self.link = folder / "current"
        self.link.symlink_to(small_world.trained_bundle())
        self.server = Server(folder, bundle=self.link, more=PATIENT)
        # With a mirror, an unknown card is approved.
        writer = MirrorWriter(self.server.mirror)
        writer.apply({}, {0: 1}, 1)
        writer.close()
        self.parent = self.server.start("--workers", "2")
        self.workers = self.server.listening(2)
        address = urllib.parse.urlsplit(self.server.target).netloc
        # The kernel spreads connections: with this many, each worker has one.
        self.connections = [http.client.HTTPConnection(address, timeout=PATIENCE_S) for _ in range(12)]
        self.asked = 0

    def serve(self, bundle: Path) -> None:
        """Turn the link over in one step, and send SIGHUP."""
        other = self.link.with_name("next")
        other.symlink_to(bundle)
        os.replace(other, self.link)
        self.hang_up()

    def hang_up(self) -> None:
        os.kill(self.parent.pid, signal.SIGHUP)

    def listening(self) -> set[int]:
        return {worker.pid for worker in self.server.listening(2)}

    def kill_a_worker(self) -> None:
        """Kill a worker, wait until another one listens in its place, and let the caller connect again."""
        killed = self.server.listening(2)[0]
        killed.kill()
        wait_until(lambda: not killed.is_running(), "the worker is gone")
        self.workers = self.server.listening(2)
        for connection in self.connections:
            connection.close()

    def answers(self, card: str = "c") -> list[ScoreResponse]:
        """Send one payment over each connection. The host refuses no payment, and says farewell before it closes."""
        found = []
        for connection in self.connections:
            self.asked += 1
            request = ScoreRequest.FromString(PAYMENT)
            request.payment_id, request.card_id = f"p-{self.asked}", card
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                # It was idle for too long after its worker was asked to end. Any pool of connections looks.
                connection.close()
            connection.request(
                "POST", "/v1/score", request.SerializeToString(), {"content-type": "application/x-protobuf"}
            )
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            # The connection of a worker that ends says so; http.client opens another one then.
            assert response.getheader("connection") in (None, "close")
            found.append(ScoreResponse.FromString(body))
        return found

    def entries(self) -> list[OutboxEntry]:
        """Returns the records of all payments, of every worker that there was."""
        outbox = self.server.outbox
        return [
            OutboxEntry.FromString(payload)
            for worker in workers(outbox)
            for _, payload in OutboxReader(outbox, worker).read(0, 1_000_000)
        ]

    def versions(self) -> set[str]:
        return {answer.model_version for answer in self.answers()}

    def wait_for(self, bundle: Path, action: str = "approve") -> None:
        """Wait until all workers answer like this."""
        wanted = {(version(bundle), action)}
        wait_until(
            lambda: {(answer.model_version, answer.action) for answer in self.answers()} == wanted,
            f"all workers answer {wanted}",
        )

    def shown(self) -> set[tuple[str, str, str]]:
        """Returns role, digest of the bundle and version of each release that the metrics show."""
        found = [key for key in samples(self.server.target) if key[0] == "paywarden_bundle_info"]
        return {(role, digest, version) for _, version, role, _, digest in found}

    def metric(self, name: str, *labels: str) -> float:
        return samples(self.server.target).get((name, *labels), 0.0)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapping]:
    made = Swapping(tmp_path_factory.mktemp("swap"))
    with made.server:
        yield made
        for connection in made.connections:
            connection.close()


def version(bundle: Path) -> str:
    return read_manifest(bundle).model_version


def shared_memory(pid: int, size: int) -> set[str]:
    """Returns the inodes of memory without a file of at least this size that a process shares with others."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        addresses, _, _, _, inode, *name = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in addresses.split("-"))
        if name and name[0].startswith("/dev/zero") and 0 <= end - begin - size < 4096:
            found.add(inode)
    return found


FIRST, OTHER = small_world.trained_bundle, small_world.other_bundle


def test_a_hangup_changes_the_bundle_and_back_without_a_refused_call(host: Swapping) -> None:
    assert host.versions() == {version(FIRST())}
    swaps = host.metric("paywarden_swaps_total")
    for bundle in (OTHER(), FIRST(), OTHER()):
        host.serve(bundle)
        host.wait_for(bundle)
    roles = {
        ("active", read_manifest(OTHER()).digest, version(OTHER())),
        ("previous", read_manifest(FIRST()).digest, version(FIRST())),
    }
    wait_until(lambda: host.shown() == roles, "the metrics show what is in memory")
    wait_until(lambda: host.metric("paywarden_swaps_total") == swaps + 3, "each swap is counted")
    host.workers = host.server.listening(2)
    entries = host.entries()
    assert len(entries) == host.asked
    assert {(entry.response.model_version, entry.bundle_digest.hex()) for entry in entries} == {
        (version(bundle), read_manifest(bundle).digest) for bundle in (FIRST(), OTHER())
    }


def test_a_release_that_cannot_be_served_changes_nothing_and_is_one_line(host: Swapping, tmp_path: Path) -> None:
    (serving,) = host.versions()
    # One that no host has checked before: a release that is ready is taken as it was checked.
    damaged = small_world.copied_bundle(tmp_path, small_world.cascade_bundle())
    (damaged / "model.txt").write_bytes(b"tree")
    config = host.server.config.read_text(encoding="utf-8")
    failures = host.metric("paywarden_swap_failures_total", "check")
    logged = host.server.log().count("the swap is not made")

    def refused(count: int) -> str:
        wait_until(lambda: host.server.log().count("the swap is not made") == logged + count, "the swap was refused")
        assert host.versions() == {serving}
        return [line for line in host.server.log().splitlines() if "the swap is not made" in line][-1]

    host.serve(damaged)
    assert "model.txt has a wrong checksum" in refused(1)
    host.serve(tmp_path / "gone")
    assert "there is no manifest.json" in refused(2)
    host.server.config.write_text(config + '\n[policy]\non_mirror_stale = "perhaps"\n', encoding="utf-8")
    host.serve(FIRST())
    assert "policy.on_mirror_stale: wanted one of" in refused(3)
    host.server.config.write_text(config, encoding="utf-8")
    wait_until(lambda: host.metric("paywarden_swap_failures_total", "check") == failures + 3, "the metric counts them")
    assert "Traceback" not in host.server.log()


def test_a_policy_alone_is_changed_and_a_deleted_bundle_decides_on(host: Swapping, tmp_path: Path) -> None:
    copy = small_world.copied_bundle(tmp_path)
    config = host.server.config.read_text(encoding="utf-8")
    host.server.config.write_text(config + STRICT, encoding="utf-8")
    host.serve(copy)
    wait_until(lambda: {answer.action for answer in host.answers()} == {"review"}, "the policy is taken up")
    shutil.rmtree(copy)
    # A worker that starts now finds what was checked.
    for _ in range(2):
        host.kill_a_worker()
    assert host.versions() == {version(FIRST())}
    assert {answer.action for answer in host.answers()} == {"review"}
    host.server.config.write_text(config, encoding="utf-8")
    host.serve(FIRST())
    wait_until(lambda: "review" not in {answer.action for answer in host.answers()}, "the way back is taken")


def test_a_long_list_is_in_memory_once_and_survives_a_cut_file(host: Swapping, tmp_path: Path) -> None:
    """Each worker was killed (SIGBUS) by the next payment that it looked up."""
    cards = tmp_path / "cards.txt"
    cards.write_text("".join(f"blocked-{number}\n" for number in range(50_000)), encoding="utf-8")
    config = host.server.config.read_text(encoding="utf-8")
    host.server.config.write_text(
        f'{config}\n[policy.lists]\ncards = ["@{cards}"]\n'
        '[[policy.rules]]\nname = "blocked"\nwhen = "card_id in lists.cards"\naction = "decline"\n',
        encoding="utf-8",
    )

    swaps = host.metric("paywarden_swaps_total")

    def actions(card: str) -> set[str]:
        return {answer.action for answer in host.answers(card)}

    host.hang_up()
    wait_until(lambda: actions("blocked-49999") == {"decline"}, "the list is taken up")
    assert actions("blocked-50000") == {"approve"}
    # The same memory: the size of the list, and one inode.
    wait_until(lambda: host.metric("paywarden_swaps_total") > swaps, "all workers serve it")
    (found,) = (host.server.folder / "serve" / "ready").glob("*/cards.list")
    host.workers = host.server.listening(2)
    inodes = [shared_memory(worker.pid, found.stat().st_size) for worker in host.workers]
    assert inodes[0]
    assert inodes[0] == inodes[1]
    ended = host.server.log().count(" ended with ")
    for number, size in enumerate((4096, 0), start=1):
        os.chmod(found, 0o600)
        os.truncate(found, size)
        for card in range(number, 50_000, 2_500):
            assert actions(f"blocked-{card}") == {"decline"}
    assert host.server.listening(2) == host.workers
    assert host.server.log().count(" ended with ") == ended
    # A starting worker inherits it from the supervisor, regardless of the disk.
    host.kill_a_worker()
    assert actions("blocked-7") == {"decline"}
    host.server.config.write_text(config, encoding="utf-8")
    host.hang_up()
    wait_until(lambda: actions("blocked-7") == {"approve"}, "the list is gone")


def test_a_named_pipe_in_the_place_of_the_deployment_file_holds_nothing_up(host: Swapping) -> None:
    """The supervisor waited for its writer: it started no worker again, and made no swap."""
    path = host.server.folder / "serve" / DEPLOYMENT
    (serving,) = host.versions()
    os.mkfifo(path, 0o600)
    try:
        wait_until(lambda: f"cannot read {path}: it is no regular file" in host.server.log(), "it is told")
        host.kill_a_worker()
        assert host.versions() == {serving}
    finally:
        path.unlink()
    host.serve(OTHER())
    host.wait_for(OTHER())
    host.serve(FIRST())
    host.wait_for(FIRST())
