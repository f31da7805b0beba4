"""Loads the catalogue of a project: the file that `[features] catalogue` names, and files beside it.

    shop/catalogue.py    from payment import PAYMENT          the file beside it
                         CATALOGUE = Catalogue(…, PAYMENT)

    load_catalogue(Path("shop/catalogue.py"))     that Catalogue, or one line: feature catalogue, payment.py:7:12: …

1. The file is code. Nobody but root and the user of this process may be able to change it, or a file that it imports.
2. It runs with an `import` of its own, which finds the files of its folder first. A file with the name of an installed
   module is refused when it is imported: neither may stand in for the other.
3. Its modules are in `sys.modules` only while they run, under names that nobody else uses. `sys.path` stays as it is,
   and no bytecode is written.
4. Any error that the project's code raises becomes Misconfigured with file, line and column.
5. A file that never ends cannot be ended from here. The log says where it is after a few seconds.
"""

from __future__ import annotations

import builtins
import difflib
import importlib.machinery
import inspect
import itertools
import logging
import os
import re
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paywarden.features.catalogue.attributes import Attribute
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.fields import NO_FIELDS, Payment
from paywarden.features.catalogue.windows import wrong_at
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import require_unwritable

_log = logging.getLogger(__name__)

NAME = "CATALOGUE"
"""The variable that holds the catalogue."""
SLOW_S = 10.0
"""A catalogue runs for some milliseconds."""
# A catalogue of a thousand features has 200 KB.
_BYTES_MAX = 4_000_000
_CALLED = re.compile(r"([\w.]+)\(\) (takes|got|missing) ")
_IMPORTED_NAME = re.compile(r"cannot import name '([^']*)' from (?:partially initialized module )?'([^']*)'")


def load_catalogue(path: Path) -> Catalogue:
    """Returns the catalogue of a project. Raises Misconfigured for anything that is wrong with its files."""
    return _Project(path).catalogue()


