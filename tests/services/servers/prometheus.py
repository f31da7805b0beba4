"""A real Prometheus and a real Alertmanager for tests, and pages of metrics for them to scrape."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import signal
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.ports import free_port
from tests.services.product.processes import wait_until

OPS = CHECKOUT / "ops"
ALERTMANAGER_NAMES = ("alertmanager", "prometheus-alertmanager")
SCRAPE = "250ms"


def alertmanager_program() -> str | None:
    """Returns the program's name on this machine: Debian's package calls it differently than its authors."""
    return next((name for name in ALERTMANAGER_NAMES if shutil.which(name)), None)


def ask(address: str, path: str, **parameters: str) -> Any:
    """Returns the JSON of an answer."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(f"{address}{path}{query}", timeout=PATIENCE_S) as answer:
        return json.loads(answer.read())


class Prometheus:
    """A running server."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.address, self._process, self._folder = address, process, folder

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Returns the series of an instant query, each with its labels (`metric`) and its `value`."""
        answer = ask(self.address, "/api/v1/query", query=expr)
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def take_rules(self, name: str, text: str) -> None:
        """Replace a file of rules, and wait until the rules are in use."""
        (self._folder / name).write_text(text, encoding="utf-8")
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: bool(ask(self.address, "/api/v1/rules")["data"]["groups"]), "the rules are in use")

    def firing(self) -> set[str]:
        """Returns the names of the alerts that fire."""
        alerts = ask(self.address, "/api/v1/alerts")["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@contextmanager
def running_prometheus(
    folder: Path,
    targets: Mapping[str, Sequence[str]],
    *,
    rules: Mapping[str, str],
    alertmanager: str | None = None,
    jobs: Sequence[Mapping[str, object]] = (),
    scrape: str = SCRAPE,
) -> Iterator[Prometheus]:
    """Run Prometheus with the example configuration of ops, but for targets by job and rule files by name.

    `jobs` are scraped as they are, beside the targets. It scrapes and evaluates every `scrape`.
    """
    folder.mkdir(exist_ok=True)
    for name, text in rules.items():
        (folder / name).write_text(text, encoding="utf-8")
    relabelled = (OPS / "prometheus.yml").read_text(encoding="utf-8").split("  alertmanagers:\n")[0]
    head = relabelled.split("rule_files:")[0].replace("15s", scrape)
    body = f"{head}rule_files: {json.dumps(list(rules))}\nalerting:{relabelled.split('alerting:')[1]}"
    if alertmanager is not None:
        body += f"  alertmanagers:\n    - static_configs:\n        - targets: {json.dumps([alertmanager])}\n"
    # A page may say whose it is: a test's page then stands for several processes.
    scraped = [
        {"job_name": job, "honor_labels": True, "static_configs": [{"targets": list(those)}]}
        for job, those in targets.items()
    ]
    (folder / "prometheus.yml").write_text(f"{body}scrape_configs: {json.dumps([*scraped, *jobs])}\n", encoding="utf-8")
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
        "--rules.alert.resend-delay=1s",
    ]
    address = f"http://127.0.0.1:{port}"
    with _running(command, address, folder / "prometheus.log") as process:
        yield Prometheus(address, process, folder)


@contextmanager
def running_alertmanager(folder: Path, configuration: str) -> Iterator[str]:
    """Run Alertmanager with this configuration; yields its address without the scheme."""
    folder.mkdir(exist_ok=True)
    (folder / "alertmanager.yml").write_text(configuration, encoding="utf-8")
    port = free_port()
    command = [
        *(str(alertmanager_program()), f"--config.file={folder / 'alertmanager.yml'}"),
        *(f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{port}"),
        *("--cluster.listen-address=", "--log.level=warn"),
    ]
    with _running(command, f"http://127.0.0.1:{port}", folder / "alertmanager.log"):
        yield f"127.0.0.1:{port}"


@contextmanager
def _running(command: Sequence[str], address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent)
    try:

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/-/ready", timeout=30) as answer:
                return bool(answer.status == 200)
            return False

        wait_until(is_ready, f"{command[0]} is ready")
        yield process
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = self.server.page().encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.take(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(page: Callable[[], str] = str, take: Callable[[Any], object] = print) -> Iterator[str]:
    """Serve what `page` returns to every GET, and give the JSON of every POST to `take`. Yields `host:port`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.page, server.take = page, take  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
