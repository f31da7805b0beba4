"""Make a pack of evidence: from an archive, the catalogue and exchange rates of the settings, and the registry.

The console makes it in a process of its own (`EvidenceProcess`): queries over a year take minutes of all cores and
gigabytes, and pages go on meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from paywarden.models.bundle.version import Version
from paywarden.models.registry.registry_settings import ModelRegistrySettings
from paywarden.ops import wiring
from paywarden.ops.evidence.evidence_files import Evidence, EvidenceAsked, Governance, collect, write
from paywarden.ops.evidence.queries import VERSIONS
from paywarden.ops.wiring.decision_parts import episode_features
from paywarden.ops.wiring.registry import model_paper, model_registry
from paywarden.schemas.errors import Misconfigured, PaywardenError, RegistryRefused
from paywarden.schemas.settings import Source

_NICE = 10
_END_S = 1.0


def make_evidence(
    source: Source, asked: EvidenceAsked, out: Path, key_file: Path | None, tell: Callable[[str], object]
) -> list[Path]:
    """Write a pack to the folder `out`; return its files. `tell` gets a line for each version without a document.

    Raises Misconfigured.
    """
    found = collect(asked, wiring.rate_table(source), episode_features(source), out.parent)
    return write(found, _governance(source, found, tell), out, key_file)


def _governance(source: Source, found: Evidence, tell: Callable[[str], object]) -> Governance | None:
    """Return the registry's part; None without a registry."""
    if not source.section("models", ModelRegistrySettings).people:
        return None
    papers = {}
    for row in found.rows(VERSIONS):
        version = Version(row["bundle_digest"], row["policy_digest"], row["catalogue_digest"])
        try:
            papers[f"paper-{version.digest[:12]}.md"] = model_paper(source, version.digest)
        except RegistryRefused as error:
            # The table of versions has it. That it was never registered is a finding.
            tell(f"no document of version {version.digest[:12]}: {error}")
    asked = found.asked
    entries = [one for one in model_registry(source).log.read().entries if asked.from_ms <= one.time_ms < asked.to_ms]
    return Governance(entries, papers)


class EvidenceProcess:
    """A process that makes a pack, with the last claim on the cores. `close` it."""

    def __init__(self, source: Source, asked: EvidenceAsked, out: Path, key_file: Path | None) -> None:
        # A fork would share the console's threads, sockets and connections.
        spawning = get_context("spawn")
        self._receiver, sender = spawning.Pipe(duplex=False)
        self._process = spawning.Process(
            target=_made, args=(sender, source, asked, out, key_file), name="evidence", daemon=True
        )
        self._process.start()
        sender.close()

    def is_done(self, wait_s: float) -> bool:
        """Return whether the pack is written, within this time. Raises Misconfigured if it cannot be."""
        if not self._receiver.poll(wait_s):
            return False
        try:
            problem: str = self._receiver.recv()
        except EOFError:
            self._process.join()
            problem = f"its process ended early, with the status {self._process.exitcode}"
        if problem:
            raise Misconfigured(problem)
        return True

    def close(self) -> None:
        """End the process, whether it is done or not."""
        self._process.kill()
        # It writes nothing any more, even if the kernel takes longer to end it.
        self._process.join(_END_S)
        self._receiver.close()


def _made(sender: Connection, source: Source, asked: EvidenceAsked, out: Path, key_file: Path | None) -> None:
    os.nice(_NICE)
    problem = ""
    try:
        make_evidence(source, asked, out, key_file, lambda _: None)
    except PaywardenError as error:
        problem = str(error)
    sender.send(problem)
