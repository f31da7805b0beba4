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
3. A release that was checked before is not checked again: as long as its files are the same (path, inode, time and
   size), nothing is forked. The previous release stays loaded. A way back is therefore a few looks at files, and forks.
4. A change of the candidate's share alone is a small file that is written, `orders-PID.json`, and a SIGHUP to the
   workers (rollout_share.py). So is a candidate that is dropped. If nothing has changed, nothing is written.
5. A checker that somebody killed (kill -9, want of memory) is run again, at most KILLS_MAX times: otherwise the host
   would keep releases that the file no longer names. A bundle that crashes its checker is not tried again.
6. A file for another feature catalogue is not for this host.
7. Where there is a registry, a file that names a release without its approvals changes nothing.
8. Orders that somebody changes or deletes are written again. A checked release that cannot be loaded is prepared again.
9. A checker runs in the time that nobody else wants (SCHED_IDLE): a worker that wakes gets its core at once. On a core
   that is never idle it would not end, so after SPARE_S another one takes its place, which has a tenth of a core.
10. A way back waits for no checker. A deployment file that names other releases ends the checker of the ones before.
    If the new ones are ready, they are ordered at once.
11. A release of the deployment file that was refused is looked at again after 5 s, then ever more rarely, at least
    every ten minutes: a disk may have been full, or a file unreadable. A change of the configuration waits for SIGHUP,
    because somebody may be writing the file.
12. A checker has half of the machine's memory at most, and is the first process to go if memory runs out.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.file_state import FileState, file_state
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
# How often it looks whether its orders are still as it wrote them.
REPAIR_S = 1.0
# How long it waits before it tries again to write orders that could not be written.
_AGAIN_S = 5.0
# How long it waits at most before it looks again at a deployment file that was refused.
_AGAIN_S_MAX = 600.0
_FAILED = 1
# A checker that cannot write its findings ends with this and the number of the error.
_UNWRITTEN = 100
KILLS_MAX = 3
# How long a checker may run in spare time alone. Beside a worker at half load, on its core, it needs half a second.
SPARE_S = 1.0
# The one after it takes a tenth of a core that a worker needs.
_NICENESS = 10


