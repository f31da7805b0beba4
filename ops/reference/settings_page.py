"""The settings: docs/reference/settings.md, and the wanted values in ops/paywarden.toml.

ops/paywarden.toml is the reference: people write each setting's meaning and default, and this module writes the values
that are wanted. The page is its index. To learn the wanted values, this module gives the code a value that is far too
small, far too large or no known word, and reads the error.

    [admission] deadline_ms = -1    "[admission] deadline_ms: wanted at least 1, got -1"
    deadline_ms = 40  # wanted: at least 1
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from paywarden.ops.configuration import section_problems, settings_types
from paywarden.ops.reference.page import MADE_FROM_CODE, code, prose
from paywarden.schemas.settings import SECTIONS, Source, is_file_only, setting_fields

EXAMPLE = Path(__file__).parents[1] / "paywarden.toml"
_HEADER, _SETTING = re.compile(r"\[([a-z_]+)\]"), re.compile(r"([a-z0-9_]+) = ")
_MARK = "  # wanted: "
_WANTED = re.compile(r"(?:wanted|must be) (.+?)(?:, got .*)?$")
_TOO_SMALL, _TOO_LARGE, _NO_WORD = -(10**15), 10**15, "no such word"


def settings_page() -> str:
    """Returns the index of every section with its settings."""
    comments = example_comments()
    lines = [
        "# Settings\n",
        *prose(
            "[ops/paywarden.toml](../../ops/paywarden.toml) has every setting with its meaning, its default and the "
            "values that are wanted. [Configure](../operate/configure.md) says where values come from, and which "
            f"variable of the environment each setting has. {MADE_FROM_CODE}"
        ),
    ]
    for section in SECTIONS:
        names = ", ".join(code(field.name) for field in setting_fields(settings_types()[section]))
        first = comments[section, ""].partition(". ")[0].removesuffix(".")
        lines += [f"## [{section}]\n", *prose(f"{first}: {names}.")]
    return "\n".join(lines)


def example_text() -> str:
    """Returns the text of ops/paywarden.toml, with the wanted values behind each setting."""
    section, lines = "", list[str]()
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if header := _HEADER.fullmatch(line):
            section = header[1]
        elif setting := _SETTING.match(line):
            settings_type = settings_types()[section]
            hint = get_type_hints(settings_type).get(setting[1])
            wanted = "" if hint is None else _wanted(section, settings_type, setting[1], hint)
            line = line.partition(_MARK)[0] + (_MARK + wanted if wanted else "")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _wanted(section: str, settings_type: type[Any], name: str, hint: Any) -> str:
    if is_file_only(hint):
        return f"{'tables' if get_origin(hint) is tuple else 'a table'}, from the file alone"
    return bounds_of(section, settings_type, name, hint)


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
            if (
                match is not None
                and re.search(rf"\b{name}\b", problem.removesuffix(match[0]))
                and " as well" not in match[1]
            ):
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
