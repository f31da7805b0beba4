"""Starts commands of Paywarden as forks of one process that has imported everything and loaded the compiled code.

To import the product and to load its compiled code takes 2 to 5 seconds of a core, and the tests start hundreds of
processes. A fork has all of it in 20 milliseconds:

    test ── arguments, environment, files ──► template ── fork ──► `paywarden stream`
      ▲                                           │
      └────────────── pid, exit status ───────────┘

1. `start` hands the command to the template. All processes of a run share one, which starts at the first call.
2. The template forks. The child takes the folder, the variables, the limits and the files that the caller gave, and
   runs the command line. It is a process like any other: it can be killed, stopped and frozen, and its end is seen.
3. The template waits for the child and reports how it ended. If the process of a test ends, the template kills what it
   started there.

pytest's workers are forks, too (forked_python.py): of a second template, itself a fork of the first, which has imported
the tests as well. To rewrite, compile and import the tests takes ten seconds of a core, which each worker spent.

A fork does not show how a process starts: what it imports, and what it reads before its first line. Nor does it show
how Python takes itself apart after the last line. `is_enough` says when a fork will not do; tests of starts and ends
ask for a process of its own. The demonstration, the wheel and the tests of the extras (tests/e2e) start every command
as a user does.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, cast

from tests.checkout import CHECKOUT
from tests.services.made_once import run_folder

# Only the start of a process reads these.
_READ_AT_THE_START = ("PYTHON", "NUMBA_", "OMP_", "LD_", "MALLOC_")
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_AS)
# The product is imported whole, since a command imports more when it runs. These are modules of other packages that
# commands or Faust import at work, and what pytest's workers import besides.
_ROOMS = ("schemas", "features", "models", "scoring", "streams", "ops")
_MODULES = (
    *("pyarrow.parquet", "pyarrow.compute", "jinja2", "rich.progress", "rich.table"),
    *("faust.app.router", "faust.assignor.partition_assignor", "faust.fixups.django", "faust.tables.manager"),
    *("faust.topics", "faust.worker"),
    *("scipy.stats", "sklearn.metrics", "prometheus_client.parser"),
)
# They load compiled code besides the engine's.
_COMPILED = (
    *("paywarden.scoring.engine.chunk_frame", "paywarden.scoring.idempotency.decision_cache"),
    *("paywarden.scoring.requests.fast_requests", "paywarden.scoring.state.mirror_look_up"),
    "paywarden.streams.profiles.fast_intake",
)
_START_TIMEOUT_S = 240.0
_MESSAGE_MAX = 1 << 20
_CALLERS_MAX = 64


class ForkedProcess:
    """A running command: the part of `subprocess.Popen[str]` that the tests use."""

    def __init__(self, pid: int, notice: socket.socket, stdout: IO[str] | None) -> None:
        self.pid, self.stdout, self.returncode = pid, stdout, None if pid else 1
        self._notice = notice

    returncode: int | None

    def poll(self) -> int | None:
        """Returns the exit status, or None while the process runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status. Raises subprocess.TimeoutExpired."""
        status = self._ended(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"the fork {self.pid}", timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ready, _, _ = select.select([self._notice], [], [], timeout)
            if ready:
                status = self._notice.recv(16)
                # A template that has ended took its children along.
                self.returncode = int(status) if status else -signal.SIGKILL
                self._notice.close()
        return self.returncode


def is_enough(environment: Mapping[str, str]) -> bool:
    """Returns whether a fork would run as a process that starts with these variables."""
    names = {name for name in {*environment, *os.environ} if name.startswith(_READ_AT_THE_START)}
    wanted = _environment_of_template()
    return all(environment.get(name) == wanted.get(name) for name in names)


def start(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    stdout: IO[Any] | int,
    stderr: IO[Any],
    program: str | None = None,
) -> ForkedProcess:
    """Start `paywarden ARGUMENTS`, or `python -c PROGRAM ARGUMENTS`.

    With `stdout=subprocess.PIPE` the caller can read what the process prints.
    """
    reading: IO[str] | None = None
    if stdout == subprocess.PIPE:
        read_end, written = os.pipe()
        reading = os.fdopen(read_end, encoding="utf-8")
    else:
        assert not isinstance(stdout, int)
        written = os.dup(stdout.fileno())
    ours, theirs = socket.socketpair()
    mask = os.umask(0)
    os.umask(mask)
    wanted = {
        "arguments": list(arguments),
        "program": program,
        "cwd": str(cwd),
        "environment": dict(environment),
        "limits": [resource.getrlimit(kind) for kind in _LIMITS],
        "umask": mask,
    }
    try:
        _template().send(json.dumps(wanted).encode(), [theirs.fileno(), written, stderr.fileno()])
    finally:
        os.close(written)
        theirs.close()
    # The first message is the pid; the second, when the process has ended, its exit status.
    pid = int(_exactly(ours, 10))
    return ForkedProcess(pid, ours, reading)


def call(function: Callable[..., object], *arguments: object) -> tuple[ForkedProcess, Connection]:
    """Run `function(connection, *arguments)` in a fork. Returns it, and the other end of the connection.

    The fork has nothing open that this process has. It imports the module of `function` by its name.
    """
    ours, theirs = Pipe()
    with theirs, open(2, "wb", closefd=False) as stderr:
        # A pipe of two directions stands where the output of a program goes.
        written = cast("IO[Any]", theirs)
        environment = _environment_of_template()
        process = start([], cwd=CHECKOUT, environment=environment, stdout=written, stderr=stderr, program=_CALL)
    ours.send((function, arguments))
    return process, ours


_CALL = """
import os
from multiprocessing.connection import Connection
with Connection(os.dup(1)) as connection:
    function, arguments = connection.recv()
    function(connection, *arguments)
