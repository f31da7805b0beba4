"""The deployment file of a host follows the log of the registry, even if a process is killed in between."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.artefacts import FolderStore
from paywarden.models.registry.entries import Entry
from paywarden.models.registry.model_log import LogFile, RegistryLog
from paywarden.models.registry.registry import Registry, ServedVersion, Signer
from paywarden.models.registry.registry_rules import RegistryState, Rules
from paywarden.models.rollout.registry_log import RegistryRolloutLog
from paywarden.models.rollout.rollout import EventKind, RolloutEvent, Start
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.schemas.errors import Misconfigured, RegistryRefused
from paywarden.scoring.server.deployment.deployment_file import (
    DEPLOYMENT,
    READY,
    Deployment,
    ReleasePaths,
    read_deployment,
    release_key,
)
from paywarden.streams.registry.registered_deployment import AGAIN_S, RegisteredDeployment
from tests.services.product.processes import wait_until
from tests.unit.models.rollout.test_rollout import PLAN
from tests.worlds.rollout.registry import CATALOGUE, START_MS, Writer, digest, key_of, people_of

PEOPLE = people_of()
FORK = multiprocessing.get_context("fork")
SALT = "00" * 16


def digests(name: str) -> tuple[str, str]:
    return digest(f"bundle {name}"), digest(f"policy {name}")


@dataclass(frozen=True)
class Folders(Registry):
    """A registry whose files are there, but for those of the bundles in `gone`."""

    gone: frozenset[str] = frozenset()

    def files_of(self, _: RegistryState, version: Version, **__: bool) -> ServedVersion:  # type: ignore[override]
        if version.bundle in self.gone:
            raise RegistryRefused("model.txt was registered and cannot be read")
        return ServedVersion(version, Path("/b") / version.bundle, Path("/p") / version.policy)


class Host:
    """A host with its log, and the file that its deployment is written to."""

    def __init__(self, folder: Path) -> None:
        self.file, self.runtime = LogFile(folder / "log.jsonl"), folder / "serve"
        self.gone: set[str] = set()
        self.now_ms = START_MS
        self.deployment = self.opened()

    def opened(self) -> RegisteredDeployment:
        """Another process."""
        return RegisteredDeployment(self.registry, self.runtime, [self.file.path])

    def registry(self) -> Registry:
        return Folders(self.file, PEOPLE, Rules(), FolderStore(self.runtime), frozenset(self.gone))

    def write(self, write: Callable[[Writer], object]) -> None:
        def made(log: RegistryLog) -> Sequence[Entry]:
            writer = Writer(log, self.now_ms)
            write(writer)
            self.now_ms = writer.now_ms
            return writer.log.entries[len(log.entries) :]

        self.file.append(made)

    def propose(self, name: str) -> None:
        self.write(lambda writer: writer.proposal(name))

    def promote(self, name: str) -> None:
        self.write(lambda writer: writer.add(kinds.PROMOTED, "dora", proposal=writer.proposal(name).digest))

    def roll_back(self) -> None:
        state = self.registry().state()
        assert state.champion is not None
        assert state.previous is not None
        what = {"from": state.champion.digest, "to": state.previous.digest}
        self.write(lambda writer: writer.add(kinds.ROLLED_BACK, "dora", {**what}))

    def take(self, kind: EventKind, start: Start | None = None) -> None:
        log = RegistryRolloutLog(self.registry(), Signer("anna", key_of("anna")))
        self.now_ms += 1
        RolloutKeeper(log).take(RolloutEvent(kind, self.now_ms, "anna", "a test", start))

    def start(self, champion: str, candidate: str) -> None:
        self.propose(candidate)
        self.take(
            EventKind.STARTED, Start("r-1", SALT, Version(*digests(champion)), Version(*digests(candidate)), PLAN)
        )

    @property
    def says(self) -> Deployment | None:
        return read_deployment(self.runtime / DEPLOYMENT)

    def names(self) -> list[tuple[str, str]]:
        """The digests that the file names: active, previous, candidate."""
        says = self.says
        assert says is not None
        return [(paths.bundle_digest, paths.policy_digest) for paths in says.releases.values()]


served = partial(Deployment, catalogue=CATALOGUE)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def paths(name: str) -> ReleasePaths:
    bundle, policy = digests(name)
    return ReleasePaths(f"/b/{bundle}", f"/p/{policy}", bundle, policy)


def test_the_file_follows_promotions_rollbacks_and_the_share_of_a_rollout(host: Host) -> None:
    assert not host.deployment.update()
    host.propose("one")
    assert (host.deployment.update(), host.says) == (False, None)
    host.promote("two")
    assert (host.deployment.update(), host.says) == (True, served(paths("two")))
    assert not host.deployment.update()
    host.promote("three")
    host.deployment.update()
    assert host.says == served(paths("three"), paths("two"))
    host.start("three", "four")
    host.deployment.update()
    assert host.says == served(paths("three"), paths("two"), paths("four"), "r-1", 0, SALT)
    host.take(EventKind.READY)
    host.deployment.update()
    assert host.says == served(paths("three"), paths("two"), paths("four"), "r-1", 1_000, SALT)
    host.take(EventKind.ABORTED)
    host.deployment.update()
    assert host.says == served(paths("three"), paths("two"))
    host.roll_back()
    host.deployment.update()
    assert host.says == served(paths("two"))


def test_files_that_are_gone_keep_no_way_back_from_being_taken(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.promote("one")
    host.promote("two")
    host.deployment.update()
    # Releases that the file names already are not checked again.
    host.gone = {digests("one")[0], digests("two")[0]}
    host.roll_back()
    host.deployment.update()
    assert host.says == served(paths("one"))
    # Releases that are ready on this host are taken; others are refused, and nothing changes.
    host.gone = {digests("three")[0]}
    host.promote("three")
    with pytest.raises(RegistryRefused, match=r"model\.txt was registered"):
        host.deployment.update()
    assert host.says == served(paths("one"))
    ready = host.runtime / READY / release_key(Version(*digests("three")))
    ready.mkdir(parents=True)
    host.deployment.update()
    assert host.says == served(ReleasePaths(str(ready), "", *digests("three")), paths("one"))
    # A candidate that is gone gets no cards.
    host.gone = {digests("four")[0]}
    host.start("three", "four")
    host.take(EventKind.READY)
    host.deployment.update()
    says = host.says
    assert says is not None
    assert (says.candidate, says.share) == (None, 0)
    assert [one.message for one in caplog.records if one.levelno >= logging.ERROR] == [
        "the candidate of r-1 gets no cards: model.txt was registered and cannot be read"
    ]


def test_a_candidate_whose_files_come_later_gets_its_cards(host: Host) -> None:
    """The log had not changed, so nobody looked again: a rollout stayed pending for ever."""
    now_s = 0.0
    deployment = RegisteredDeployment(host.registry, host.runtime, [host.file.path], now_s=lambda: now_s)
    host.promote("one")
    host.start("one", "two")
    host.gone = {digests("two")[0]}
    deployment.update()
    host.gone = set()
    assert not deployment.update()
    now_s = AGAIN_S
    assert deployment.update()
    assert host.says == served(paths("one"), None, paths("two"), "r-1", 0, SALT)
    assert not deployment.update()


def test_files_that_stay_away_are_looked_for_ever_less_often(host: Host) -> None:
    """Each look reads the whole log, and a way back may be gone for good."""
    now_s, looks = 0.0, list[float]()

    def opened() -> Registry:
        looks.append(now_s)
        return host.registry()

    deployment = RegisteredDeployment(opened, host.runtime, [host.file.path], now_s=lambda: now_s)
    host.promote("one")
    host.start("one", "two")
    host.gone = {digests("two")[0]}
    while now_s < 1_000:
        deployment.update()
        now_s += 1
    assert looks == [0, 5, 15, 35, 75, 155, 315, 615, 915]
    # Every change of the log is read at once.
    host.take(EventKind.ABORTED)
    deployment.update()
    assert looks[-1] == 1_000


def test_a_store_that_hangs_keeps_no_rollback_from_the_host(host: Host) -> None:
    answers = threading.Event()

    class Remote(Folders):
        """The files of two versions are in an object store that does not answer."""

        def is_here(self, version: Version) -> bool:
            return version.bundle not in {digests("three")[0], digests("four")[0]} or answers.is_set()

        def files_of(self, state: RegistryState, version: Version, **rest: bool) -> ServedVersion:  # type: ignore[override]
            if not self.is_here(version):
                answers.wait()
            return super().files_of(state, version, **rest)

    now_s = 0.0
    deployment = RegisteredDeployment(
        lambda: Remote(host.file, PEOPLE, Rules(), FolderStore(host.runtime)),
        host.runtime,
        [host.file.path],
        now_s=lambda: now_s,
    )
    host.promote("one")
    host.promote("two")
    host.start("two", "three")
    deployment.update()
    assert host.says == served(paths("two"), paths("one"))
    host.roll_back()
    deployment.update()
    assert host.says == served(paths("one"))
    # A champion that is not here yet: what decides goes on, and the follower says why.
    host.promote("four")
    with pytest.raises(RegistryRefused, match="are being fetched from the registry's store"):
        deployment.update()
    assert host.says == served(paths("one"))
    answers.set()
    deployment.update()
    assert host.says == served(paths("four"), paths("one"))


def test_a_fetch_that_fails_says_why_and_is_tried_again(host: Host) -> None:
    tries = list[int]()

    class Failing(Folders):
        def is_here(self, _: Version) -> bool:
            return False

        def files_of(self, _: RegistryState, __: Version, **___: bool) -> ServedVersion:  # type: ignore[override]
            tries.append(1)
            raise Misconfigured("cannot read s3://bucket: 503")

    deployment = RegisteredDeployment(
        lambda: Failing(host.file, PEOPLE, Rules(), FolderStore(host.runtime)), host.runtime, [host.file.path]
    )
    host.promote("one")
    told = set[str]()
    wait_until(lambda: _refused(deployment, told) and len(tries) > 1, "a second try")
    assert told == {
        f"the files of bundle {digests('one')[0][:12]} are being fetched from the registry's store",
        "cannot read s3://bucket: 503",
    }


def _refused(deployment: RegisteredDeployment, told: set[str]) -> bool:
    with pytest.raises(Misconfigured) as refused:
        deployment.update()
    told.add(str(refused.value))
    return len(told) > 1


def test_versions_of_other_catalogues_are_left_to_the_process_that_serves_them(host: Host) -> None:
    def another(writer: Writer) -> None:
        proposal = writer.proposal("blue")
        blue = {"bundle": digests("blue")[0], "policy": digests("blue")[1]}
        assert proposal.what == {**blue, "catalogue": CATALOGUE}
        bundle = digest("bundle green")
        writer.add(kinds.REGISTERED_BUNDLE, "anna", bundle=bundle, catalogue="beef", files={"model.txt": bundle})
        green = writer.add(kinds.PROPOSED, "anna", bundle=bundle, policy=blue["policy"], catalogue="beef")
        for each in (proposal, green):
            writer.add(kinds.PROMOTED, "dora", proposal=each.digest)

    host.write(another)
    host.deployment.update()
    says = host.says
    assert says is not None
    assert (says.active.bundle_digest, says.previous, says.catalogue) == (digest("bundle green"), None, "beef")
    host.roll_back()
    host.deployment.update()
    assert host.says == served(paths("blue"))


def test_a_file_that_somebody_changed_or_damaged_is_written_anew(host: Host) -> None:
    host.promote("one")
    host.deployment.update()
    (host.runtime / DEPLOYMENT).write_text("{")
    assert host.deployment.update()
    assert host.says == served(paths("one"))


def test_a_folder_in_the_place_of_the_file_is_told_once_and_replaced_when_it_is_gone(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The companion looks every second."""
    host.promote("one")
    place = host.runtime / DEPLOYMENT
    place.mkdir(mode=0o700, parents=True)
    for _ in range(3):
        with pytest.raises(Misconfigured, match="Is a directory"):
            host.deployment.update()
    assert caplog.text.count("it is replaced") == 1
    place.rmdir()
    assert host.deployment.update()
    assert host.says == served(paths("one"))


