"""The extras that commands need beyond the base installation, and the message when they are missing.

If only `paywarden[serve]` is installed, `paywarden train` ends with this line on stderr:

    paywarden: train needs the extra `train`: pip install 'paywarden[train]'
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import click

from paywarden.schemas.errors import Misconfigured

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_SERVE = ("httptools", "ngh2", "uvloop")
_STREAM = ("aiokafka", "faust", "scipy")
_HISTORY = ("cryptography", "duckdb", "jinja2", "pyarrow")
_GATEWAY = ("cryptography", "jinja2")
_CONSOLE = (
    "authlib",
    "babel",
    "cryptography",
    "duckdb",
    "httpx2",
    "jinja2",
    "pyarrow",
    "python_multipart",
    "starlette",
    "uvicorn",
)
_COMPILE = ("lightgbm", "treelite")
_INDEX = ("cryptography", "duckdb", "pyarrow")
_POSTGRES = ("psycopg",)
_REGISTRY = ("fsspec",)
_OTEL = ("opentelemetry.proto",)
_SPARK = (*_HISTORY, "pyspark")
_TRAIN = (*_HISTORY, *_COMPILE, "scipy", "sklearn", "threadpoolctl")

# The attribute of a command's function that holds its extras.
_EXTRAS = "paywarden_extras"

MODULES = {
    "serve": _SERVE,
    "stream": _STREAM,
    "history": _HISTORY,
    "gateway": _GATEWAY,
    "console": _CONSOLE,
    "compile": _COMPILE,
    "index": _INDEX,
    "postgres": _POSTGRES,
    "registry": _REGISTRY,
    "otel": _OTEL,
    "spark": _SPARK,
    "train": _TRAIN,
    "demo": (*_SERVE, *_STREAM, *_TRAIN, *_CONSOLE, *_INDEX),
}
"""The modules that each extra of pyproject.toml brings, by the name of the extra."""


def needs(*extras: str) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Mark a command that needs these extras: without them it raises Misconfigured before it does anything.

    The decorator stands directly above the function, below all options.
    """

    def marked(command: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        @wraps(command)
        def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            require(click.get_current_context().command_path.partition(" ")[2], extras)
            return command(*args, **kwargs)

        # click's decorators copy a function's attributes to their wrapper.
        setattr(checked, _EXTRAS, extras)
        return checked

    return marked


def extras_of(command: Callable[..., object]) -> tuple[str, ...]:
    """Returns the extras that a command was marked with; empty for a command that needs none."""
    extras: tuple[str, ...] = getattr(command, _EXTRAS, ())
    return extras


def require(command: str, extras: tuple[str, ...]) -> None:
    """Raise Misconfigured if an extra is not installed, naming it and how to install it."""
    missing = [extra for extra in extras if not all(map(_is_installed, MODULES[extra]))]
    if not missing:
        return
    names = " and ".join(f"`{extra}`" for extra in missing)
    word = "extra" if len(missing) == 1 else "extras"
    raise Misconfigured(f"{command} needs the {word} {names}: pip install 'paywarden[{','.join(missing)}]'")


def _is_installed(module: str) -> bool:
    # Faust replaces its own module by one without a spec, for which `find_spec` raises an error.
    try:
        return module in sys.modules or find_spec(module) is not None
    except ModuleNotFoundError:
        # The package above it is missing.
        return False
