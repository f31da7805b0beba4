"""Decides which releases a host serves: has a process check new ones, loads them, and orders workers for them.

    SIGHUP, or deployment.json changed
        │
        ▼
    a checker is forked ── copies, builds, loads and checks each release below RUNTIME/ready
        │ it ends with 0                          │ it fails, crashes, is killed or takes too long
        ▼                                         ▼
    the supervisor loads the checked files,      one line in the log, one count, nothing changes
    and forks the next generation of workers

1. A library that crashes takes its checker along, and nothing else. The supervisor then loads the very files that the
   checker has written and tried. Workers inherit them, so no worker reads a file of a release.
2. One checker runs at a time. Requests that come meanwhile lead to one look after it has ended: a storm of signals
   costs one look more.
3. A release that is named by its digests and was checked is not checked again: nothing is forked. The previous release
   stays loaded. A way back is therefore a look at a file, and forks of workers.
4. A change of the candidate's share alone is a small file that is written, `orders-PID.json`, and a SIGHUP to the
   workers (rollout_share.py). So is a candidate that is dropped. If nothing has changed, nothing is written. Orders
   that somebody changes or deletes are written again.
5. A file for another feature catalogue is not for this host. Where there is a registry, a file that names a release
   without its approvals changes nothing.
6. A checker is a batch process with a tenth of a core that a worker needs. It has half of the machine's memory at most,
   and is the first process to go if memory runs out.
7. A way back waits for no checker: another deployment file ends the checker of the one before.
8. A release of the deployment file that was refused, and one whose checker somebody killed, is looked at again after
   5 s, then ever more rarely, at least every ten minutes: a disk may have been full, or a file unreadable. A bundle
   that crashes its checker is not tried again. A change of the configuration waits for SIGHUP, because somebody may be
   writing the file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.file_state import file_state
from paywarden.schemas.memory_bound import bound_memory, half_of_memory
from paywarden.schemas.private_files import make_private_folder
from paywarden.schemas.retry_times import RetryTimes
from paywarden.scoring.metrics.shared_metrics import Counter
from paywarden.scoring.server.deployment.deployment_file import (
    DEPLOYMENT,
    READY,
    Deployment,
    ReleasePaths,
    content_of,
    deployment_of,
    read_deployment,
    release_key,
    unfinished_prefix,
)
from paywarden.scoring.server.deployment.releases import (
    Release,
    ReleaseOrders,
    ReleaseSource,
    Serving,
    orders_path,
    read_orders,
    write_orders,
)

_log = logging.getLogger(__name__)

# A large model takes half a minute to compile on a slow machine.
_CHECK_TIMEOUT_S = 600.0
# How often the supervisor looks whether the deployment file was replaced.
LOOK_S = 0.25
# How long it waits before it tries again to write orders that could not be written.
_AGAIN_S = 5.0
# How long it waits at most before it looks again at a deployment file that was refused.
_AGAIN_S_MAX = 600.0
_FAILED = 1
# A checker that cannot write its findings ends with this and the number of the error.
_UNWRITTEN = 100
# The share of a core that a checker takes from workers: a tenth.
_NICENESS = 10


# Errors that an operator's file may cause, or the file of a checker, which has run a bundle's code.
_WRONG = (PaywardenError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class _Checked(NamedTuple):
    """The findings of a checker: the key of each release by role, and errors of releases other than the active one."""

    deployment: Deployment
    keys: Mapping[str, str]
    troubles: list[str]

    @property
    def content(self) -> dict[str, Any]:
        """The findings as JSON. The checker has run a bundle's code, so the supervisor takes only data from it."""
        return {"deployment": content_of(self.deployment), "keys": self.keys, "troubles": self.troubles}

    @classmethod
    def of(cls, content: Any, path: Path) -> _Checked:
        """Returns the findings in the file at `path`. Raises Misconfigured, KeyError, TypeError, ValueError."""
        deployment = deployment_of(content["deployment"], path)
        keys = {str(role): str(key) for role, key in content["keys"].items()}
        return cls(deployment, keys, [str(trouble) for trouble in content["troubles"]])


class HostProcesses(NamedTuple):
    """The deployer's access to other processes of its host."""

    fork: Callable[[Callable[[], int]], int]
    """Runs a function in a child, with its result as the exit code. Returns the child's id."""
    load: Callable[[str], Release]
    """Loads the checked release of a key in this process. Raises BundleRefused, Misconfigured."""
    serve: Callable[[Serving], object]
    """Lets workers serve these releases: present ones if they can, else a new generation."""


