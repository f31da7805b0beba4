"""The check of how the profile store is set up."""

from __future__ import annotations

from collections.abc import Iterator

from paywarden.features.stores.aerospike.cluster_check import ERROR as STORE_ERROR
from paywarden.ops import wiring
from paywarden.ops.doctor.results import ERROR, OK, SKIPPED, WARNING, CheckResult
from paywarden.schemas.settings import Source


def check_store(source: Source, *, write: bool = False) -> Iterator[CheckResult]:
    """Yields the faults of the store's setup. Raises Misconfigured.

    `write` tries whether the configured user can write, read and erase a record.
    """
    kind = wiring.store_kind(source)
    if kind == "memory":
        yield CheckResult("store", SKIPPED, "[store] kind is memory: only its own process can look at it")
        return
    findings = wiring.check_store(source, write=write)
    for finding in findings:
        level = ERROR if finding.level == STORE_ERROR else WARNING
        yield CheckResult("store", level, f"{finding.what}: {finding.so}", f"wanted {finding.want}")
    if not findings:
        yield CheckResult("store", OK, f"the {kind} store answers, and is set up as it must be")
