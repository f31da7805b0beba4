"""Writes the deployment file of a host from the log of the model registry.

    log ──rules, signatures──► champion, version before it, rollout under way ──files checked──► deployment.json

1. A process that has changed this host's copy of the log calls `update`: the companion after each look at the topic,
   and the commands that promote, roll back or abort. It depends on the log alone, so it does not matter who comes
   first.
2. One process at a time reads the log and writes the file. A later state of the log is therefore written later.
3. A release that the file names already is not checked again. If its files are gone, the copy below RUNTIME/ready is
   used: a way back must not fail because somebody tidied up.
4. If the candidate cannot be found, the champion decides about its cards. It is looked for again, at first after
   seconds: its files may come later than the log.
5. A thread fetches files that are in an object store alone. A slow store keeps no rollback from this host: meanwhile
   the host goes on with its present releases, and follows the log.

A log without a promotion says nothing, and the file stays as it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from paywarden.models.bundle.version import Version
from paywarden.models.registry.registry import Registry, ServedVersion
from paywarden.models.registry.registry_rules import RegistryState, state_of
from paywarden.models.rollout.registry_log import folded
from paywarden.models.rollout.rollout import Rollout
from paywarden.schemas.errors import Misconfigured, RegistryRefused
from paywarden.schemas.file_state import FileState, file_state
from paywarden.schemas.line_file import LineFile
from paywarden.schemas.private_files import make_private_folder
from paywarden.schemas.retry_times import RetryTimes
from paywarden.scoring.server.deployment.deployment_file import (
    DEPLOYMENT,
    READY,
    Deployment,
    ReleasePaths,
    read_deployment,
    release_key,
    write_deployment,
)

_log = logging.getLogger(__name__)

# A candidate or a way back that could not be found is looked for again after this time, and then ever less often: each
# time the whole log is read.
AGAIN_S, AGAIN_S_MAX = 5.0, 300.0


class RegisteredDeployment:
    """Keeps the deployment file below `runtime` as the log says. Not thread-safe; processes exclude each other."""

    def __init__(
        self,
        open_registry: Callable[[], Registry],
        runtime: Path,
        inputs: Sequence[Path],
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`open_registry` is called for each reading. `inputs`: the files that decide, with that of the log."""
        self._open, self._runtime, self._inputs = open_registry, runtime, inputs
        self._file = runtime / DEPLOYMENT
        self._seen: list[FileState | None] = []
        self._told = self._told_damage = ""
        self._now_s, self._again = now_s, RetryTimes(AGAIN_S, AGAIN_S_MAX)
        self._fetches = _Fetches()

    def update(self) -> bool:
        """Write the deployment of the log, unless the file has it already; returns whether it was written.

        Nothing is read if no file has changed and none is missing. Raises Misconfigured, RegistryRefused: the file
        stays as it is then.
        """
        if self._states() != self._seen:
            self._again.shorten()
        elif not self._told or self._now_s() < self._again.at:
            return False
        try:
            make_private_folder(self._runtime)
        except OSError as error:
            raise Misconfigured(f"[serve] runtime: cannot make {self._runtime}: {error.strerror}") from error
        with LineFile(self._file).locked():
            before = self._states()
            is_new = self._write()
        # Entries that came into the log meanwhile are read the next time.
        self._seen = [*before[:-1], file_state(self._file)]
        self._again.note_failure(self._now_s())
        return is_new

    def _states(self) -> list[FileState | None]:
        return [file_state(path) for path in (*self._inputs, self._file)]

    def _write(self) -> bool:
        registry = self._open()
        log = registry.log.read()
        state = state_of(log, registry.people, registry.rules)
        if state.champion is None:
            return False
        now = self._now()
        rollout = None if state.rollout is None else folded(log, state).rollout
        deployment = self._deployment(registry, state, state.champion, rollout, now)
        if deployment == now:
            return False
        write_deployment(self._file, deployment)
        _log.info("this host serves the registry's releases: %s", _spoken(deployment))
        return True

    def _now(self) -> Deployment | None:
        """Returns the content of the file; None if it is missing or damaged: it is written again then."""
        try:
            now = read_deployment(self._file)
        except Misconfigured as error:
            # A folder, for example, cannot be replaced, and is read again each time.
            if str(error) != self._told_damage:
                _log.warning("%s: it is replaced", error)
            self._told_damage = str(error)
            return None
        self._told_damage = ""
        return now

    def _deployment(
        self,
        registry: Registry,
        state: RegistryState,
        champion: Version,
        rollout: Rollout | None,
        now: Deployment | None,
    ) -> Deployment:
        known = {} if now is None else {paths.version: paths for paths in now.releases.values()}

        def found(version: Version) -> ReleasePaths:
            return known.get(version) or self._checked(registry, state, version)

        active, previous, candidate, troubles = found(champion), None, None, list[str]()
        # A version of another catalogue is served by another `serve` (scoring/server/takeover.py).
        if state.previous is not None and state.previous.catalogue == champion.catalogue:
            try:
                previous = found(state.previous)
            except Misconfigured as error:
                troubles.append(f"the way back cannot be kept ready: {error}")
        if rollout is not None and state.rollout is not None and not rollout.has_ended:
            try:
                candidate = found(state.rollout.version)
            except Misconfigured as error:
                troubles.append(f"the candidate of {rollout.start.name} gets no cards: {error}")
        self._tell("; ".join(troubles))
        named = Deployment(active, previous, catalogue=champion.catalogue)
        if candidate is None or rollout is None:
            return named
        start = rollout.start
        return replace(named, candidate=candidate, rollout=start.name, share=rollout.share, salt=start.salt)

    def _checked(self, registry: Registry, state: RegistryState, version: Version) -> ReleasePaths:
        """Returns where a version is, when its files are those that were registered. Raises RegistryRefused."""
        try:
            served = self._fetches.served(registry, state, version)
        except Misconfigured:
            ready = self._runtime / READY / release_key(version)
            if not ready.is_dir():
                raise
            return ReleasePaths(str(ready.absolute()), "", version.bundle, version.policy)
        bundle, policy = served.bundle.absolute(), served.policy.absolute()
        return ReleasePaths(str(bundle), str(policy), version.bundle, version.policy)

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._told:
            _log.error("%s", trouble)
        self._told = trouble


