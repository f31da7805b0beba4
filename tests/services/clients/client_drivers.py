"""The drivers of our clients (ops/clients), ready to run: the programs that tests and benchmarks talk to.

What a build needs and gives is kept beside the services, in folders named after a digest of the sources. `python -m
tests.services.clients.client_drivers` checks types and form of each client whose tools are there (`make check`).

A driver has one JSON object a line on standard input and output. It answers in the order of its input. Hooks write
lines with `event` in between.

    {"settings": {"urls": ["http://127.0.0.1:8080"], "deadline_ms": 40, "policy": {…}}}  → {"ready": "python"}
    {"score": {"payment_id": "p-1", …}, "deadline_ms": 25}  → {"decision": {…}}
    {"shadow": {"payment_id": "p-2", …}, "own": "approve"}  → {"own": "approve"}
    {"load": {"rate": 200, "seconds": 5, "id": "a", "cards": 1000}}  → {"load": {…}}
    {"close": true}  → {"closed": true}

- `settings` by the names of ops/clients/SPECIFICATION.md, with `route_key_hex` for `route_key`; later ones first close
  the client: `ready`: the client's name; or `wrong_settings`: the path
- `score`: a payment, perhaps with `fields` within; beside it perhaps `deadline_ms`, `traceparent`: `decision` or
  `wrong_request`, as in the vectors
- `shadow`, `own`: `own`
- `load`: calls a second, seconds, a prefix of payment ids, number of cards: `load`, below
- `bare`: the same requests to the first URL by the language's own HTTP client, without rules: `load`, with `calls`,
  `failed` and `cpu_us`
- `close`: `closed`, after all hooks

Events: `{"event": "reconciled", "payment_id", "end", "action"}` (`action` of the service's decision, or null) and
`{"event": "shadow", "payment_id", "own", "action", "cause"}`. With `"events": ["call"]` among the settings also
`{"event": "call", "operation", "outcome", "attempts"}`.

A load is open: call N begins N/rate seconds after the first. Its payment is `ID-N`, of card `card-` and N modulo
`cards` in six digits, `merchant-` and N modulo 100 in four, 1000 + N modulo 5000 minor units of EUR, at the time of
the call. `load` holds `calls`, `answered`, `stand_ins` (by cause), `failed` (anything else), `cpu_us` (CPU of the
process by calls), `late_calls` (begun over 5 ms late, because of the driver), `p50_ms`, `p99_ms`, and
`over_p99_9_ms`, `over_max_ms` (return minus deadline). While a load runs, no event is written.
"""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.fetch import ServiceMissing, fetched, tool
from tests.services.missing_tools import NODE

CLIENTS = CHECKOUT / "ops" / "clients"
_BUILD_TIMEOUT_S = 600.0
_NODE_MIN = 20


def _python(kind: str) -> Sequence[str]:
    # -S: no package but the standard library's, as where Paywarden is not installed.
    return [sys.executable, "-S", str(CLIENTS / "python" / "driver.py"), kind]


def typescript() -> Path:
    """Returns the folder of the compiled client: `dist` and `node_modules`. Raises ServiceMissing without node."""
    sources = CLIENTS / "typescript"
    # Sources and what is compiled of them; not what a developer's own build has left there.
    parts = ("package.json", "tsconfig.json", "src", "test")
    files = [file for part in parts for file in (sources / part, *sorted((sources / part).glob("*.ts")))]
    files = [file for file in files if file.is_file()]

    # Before the build: a build that fetches would wait for itself.
    packages = _node_modules()

    def build(target: Path) -> None:
        target.mkdir()
        (target / "node_modules").symlink_to(packages)
        for part in parts:
            copy = shutil.copytree if (sources / part).is_dir() else shutil.copy
            copy(sources / part, target / part)
        run_tool([_node_program("node"), "node_modules/typescript/bin/tsc"], target)

    return fetched(f"client-typescript-{digest_of(files)}", build)


def _typescript() -> Sequence[str]:
    return [_node_program("node"), str(typescript() / "dist" / "src" / "driver.js")]


def _node_modules() -> Path:
    """Returns the folder of the packages that build and check the TypeScript client."""
    package = CLIENTS / "typescript" / "package.json"

    def build(target: Path) -> None:
        target.mkdir()
        shutil.copy(package, target)
        quiet = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
        run_tool([_node_program("npm"), "install", *quiet], target)

    return fetched(f"client-typescript-packages-{digest_of([package])}", build) / "node_modules"


