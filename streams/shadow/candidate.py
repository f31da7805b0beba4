"""The candidate of a rollout in the shadow, as the deployment file of this host names it.

    rollout start --shadow ─► log ─► deployment.json: candidate, share 0 ─► a challenger of the rollout's name
    rollout resume ─────────► log ─► deployment.json: candidate, share 1 % ─► no challenger any more

The file's writer (the companion by the registry's log, or `rollout lead`) thus starts and ends the challenger on each
host that has `paywarden shadow run`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import FileState, file_state
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, read_deployment

_log = logging.getLogger(__name__)


class ShadowCandidate:
    """Says which candidate is in the shadow on this host. Not thread-safe."""

    def __init__(self, runtime: Path, catalogue_digest: Callable[[], str]) -> None:
        """`runtime` is `[serve] runtime`. `catalogue_digest`: that of this host, asked for if the file names one."""
        self._file, self._catalogue_digest = runtime / DEPLOYMENT, catalogue_digest
        self._seen: FileState | None = None
        self._found: dict[str, ReleasePaths] = {}

    def look(self) -> dict[str, ReleasePaths]:
        """Returns the candidate by the name of its rollout; empty if none is in the shadow. It reads a changed file.

        A file that cannot be read changes nothing, and is a line in the log.
        """
        seen = file_state(self._file)
        if seen != self._seen:
            self._seen = seen
            try:
                self._found = self._in_shadow(read_deployment(self._file))
            except Misconfigured as error:
                _log.error("the candidate in the shadow stays the same: %s", error)
        return self._found

    def _in_shadow(self, deployment: Deployment | None) -> dict[str, ReleasePaths]:
        if deployment is None or deployment.candidate is None or deployment.share or not deployment.rollout:
            return {}
        if deployment.catalogue and deployment.catalogue != self._catalogue_digest():
            # On a host with two versions it belongs to the other one.
            return {}
        return {deployment.rollout: deployment.candidate}
