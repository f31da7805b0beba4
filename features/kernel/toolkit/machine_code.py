"""Keeps the machine code of compiled functions from one start to the next.

Compiling the product takes about a minute, so numba can write the machine code to files. To decide whether a file is
still valid, numba looks only at the source file of the function. But the machine code also contains the functions that
it calls: after a change of one of those in another file, numba would go on using the old code. Therefore the name of
the directory changes with every compiled source:

    features/kernel/__pycache__/compiled-5c0f2e6b1d9a4c37/features.kernel/batches.apply_events-31.py311.1.nbc

1. The compiled sources are all files of features/kernel, and every file of the product that imports toolkit/jit.py.
2. Their digest, with the versions of numba, llvmlite and Python, names the directory. A change in any of them gives
   another directory, and everything is compiled again. numba itself tells processors and types of arguments apart.
3. The directory is in NUMBA_CACHE_DIR if that is set, else in features/kernel, else in the user's cache directory.
   A new one begins as a copy of one in another of these places, such as the read-only file system of an image. Where
   none of them can be written, code that an image has is read there, and every process compiles the rest for itself.
4. Processes that start together share the directory. Only one of them writes at a time.
5. The process that makes a new directory removes old ones, all but the DIRECTORIES_KEPT that were used last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import caching, config, sigutils

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import require_unwritable

_log = logging.getLogger(__name__)
# numba sets these names when it is imported: a type checker does not see them.
_CONFIG: Any = config

# Besides the one in use. A directory has about 7 MB; several versions of the product may share one user's cache.
DIRECTORIES_KEPT = 7
_ROOMS = ("features", "models", "ops", "schemas", "scoring", "streams")
_MARK = b"kernel.toolkit.jit import"
_PREFIX = "compiled-"


def compiled_sources(top: Path) -> dict[str, bytes]:
    """Returns the content of every file with compiled functions, by its path below `top`, the folder of all rooms."""
    kernel = top / "features" / "kernel"
    sources = {}
    for room in _ROOMS:
        for path in sorted((top / room).rglob("*.py")):
            content = path.read_bytes()
            if path.is_relative_to(kernel) or _MARK in content:
                sources[path.relative_to(top).as_posix()] = content
    return sources


def digest_of(sources: dict[str, bytes]) -> str:
    """Returns 16 hex digits that change with any source and with the versions of the compilers."""
    tools = (numba.__version__, llvmlite.__version__, sys.version, _CONFIG.BOUNDSCHECK, _CONFIG.OPT)
    digest = hashlib.sha256(repr(tools).encode())
    for name in sorted(sources):
        digest.update(f"{name} {len(sources[name])}\n".encode())
        digest.update(sources[name])
    return digest.hexdigest()[:16]


_TOP = Path(__file__).parents[3]
# The sources are read when this module is imported. Later the files may be newer than the code that this process has
# loaded.
_SOURCES = compiled_sources(_TOP)
_DIGEST = digest_of(_SOURCES)


def source_of(function: Callable[..., object]) -> str | None:
    """Returns the function's file as a path below the folder of all rooms; None if the digest does not cover it."""
    path = Path(function.__code__.co_filename)
    name = path.relative_to(_TOP).as_posix() if path.is_relative_to(_TOP) else ""
    return name if name in _SOURCES else None


@cache
def directory() -> Path | None:
    """Returns the directory for these sources, and makes it if needed; None if no place can be written."""
    for parent in _parents():
        made = parent / f"{_PREFIX}{_DIGEST}"
        is_new = not made.is_dir()
        try:
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A user who can write there decides what this process runs.
            require_unwritable(made)
            # Tests that it can be written, and records when it was last used.
            os.utime(made)
            with _locked(made):
                pass
        except OSError:
            continue
        except Misconfigured as error:
            _log.warning("no compiled code is kept in %s: %s", made, error)
            continue
        if is_new:
            _copy_readable(made)
            _remove_old(made)
        return made
    for parent in _parents():
        if (kept := _readable(parent)) is not None:
            return kept
    _log.warning("no directory for compiled code can be written: every start compiles; set NUMBA_CACHE_DIR")
    return None