class _Fetches:
    """Fetches the files of versions, one at a time, in a thread that nobody waits for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        # The error of the version that was fetched last.
        self._failed: tuple[str, Misconfigured] | None = None

    def served(self, registry: Registry, state: RegistryState, version: Version) -> ServedVersion:
        """Returns a version's files, if they are on this host. Raises RegistryRefused while they are fetched.

        Raises the errors of `files_of`, once for each time that the files could not be fetched.
        """
        if registry.is_here(version):
            return registry.files_of(state, version)
        if self._thread is None or not self._thread.is_alive():
            failed, self._failed = self._failed, None
            if failed is not None and failed[0] == version.digest:
                raise failed[1]
            self._thread = threading.Thread(
                target=self._fetch, args=(registry, state, version), name="model-registry-fetch", daemon=True
            )
            self._thread.start()
        raise RegistryRefused(f"the files of bundle {version.bundle[:12]} are being fetched from the registry's store")

    def _fetch(self, registry: Registry, state: RegistryState, version: Version) -> None:
        try:
            registry.files_of(state, version)
        except Misconfigured as error:
            self._failed = version.digest, error


def _spoken(deployment: Deployment) -> str:
    told = f"bundle {deployment.active.bundle_digest[:12]}, policy {deployment.active.policy_digest[:12]}"
    if deployment.candidate is not None:
        told += f"; {deployment.share / 100:g} % of the cards to {deployment.candidate.bundle_digest[:12]}"
    return told
