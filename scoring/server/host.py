"""Runs a scoring host: its parent process prepares everything, and forks the workers.

    parent   checks settings, compiles, loads the bundle, holds the ports ─ fork ─► worker 0, worker 1, …, admin
    worker   scoring/server/worker.py
    admin    scoring/server/admin.py: health and metrics

The parent imports and warms up everything before it forks. A worker therefore starts in milliseconds, and shares the
memory of the parent (copy-on-write). Afterwards the parent is a supervisor (supervisor.py), with a deployer for other
bundles and policies (deployment/deployer.py), and a desk that hands the ports over to another host (takeover.py).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.engine import chunk_frame
from paywarden.scoring.idempotency import decision_cache as answered
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.server.admin import ADMIN_NAME, admin_main
from paywarden.scoring.server.context import Endpoints, ServerContext, open_endpoints
from paywarden.scoring.server.deployment.deployer import Deployer, HostProcesses
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, READY, read_deployment
from paywarden.scoring.server.deployment.releases import Release, Serving, load_release
from paywarden.scoring.server.descriptors import secure_descriptors
from paywarden.scoring.server.mapped_files import MappedFile
from paywarden.scoring.server.supervisor import (
    HostParts,
    Supervisor,
    SupervisorMetrics,
    Worker,
    spare_count,
)
from paywarden.scoring.server.takeover import HandOverDesk, Taken, name_after, take_over
from paywarden.scoring.server.worker import worker_main
from paywarden.scoring.state import mirror_look_up
from paywarden.scoring.state.mirror_file import has_mirror
from paywarden.scoring.state.neighbours import hops
from paywarden.scoring.state.overlay.overlay_files import prepare

_log = logging.getLogger(__name__)

# A worker bounds its own stop, and closes its files after that; a worker that takes longer has hung.
_CLOSE_S = 5.0
# The supervisor's file of counts, beside those of the workers.
_METRICS_NAME = "supervisor"


def serve(
    host: ServerContext,
    worker_count: int,
    *,
    announce: Callable[[Sequence[str]], None],
    takes_over: bool = False,
) -> None:
    """Run the workers until SIGTERM or SIGINT, or until another host has taken the ports over.

    `announce` gets the reserved addresses, HTTP's first. `takes_over`: where a host runs with the same `[serve]
    runtime`, take its ports over and end it.

    Raises Misconfigured when a port is taken or the settings cannot be used, and TemporaryFailure when a
    worker did not stop as it should, or another host does not hand its ports over.
    """
    if worker_count < 1:
        raise Misconfigured(f"--workers: wanted at least 1, got {worker_count}")
    secure_descriptors(host.connections())
    if host.exploration is not None:
        host.exploration.require()
    # Before anything is taken: afterwards it must go fast.
    warm_up(host)
    taken = _taken(host) if takes_over else None
    if takes_over and taken is None:
        _log.info("there is no host to take over: this one starts as usual")
    numbers = worker_count + spare_count(worker_count)
    first = 0 if taken is None else taken.first_worker(numbers)
    with open_endpoints(host, worker_count, taken) as endpoints, _counting(host, first) as metrics:
        mapped = _mapped_files(host)
        parent = os.getpid()

        def work(worker: Worker, beat: Callable[[], None]) -> int:
            if worker.serving is None:
                endpoints.places.close()
                return admin_main(host, endpoints, parent, beat, name_after(ADMIN_NAME, first))
            endpoints.places.keep(worker.place)
            return worker_main(host, first + worker.number, endpoints, parent, beat, worker.place, worker.serving)

        def check(checked: Callable[[], int]) -> int:
            endpoints.places.close()
            return checked()

        def look() -> str:
            # A worker that starts has the newest tokens and certificate that could be used.
            endpoints.refresh()
            return next(filter(None, (file.trouble() for file in mapped)), "")

        supervisor = Supervisor(
            worker_count,
            HostParts(work, endpoints.places, look, first),
            stop_s=_stop_s(host),
            hang_timeout_s=host.hang_timeout_s,
            metrics=metrics,
            serving=Serving.of(host.release),
            # It serves health and metrics.
            has_admin=True,
        )
        deployer = _deployer(host, supervisor, metrics, check)
        desk = _desk(host, endpoints, supervisor, range(first, first + numbers))
        supervisor.heed_signals(deployer, desk)
        if taken is not None:
            supervisor.when_all_work(taken.ready)
        if not has_mirror(host.mirror):
            _log.warning(
                "there is no mirror at %s yet: payments are answered without profiles, and /readyz says 503, until "
                "`paywarden companion` has filled it",
                host.mirror.path,
            )
        announce(endpoints.addresses(host))
        try:
            supervisor.run()
        finally:
            for part in (deployer, desk):
                if part is not None:
                    part.close()


def _taken(host: ServerContext) -> Taken | None:
    """Returns the sockets of the host that runs. Raises Misconfigured if this one must not take its place."""
    path = host.runtime / DEPLOYMENT
    deployment = read_deployment(path)
    if deployment is not None and deployment.catalogue not in ("", host.catalogue_digest):
        raise Misconfigured(
            f"--take-over: {path} lets the catalogue {deployment.catalogue} decide, and this host's is "
            f"{host.catalogue_digest}"
        )
    taken = take_over(host.runtime)
    if taken is not None and taken.catalogue not in ("", host.catalogue_digest) and not has_mirror(host.mirror):
        raise Misconfigured(
            f"--take-over: there is no mirror at {host.mirror.path} yet, and the host that runs has another catalogue: "
            "wanted a companion for this one"
        )
    return taken


def warm_up(host: ServerContext) -> None:
    """Load or compile the code that a host needs before it can serve. The workers share its memory.

    The garbage collector notes something in every object that it looks at. In a forked worker each such page is copied,
    which takes longer than all else that a worker does before it listens. Frozen objects are not looked at.
    """
    host.engine.warm_up()
    answered.warm_up()
    fast_requests.warm_up()
    mirror_look_up.warm_up()
    chunk_frame.warm_up()
    if host.engine.plan.hops:
        hops.warm_up()
    gc.collect()
    gc.freeze()


def _desk(host: ServerContext, endpoints: Endpoints, supervisor: Supervisor, numbers: range) -> HandOverDesk | None:
    """Returns the desk that hands the ports over to another host; None if its socket cannot be made."""
    try:
        return HandOverDesk(
            host.runtime,
            listeners=lambda: endpoints.places,
            admin_port=endpoints.admin_port,
            workers=numbers,
            catalogue=host.catalogue_digest,
            hand_over=supervisor.retire,
        )
    except Misconfigured as error:
        _log.warning("no other host can take the ports over: %s", error)
        return None


def _deployer(
    host: ServerContext,
    supervisor: Supervisor,
    metrics: SupervisorMetrics,
    check: Callable[[Callable[[], int]], int],
) -> Deployer | None:
    """Returns the deployer, which changes bundle and policy; None if its folder cannot be used.

    `check` runs a checker in a process that was forked.
    """
    own = host.release

    def load(key: str) -> Release:
        return load_release(
            key,
            host.runtime / READY,
            host.catalogue,
            host.catalogue_digest,
            fallbacks=own.bundles[1:],
            fallback_digests=[origin.bundle_digest for origin in own.origins[1:-1]],
            # A policy with the same lists keeps them.
            earlier=supervisor.serving.active.policy,
        )

    try:
        return Deployer(
            host.releases,
            host.runtime,
            own,
            catalogue=host.catalogue_digest,
            failures=metrics.check_failures,
            processes=HostProcesses(
                lambda checked: supervisor.fork_apart(lambda: check(checked)), load, supervisor.renew
            ),
        )
    except Misconfigured as error:
        _log.warning("bundle and policy cannot be changed without a restart: %s", error)
        return None


def _mapped_files(host: ServerContext) -> list[MappedFile]:
    """Prepare the files that workers map."""
    files = [MappedFile(host.answered.path, lambda: answered.prepare(host.answered))]
    if host.overlay.enabled:
        files.append(MappedFile(host.overlay.path, lambda: prepare(host.overlay, host.engine.plan)))
    return files


@contextlib.contextmanager
def _counting(host: ServerContext, first: int) -> Iterator[SupervisorMetrics]:
    registry = MetricsRegistry()
    metrics = SupervisorMetrics.declare(registry)
    registry.open(host.metrics_directory, name_after(_METRICS_NAME, first))
    try:
        yield metrics
    finally:
        registry.close()


def _stop_s(host: ServerContext) -> float:
    return max(one.drain_delay_ms + one.stop_timeout_ms for one in (host.http, host.grpc)) / 1000 + _CLOSE_S
