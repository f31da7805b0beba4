"""The settings: docs/reference/settings.md.

Names, types and defaults come from the dataclasses. A meaning is the comment above the setting in ops/paywarden.toml.
The bounds come from the code: it is given a value that is far too small, far too large or no known word, and its error
names the wanted values.

    [admission] deadline_ms = -1    "[admission] deadline_ms: wanted at least 1, got -1"    bounds: at least 1
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from paywarden.ops.configuration import section_problems, settings_types
from paywarden.ops.reference.page import MADE_FROM_CODE, Undocumented, code, entry, prose
from paywarden.schemas.settings import SECTIONS, Source, is_file_only, setting_fields

EXAMPLE = Path(__file__).parents[1] / "paywarden.toml"
_HEADER, _SETTING = re.compile(r"\[([a-z_]+)\]"), re.compile(r"([a-z0-9_]+) = ")
_WANTED = re.compile(r"(?:wanted|must be) (.+?)(?:, got .*)?$")
_TOO_SMALL, _TOO_LARGE, _NO_WORD = -(10**15), 10**15, "no such word"
# Defaults that differ between machines, as they are on Linux.
_ON_LINUX = {
    ("mirror", "path"): "/dev/shm/paywarden/mirror",
    ("answered", "path"): "/dev/shm/paywarden/answered",
    ("overlay", "path"): "/dev/shm/paywarden/overlay",
    ("serve", "metrics"): "/dev/shm/paywarden/metrics",
}


def settings_page() -> str:
    """Returns the page of every section with its settings."""
    comments = example_comments()
    lines = [
        "# Settings\n",
        *prose(f"Every setting of `paywarden.toml`. {MADE_FROM_CODE}"),
        *prose(
            "[Configure](../operate/configure.md) says where values come from, and which variable of the environment "
            "each setting has. `ops/paywarden.toml` is an example with every default. In brackets: the default, and "
            "the values that are wanted."
        ),
    ]
    for section in SECTIONS:
        lines += [f"## [{section}]\n", *prose(comments[section, ""])]
        settings_type = settings_types()[section]
        lines += [_line(section, settings_type, field, comments) for field in setting_fields(settings_type)] + [""]
    return "\n".join(lines)


def _line(
    section: str, settings_type: type[Any], field: dataclasses.Field[Any], comments: Mapping[tuple[str, str], str]
) -> str:
    hint = get_type_hints(settings_type)[field.name]
    meaning = comments.get((section, field.name))
    if not meaning:
        raise Undocumented(f"[{section}] {field.name} has no comment in {EXAMPLE.name}")
    only = f"{_type(hint)}, in the file alone" if is_file_only(hint) else ""
    bounds = bounds_of(section, settings_type, field.name, hint).replace("at least ", "≥ ").replace("a share from ", "")
    return entry(field.name, (code(_default(section, field)), bounds, only), meaning)


def _default(section: str, field: dataclasses.Field[Any]) -> str:
    """The default as TOML has it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    value = _ON_LINUX.get((section, field.name), value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in value) + "]"
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


def _type(hint: Any) -> str:
    """How a setting is written that the environment cannot hold."""
    return "list of tables" if get_origin(hint) is tuple else "table"


def bounds_of(section: str, settings_type: type[Any], name: str, hint: Any) -> str:
    """Returns the values that the code wants instead of an impossible one; empty where any value will do."""
    if hint is bool or is_file_only(hint):
        return ""
    values = {int: (_TOO_SMALL, _TOO_LARGE), float: (float(_TOO_SMALL), float(_TOO_LARGE)), str: (_NO_WORD,)}
    wanted: list[str] = []
    for value in values.get(hint, ([_NO_WORD],)):
        source = Source({section: {name: value}}, {})
        for problem in section_problems(source, section, settings_type):
            match = _WANTED.search(problem)
            # The code may refuse the value because of another setting, and name that one.
            if match is not None and re.search(rf"\b{name}\b", problem.removesuffix(match[0])):
                wanted.append(match[1])
    return "; ".join(dict.fromkeys(wanted))


@cache
def example_comments() -> Mapping[tuple[str, str], str]:
    """Returns the comments of the example by section and setting; those of a section itself by an empty name.

    A comment belongs to the line below it. A setting without one gets none.
    """
    comments: dict[tuple[str, str], str] = {}
    section, lines = "", list[str]()
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            lines.append(line.removeprefix("#").strip())
            continue
        if header := _HEADER.fullmatch(line):
            section = header[1]
            comments[section, ""] = " ".join(lines)
        elif setting := _SETTING.match(line):
            comments[section, setting[1]] = " ".join(lines)
        lines = []
    return comments


def undescribed() -> Iterator[str]:
    """Yields every setting that the example has no comment for."""
    comments = example_comments()
    for section, settings_type in settings_types().items():
        for name in ("", *(field.name for field in setting_fields(settings_type))):
            if not comments.get((section, name)):
                yield f"[{section}] {name}"
