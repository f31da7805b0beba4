"""Configuration: frozen dataclasses filled from `paywarden.toml` and the environment, by one function.

A setting `port` of the section `serve` is `[serve] port = …` in the file and PAYWARDEN_SERVE_PORT in the
environment, which wins. What is wrong is named: the setting, what was wanted, what was got (secrets are not
repeated). A process fills only the sections it uses, so that none has to import another's parts.

A setting may also be a list of tables, `[[policy.rules]]`, each a dataclass of its own, or a table of lists by name,
`[policy.lists]`. These come from the file alone.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from schemas.errors import Misconfigured

DEFAULT_FILE = "paywarden.toml"
ENVIRONMENT_PREFIX = "PAYWARDEN_"

# Every section there is; what is not one of them is a typing mistake.
SECTIONS = (
    "admission",
    "aerospike",
    "answered",
    "auth",
    "companion",
    "costs",
    "drift",
    "drift_alerts",
    "drift_detection",
    "features",
    "grpc",
    "http",
    "kafka",
    "limits",
    "lmdb",
    "mirror",
    "outbox",
    "outcomes",
    "policy",
    "registry",
    "serve",
    "store",
    "stream",
    "tls",
    "topics",
    "training",
)

_Settings = TypeVar("_Settings")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where settings come from: the parsed file and the environment."""

    file: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    name: str = DEFAULT_FILE

    def section(self, section: str, settings_type: type[_Settings]) -> _Settings:
        """The section's settings. Raises Misconfigured naming the setting that is unknown or wrong."""
        assert section in SECTIONS
        hints = get_type_hints(settings_type)
        given: Mapping[str, Any] = self.file.get(section, {})
        unknown = sorted(given.keys() - hints.keys())
        if unknown:
            raise Misconfigured(f"{self.name}: [{section}] has no setting {unknown[0]!r}")
        values = {name: _typed(f"[{section}] {name}", hints[name], value) for name, value in given.items()}
        for name, hint in hints.items():
            variable = f"{ENVIRONMENT_PREFIX}{section}_{name}".upper()
            if variable in self.environment:
                if _is_structured(hint):
                    raise Misconfigured(f"{variable}: [{section}] {name} can be set in the file only")
                values[name] = _from_text(variable, hint, self.environment[variable])
        return settings_type(**values)


def read_source(path: str | None, environment: Mapping[str, str] = os.environ) -> Source:
    """The configuration file (if `path` is None, paywarden.toml where there is one) and the environment.

    Raises Misconfigured for a file that is missing, is not TOML or has an unknown section.
    """
    chosen = Path(path or DEFAULT_FILE)
    if path is None and not chosen.exists():
        return Source({}, environment)
    try:
        content = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise Misconfigured(f"cannot read the configuration {chosen}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{chosen} is not TOML: {error}") from error
    for section, settings in content.items():
        if section not in SECTIONS or not isinstance(settings, dict):
            raise Misconfigured(f"{chosen}: there is no section [{section}]; there are {', '.join(SECTIONS)}")
    return Source(content, environment, str(chosen))


def _typed(name: str, hint: Any, value: Any) -> Any:
    """A TOML value as the type the setting has; a whole number will do for a fraction."""
    if get_origin(hint) is tuple and isinstance(value, list):
        item_hint = get_args(hint)[0]
        if dataclasses.is_dataclass(item_hint):
            return tuple(_table(_place(name, number, item), item_hint, item) for number, item in enumerate(value))
        return tuple(_typed(name, item_hint, item) for item in value)
    if get_origin(hint) is Mapping and isinstance(value, dict):
        return {key: _typed(f"{name}, {key}", get_args(hint)[1], item) for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise Misconfigured(f"{name}: wanted {_spoken(hint)}, got {type(value).__name__}")
    return value


def _table(name: str, hint: Any, value: Any) -> Any:
    """One of a list of tables as its dataclass. A setting without a default has to be there."""
    if not isinstance(value, dict):
        raise Misconfigured(f"{name}: wanted a table, got {type(value).__name__}")
    hints = get_type_hints(hint)
    for key in value:
        if key not in hints:
            raise Misconfigured(f"{name} has no setting {key!r}")
    for one in dataclasses.fields(hint):
        if one.default is dataclasses.MISSING and one.name not in value:
            raise Misconfigured(f"{name}: {one.name} is missing")
    return hint(**{key: _typed(f"{name} {key}", hints[key], item) for key, item in value.items()})


def _place(name: str, number: int, value: Any) -> str:
    """A table by its own name where it has one, else by its number, from 1."""
    own = value.get("name") if isinstance(value, dict) else None
    return f'{name} "{own}"' if isinstance(own, str) and own else f"{name}, number {number + 1}"


def _is_structured(hint: Any) -> bool:
    return get_origin(hint) is Mapping or (get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]))


def _from_text(name: str, hint: Any, text: str) -> Any:
    if get_origin(hint) is tuple:
        return tuple(_from_text(name, get_args(hint)[0], item.strip()) for item in text.split(",") if item.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise Misconfigured(f"{name}: wanted true or false")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError as error:
        raise Misconfigured(f"{name}: wanted {_spoken(hint)}") from error


def _spoken(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is Mapping:
        return "a table"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(hint, str(hint))
