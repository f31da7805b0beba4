"""Real Paywarden processes for tests: started from a configuration, stopped by their pids.

They are forks of a process that has imported everything (template.py), which saves the seconds that a start takes. A
test whose subject is the start, or what a process has loaded, asks for one of its own with `afresh`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.product import template

ROOT = CHECKOUT
# Between two looks at a condition a test waits for as long as this many looks take, within a limit.
_PAUSES, _PAUSE_S_MAX = 3.0, 0.3
_LOG_LINES_MAX = 60
_started_here: list[PaywardenProcess] = []


def logs_of_started() -> list[tuple[str, str]]:
    """Returns how each process that the last test started is, with the end of its log. Forgets them."""
    logs = [(f"{one.log.name}, {one.state}", one.end_of_log()) for one in _started_here if one.log.exists()]
    _started_here.clear()
    return logs


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> None:
    """Poll until the condition holds. At the timeout, fail with the name of the condition.

    A condition that takes long, such as the page of metrics or all records of a topic, is asked for less often: its
    answers cost the process under test as much as the test.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        asked = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(max(every_s, min(_PAUSES * (now - asked), _PAUSE_S_MAX)))


def wait_for_listener(address: str) -> None:
    """Wait until a process accepts connections at `host:port`. A server prints its address before workers listen."""
    host, _, port = address.rpartition(":")

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    wait_until(accepts, f"a worker listens at {address}")


class PaywardenProcess:
    """One running command of the command line. Its log is kept in a file."""

    def __init__(
        self,
        folder: Path,
        config: Path,
        *arguments: str,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        afresh: bool = False,
    ) -> None:
        self.log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
        self.process = _started(["--config", str(config), *arguments], self.log, cwd, _environment(environment), afresh)
        _started_here.append(self)

    @classmethod
    def of_program(cls, folder: Path, program: str, *arguments: str) -> PaywardenProcess:
        """Start `python -c PROGRAM ARGUMENTS`, in a process that has imported the product."""
        made = cls.__new__(cls)
        made.log = folder / f"program-{time.monotonic_ns()}.log"
        with made.log.open("wb") as log:
            made.process = template.start(
                arguments,
                cwd=ROOT,
                environment=_environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                program=program,
            )
        return made

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def state(self) -> str:
        """Whether it runs, or how it has ended."""
        code = self.process.poll()
        return "running" if code is None else f"ended with {code}"

    def end_of_log(self) -> str:
        """Return its last lines on stderr."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_MAX:])

    def first_line(self) -> str:
        """Return the next line of its output. A process that ends before it fails the test, with its log."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.log.name} ended with {self.process.wait(PATIENCE_S)} before the line:\n{self.end_of_log()}"
        return line.strip()

    def kill(self) -> None:
        """Send SIGKILL, as a crash would end it."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> int:
        """Send SIGTERM. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            # A fork's log then shows where its threads stood.
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(timeout=PATIENCE_S)
            raise
        finally:
            self._close()
        return code

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


def _started(
    command: list[str], log_file: Path, cwd: Path, variables: dict[str, str], afresh: bool
) -> subprocess.Popen[str] | template.ForkedProcess:
    with log_file.open("wb") as log:
        if template.is_enough(variables) and not afresh:
            return template.start(command, cwd=cwd, environment=variables, stdout=subprocess.PIPE, stderr=log)
        return subprocess.Popen(
            [sys.executable, "-m", "paywarden", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=cwd,
            env=variables,
        )


def run_paywarden(
    *arguments: str, timeout_s: float = PATIENCE_S, environment: Mapping[str, str] | None = None, afresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run one command of the command line to its end, with extra environment variables."""
    variables = _environment(environment)
    if template.is_enough(variables) and not afresh:
        return template.run(arguments, cwd=ROOT, environment=variables, timeout_s=timeout_s)
    return subprocess.run(
        [sys.executable, "-m", "paywarden", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=variables,
    )


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -c PROGRAM ARGUMENTS` to its end, in a process that has imported the product."""
    given: dict[str, Any] = {"cwd": ROOT, "environment": _environment(), "timeout_s": PATIENCE_S}
    return template.run(arguments, program=program, **given)


def _environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns our environment. A command imports from this checkout, in any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}


def get(url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Returns (status, headers, body) of a request with any status, as a page of another origin would send it."""
    request = urllib.request.Request(url, method=method, headers={"Origin": "http://elsewhere.example"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def samples(address: str, *, zeros: bool = False) -> dict[tuple[str, ...], float]:
    """Returns the samples of /metrics by name and label values (label names in reverse order).

    Without `zeros`, those that are 0 are left out.
    """
    status, headers, body = get(f"{address}/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels, reverse=True))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.value or zeros
    }


def is_ready(target: str) -> bool:
    """Returns whether /readyz answers 200."""
    try:
        with urllib.request.urlopen(f"{target}/readyz", timeout=60) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def post(url: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    """Returns (status, body) of a POST with any status. Raises OSError if there is no answer."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
