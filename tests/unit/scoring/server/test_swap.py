"""`paywarden serve` changes bundle and policy while it answers: `kill -HUP`, or another deployment file."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from paywarden.models.bundle.bundle import read_manifest
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from paywarden.scoring.state.mirror_writer import MirrorWriter
from paywarden.scoring.state.outbox import OutboxReader
from tests.patience import PATIENCE_S
from tests.services.product.processes import samples, wait_until
from tests.services.product.scoring_server import PATIENT, PAYMENT, Server
from tests.worlds.small import small_world

STRICT = "\n[policy]\nreview_at = 1e-9\n"


class Swapping:
    """A host with two workers and a caller whose connections stay open. `[serve] bundle` is a link."""

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

    def kill_a_worker(self) -> None:
        """Kill a worker, wait until another one listens in its place, and let the caller connect anew."""
        killed = self.workers[0]
        killed.kill()
        wait_until(lambda: not killed.is_running(), "the worker is gone")
        self.workers = self.server.listening(2)
        for connection in self.connections:
            connection.close()

    def answers(self, card: str = "c") -> list[ScoreResponse]:
        """Send one payment over each connection. The worker refuses no payment and closes no connection."""
        found = []
        for connection in self.connections:
            self.asked += 1
            request = ScoreRequest.FromString(PAYMENT)
            request.payment_id, request.card_id = f"p-{self.asked}", card
            connection.request(
                "POST", "/v1/score", request.SerializeToString(), {"content-type": "application/x-protobuf"}
            )
            response = connection.getresponse()
            body = response.read()
            assert (response.status, response.getheader("connection")) == (200, None), body
            found.append(ScoreResponse.FromString(body))
        return found

    def versions(self) -> set[str]:
        return {answer.model_version for answer in self.answers()}

    def versions_of_cards(self) -> set[str]:
        return {answer.model_version for number in range(8) for answer in self.answers(f"c-{number}")}

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


FIRST, OTHER = small_world.trained_bundle, small_world.other_bundle


def test_a_hangup_changes_the_bundle_of_all_workers_and_back_without_a_refused_call(host: Swapping) -> None:
    assert host.versions() == {version(FIRST())}
    for bundle in (OTHER(), FIRST(), OTHER()):
        host.serve(bundle)
        host.wait_for(bundle)
    assert host.server.listening(2) == host.workers
    roles = {
        ("active", read_manifest(OTHER()).digest, version(OTHER())),
        ("previous", read_manifest(FIRST()).digest, version(FIRST())),
    }
    wait_until(lambda: host.shown() == roles, "the metrics show what is in memory")
    assert host.metric("paywarden_swaps_total") == 6
    entries = [
        OutboxEntry.FromString(payload)
        for worker in ("worker-0", "worker-1")
        for _, payload in OutboxReader(host.server.outbox, worker).read(0, 10 * host.asked)
    ]
    assert len(entries) == host.asked
    assert {(entry.response.model_version, entry.bundle_digest.hex()) for entry in entries} == {
        (version(bundle), read_manifest(bundle).digest) for bundle in (FIRST(), OTHER())
    }


def test_a_worker_that_is_started_again_takes_up_what_the_others_serve(host: Swapping) -> None:
    host.serve(OTHER())
    host.wait_for(OTHER())
    host.kill_a_worker()
    assert host.versions() == {version(OTHER())}


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
    for worker in host.workers:
        worker.kill()
    wait_until(lambda: not any(worker.is_running() for worker in host.workers), "the workers are gone")
    host.workers = host.server.listening(2)
    for connection in host.connections:
        connection.close()
    assert host.versions() == {version(FIRST())}
    assert {answer.action for answer in host.answers()} == {"review"}
    host.server.config.write_text(config, encoding="utf-8")
    host.serve(FIRST())
    wait_until(lambda: "review" not in {answer.action for answer in host.answers()}, "the way back is taken")


def test_a_long_list_that_is_cut_in_place_ends_no_worker_and_is_in_memory_once(host: Swapping, tmp_path: Path) -> None:
    """Each worker was killed (SIGBUS) by the next payment that it looked up."""
    cards = tmp_path / "cards.txt"
    cards.write_text("".join(f"blocked-{number}\n" for number in range(50_000)), encoding="utf-8")
    config = host.server.config.read_text(encoding="utf-8")
    host.server.config.write_text(
        f'{config}\n[policy.lists]\ncards = ["@{cards}"]\n'
        '[[policy.rules]]\nname = "blocked"\nwhen = "card_id in lists.cards"\naction = "decline"\n',
        encoding="utf-8",
    )

    def actions(card: str) -> set[str]:
        return {answer.action for answer in host.answers(card)}

    host.hang_up()
    wait_until(lambda: actions("blocked-49999") == {"decline"}, "the list is taken up")
    assert actions("blocked-50000") == {"approve"}
    # The same memory: it has one inode.
    maps = [Path(f"/proc/{worker.pid}/maps").read_text(encoding="utf-8").splitlines() for worker in host.workers]
    inodes = [{line.split()[4] for line in lines if "paywarden-list" in line} for lines in maps]
    assert len(inodes[0]) == 1
    assert inodes[0] == inodes[1]
    (found,) = (host.server.folder / "serve" / "ready").glob("*/cards.list")

    def told(line: str) -> int:
        return host.server.log().count(line)

    ended = told(" ended with ")
    for number, size in enumerate((4096, 0), start=1):
        damaged, checked = told("was changed or deleted"), told("checked: release")
        os.truncate(found, size)
        for card in range(number, 50_000, 2_500):
            assert actions(f"blocked-{card}") == {"decline"}
        wait_until(partial(lambda count: told("checked: release") > count, checked), "it is prepared again")
        assert told("was changed or deleted") == damaged + 1
    assert host.server.listening(2) == host.workers
    assert told(" ended with ") == ended
    # A starting worker gets it from the supervisor, regardless of the disk.
    host.workers[0].kill()
    wait_until(lambda: not host.workers[0].is_running(), "the worker is gone")
    host.workers = host.server.listening(2)
    for connection in host.connections:
        connection.close()
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


def test_two_complete_versions_are_switched_by_the_deployment_file(host: Swapping, tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text(STRICT, encoding="utf-8")
    blue, green = ReleasePaths(str(FIRST())), ReleasePaths(str(OTHER()), str(strict))
    path = host.server.folder / "serve" / DEPLOYMENT
    try:
        for active, previous, action in ((green, blue, "review"), (blue, green, "approve"), (green, blue, "review")):
            write_deployment(path, Deployment(active, previous))
            host.wait_for(Path(active.bundle), action)
        # A candidate decides about half of the cards, and its arm is in the records; then the way back.
        write_deployment(path, Deployment(blue, green, green, "r-7", 5000, "00" * 16))
        wait_until(lambda: len(host.versions_of_cards()) == 2, "both arms answer")
        write_deployment(path, Deployment(blue, green))
        wait_until(lambda: host.versions_of_cards() == {version(FIRST())}, "the champion alone answers")
        entries = [
            OutboxEntry.FromString(payload)
            for worker in ("worker-0", "worker-1")
            for _, payload in OutboxReader(host.server.outbox, worker).read(0, 100_000)
        ]
        arms = {(one.arm, one.propensity, one.response.model_version) for one in entries if one.rollout}
        assert arms == {("champion", 0.5, version(FIRST())), ("candidate", 0.5, version(OTHER()))}
        # Both stay in memory.
        wait_until(lambda: {role for role, *_ in host.shown()} == {"active", "previous"}, "the metrics show both")
    finally:
        path.unlink()