@dataclass(frozen=True)
class CheckLimits:
    """Limits of a checker: seconds, and bytes that it allocates."""

    timeout_s: float = _CHECK_TIMEOUT_S
    memory_bytes: int = field(default_factory=half_of_memory)


class Deployer:
    """Turns the wanted deployment into orders for the workers. Use it in the supervisor's loop."""

    def __init__(
        self,
        source: ReleaseSource,
        runtime: Path,
        initial: Release,
        *,
        catalogue: str,
        failures: Counter,
        processes: HostProcesses,
        limits: CheckLimits | None = None,
    ) -> None:
        """`initial`: the release that the first workers are forked with. `catalogue`: the digest of the host's.

        Raises Misconfigured if `runtime` cannot be used.
        """
        self._source, self._runtime, self._ready = source, runtime, runtime / READY
        self._catalogue, self._failures = catalogue, failures
        self._fork, self._load, self._serve = processes
        self._limits = limits or CheckLimits()
        self._path = orders_path(runtime, os.getpid())
        self._orders = ReleaseOrders(initial.key)
        # The releases in memory, by key.
        self._releases = {initial.key: initial}
        self._pid, self._started, self._is_late = 0, 0.0, False
        # Whether the checker checks the deployment file, and whether there is another file by now.
        self._checks_file = self._is_outdated = False
        # When it looks again at a refused release.
        self._again = RetryTimes(_AGAIN_S, _AGAIN_S_MAX)
        self._seen = file_state(self._runtime / DEPLOYMENT)
        # A file that was there at the start may name more releases than were loaded then.
        self._is_asked = self._seen is not None
        self._due = 0.0
        try:
            make_private_folder(runtime)
            make_private_folder(self._ready)
            self._remove_left_over()
            self._write(self._orders)
        except OSError as error:
            raise Misconfigured(f"[serve] runtime: cannot use {runtime}: {error.strerror}") from error

    def hang_up(self) -> None:
        """Read configuration and deployment file again, as SIGHUP asks for."""
        self._is_asked = True
        self._due = 0.0
        self._again.shorten()

    def look(self, now: float) -> float:
        """Do the work that is due; returns when to look again. It never blocks for longer than a fork takes."""
        if self._pid:
            self._is_late |= now - self._started > self._limits.timeout_s
            self._is_outdated |= file_state(self._runtime / DEPLOYMENT) != self._seen
            if self._is_late or self._is_outdated:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
            return now + LOOK_S
        if now < self._due:
            return self._due
        self._due = now + LOOK_S
        self._repair()
        seen = file_state(self._runtime / DEPLOYMENT)
        if seen != self._seen:
            self._again.shorten()
        if self._is_asked or seen != self._seen or now >= self._again.at:
            self._seen, self._is_asked = seen, False
            self._again.clear()
            self._begin(now)
        return self._due

    def ended(self, pid: int, code: int) -> bool:
        """Note that a child has ended; returns whether it was the checker."""
        if pid != self._pid:
            return False
        self._pid, self._due = 0, 0.0
        result = self._result_path(pid)
        for path in self._ready.glob(f"{unfinished_prefix(pid)}*"):
            # It was killed.
            shutil.rmtree(path, ignore_errors=True)
        if self._is_outdated:
            # The release that it was checking may not be wanted any more.
            self._is_outdated, self._is_asked = False, True
            result.unlink(missing_ok=True)
            return True
        if code == -signal.SIGKILL and not self._is_late:
            self._again.note_failure(time.monotonic())
        try:
            if code >= _UNWRITTEN:
                self._look_again()
                why = os.strerror(code - _UNWRITTEN)
                raise Misconfigured(f"the process that checks it cannot write to {self._runtime}: {why}")
            if code not in (0, _FAILED):
                how = f"took more than {self._limits.timeout_s:g} s" if self._is_late else f"ended with {code}"
                raise Misconfigured(f"the process that checks it {how}")
            content = json.loads(result.read_bytes())
            if code == _FAILED:
                self._look_again()
                raise Misconfigured(content["error"])
            found = _Checked.of(content, result)
            if found.troubles:
                self._look_again()
            else:
                self._again.shorten()
            for trouble in found.troubles:
                self._failures.add(1)
                _log.error("a release cannot be kept ready: %s", trouble)
            self._order(found.deployment, found.keys)
        except _WRONG as error:
            self._fail(error)
        finally:
            result.unlink(missing_ok=True)
        return True

    def _look_again(self) -> None:
        """Look at a refused release again after a while, if the deployment file asks for it."""
        if self._checks_file:
            self._again.note_failure(time.monotonic())

    def give_up(self, proven: Serving, why: str) -> None:
        """Note that no worker could serve the newest orders, and that a generation before goes on.

        Its candidate goes on only with the newest share: a rollback may be among the orders that nobody could serve.
        """
        refused, orders = self._orders, proven.orders
        is_same = (refused.candidate, refused.rollout) == (orders.candidate, orders.rollout)
        orders = replace(orders, share=refused.share if is_same else 0)
        with contextlib.suppress(OSError):
            self._write(orders)
        self._orders = orders
        _log.error("a release cannot be taken up, and %s goes on: %s", proven.active.model_version, why)
        self._again.note_failure(time.monotonic())
        self._serve(Serving(orders, dict(self._releases)))

    def keep(self, servings: Iterable[Serving]) -> None:
        """Unload the releases that are neither ordered nor served by one of these generations."""
        keys = {*self._orders.keys}
        for serving in servings:
            keys |= {serving.orders.active, serving.orders.candidate}
        for key in self._releases.keys() - keys:
            self._releases.pop(key).bundles[0].close()

    def close(self) -> None:
        """End the checker, and remove the orders."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._path.unlink(missing_ok=True)

    def _begin(self, now: float) -> None:
        self._checks_file = False
        try:
            # Somebody may have tidied up.
            make_private_folder(self._runtime)
            make_private_folder(self._ready)
            deployment = read_deployment(self._runtime / DEPLOYMENT)
            self._checks_file = deployment is not None
            if deployment is not None and deployment.catalogue not in ("", self._catalogue):
                _log.info("the catalogue %s is to decide, and this host's is %s", deployment.catalogue, self._catalogue)
                return
            if deployment is not None and (refusal := self._source.refusal_of(deployment)):
                raise Misconfigured(f"{self._runtime / DEPLOYMENT}: {refusal}")
            if deployment is not None:
                keys = {role: self._ready_key(paths) for role, paths in deployment.releases.items()}
                if all(keys.values()):
                    self._order(deployment, keys)
                    return
            self._pid = self._fork(lambda: self._check(deployment))
        except _WRONG as error:
            self._look_again()
            self._fail(error)
            return
        self._started, self._is_late = now, False

    def _ready_key(self, paths: ReleasePaths) -> str:
        """Returns the key of a release that is named by its digests and ready, wherever its files are now; else ""."""
        if not (paths.bundle_digest and paths.policy_digest):
            return ""
        key = release_key(paths.version)
        return key if key in self._releases or (self._ready / key).is_dir() else ""

    def _check(self, deployment: Deployment | None) -> int:
        """In the child: prepare every release, and write the findings or the error. Returns the exit code."""
        _yield_cores()
        bound_memory(self._limits.memory_bytes)
        code, content = self._found(deployment)
        try:
            self._result_path(os.getpid()).write_text(json.dumps(content), encoding="utf-8")
        except OSError as error:
            return _UNWRITTEN + (error.errno or 0)
        return code

    def _found(self, deployment: Deployment | None) -> tuple[int, dict[str, Any]]:
        """Returns the exit code of a checker, and the result that it writes."""
        try:
            return 0, self._checked(deployment).content
        except (PaywardenError, OSError) as error:
            return _FAILED, {"error": _told(error)}
        except MemoryError:
            most = f"more than {self._limits.memory_bytes / 2**30:.1f} GiB of memory"
            return _FAILED, {"error": f"the process that checks it wanted {most}"}

    def _checked(self, deployment: Deployment | None) -> _Checked:
        deployment = deployment or self._source.wanted()
        keys, troubles = {}, []
        for role, paths in deployment.releases.items():
            try:
                keys[role] = self._ready_key(paths) or self._source.prepare(paths, self._ready)
            except (PaywardenError, OSError) as error:
                if role == "active":
                    raise
                # A way back must not fail because a candidate was deleted.
                troubles.append(f"{role}: {_told(error)}")
        self._remove_unused({*keys.values(), *self._orders.keys})
        return _Checked(deployment, keys, troubles)

    def _order(self, deployment: Deployment, keys: Mapping[str, str]) -> None:
        """Order these releases, unless they are ordered already."""
        now, active = self._orders, keys["active"]
        previous = keys.get("previous", "")
        if not (self._runtime / DEPLOYMENT).exists():
            # The release that served until now is the one to go back to.
            previous = now.active if active != now.active else now.previous
        orders = ReleaseOrders(
            active, previous, keys.get("candidate", ""), deployment.rollout, deployment.share, deployment.salt
        )
        orders = self._loaded(orders)
        if not orders.candidate:
            # It could not be prepared: the champion decides about its cards.
            orders = replace(orders, share=0)
        if orders == now:
            _log.info("the wanted releases are served already: nothing changes")
            return
        try:
            self._write(orders)
        except OSError:
            # Nothing is ordered while the disk is full.
            self._is_asked, self._due = True, time.monotonic() + _AGAIN_S
            raise
        _log.info("checked: release %s is to decide; the workers take it up", active)
        self._serve(Serving(orders, dict(self._releases)))

    def _loaded(self, orders: ReleaseOrders) -> ReleaseOrders:
        """Load the releases that are not in memory. Returns the orders without roles whose release cannot be loaded.

        Raises BundleRefused or Misconfigured if the active one cannot be loaded.
        """
        for key in orders.keys:
            if key in self._releases:
                continue
            try:
                self._releases[key] = self._loaded_one(key)
            except PaywardenError as error:
                # It was damaged since it was checked: it is prepared again.
                shutil.rmtree(self._ready / key, ignore_errors=True)
                self._again.note_failure(time.monotonic())
                if key == orders.active:
                    raise
                role = orders.role_of(key)
                self._failures.add(1)
                _log.error("a release cannot be kept ready: %s: %s", role, error)
                if key == orders.previous:
                    orders = replace(orders, previous="")
                if key == orders.candidate:
                    orders = replace(orders, candidate="")
        return orders

    def _loaded_one(self, key: str) -> Release:
        try:
            return self._load(key)
        except PaywardenError:
            raise
        except Exception as error:
            # Not for the host: it goes on.
            _log.exception("a bug ended the loading of a release")
            raise Misconfigured(f"release {key}: {type(error).__name__}") from error

    def _write(self, orders: ReleaseOrders) -> None:
        """Write orders. Raises OSError."""
        write_orders(self._path, orders)
        self._orders, self._written = orders, file_state(self._path)

    def _repair(self) -> None:
        """Write orders again that somebody has changed or deleted: workers that start read the share from them."""
        if file_state(self._path) != self._written:
            with contextlib.suppress(OSError):
                self._write(self._orders)
                _log.error("%s was changed or deleted: it is written again", self._path)
                self._serve(Serving(self._orders, dict(self._releases)))

    def _fail(self, error: Exception) -> None:
        self._failures.add(1)
        _log.error("the swap is not made, and what decides goes on: %s", _told(error))

    def _result_path(self, pid: int) -> Path:
        return self._runtime / f"check-{pid}.json"

    def _remove_left_over(self) -> None:
        """Remove files of supervisors and checkers that are gone."""
        for path in (*self._runtime.glob("orders-*.json"), *self._runtime.glob("check-*.json")):
            if not _lives(path):
                path.unlink(missing_ok=True)
        for path in self._ready.glob(".*"):
            # An unfinished release of a checker that was killed. One that still works takes minutes, not hours.
            if time.time() - path.stat().st_mtime > 6 * self._limits.timeout_s:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_unused(self, keys: set[str]) -> None:
        """Remove releases that no supervisor orders any more."""
        for path in self._runtime.glob("orders-*.json"):
            if _lives(path):
                try:
                    keys |= {*read_orders(path).keys}
                except Misconfigured:
                    # Somebody has damaged them. Until they are repaired, nobody knows which releases are in use.
                    return
        for path in self._ready.iterdir():
            if path.name not in keys and not path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def _yield_cores() -> None:
    """Let this process take little of a core that others want as well."""
    os.nice(_NICENESS)
    # A batch process takes its core from nobody when it wakes, and has no real-time priority that the host may have.
    # Where a sandbox forbids it, being nice must do.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


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
