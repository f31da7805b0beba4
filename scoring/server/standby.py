"""Two complete versions ready on one host (blue-green): model, policy and feature catalogue change with one switch.

    serve --standby, catalogue A ──serves──► ports          deployment.json: catalogue A
    serve --standby, catalogue B ──waits, loaded──►

    deployment.json: catalogue B      B takes the ports over; A answers its calls in flight, and waits, still loaded
    deployment.json: catalogue A      A takes them back

1. A bundle fits one catalogue, and so do profiles, mirror and the fields of a request. Each version therefore has a
   `serve` of its own, with its configuration, its companion and its mirror. They share `[serve] runtime`, the ports and
   the decision cache: a payment that is asked for again gets its decision from either.
2. The version whose catalogue the deployment file names serves. The sockets are handed over (takeover.py), so no call
   is refused.
3. Without a mirror, or against the registry, a version does not take over. It logs why, and the other version serves
   on.
4. If new software of the same catalogue takes the ports over, the earlier process ends, as without a standby.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.file_state import FileState, file_state
from paywarden.scoring.server import hang_ups
from paywarden.scoring.server.context import ServerContext
from paywarden.scoring.server.deployment.deployer import is_served
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, read_deployment, release_key
from paywarden.scoring.server.supervisor import serve, warm_up
from paywarden.scoring.state.mirror_file import has_mirror

_log = logging.getLogger(__name__)

# A switch is to take less than a second.
_LOOK_S = 0.02
_STOPS = (signal.SIGTERM, signal.SIGINT)
_HEEDED = (*_STOPS, signal.SIGHUP)


def stand_by(host: ServerContext, worker_count: int, *, announce: Callable[[Sequence[str]], None]) -> None:
    """Serve whenever it is this version's turn, until SIGTERM or SIGINT. Raises as `serve` does.

    `announce` gets the addresses at each turn.
    """
    turns = Turns(host)
    # Now, and not in the second in which it is to take over.
    warm_up(host)
    while (mine := _next_turn(turns)) is not None:
        _log.info("catalogue %s: it is this version's turn", host.catalogue_digest)
        taker = serve(mine, worker_count, announce=announce, takes_over=True)
        hang_ups.hold()
        for number in _STOPS:
            signal.signal(number, signal.SIG_DFL)
        if taker in (None, "", host.catalogue_digest):
            return
        _log.info("catalogue %s: another version decides, and this one waits", host.catalogue_digest)


class Turns:
    """Says when it is a version's turn to serve."""

    def __init__(self, host: ServerContext) -> None:
        self._host, self._file = host, host.runtime / DEPLOYMENT
        self._seen: FileState | None = None
        self._deployment: Deployment | None = None
        self._told = self._refusal = ""

    def look(self) -> ServerContext | None:
        """Returns the context to serve with; None if it is not this version's turn. It reads a changed file."""
        self._read()
        deployment, host = self._deployment, self._host
        if deployment is None or not deployment.catalogue:
            # No file says whose turn it is: the first version to start serves.
            return None if is_served(host.runtime) else host
        if deployment.catalogue != host.catalogue_digest:
            return None
        if not has_mirror(host.mirror):
            self._tell(f"there is no mirror at {host.mirror.path} yet: wanted a companion for this version")
            return None
        return self._loaded(deployment)

    def _loaded(self, deployment: Deployment) -> ServerContext | None:
        """Returns the host with the release that the file names, which is loaded already but for an early switch."""
        active = deployment.active
        if self._refusal:
            self._tell(self._refusal)
            return None
        if release_key(active.bundle_digest, active.policy_digest) == self._host.release.key:
            return self._host
        try:
            self._host = replace(self._host, release=self._host.releases.load(active))
        except (PaywardenError, OSError) as error:
            self._tell(str(error))
            return None
        return self._host

    def _read(self) -> None:
        seen = file_state(self._file)
        if seen == self._seen:
            return
        try:
            self._deployment, self._seen = read_deployment(self._file), seen
        except Misconfigured as error:
            self._tell(str(error))
            return
        self._refusal = self._refused(self._deployment)

    def _refused(self, deployment: Deployment | None) -> str:
        """Returns why the registry does not allow this version its turn; empty if it does."""
        host = self._host
        if deployment is None or deployment.catalogue != host.catalogue_digest:
            return ""
        try:
            return host.releases.refusal_of(deployment)
        except Misconfigured as error:
            # A log that cannot be read decides nothing. If nobody serves, the file does.
            return str(error) if is_served(host.runtime) else ""

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            name = self._host.catalogue_digest
            _log.error("catalogue %s does not take over, and the other version serves on: %s", name, trouble)
        self._told = trouble


def _next_turn(turns: Turns) -> ServerContext | None:
    """Wait for this version's turn; returns the context to serve with, or None after a stop signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
    try:
        while (mine := turns.look()) is None:
            received = signal.sigtimedwait(_HEEDED, _LOOK_S)
            if received is not None and received.si_signo in _STOPS:
                return None
        return mine
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