class _Project:
    """The modules of one project, by name, while they are loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # For a link that leads back to itself, Path.resolve raises RuntimeError.
        self._folder = Path(os.path.realpath(path.parent))
        self._modules: dict[str, types.ModuleType] = {}
        self._files: set[str] = set()
        # Names of modules that two threads cannot share.
        self._prefix = f"paywarden_project_{id(self):x}"

    def catalogue(self) -> Catalogue:
        """Returns the catalogue."""
        try:
            with self._told_when_slow():
                module = self._run(self._path.stem, self._path)
        except Misconfigured as error:
            raise self._placed(error) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A file may raise anything, SystemExit as well.
            raise self._placed(error) from error
        finally:
            for name in self._modules:
                sys.modules.pop(self._module_name(name), None)
        return self._checked(module)

    @contextmanager
    def _told_when_slow(self) -> Iterator[None]:
        thread = threading.get_ident()

        def tell() -> None:
            frame = sys._current_frames().get(thread)
            while frame is not None and frame.f_code.co_filename not in self._files:
                frame = frame.f_back
            place = self._path.name if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            _log.warning("feature catalogue: %s has run for %g s: is there a loop without an end?", place, SLOW_S)

        timer = threading.Timer(SLOW_S, tell)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            # The next fork gets no thread of this.
            timer.join()

    def _checked(self, module: types.ModuleType) -> Catalogue:
        found = vars(module).get(NAME)
        if NAME not in vars(module):
            raise wrong_at(self._path.name, f"it sets no {NAME}{_did_you_mean(NAME, vars(module))}")
        if not isinstance(found, Catalogue):
            raise wrong_at(self._path.name, f"{NAME} must be a Catalogue, got {type(found).__name__}")
        for other in self._modules.values():
            _check_fields(vars(other), found.payment)
        return found

    def _run(self, name: str, path: Path) -> types.ModuleType:
        """Returns the module that a file makes. Raises the file's own errors."""
        self._files.add(str(path))
        code = _compiled(path)
        module = types.ModuleType(self._module_name(name))
        module.__dict__.update(
            __file__=str(path), __package__="", __builtins__={**vars(builtins), "__import__": self._import}
        )
        self._modules[name] = module
        # A dataclass looks its module up.
        sys.modules[module.__name__] = module
        exec(code, module.__dict__)  # noqa: S102 - the file is code, and `_compiled` has looked at who can write it
        return module

    def _module_name(self, name: str) -> str:
        return f"{self._prefix}.{name}"

    def _import(
        self,
        name: str,
        of_module: Mapping[str, object] | None = None,
        of_function: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> types.ModuleType:
        """Does the work of the built-in `__import__`, and finds the files of the project."""
        path = self._folder / f"{name}.py"
        if level or "." in name or not path.is_file():
            found: types.ModuleType = builtins.__import__(name, of_module, of_function, fromlist, level)
            return found
        if name not in self._modules:
            if self._is_installed(name, path):
                raise Misconfigured(f"an installed module is called {name!r} like {path.name}: rename the file")
            self._run(name, path)
        return self._modules[name]

    def _is_installed(self, name: str, path: Path) -> bool:
        """Returns whether `import name` would find another file, in any other program."""
        if name in sys.builtin_module_names or name in sys.stdlib_module_names:
            return True
        elsewhere = [part for part in sys.path if Path(part).resolve() != self._folder]
        specs = [importlib.machinery.PathFinder.find_spec(name, elsewhere)]
        specs += [finder.find_spec(name, None) for finder in sys.meta_path]
        # A folder without __init__.py counts for nothing: any folder of a working directory is one.
        origins = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
        return any(Path(origin).resolve() != path.resolve() for origin in origins)

    def _placed(self, error: BaseException) -> Misconfigured:
        """Returns the error with the place in the project's files where it was raised."""
        if isinstance(error, Misconfigured) and str(error).startswith("feature catalogue"):
            return error
        if isinstance(error, SyntaxError) and error.filename is not None and error.filename in self._files:
            line = f"{Path(error.filename).name}:{error.lineno or 1}:{max(1, error.offset or 1)}"
            return wrong_at(line, f"{_first_line(error.msg)}, which Python cannot read")
        return wrong_at(self._place(error) or self._path.name, _in_words(error))

    def _place(self, error: BaseException) -> str:
        """Returns file, line and column of the innermost frame that runs a file of the project."""
        place, trace = "", error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if code.co_filename in self._files:
                _, _, column, _ = next(itertools.islice(code.co_positions(), trace.tb_lasti // 2, None))
                place = f"{Path(code.co_filename).name}:{trace.tb_lineno}:{(column or 0) + 1}"
            trace = trace.tb_next
        return place


def _compiled(path: Path) -> types.CodeType:
    """Returns the code of a file. Raises Misconfigured, or SyntaxError."""
    source = _source_of(path)
    if b"\0" in source:
        line = source.count(b"\n", 0, source.index(b"\0")) + 1
        raise wrong_at(f"{path.name}:{line}:1", "this line holds a zero byte")
    try:
        return compile(source, str(path), "exec", dont_inherit=True)
    except (ValueError, RecursionError, MemoryError) as error:
        # Brackets in brackets without end.
        raise wrong_at(path.name, f"Python cannot read it: {_first_line(str(error)) or 'it nests too deep'}") from error


def _source_of(path: Path) -> bytes:
    try:
        require_unwritable(path)
    except Misconfigured as error:
        raise Misconfigured(f"feature catalogue: {path} is code: {error}") from error
    if path.exists() and not path.is_file():
        raise Misconfigured(f"feature catalogue: {path} is no file")
    try:
        with path.open("rb") as file:
            source = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise Misconfigured(f"feature catalogue: cannot read {path}: {error.strerror}") from error
    if len(source) > _BYTES_MAX:
        raise Misconfigured(f"feature catalogue: {path} has more than {_BYTES_MAX} bytes")
    return source


def _check_fields(variables: Mapping[str, object], payment: Payment) -> None:
    """Check that a module's lists and fields are those of the catalogue. Raises Misconfigured."""
    numbers = {one.number: one for one in payment.attributes}
    for value in variables.values():
        if isinstance(value, Payment) and value is not payment and value is not NO_FIELDS:
            if payment is NO_FIELDS:
                raise wrong_at(value.line, f"{NAME} takes no fields: give it payment=, with this Payment")
            raise wrong_at(value.line, f"there is a second Payment: {NAME} takes the one in {payment.line}")
        if isinstance(value, Attribute) and value.number and numbers.get(value.number, value) is not value:
            other = numbers[value.number]
            taken = f"{value.name!r} has the number {value.number}, which {other.name!r} in {other.line} has already"
            raise wrong_at(value.line, taken)


def _in_words(error: BaseException) -> str:
    """Returns an error of Python in one line, with the name that may have been meant."""
    if isinstance(error, SystemExit):
        return "it ends the program"
    if isinstance(error, Misconfigured):
        return str(error)
    if isinstance(error, NameError) and error.name:
        variables = _variables_at(error)
        return f"{error.name!r} is not defined{_did_you_mean(error.name, variables)}"
    if isinstance(error, AttributeError) and error.name:
        what = getattr(error.obj, "__name__", type(error.obj).__name__)
        return f"{what} has no {error.name!r}{_did_you_mean(error.name, dir(error.obj))}"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "the files of a catalogue are no package: write `from payment import …`, without the dot"
    if isinstance(error, ImportError) and (parts := _IMPORTED_NAME.match(str(error))):
        name, module = parts.groups()
        if _is_running(error, module):
            importing = f"{module.rpartition('.')[2]} imports this file, and this file imports it: move what both need"
            return f"{importing} into a third"
        known = dir(sys.modules[module]) if module in sys.modules else ()
        return f"{module.rpartition('.')[2]} has no {name!r}{_did_you_mean(name, known)}"
    if isinstance(error, ModuleNotFoundError):
        return f"there is no module {error.name!r}, neither installed nor in the catalogue's folder"
    return f"{type(error).__name__}: {_first_line(str(error))}{_wanted_arguments(error)}"


def _wanted_arguments(error: BaseException) -> str:
    """Returns how a function of the catalogue's file is called; empty for other errors. Python counts `self`, too."""
    called = _CALLED.match(str(error)) if isinstance(error, TypeError) else None
    if called is None:
        return ""
    method = called[1].rpartition(".")[2]
    for value in _values_at(error):
        for function in (value, getattr(value, method, None)):
            if getattr(function, "__qualname__", "") == called[1] and callable(function):
                parameters = inspect.signature(function).parameters.values()
                plain = [one.replace(annotation=one.empty) for one in parameters if one.name != "self"]
                return f"; wanted {method}{inspect.Signature(plain)}"
    return ""


def _is_running(error: BaseException, module: str) -> bool:
    """Whether a module was still being read when an error was raised: it imports a file that imports it."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == module and trace.tb_next is not None:
            return True
        trace = trace.tb_next
    return False


def _variables_at(error: BaseException) -> list[str]:
    """Returns the names that can be used where an error was raised."""
    return [*_frame_at(error)]


def _values_at(error: BaseException) -> list[Any]:
    """Returns the values of these names."""
    return [*_frame_at(error).values()]


def _frame_at(error: BaseException) -> dict[str, Any]:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return {} if trace is None else {**trace.tb_frame.f_globals, **trace.tb_frame.f_locals}


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, [one for one in known if not one.startswith("_")], 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
