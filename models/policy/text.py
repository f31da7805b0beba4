"""A policy as a file of its own: `[policy]` alone, with the entries of its lists in it.

The configuration of a deployment holds secrets, and names files of lists that stay on one host. This text holds the
policy alone: another host reads the same policy from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

from paywarden.models.policy.policy import PolicySettings, rule_fields
from paywarden.schemas.errors import Misconfigured


def policy_text(settings: PolicySettings, lists: Mapping[str, Set[str]]) -> str:
    """Returns a TOML file of a policy. `lists`: from `read_lists`. The same policy always gives the same text.

    Raises Misconfigured for an entry that would name a file there, because it begins with @.
    """
    return "\n".join(_lines(settings, lists)) + "\n"


def _lines(settings: PolicySettings, lists: Mapping[str, Set[str]]) -> Iterator[str]:
    yield "[policy]"
    tables = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            tables.append((field.name, value))
        elif field.name != "lists" and value != ():
            yield f"{field.name} = {_value(value)}"
    for name, items in tables:
        for item in items:
            yield f"\n[[policy.{name}]]"
            yield from (f"{key} = {_value(value)}" for key, value in rule_fields(item).items())
    if lists:
        yield "\n[policy.lists]"
    for name in sorted(lists):
        yield f"{name} = ["
        if any(entry.startswith("@") for entry in lists[name]):
            raise Misconfigured(f"policy.lists {name}: an entry begins with @, which names a file")
        yield from (f"    {_value(entry)}," for entry in sorted(lists[name]))
        yield "]"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one character that TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)
