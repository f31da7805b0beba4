"""The supervisor's half of a swap: has another process check what should be served, then orders the workers.

    SIGHUP, or deployment.json changed
        │
        ▼
    a checker is forked ── copies, builds, loads and checks each release below RUNTIME/ready
        │ it ends with 0                          │ it fails, crashes, is killed or takes too long
        ▼                                         ▼
    orders-PID.json, SIGHUP to the workers     one line in the log, one count, nothing changes

1. The supervisor loads no code of a new bundle. A library that crashes takes the checker along, and nothing else.
2. One checker runs at a time. What is asked for meanwhile is looked at once, after it has ended: a storm of signals
   costs one check more.
3. A release that was checked before is not checked again. A way back is therefore a fork, a look at two digests and a
   small file: some 100 ms.
4. If the workers' orders are the same as before, nothing is written.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.private_files import make_private_folder
from paywarden.scoring.metrics.shared import Counter
from paywarden.scoring.server.deployment import DEPLOYMENT, read_deployment
from paywarden.scoring.server.releases import (
    READY,
    Orders,
    ReleaseSource,
    orders_path,
    read_orders,
    write_orders,
)

_log = logging.getLogger(__name__)

# A large model takes half a minute to compile on a slow machine.
_CHECK_TIMEOUT_S = 600.0
# How often the supervisor looks whether the deployment file was replaced.
LOOK_S = 0.25
_FAILED = 1
# The checker takes a tenth of a core that a worker needs.
_NICENESS = 10


class Deployer:
    """Turns what should be served into orders for the workers. Use it in the supervisor's loop."""

    def __init__(
        self,
        source: ReleaseSource,
        runtime: Path,
        initial_key: str,
        *,
        failures: Counter,
        fork: Callable[[Callable[[], int]], int],
        tell: Callable[[], object],
        check_timeout_s: float = _CHECK_TIMEOUT_S,
    ) -> None:
        """`initial_key`: the release that the workers are forked with.

        `fork` runs a function in a child, with its result as the exit code. `tell` lets the workers look at their
        orders. Raises Misconfigured if `runtime` cannot be used.
        """
        self._source, self._runtime, self._ready = source, runtime, runtime / READY
        self._failures, self._fork, self._tell = failures, fork, tell
        self._timeout_s = check_timeout_s
        self._path = orders_path(runtime, os.getpid())
        self._orders = Orders(0, initial_key)
        self._pid, self._started, self._is_late = 0, 0.0, False
        self._seen = self._deployment_file()
        # A file that was there at the start may name more than what was loaded then.
        self._is_asked = self._seen is not None
        self._due = 0.0
        try:
            make_private_folder(runtime)
            make_private_folder(self._ready)
            self._remove_left_over()
            write_orders(self._path, self._orders)
        except OSError as error:
            raise Misconfigured(f"[serve] runtime: cannot use {runtime}: {error.strerror}") from error

    def hang_up(self) -> None:
        """Look at what should be served, as SIGHUP asks for."""
        self._is_asked = True
        self._due = 0.0

    def look(self, now: float) -> float:
        """Do what is due; returns when to look again. It never blocks for longer than a fork takes."""
        if self._pid:
            if now - self._started > self._timeout_s and not self._is_late:
                self._is_late = True
                os.kill(self._pid, signal.SIGKILL)
            return now + LOOK_S
        if now < self._due:
            return self._due
        self._due = now + LOOK_S
        seen = self._deployment_file()
        if self._is_asked or seen != self._seen:
            self._seen, self._is_asked = seen, False
            self._begin(now)
        return self._due

    def ended(self, pid: int, code: int) -> bool:
        """Note that a child has ended; returns whether it was the checker."""
        if pid != self._pid:
            return False
        self._pid, self._due = 0, 0.0
        result = self._result_path(pid)
        try:
            if code not in (0, _FAILED):
                how = f"took more than {self._timeout_s:g} s" if self._is_late else f"ended with {code}"
                raise Misconfigured(f"the process that checks it {how}")
            content = json.loads(result.read_text(encoding="utf-8"))
            if code == _FAILED:
                raise Misconfigured(content["error"])
            self._order(Orders(**content))
        except (PaywardenError, OSError, ValueError, KeyError, TypeError) as error:
            self._fail(error)
        finally:
            result.unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """End the checker, and remove the orders."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._path.unlink(missing_ok=True)

    def _begin(self, now: float) -> None:
        try:
            self._pid = self._fork(self._check)
        except OSError as error:
            self._fail(error)
            return
        self._started, self._is_late = now, False

    def _check(self) -> int:
        """In the child: prepare every release, and write the orders or what was wrong. Returns the exit code."""
        os.nice(_NICENESS)
        result = self._result_path(os.getpid())
        try:
            path = self._runtime / DEPLOYMENT
            deployment = read_deployment(path) or self._source.wanted()
            keys = {role: self._source.prepare(paths, self._ready) for role, paths in deployment.releases.items()}
            self._remove_unused({*keys.values(), *self._orders.keys})
            orders = Orders(
                self._orders.generation,
                keys["active"],
                keys.get("previous", ""),
                keys.get("candidate", ""),
                deployment.rollout,
                deployment.share,
            )
            if not path.exists():
                # What served until now is the way back.
                changed = orders.active != self._orders.active
                orders = replace(orders, previous=self._orders.active if changed else self._orders.previous)
            result.write_text(json.dumps(vars(orders)), encoding="utf-8")
        except (PaywardenError, OSError) as error:
            result.write_text(json.dumps({"error": _told(error)}), encoding="utf-8")
            return _FAILED
        return 0

    def _order(self, orders: Orders) -> None:
        if orders == self._orders:
            _log.info("what is served is what should be: nothing changes")
            return
        orders = replace(orders, generation=self._orders.generation + 1)
        write_orders(self._path, orders)
        self._orders = orders
        _log.info("checked: release %s is to decide; the workers take it up", orders.active)
        self._tell()

    def _fail(self, error: Exception) -> None:
        self._failures.add(1)
        _log.error("the swap is not made, and what decides goes on: %s", _told(error))

    def _deployment_file(self) -> tuple[int, int] | None:
        """Returns what changes when the file is replaced."""
        try:
            status = os.stat(self._runtime / DEPLOYMENT)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _result_path(self, pid: int) -> Path:
        return self._runtime / f"check-{pid}.json"

    def _remove_left_over(self) -> None:
        """Remove what supervisors and checkers that are gone have left behind."""
        for path in (*self._runtime.glob("orders-*.json"), *self._runtime.glob("check-*.json")):
            if not _lives(path):
                path.unlink(missing_ok=True)
        for path in self._ready.glob(".*"):
            # An unfinished release of a checker that was killed. One that still works takes minutes, not hours.
            if time.time() - path.stat().st_mtime > 6 * self._timeout_s:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_unused(self, keys: set[str]) -> None:
        """Remove releases that no supervisor orders any more."""
        for path in self._runtime.glob("orders-*.json"):
            if _lives(path):
                keys |= {*read_orders(path).keys}
        for path in self._ready.iterdir():
            if path.name not in keys and not path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def _lives(path: Path) -> bool:
    """Whether the process still runs that a file is named after."""
    digits = path.stem.rpartition("-")[2]
    if not digits.isdecimal():
        return False
    try:
        os.kill(int(digits), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return str(error)
