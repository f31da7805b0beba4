"""Parts that the parent prepares once for all workers: settings, models, ports, sockets, tokens and certificates."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.features.profiles.overlay_settings import OverlaySettings
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.policy.exploration import Exploration, ExplorationSettings, FileLedger
from paywarden.models.policy.policy import Policy
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
from paywarden.scoring.net.listeners import reserve_port
from paywarden.scoring.net.tls import Tls, TlsSettings
from paywarden.scoring.net.tokens import AuthSettings, Tokens
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.server.deployment.releases import Release, ReleaseSource
from paywarden.scoring.server.places import Places
from paywarden.scoring.server.takeover import GRPC, HTTP, Taken
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.scoring.state.shards import CardShards

_ADMIN = "admin"


@dataclass(frozen=True)
class ExplorationContext:
    """The parts from which each worker makes its exploration. The workers of a host share the ledger, a file."""

    settings: ExplorationSettings
    key: bytes = field(repr=False)
    ledger: Path

    def require(self) -> None:
        """Raise Misconfigured if the ledger cannot be kept."""
        FileLedger.require(self.ledger)

    def open(self) -> Exploration:
        """Returns the exploration of one worker. Call it after the fork."""
        return Exploration(self.settings, key=self.key, ledger=FileLedger(self.ledger))


@dataclass(frozen=True)
class ServerContext:
    """The settings of a host, and everything it loads once before its workers start."""

    engine: FeatureEngine
    rates: RateTable
    # The release that decides at first (scoring/server/deployment/deployer.py has later ones).
    release: Release
    http: HttpSettings
    grpc: GrpcSettings
    admission: AdmissionSettings
    auth: AuthSettings
    tls: TlsSettings
    limits: RequestLimits
    mirror: MirrorSettings
    outbox: OutboxSettings
    answered: DecisionCacheSettings
    metrics_directory: Path
    # Declares the features; a policy's conditions name them.
    catalogue: Catalogue
    # Where bundles and policies come from later, and the folder in which they are made ready.
    releases: ReleaseSource
    runtime: Path
    # Approves a small share of the payments that would be declined. None: off.
    exploration: ExplorationContext | None = None
    # Off unless its settings say otherwise.
    overlay: OverlaySettings = field(default_factory=OverlaySettings)
    # Finds the shards of cards. None: the mirror holds every profile.
    shards: CardShards | None = None
    # 0: no worker is taken for hung.
    hang_timeout_s: int = 10
    # Where the admin process serves health and metrics (scoring/server/admin.py). 0 takes a free port.
    admin_host: str = "127.0.0.1"
    admin_port: int = 0

    @property
    def bundles(self) -> Sequence[Bundle]:
        """The bundles that are loaded at the start, the primary one first."""
        return self.release.bundles

    @property
    def policy(self) -> Policy:
        """The policy that is read at the start."""
        return self.release.policy.policy

    @property
    def catalogue_digest(self) -> str:
        """The digest of the feature catalogue, by which a deployment file names this host's releases."""
        return self.engine.plan.digest

    @property
    def has_tls(self) -> bool:
        """Whether the ports speak TLS."""
        return asks_for_tls(self.tls)

    def connections(self) -> dict[str, int]:
        """Returns how many connections each setting allows a worker to have open at a time."""
        return connections_of(self.http, self.grpc, self.tls)


def asks_for_tls(tls: TlsSettings) -> bool:
    """Whether the settings name any file of TLS."""
    return bool(tls.certificate or tls.key or tls.client_ca)


def connections_of(http: HttpSettings, grpc: GrpcSettings, tls: TlsSettings) -> dict[str, int]:
    """Returns how many connections each setting allows a worker to have open at a time."""
    counts = {"[http] connections_max": http.connections_max}
    if grpc.enabled:
        counts["[grpc] connections_max"] = grpc.connections_max
    if asks_for_tls(tls):
        counts["TLS handshakes on each port"] = tls.handshakes_max * len(counts)
    return counts


@dataclass(frozen=True)
class Endpoints:
    """The reserved ports and their sockets, and the tokens and certificates that callers need."""

    http_port: int
    admin_port: int
    # None when gRPC is not served.
    grpc_port: int | None
    tokens: Tokens | None
    tls: Tls | None
    # The sockets of the ports, by the worker's place.
    places: Places

    def refresh(self) -> None:
        """Load tokens and certificates that have been replaced."""
        if self.tokens is not None:
            self.tokens.refresh()
        if self.tls is not None:
            self.tls.refresh()

    def addresses(self, host: ServerContext) -> list[str]:
        """Returns the URLs of the ports: HTTP, gRPC if it is served, and the admin port with its name before it."""
        letter = "" if self.tls is None else "s"
        urls = [f"http{letter}://{host.http.host}:{self.http_port}"]
        if self.grpc_port is not None:
            urls.append(f"grpc{letter}://{host.grpc.host}:{self.grpc_port}")
        return [*urls, f"admin http://{host.admin_host}:{self.admin_port}"]


@contextmanager
def open_endpoints(host: ServerContext, worker_count: int, taken: Taken | None = None) -> Iterator[Endpoints]:
    """Reserve every port, so that an error in one of them is reported before any worker starts.

    `taken`: the sockets that the present host hands over. Raises Misconfigured naming the port or file.
    """
    tokens = Tokens(host.auth.tokens_file) if host.auth.tokens_file else None
    tls = Tls(host.tls) if host.has_tls else None
    http, grpc = host.http, host.grpc

    def reserved(section: str, address: str, port: int, kind: str) -> socket.socket:
        had = None if taken is None else taken.admin_port if kind == _ADMIN else taken.port_of(kind)
        if had is None:
            return reserve_port(address, port)
        if port not in (0, had):
            raise Misconfigured(f"{section}: wanted {had}, the port of the host that is taken over, got {port}")
        return reserve_port(address, had, is_shared=True)

    with (
        reserved("[http] port", http.host, http.port, HTTP) as http_held,
        reserved("[grpc] port", grpc.host, grpc.port, GRPC) if grpc.enabled else nullcontext() as grpc_held,
        reserved("[serve] admin_port", host.admin_host, host.admin_port, _ADMIN) as admin_held,
    ):
        http_port = http_held.getsockname()[1]
        grpc_port = None if grpc_held is None else grpc_held.getsockname()[1]
        ports = {HTTP: (http.host, http_port)}
        if grpc_port is not None:
            ports[GRPC] = (grpc.host, grpc_port)
        yield Endpoints(
            http_port=http_port,
            admin_port=admin_held.getsockname()[1],
            grpc_port=grpc_port,
            tokens=tokens,
            tls=tls,
            places=Places(worker_count, ports, taken),
        )
