"""Configuration: frozen dataclasses filled from `paywarden.toml` and the environment, by one function.

    [http]                           the file: paywarden.toml
    port = 8080
    PAYWARDEN_HTTP_PORT=8081         the environment, which overrides the file

An error names the setting, what was wanted and what was got; secrets are not repeated. A process reads only the
sections it uses, so that it need not import the code of other processes.

A field made by `internal` is no setting: nobody would ever change its value, and the comment beside it says why it is
what it is. Neither file nor environment can set it; a test may.

A setting may also be a list of tables, `[[policy.rules]]`, each with a dataclass of its own, or a table of lists by
name, `[policy.lists]`. These come from the file alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.toml_file import toml_file

DEFAULT_FILE = "paywarden.toml"
ENVIRONMENT_PREFIX = "PAYWARDEN_"

# All sections. A section with another name is a typing mistake.
SECTIONS = (
    "admission",
    "aerospike",
    "answered",
    "auth",
    "bundles",
    "companion",
    "console",
    "costs",
    "decision_index",
    "drift",
    "drift_alerts",
    "drift_detection",
    "drift_training",
    "erasure",
    "exploration",
    "features",
    "grpc",
    "http",
    "kafka",
    "limits",
    "lmdb",
    "mirror",
    "models",
    "outbox",
    "outcomes",
    "overlay",
    "policy",
    "registry",
    "rollout",
    "serve",
    "shadow",
    "shards",
    "store",
    "stream",
    "tls",
    "topics",
    "tracing",
    "training",
)

_Settings = TypeVar("_Settings")
_Value = TypeVar("_Value")
# How alike two names must be to be taken for one another: "prot" and "port" just are.
_NEAR = 0.75
_INTERNAL = "internal"
# Stands in for a value that is wrong.
_REFUSED = object()


def internal(value: _Value) -> _Value:
    """Return a dataclass field with this default that neither the file nor the environment sets."""
    field: _Value = dataclasses.field(default=value, metadata={_INTERNAL: True})
    return field


def setting_fields(settings_type: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of a section that are settings, in the order of the class."""
    return tuple(field for field in dataclasses.fields(settings_type) if _INTERNAL not in field.metadata)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where settings come from: the parsed file and the environment."""

    file: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    name: str = DEFAULT_FILE

    @property
    def folder(self) -> Path:
        """Returns the folder of the file."""
        return Path(self.name).parent

    def unknown_sections(self) -> list[str]:
        """Returns a line for each section of the file that does not exist or is no table."""
        return [
            f"{self.name}: there is no section [{section}]{_meant(section, SECTIONS)}; there are {', '.join(SECTIONS)}"
            for section, settings in self.file.items()
            if section not in SECTIONS or not isinstance(settings, Mapping)
        ]

    def section(self, section: str, settings_type: type[_Settings]) -> _Settings:
        """Returns the section's settings. Raises Misconfigured naming the setting that is unknown or wrong."""
        wrong: list[Misconfigured] = []
        values = self._values(section, settings_type, wrong)
        if wrong:
            raise wrong[0]
        return settings_type(**values)

    def problems(self, section: str, settings_type: type[_Settings]) -> list[str]:
        """Returns every error that `section` could raise for these settings, as text; empty when they are right."""
        wrong: list[Misconfigured] = []
        values = self._values(section, settings_type, wrong)
        found = [str(error) for error in wrong]
        refused = set(self._given(section)) - values.keys()
        while True:
            try:
                settings_type(**values)
            except Misconfigured as error:
                # The message begins with the settings it is about. The next try without them finds further errors.
                blamed = set(str(error).removeprefix(f"[{section}] ").partition(":")[0].split(", ")) & values.keys()
                if not any(name in str(error) for name in refused) and (blamed or not found):
                    found.append(str(error))
                if blamed:
                    values = {name: value for name, value in values.items() if name not in blamed}
                    continue
            return list(dict.fromkeys(found))

    def _given(self, section: str) -> Mapping[str, Any]:
        """Returns the section of the file. `serve = 3` counts as empty here: `unknown_sections` reports it."""
        given: Any = self.file.get(section, {})
        return given if isinstance(given, Mapping) else {}

    def _values(self, section: str, settings_type: type, wrong: list[Misconfigured]) -> dict[str, Any]:
        """Returns the settings that are right, by name. Errors of the others are added to `wrong`."""
        assert section in SECTIONS
        types = get_type_hints(settings_type)
        hints = {field.name: types[field.name] for field in setting_fields(settings_type)}
        given = self._given(section)
        wrong += [
            Misconfigured(f"{self.name}: [{section}] has no setting {name!r}{_meant(name, hints)}")
            for name in sorted(given.keys() - hints.keys())
        ]
        values = {
            name: _typed(f"[{section}] {name}", hints[name], value, wrong)
            for name, value in given.items()
            if name in hints
        }
        for name, hint in hints.items():
            variable = f"{ENVIRONMENT_PREFIX}{section}_{name}".upper()
            if variable in self.environment:
                if is_file_only(hint):
                    wrong.append(Misconfigured(f"{variable}: [{section}] {name} can be set in the file only"))
                    continue
                try:
                    values[name] = _from_text(variable, hint, self.environment[variable])
                except Misconfigured as error:
                    wrong.append(error)
        return {name: value for name, value in values.items() if value is not _REFUSED}

    def has(self, section: str, setting: str) -> bool:
        """Returns whether the file or the environment gives a setting."""
        variable = f"{ENVIRONMENT_PREFIX}{section}_{setting}".upper()
        return setting in self._given(section) or variable in self.environment