"""


def run(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    program: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `paywarden ARGUMENTS`, or `python -c PROGRAM ARGUMENTS`, to its end. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        given: dict[str, Any] = {"cwd": cwd, "environment": environment, "stdout": stdout, "stderr": stderr}
        process = start(arguments, program=program, **given)
        try:
            status = process.wait(timeout_s)
        except BaseException:
            process.kill()
            raise
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
        return subprocess.CompletedProcess(["paywarden", *arguments], status, *texts)


def _exactly(connection: socket.socket, size: int) -> bytes:
    connection.settimeout(_START_TIMEOUT_S)
    data = b""
    while len(data) < size:
        try:
            part = connection.recv(size - len(data))
        except TimeoutError as error:
            raise AssertionError(
                f"not within {_START_TIMEOUT_S:g} s: the template of the tests' processes has started one"
            ) from error
        if not part:
            raise RuntimeError("the template of the tests' processes has ended: see its messages on stderr")
        data += part
    connection.settimeout(None)
    return data


# In the process that leads the run


class TemplateServer:
    """The running template, started with the variables of this process, at whose end it ends.

    Processes connect at the Unix socket `address`. With the address `workers` there is a second template for pytest's
    workers, which has imported the tests that `paths` (files and folders) name.
    """

    def __init__(self, address: Path, workers: Path | None = None, paths: Sequence[str] = ()) -> None:
        self.address = address
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as listeners:
            files = [theirs.fileno()]
            for one in (address, *([workers] if workers else [])):
                listener = listeners.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                listener.bind(str(one))
                listener.listen(_CALLERS_MAX)
                files.append(listener.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.services.product.template", ",".join(map(str, files)), *paths],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=files,
                cwd=CHECKOUT,
                env=_environment_of_template(),
            )
        self._lifeline = ours

    def stop(self) -> None:
        """End the template, and with it every process that still runs."""
        self._lifeline.close()
        self._process.wait()


# In the process that runs the tests


class _Template:
    """A connection to the template."""

    def __init__(self, address: Path) -> None:
        self._control, self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), threading.Lock()
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_MAX)
        self._control.connect(str(address))

    def send(self, message: bytes, files: list[int]) -> None:
        with self._lock:
            socket.send_fds(self._control, [message], files)

    def close(self) -> None:
        self._control.close()


def _own_address() -> Path:
    """Start a template of this process's own. Returns its address."""
    server = TemplateServer(run_folder() / f"template-{os.getpid()}")
    atexit.register(server.stop)
    return server.address


