"""Tests inside an image, as its user and on its read-only file system: see try_in_chroot.py.

1. Nothing can be written outside of /var/lib/paywarden, /dev/shm and /tmp.
2. `paywarden --version` and the list of parts are there, and the kernel is not compiled at a start.
3. Broker, stream, companion and serve start with the bundle of the trial, and a payment is answered.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

STATE = Path("/var/lib/paywarden")
CONFIG = """\
[kafka]
bootstrap = "{bootstrap}"
check_crcs = false
[lmdb]
path = "/var/lib/paywarden/store"
[mirror]
size_mb = 64
[answered]
payments_max = 10000
[serve]
bundle = "/var/lib/paywarden/bundle"
runtime = "/var/lib/paywarden/serve"
admin_port = 8082
[companion]
http_port = 8083
[stream]
http_port = 8084
[outbox]
directory = "/var/lib/paywarden/outbox"
"""
PAYMENT = {
    "payment_id": "p-1",
    "event_time_ms": int(time.time() * 1000),
    "card_id": "card-1",
    "merchant_id": "merchant-1",
    "amount_minor": 4999,
    "currency": "EUR",
}


def main() -> None:
    """Try everything. An AssertionError or a time-out is a fault of the image."""
    assert os.getuid() == 10001, os.getuid()
    for place in ("/opt/paywarden", "/etc", "/usr/local", "/var"):
        assert not writable(Path(place)), place
    assert not os.access("/opt/paywarden/bin/pip", os.F_OK)
    say(f"paywarden --version: {output('--version')}")
    parts = json.loads(Path("/opt/paywarden/sbom.cdx.json").read_text(encoding="utf-8"))["components"]
    installed = subprocess.run(["dpkg-query", "--show", "--showformat=${Package}\n"], check=True, capture_output=True)
    listed = [part["name"] for part in parts if part.get("purl", "").startswith("pkg:deb/")]
    assert sorted(listed) == sorted(installed.stdout.decode().split()), "the list of parts is of another file system"
    say(f"list of parts: {len(parts)}, {sum(part.get('purl', '').startswith('pkg:deb/') for part in parts)} of Debian")
    began = time.monotonic()
    output("compile")
    say(f"compile, with what the image has: {time.monotonic() - began:.1f} s")
    try_processes()


def try_processes() -> None:
    """Start every process and ask each for its health, and `serve` for a decision."""
    running: list[subprocess.Popen[str]] = []
    try:
        broker = start(running, "broker")
        assert broker.stdout is not None
        config = STATE / "paywarden.toml"
        config.write_text(CONFIG.format(bootstrap=broker.stdout.readline().strip()), encoding="utf-8")
        for command in ("stream", "companion", "serve"):
            start(running, "--config", str(config), "--log", "json", command)
        for name, port in (("serve", 8082), ("companion", 8083), ("stream", 8084)):
            wait(lambda port=port: status(f"http://127.0.0.1:{port}/livez") == 200, name)  # type: ignore[misc]
            say(f"{name}: /livez answers")
        wait(lambda: status("http://127.0.0.1:8083/readyz") == 200, "the companion is ready")
        request = urllib.request.Request(
            "http://127.0.0.1:8080/v1/score",
            json.dumps(PAYMENT).encode(),
            {"Content-Type": "application/json"},
        )
        wait(lambda: status("http://127.0.0.1:8080/livez") == 200, "serve listens")
        with urllib.request.urlopen(request, timeout=30) as answer:
            decision = json.load(answer)
        assert decision["payment_id"] == "p-1", decision
        say(f"a payment is answered: {decision['action']}, flags {decision['flags']}")
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        say(f"SIGTERM ends all: exit statuses {[process.returncode for process in running]}")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()


def start(running: list[subprocess.Popen[str]], *arguments: str) -> subprocess.Popen[str]:
    """Start a command of Paywarden."""
    process = subprocess.Popen(["paywarden", *arguments], stdout=subprocess.PIPE, text=True)
    running.append(process)
    return process


def output(*arguments: str) -> str:
    """Returns the stdout of a command of Paywarden."""
    return subprocess.run(["paywarden", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def writable(folder: Path) -> bool:
    """Returns whether a file can be made in a folder."""
    try:
        (folder / "tried").write_text("", encoding="utf-8")
    except OSError:
        return False
    return True


def status(url: str) -> int:
    """Returns the HTTP status of a URL; 0 without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, f"not within 300 s: {what}"
        time.sleep(0.2)


def say(line: str) -> None:
    """Print a line of the report."""
    print(f"try   {line}", flush=True)


main()