_State = FileState | None
# Stands in for the state of a configuration file that does not exist.
_NO_FILE: FileState = (0, 0, 0, 0)
# Errors that an operator's file may cause, or the file of a checker, which has run a bundle's code.
_WRONG = (PaywardenError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class _Known(NamedTuple):
    """A release that was checked, and the files that decide that it is still the same."""

    key: str
    files: Mapping[Path, _State]


class _Checked(NamedTuple):
    """The findings of a checker. `configured`: the deployment in the configuration, with the state of its file."""

    deployment: Deployment
    keys: Mapping[str, str]
    known: Mapping[str, _Known]
    configured: tuple[_State, Deployment] | None
    # Errors of releases other than the active one.
    troubles: list[str]

    @property
    def content(self) -> dict[str, Any]:
        """The findings as JSON. The checker has run a bundle's code, so the supervisor takes only data from it."""
        return {
            "deployment": content_of(self.deployment),
            "keys": self.keys,
            "known": {
                name: [one.key, [[str(path), state] for path, state in one.files.items()]]
                for name, one in self.known.items()
            },
            "configured": None if self.configured is None else self.configured[0],
            "troubles": self.troubles,
        }

    @classmethod
    def of(cls, content: Any, path: Path) -> _Checked:
        """Returns the findings in the file at `path`. Raises Misconfigured, KeyError, TypeError, ValueError."""
        deployment = deployment_of(content["deployment"], path)
        known = {
            str(name): _Known(str(key), {Path(file): _state_of(state) for file, state in files})
            for name, (key, files) in content["known"].items()
        }
        keys = {str(role): str(key) for role, key in content["keys"].items()}
        configured = content["configured"]
        troubles = [str(trouble) for trouble in content["troubles"]]
        return cls(
            deployment, keys, known, None if configured is None else (_state_of(configured), deployment), troubles
        )


def _state_of(value: Any) -> _State:
    if value is None:
        return None
    inode, size, content_ns, inode_ns = map(int, value)
    return inode, size, content_ns, inode_ns


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
    """Limits of a checker: seconds in all, seconds in spare time alone, and bytes that it allocates."""

    timeout_s: float = _CHECK_TIMEOUT_S
    spare_s: float = SPARE_S
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
        # Whether the checker has a share of a core, and whether the one before it was ended for want of one.
        self._has_share = self._is_starved = False
        # The deployment that the checker checks, if it comes from the file; and whether the file asks for another one
        # by now.
        self._checking: Deployment | None = None
        self._is_outdated = False
        # When it looks again at a refused release.
        self._again = RetryTimes(_AGAIN_S, _AGAIN_S_MAX)
        # How many checkers in a row were killed.
        self._kills = 0
        # The findings of checkers: the key of each release, and the deployment in the configuration.
        self._known: dict[str, _Known] = {}
        self._configured: tuple[_State, Deployment] | None = None
        self._seen = file_state(self._runtime / DEPLOYMENT)
        # A file that was there at the start may name more releases than were loaded then.
        self._is_asked = self._seen is not None
        self._due = self._repair_due = 0.0
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
        self._due, self._kills = 0.0, 0
        self._again.shorten()

    def look(self, now: float) -> float:
        """Do the work that is due; returns when to look again. It never blocks for longer than a fork takes."""
        if self._pid:
            took_s = now - self._started
            if took_s > self._limits.timeout_s and not self._is_late:
                self._is_late = True
                os.kill(self._pid, signal.SIGKILL)
            elif took_s > self._limits.spare_s and not (self._has_share or self._is_starved or self._is_late):
                self._is_starved = True
                os.kill(self._pid, signal.SIGKILL)
            if not self._is_outdated:
                self._overtake()
            return now + LOOK_S
        if now < self._due:
            return self._due
        self._due = now + LOOK_S
        if now >= self._repair_due:
            self._repair_due = now + REPAIR_S
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
            # The release that it was checking is not wanted any more.
            self._is_outdated = self._is_starved = False
            result.unlink(missing_ok=True)
            return True
        if self._is_starved and code == -signal.SIGKILL:
            _log.info("the process that checks a release got too little of a core, and is started with a share of one")
            self._is_asked = True
            result.unlink(missing_ok=True)
            return True
        self._is_starved = False
        was_killed = code == -signal.SIGKILL and not self._is_late
        self._kills = self._kills + 1 if was_killed else 0
        if was_killed and self._kills <= KILLS_MAX:
            self._is_asked = True
        try:
            if code >= _UNWRITTEN:
                self._look_again(self._checking)
                why = os.strerror(code - _UNWRITTEN)
                raise Misconfigured(f"the process that checks it cannot write to {self._runtime}: {why}")
            if code not in (0, _FAILED):
                how = f"took more than {self._limits.timeout_s:g} s" if self._is_late else f"ended with {code}"
                raise Misconfigured(f"the process that checks it {how}")
            content = json.loads(result.read_bytes())
            if code == _FAILED:
                self._look_again(self._checking)
                raise Misconfigured(content["error"])
            found = _Checked.of(content, result)
            if found.troubles:
                self._look_again(self._checking)
            else:
                self._again.shorten()
            self._known |= found.known
            self._configured = found.configured or self._configured
            for trouble in found.troubles:
                self._failures.add(1)
                _log.error("a release cannot be kept ready: %s", trouble)
            self._order(found.deployment, found.keys)
        except _WRONG as error:
            self._fail(error)
        finally:
            result.unlink(missing_ok=True)
        return True

    def _look_again(self, deployment: Deployment | None) -> None:
        """Look at a refused release again after a while, if the deployment file asks for it."""
        if deployment is not None:
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
        deployment = None
        try:
            # Somebody may have tidied up.
            make_private_folder(self._runtime)
            make_private_folder(self._ready)
            deployment = read_deployment(self._runtime / DEPLOYMENT)
            if deployment is not None and deployment.catalogue not in ("", self._catalogue):
                _log.info("the catalogue %s is to decide, and this host's is %s", deployment.catalogue, self._catalogue)
                return
            if deployment is not None and (refusal := self._source.refusal_of(deployment)):
                raise Misconfigured(f"{self._runtime / DEPLOYMENT}: {refusal}")
            known = self._all_known(deployment)
            if known is not None:
                self._order(*known)
                return
            has_share = self._is_starved
            self._checking = deployment
            self._pid = self._fork(lambda: self._check(deployment, has_share=has_share))
        except _WRONG as error:
            self._look_again(deployment)
            self._fail(error)
            return
        self._started, self._is_late, self._has_share, self._is_starved = now, False, has_share, False

    def _overtake(self) -> None:
        """End the checker if the deployment file names other releases by now, and order the ready releases."""
        path = self._runtime / DEPLOYMENT
        seen = file_state(path)
        if seen == self._seen:
            return
        # The look after the checker's end begins with this file, readable or not.
        self._seen, self._is_asked = seen, True
        try:
            deployment = read_deployment(path)
            if deployment is None or deployment.catalogue not in ("", self._catalogue):
                return
            if self._checking is not None and deployment.releases == self._checking.releases:
                return
            if self._source.refusal_of(deployment):
                return
            known = self._all_known(deployment)
        except _WRONG as error:
            # The look after the checker's end says so.
            _log.debug("the deployment file is read again when the checker has ended: %s", error)
            return
        self._is_outdated = True
        os.kill(self._pid, signal.SIGKILL)
        if known is None:
            return
        self._is_asked = False
        try:
            self._order(*known)
        except _WRONG as error:
            self._fail(error)

    def _all_known(self, deployment: Deployment | None) -> tuple[Deployment, dict[str, str]] | None:
        """Returns the wanted deployment with the keys of its releases; None if one of them must be checked.

        `deployment`: the content of the file; None without one.
        """
        if deployment is None:
            if self._configured is None or self._configured[0] != (file_state(self._source.config) or _NO_FILE):
                return None
            deployment = self._configured[1]
        keys = {}
        for role, paths in deployment.releases.items():
            if not (key := self._known_key(paths)):
                return None
            keys[role] = key
        return deployment, keys

    def _known_key(self, paths: ReleasePaths) -> str:
        """Returns the key of a release that is ready or was checked, and whose files are the same since; else ""."""
        if key := self._ready_key(paths):
            return key
        known = self._known.get(_name_of(paths))
        if known is None or any(file_state(path) != state for path, state in known.files.items()):
            return ""
        return known.key if (self._ready / known.key).is_dir() else ""

    def _ready_key(self, paths: ReleasePaths) -> str:
        """Returns the key of a release that is named by its digests and ready, wherever its files are now; else ""."""
        if not (paths.bundle_digest and paths.policy_digest):
            return ""
        key = release_key(paths.version)
        return key if key in self._releases or (self._ready / key).is_dir() else ""

    def _check(self, deployment: Deployment | None, *, has_share: bool) -> int:
        """In the child: prepare every release, and write the findings or the error. Returns the exit code."""
        _yield_cores(has_share=has_share)
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
        configured = None
        if deployment is None:
            state = file_state(self._source.config)
            deployment = self._source.wanted()
            # Without a file, the environment and the defaults decide, which do not change.
            configured = (state or _NO_FILE, deployment)
        keys, known, troubles = {}, {}, []
        for role, paths in deployment.releases.items():
            if key := self._known_key(paths):
                keys[role] = key
                continue
            name = _name_of(paths)
            try:
                files = {path: file_state(path) for path in self._source.files_of(paths)}
                keys[role] = self._source.prepare(paths, self._ready)
            except (PaywardenError, OSError) as error:
                if role == "active":
                    raise
                # A way back must not fail because a candidate was deleted.
                troubles.append(f"{role}: {_told(error)}")
                continue
            # A file that was replaced meanwhile may have been read before or after.
            if name == _name_of(paths) and all(file_state(path) == state for path, state in files.items()):
                known[name] = _Known(keys[role], files)
        self._remove_unused({*keys.values(), *self._orders.keys})
        return _Checked(deployment, keys, known, configured, troubles)

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
        """Write orders again that somebody has changed or deleted."""
        if file_state(self._path) != self._written:
            try:
                self._write(self._orders)
            except OSError as error:
                # The next look finds them as they are.
                _log.debug("the orders cannot be written again yet: %s", _told(error))
                return
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


def _yield_cores(*, has_share: bool) -> None:
    """Let this process work in spare time only; with `has_share`, in a tenth of a core that others want as well."""
    os.nice(_NICENESS)
    # A batch process takes its core from nobody when it wakes, and has no real-time priority that the host may have.
    policy = os.SCHED_BATCH if has_share else os.SCHED_IDLE
    # Where a sandbox forbids it, it has the share.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, policy, os.sched_param(0))


def _name_of(paths: ReleasePaths) -> str:
    """Returns a name that tells a release from others: a link that leads elsewhere is another release."""
    return json.dumps([os.path.realpath(paths.bundle), *asdict(paths).values()])


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