def _parents() -> Iterator[Path]:
    if _CONFIG.CACHE_DIR:
        yield Path(_CONFIG.CACHE_DIR)
    yield Path(__file__).parents[1] / "__pycache__"
    # Without a home there is no such directory.
    with contextlib.suppress(RuntimeError):
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paywarden"


def _readable(parent: Path) -> Path | None:
    """Returns the directory for these sources in `parent`, if it is there and only trusted users can change it."""
    kept = parent / f"{_PREFIX}{_DIGEST}"
    if not os.access(kept, os.R_OK | os.X_OK):
        return None
    try:
        require_unwritable(kept)
    except Misconfigured as error:
        _log.warning("the compiled code in %s is not used: %s", kept, error)
        return None
    return kept


def _copy_readable(made: Path) -> None:
    """Fill a new directory with the code that another place has. If that fails, the code is compiled."""
    for parent in _parents():
        kept = _readable(parent)
        if kept is not None and kept != made:
            try:
                with _locked(made):
                    for source in sorted(path for path in kept.rglob("*.nb*") if path.is_file()):
                        _copy_file(source, made / source.relative_to(kept))
            except OSError as error:
                _log.warning("compiled code of %s cannot be copied: %s", kept, error.strerror)
            return


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file whole or not at all, unless a process that started at the same time has made it already."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    shutil.copyfile(source, unfinished)
    if target.exists():
        unfinished.unlink()
    else:
        unfinished.rename(target)


def _remove_old(current: Path) -> None:
    used: dict[Path, float] = {}
    for other in current.parent.glob(f"{_PREFIX}*"):
        # Another process may be removing the same directory.
        with contextlib.suppress(OSError):
            used[other] = other.stat().st_mtime
    used.pop(current, None)
    for old in sorted(used, key=used.__getitem__, reverse=True)[DIRECTORIES_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Locator(caching._CacheLocator):
    """Tells numba where the files of one function are, and on which sources they depend."""

    def __init__(self, folder: Path, line: int) -> None:
        self._folder, self._line = folder, line

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return _DIGEST

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., object], py_file: str) -> _Locator | None:  # noqa: ARG003
        top, source = directory(), source_of(py_func)
        if top is None or source is None:
            return None
        return cls(top / ".".join(Path(source).parent.parts), py_func.__code__.co_firstlineno)


class _Files(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012 - numba's own is a list


class _FunctionFiles(caching.FunctionCache):
    """numba's cache of one function, safe for several processes.

    numba replaces whole files. But two processes that compile one function for different types could take the same
    next number: the index of one would then lead to the machine code of the other.
    """

    _impl_class = _Files

    def save_overload(self, sig: Any, data: Any) -> None:
        folder = directory()
        assert folder is not None
        try:
            # Another process may have removed the directory as an old one.
            folder.mkdir(mode=0o700, exist_ok=True)
            with _locked(folder):
                super().save_overload(sig, data)
        except OSError as error:
            _log.warning("compiled code cannot be kept in %s: %s", folder, error.strerror)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            # After a loss of power, files may be truncated.
            _log.warning("kept compiled code cannot be read, compiling: %s", error)
            with contextlib.suppress(OSError):
                self.flush()
            return None


class KeptCode(caching._Cache):
    """The cache of one function, opened when the function is first called: an import writes nothing."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        self._files: Any = None

    def _opened(self) -> Any:
        if self._files is None:
            self._files = caching.NullCache() if directory() is None else _FunctionFiles(self._function)
        return self._files

    @property
    def cache_path(self) -> str | None:
        path: str | None = self._opened().cache_path
        return path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        return self._opened().load_overload(_types_of(sig), target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        self._opened().save_overload(_types_of(sig), data)

    def enable(self) -> None:
        self._opened().enable()

    def disable(self) -> None:
        self._opened().disable()

    def flush(self) -> None:
        self._opened().flush()


def _types_of(sig: Any) -> Any:
    """Returns the types of the arguments. "int64(int64)" and a call with an int64 find the same code."""
    args, _ = sigutils.normalize_signature(sig)
    return tuple(args)