_lock = threading.Lock()
_connected: list[_Template] = []
_find: Callable[[], Path] = _own_address


def find_with(find: Callable[[], Path]) -> None:
    """Ask `find` for the address of the template, at the first start. Otherwise this process has one of its own."""
    global _find
    _find = find


def disconnect() -> None:
    """Close the connection to the template, which kills what this process started there and still runs."""
    with _lock:
        while _connected:
            _connected.pop().close()


def _leave_to_parent() -> None:
    """Close a fork's copy of the connection, at whose end the template kills what the parent started.

    A fork that outlived the tests would hold it open, and Python would complain of it at the fork's end.
    """
    global _lock
    # A thread of the parent may have held it.
    _lock = threading.Lock()
    while _connected:
        _connected.pop().close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _template() -> _Template:
    with _lock:
        if not _connected:
            _connected.append(_Template(_find()))
        return _connected[0]


def _environment_of_template() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


# In the template


class _Ended(Exception):
    """The process that leads the run has ended."""


def main() -> str | None:
    """Wait for commands, and fork for each. Returns only in a child: the program to run, or None for a command."""
    lifeline, listener, *of_workers = (socket.socket(fileno=int(number)) for number in sys.argv[1].split(","))
    # Ctrl-C is for pytest alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _load()
    importlib.import_module("tests.services.product.internals").install()
    second = os.fork() if of_workers else None
    if second == 0:
        listener.close()
        (listener,) = of_workers
        _load_tests(sys.argv[2:])
    else:
        for other in of_workers:
            other.close()
    try:
        return _serve(listener, lifeline, own={second} if second else set())
    except _Ended:
        if second:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(second, 0)
        os._exit(0)


def _load() -> None:
    # Tests themselves run in forks, and there a warning is an error.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in (*_MODULES, *_modules_of_the_product()):
            importlib.import_module(module)
    # The product's libraries import anyio, which is a plugin of pytest, too. pytest warns of a plugin that it comes too
    # late to rewrite, unless its text says that it need not.
    anyio = sys.modules["anyio"]
    anyio.__doc__ = f"{anyio.__doc__ or ''} PYTEST_DONT_REWRITE"
    importlib.import_module("paywarden.features.profiles.engine").FeatureEngine().warm_up()
    for module in _COMPILED:
        importlib.import_module(module).warm_up()
    _get_ready_to_fork()