def test_what_was_read_earlier_is_never_written_later(host: Host) -> None:
    """A process reads the log, and before it writes the file another one promotes and deploys."""
    host.promote("one")

    def promote() -> None:
        host.promote("two")
        host.opened().update()

    other = threading.Thread(target=promote)

    class Slow(Folders):
        def files_of(self, _: RegistryState, version: Version, **__: bool) -> ServedVersion:  # type: ignore[override]
            other.start()
            # The other one may be waiting for this one.
            other.join(0.2)
            return super().files_of(_, version)

    slow = RegisteredDeployment(
        lambda: Slow(host.file, PEOPLE, Rules(), FolderStore(host.runtime)), host.runtime, [host.file.path]
    )
    slow.update()
    other.join()
    assert host.says == served(paths("two"), paths("one"))


@pytest.mark.parametrize("seed", range(4))
def test_killed_between_the_log_and_the_file_the_next_process_goes_on_where_the_log_says(host: Host, seed: int) -> None:
    """A writer promotes, rolls back and deploys without end, and is killed in any of it."""

    def work(done: int) -> None:
        host.promote("0")
        for number in range(1, 1_000):
            host.promote(str(number))
            host.opened().update()
            if number % 3 == 0:
                host.roll_back()
                host.opened().update()
            os.write(done, b".")

    read_end, write_end = os.pipe()
    writer = FORK.Process(target=work, args=(write_end,))
    writer.start()
    os.close(write_end)
    os.read(read_end, 1)
    # Another process of the host deploys at the same time.
    for _ in range(3 * seed):
        host.deployment.update()
        os.read(read_end, 1)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    os.close(read_end)
    host.opened().update()
    state = host.registry().state()
    assert state.champion is not None
    assert state.champion.catalogue == CATALOGUE
    assert host.names() == [(one.bundle, one.policy) for one in (state.champion, state.previous) if one is not None]