def _node_program(name: str) -> str:
    found, node = shutil.which(name), shutil.which("node")
    if found is None or node is None or shutil.which("npm") is None:
        raise ServiceMissing(NODE.reason)
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < _NODE_MIN:
        raise ServiceMissing(NODE.reason)
    return found


def require_node() -> None:
    """Raises ServiceMissing without a Node and npm that build the TypeScript client."""
    _node_program("npm")


def digest_of(files: Sequence[Path]) -> str:
    """Returns a short digest of files, for the name of a folder."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def run_tool(command: Sequence[str], folder: Path) -> None:
    """Run a tool in a folder. Raises ServiceMissing with what it printed if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise ServiceMissing(f"{command[0]} failed: {(done.stdout + done.stderr).strip()[-4000:]}")


def check_typescript() -> None:
    """Check types and form of the TypeScript client. Raises ServiceMissing."""
    built = typescript()
    run_tool([_node_program("node"), "node_modules/prettier/bin/prettier.cjs", "--check", "src", "test"], built)


def _go() -> Sequence[str]:
    return [str(_go_driver())]


def _go_driver() -> Path:
    go, folder = tool("go"), CLIENTS / "go"

    def build(target: Path) -> None:
        # Ask no version control: the sources may lie in a checkout of another owner.
        run_tool([go, "build", "-buildvcs=false", "-o", str(target / "driver"), "./driver"], folder)

    return fetched(f"client-driver-go-{digest_of(_files(folder))}", build) / "driver"


def _java() -> Sequence[str]:
    return [tool("java"), "-cp", str(java_classes()), "paywarden.client.Driver"]


def java_classes() -> Path:
    """Returns the folder of the Java client's classes, with its tests and its driver. Raises ServiceMissing."""
    compiler, folder = tool("javac"), CLIENTS / "java"

    def build(target: Path) -> None:
        # It has no dependencies: Maven, which its users build it with, would only take longer.
        sources = map(str, sorted((folder / "src").rglob("*.java")))
        run_tool([compiler, "--release", "17", "-Xlint:all", "-Werror", "-d", str(target), *sources], folder)

    return fetched(f"client-java-{digest_of(_files(folder / 'src'))}", build)


def _files(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


DRIVERS: Mapping[str, Callable[[], Sequence[str]]] = {
    "python": lambda: _python("threads"),
    "python-asyncio": lambda: _python("asyncio"),
    "typescript": _typescript,
    "go": _go,
    "java": _java,
}
"""How to run each client's driver, by the client's name. A function raises ServiceMissing where a tool is missing."""


class Driver:
    """A running driver. Leaving the `with` block ends it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        # All that it has printed.
        self.printed: list[str] = []
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *, timeout_s: float = PATIENCE_S, **line: Any) -> dict[str, Any]:
        """Send a line, and returns the line that answers it."""
        self.tell(**line)
        return self._next(self._answers, timeout_s)

    def tell(self, **line: Any) -> None:
        """Send a line without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Returns the answer to the next line that the driver was sent."""
        return self._next(self._answers, timeout_s)

    def event(self) -> dict[str, Any]:
        """Returns the next event, which may be there already."""
        return self._next(self._events, PATIENCE_S)

    def drop_events(self) -> None:
        """Forget the events so far."""
        while not self._events.empty():
            self._events.get()

    def _next(self, lines: queue.Queue[dict[str, Any]], timeout_s: float) -> dict[str, Any]:
        found = lines.get(timeout=timeout_s)
        assert "ended" not in found, f"the driver has ended: {''.join(self._errors)[-2000:]}"
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self.printed.append(text)
            line = json.loads(text)
            (self._events if "event" in line else self._answers).put(line)
        self._readers[1].join()
        for lines in (self._answers, self._events):
            lines.put({"ended": True})

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors += self._process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for reader in self._readers:
            reader.join()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


CHECKS: Mapping[str, Callable[[], None]] = {"typescript": check_typescript}
"""What `make check` asks of each client, besides Python's, which is checked as all our code is."""


def main() -> int:
    failed = False
    for name, check in CHECKS.items():
        try:
            check()
        except ServiceMissing as error:
            is_missing_tool = str(error).startswith("needs ")
            failed = failed or not is_missing_tool
            sys.stderr.write(f"ops/clients/{name}: {'not checked, it ' if is_missing_tool else ''}{error}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