def _modules_of_the_product() -> Iterator[str]:
    for room in _ROOMS:
        package = importlib.import_module(f"paywarden.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".__main__"):
                yield module.name


def _get_ready_to_fork() -> None:
    # A collection in a child would copy every page that it marks.
    gc.collect()
    gc.freeze()
    # A fork has only the thread that forks. OpenBLAS and jemalloc, which have threads too, prepare their own for it.
    assert threading.active_count() == 1, threading.enumerate()


def _load_tests(paths: Sequence[str]) -> None:
    """Import the files of tests as pytest does: with its settings, its conftest.py and its rewritten assertions."""
    import pytest

    files = list(dict.fromkeys(chain.from_iterable(map(_test_files, paths))))

    class Importing:
        @staticmethod
        def pytest_collection() -> bool:
            # The first run of a checkout compiles all of them. A helper begins at the end, and keeps what it compiles.
            helper = os.fork()
            gc.disable()
            for file in files if helper else files[: len(files) // 2 : -1]:
                # pytest's worker imports what cannot be imported once more, and reports it.
                with contextlib.suppress(Exception, pytest.skip.Exception):
                    importlib.import_module(".".join(file.relative_to(CHECKOUT).with_suffix("").parts))
            if not helper:
                os._exit(0)
            gc.enable()
            os.waitpid(helper, 0)
            # pytest itself collects nothing here.
            return True

    without = ("cacheprovider", "faulthandler", "xdist", "xdist.looponfail")
    # Where no test was collected, pytest's status says so.
    pytest.main(["--capture=no", *(f"-pno:{plugin}" for plugin in without), *paths], plugins=[Importing()])
    _get_ready_to_fork()


def _test_files(path: str) -> list[Path]:
    given = Path(path).resolve()
    return sorted(given.rglob("test_*.py")) if given.is_dir() else [given]


def _serve(listener: socket.socket, lifeline: socket.socket, own: set[int]) -> str | None:
    """Returns as `main` does. Nobody asked for the children `own`. Raises _Ended."""
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    callers: list[socket.socket] = []
    children: dict[int, _Child] = {}
    with selectors.DefaultSelector() as selector:
        for heard in (listener, lifeline, woken):
            selector.register(heard, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is woken:
                    with contextlib.suppress(BlockingIOError):
                        woken.recv(4096)
                    _report_ended(children, own)
                    continue
                if key.fileobj is lifeline:
                    _kill(children)
                    raise _Ended
                if key.fileobj is listener:
                    callers.append(listener.accept()[0])
                    selector.register(callers[-1], selectors.EVENT_READ)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                caller = key.fileobj
                message, files, _, _ = socket.recv_fds(caller, _MESSAGE_MAX, 4)
                if not message:
                    _kill({pid: child for pid, child in children.items() if child.caller is caller})
                    callers.remove(caller)
                    selector.unregister(caller)
                    caller.close()
                    continue
                notice = socket.socket(fileno=files[0])
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    notices = [child.notice for child in children.values()]
                    for other in (listener, lifeline, woken, wakes, notice, *callers, *notices):
                        other.close()
                    selector.close()
                    wanted = json.loads(message)
                    _become(wanted, files[1:])
                    program: str | None = wanted["program"]
                    return program
                notice.sendall(f"{pid:10}".encode())
                children[pid] = _Child(caller, notice)
                for file in files[1:]:
                    os.close(file)


@dataclass(frozen=True)
class _Child:
    """`caller` asked for it and learns of its end by `notice`."""

    caller: socket.socket
    notice: socket.socket


def _kill(children: Mapping[int, _Child]) -> None:
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _report_ended(children: dict[int, _Child], own: set[int]) -> None:
    while children or own:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in own:
            own.remove(pid)
            continue
        notice = children.pop(pid).notice
        with contextlib.suppress(OSError):
            notice.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        notice.close()


def _become(wanted: dict[str, Any], files: Sequence[int]) -> None:
    """Make this child the process that the caller asked for, up to its command.

    `files`: stdout and stderr, and stdin if the caller gives one.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, number in zip(files, (1, 2, 0), strict=False):
        os.dup2(file, number)
        os.close(file)
    faulthandler.enable(file=2)
    os.umask(wanted["umask"])
    for kind, limits in zip(_LIMITS, wanted["limits"], strict=True):
        resource.setrlimit(kind, limits)
    for name in set(os.environ) - set(wanted["environment"]):
        del os.environ[name]
    os.environ.update(wanted["environment"])
    os.chdir(wanted["cwd"])
    tempfile.tempdir = None
    time.tzset()
    # As `python -m paywarden` has it.
    sys.path[0] = wanted["cwd"]
    sys.argv[:] = ["paywarden", *wanted["arguments"]]


def _run(program: str | None) -> None:
    """Run a child's program, and end the child as Python ends: threads, exit handlers, output, status."""
    status: object = None
    try:
        if program is None:
            importlib.import_module("paywarden.ops.cli").main()
        else:
            exec(program, {"__name__": "__main__"})  # noqa: S102  # as `python -c` does
    except SystemExit as end:
        status = end.code
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if status is None or isinstance(status, int):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            # Python would take all modules apart, and touch every page of memory that the child shares with the
            # template: a quarter of a second of a core.
            os._exit(status or 0)
    # It writes the reason, or says that nobody reads its output.
    sys.exit(status)  # type: ignore[arg-type]


if __name__ == "__main__":
    _run(main())