def read_source(
    path: str | None, environment: Mapping[str, str] = os.environ, *, check_sections: bool = True
) -> Source:
    """Read the configuration file and the environment. Without a `path` the file is paywarden.toml, if it exists.

    Raises Misconfigured for a file that is missing, is not TOML or, unless `check_sections` is false, has an unknown
    section.
    """
    chosen = Path(path or DEFAULT_FILE)
    if path is None and not chosen.exists():
        return Source({}, environment)
    content = toml_file(chosen, "the configuration")
    source = Source(content, environment, str(chosen))
    if check_sections and (wrong := source.unknown_sections()):
        raise Misconfigured(wrong[0])
    return source


def table_of(name: str, settings_type: type[_Settings], value: object) -> _Settings:
    """Returns a parsed table as its dataclass, whose fields may be tables and lists of tables.

    Raises Misconfigured for the first setting that is unknown, missing or of a wrong type; `name` begins its message.
    """
    wrong: list[Misconfigured] = []
    table = _table(name, settings_type, value, wrong)
    if wrong:
        raise wrong[0]
    assert isinstance(table, settings_type)
    return table


def nearest(name: str, known: Iterable[str], likeness: float = _NEAR) -> str:
    """Returns the known name that is nearest to an unknown one; "" if every likeness is below `likeness`, 0 to 1."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=likeness)), "")


def _meant(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name."""
    near = nearest(name, known)
    return f"; {near!r} may have been meant" if near else ""


def _typed(name: str, hint: Any, value: Any, wrong: list[Misconfigured]) -> Any:
    """Returns a TOML value in the type of its setting. A whole number is accepted for a fraction.

    If the value is wrong, adds the error to `wrong` and returns _REFUSED.
    """
    if get_origin(hint) is tuple and isinstance(value, list):
        item_hint = get_args(hint)[0]
        if dataclasses.is_dataclass(item_hint):
            items = [_table(_place(name, number, item), item_hint, item, wrong) for number, item in enumerate(value)]
        else:
            items = [_typed(name, item_hint, item, wrong) for item in value]
        return tuple(item for item in items if item is not _REFUSED)
    if get_origin(hint) is Mapping and isinstance(value, dict):
        return {
            key: read
            for key, item in value.items()
            if (read := _typed(f"{name}, {key}", get_args(hint)[1], item, wrong)) is not _REFUSED
        }
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        wrong.append(Misconfigured(f"{name}: wanted {_spoken(hint)}, got {type(value).__name__}"))
        return _REFUSED
    if hint is str and "\0" in value:
        # No path and no argument of the system may hold one.
        wrong.append(Misconfigured(f"{name}: wanted a text without a zero byte"))
        return _REFUSED
    return value


def _table(name: str, hint: Any, value: Any, wrong: list[Misconfigured]) -> Any:
    """Returns a table of a list as its dataclass. Only settings with a default may be left out."""
    if not isinstance(value, dict):
        wrong.append(Misconfigured(f"{name}: wanted a table, got {type(value).__name__}"))
        return _REFUSED
    hints = get_type_hints(hint)
    wrong += [Misconfigured(f"{name} has no setting {key!r}") for key in value if key not in hints]
    missing = [
        one.name for one in dataclasses.fields(hint) if one.default is dataclasses.MISSING and one.name not in value
    ]
    wrong += [Misconfigured(f"{name}: {key} is missing") for key in missing]
    values = {key: _typed(f"{name} {key}", hints[key], item, wrong) for key, item in value.items() if key in hints}
    if missing or _REFUSED in values.values():
        return _REFUSED
    return hint(**values)


def _place(name: str, number: int, value: Any) -> str:
    """Returns how messages name a table: by its own name if it has one, else by its number, from 1."""
    own = value.get("name") if isinstance(value, dict) else None
    return f'{name} "{own}"' if isinstance(own, str) and own else f"{name}, number {number + 1}"


def is_file_only(hint: Any) -> bool:
    """Returns whether a setting of this type is a table or a list of tables, which no variable can hold."""
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
