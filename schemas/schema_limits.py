"""The limits of an Avro schema, checked before the Avro library sees it.

A schema registry accepts any valid Avro, and anyone who may write to a topic may name such a schema. The library then
recurses in C, expands and reads as the schema says. Here a schema is taken apart first, and rebuilt from the parts that
decide the bytes of a record. The work of decoding a record is then bounded by the schema's nodes and the record's
bytes:

    depth     at most DEPTH_MAX types inside each other, and no type inside itself
    nodes     at most NODES_MAX types, where a name that is used again counts with all that is under it
    items     an item of an array or map takes at least one byte wherever a step is needed to read it
    sizes     of `fixed`: a whole number from 0 to FIXED_BYTES_MAX

    {"type": "array", "items": {"type": "array", "items": …}}    600 deep            refused: depth
    R1 {a: R0, b: R0}, R2 {a: R1, b: R1}, … R40                  2**41 nodes         refused: nodes
    {"type": "array", "items": "null"}                           2**62 items, 9 B    refused: items
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from paywarden.schemas.errors import InvalidEvent

# Our largest schema has 5 kB. A record of topic `schemas` has at most 1 MB.
TEXT_CHARS_MAX: Final = 512 * 1024
# Our deepest schema has 4 types inside each other.
DEPTH_MAX: Final = 32
# Our largest schema has some 60 nodes.
NODES_MAX: Final = 10_000
# No record of Kafka's is as large.
FIXED_BYTES_MAX: Final = 2**30 - 1

PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FULL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_SHOWN: Final = 64


class _Cost(NamedTuple):
    """The price of one value. `nodes` and `depth` count the type itself.

    `is_free`: a value may take no bytes. `has_free`: so may a part of it that needs a step of its own.
    """

    nodes: int
    depth: int
    is_free: bool
    has_free: bool


def read_schema(text: str) -> Any:
    """Returns the JSON of a schema. Raises InvalidEvent for a text that is too long, too deep or no JSON."""
    if len(text) > TEXT_CHARS_MAX:
        raise InvalidEvent(f"the schema has {len(text)} characters, more than {TEXT_CHARS_MAX}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InvalidEvent(f"the schema has more than {DEPTH_MAX} types inside each other") from error
    except ValueError as error:
        raise InvalidEvent("the schema is not valid Avro: it is no JSON") from error


def bounded(schema: Any) -> dict[str, Any]:
    """Returns a record schema with only the parts that decide the bytes of a record.

    Documentation, defaults, aliases, orders, logical types and unknown attributes are left out. Raises InvalidEvent for
    a schema that is not that of a record, that is no valid Avro, or that is beyond a limit.
    """
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise InvalidEvent("the schema is not that of a record")
    rebuilt, _ = _Walk().type(schema, "", 1)
    assert isinstance(rebuilt, dict)
    return rebuilt


class _Walk:
    """One walk through a schema."""

    def __init__(self) -> None:
        # The cost by full name; None while the type's own definition is being read.
        self._names: dict[str, _Cost | None] = {}

    def type(self, schema: Any, namespace: str, depth: int) -> tuple[Any, _Cost]:
        """Returns a type as it is rebuilt, and its cost. `namespace` is that of the type around it."""
        if depth > DEPTH_MAX:
            raise InvalidEvent(f"the schema has more than {DEPTH_MAX} types inside each other")
        if isinstance(schema, str):
            return self._named(schema, namespace)
        if isinstance(schema, list):
            return self._union(schema, namespace, depth)
        if not isinstance(schema, dict):
            raise _invalid("a type is neither a name, a union nor an object")
        kind = schema.get("type")
        if kind == "record":
            return self._record(schema, namespace, depth)
        if kind in ("array", "map"):
            return self._collection(schema, kind, namespace, depth)
        if kind in ("enum", "fixed"):
            return self._leaf(schema, kind, namespace)
        # {"type": "string"}, or a type with attributes around it.
        return self.type(kind, namespace, depth + 1)

    def _named(self, name: str, namespace: str) -> tuple[str, _Cost]:
        if name in PRIMITIVES:
            return name, _Cost(1, 1, is_free=name == "null", has_free=name == "null")
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        if full not in self._names:
            raise _invalid("a type is used that is not defined before")
        cost = self._names[full]
        if cost is None:
            raise InvalidEvent(f"the schema contains itself: {full[:_SHOWN]}")
        return full, cost

    def _union(self, branches: list[Any], namespace: str, depth: int) -> tuple[list[Any], _Cost]:
        if not branches:
            raise _invalid("a union has no branches")
        if any(isinstance(branch, list) for branch in branches):
            raise _invalid("a union is directly inside another")
        read = [self.type(branch, namespace, depth + 1) for branch in branches]
        # A union's own index takes a byte, so a branch that is null needs no further step.
        has_free = any(cost.has_free for rebuilt, cost in read if rebuilt != "null")
        return [rebuilt for rebuilt, _ in read], self._around([cost for _, cost in read], has_free=has_free)

    def _record(self, schema: Mapping[str, Any], namespace: str, depth: int) -> tuple[dict[str, Any], _Cost]:
        full = self._define(schema, namespace)
        fields = schema.get("fields")
        if not isinstance(fields, list):
            raise _invalid("a record has no list of fields")
        rebuilt, costs, seen = [], [], set()
        for field in fields:
            name = field.get("name") if isinstance(field, dict) else None
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in seen:
                raise _invalid("a field has no name of its own, or one that Avro does not allow")
            seen.add(name)
            kind, cost = self.type(field.get("type"), full.rpartition(".")[0], depth + 1)
            rebuilt.append({"name": name, "type": kind})
            costs.append(cost)
        is_free = all(cost.is_free for cost in costs)
        has_free = is_free or any(cost.has_free for cost in costs)
        cost = self._names[full] = self._around(costs, is_free=is_free, has_free=has_free)
        return {**_names_of(full), "type": "record", "fields": rebuilt}, cost

    def _collection(
        self, schema: Mapping[str, Any], kind: str, namespace: str, depth: int
    ) -> tuple[dict[str, Any], _Cost]:
        inside = "items" if kind == "array" else "values"
        rebuilt, cost = self.type(schema.get(inside), namespace, depth + 1)
        # Each value of a map has a key before it, which takes a byte and so bounds one step.
        if cost.has_free and not (kind == "map" and cost.nodes == 1):
            raise InvalidEvent(f"the schema has an {kind} of items that take no bytes")
        return {"type": kind, inside: rebuilt}, self._around([cost])

    def _leaf(self, schema: Mapping[str, Any], kind: str, namespace: str) -> tuple[dict[str, Any], _Cost]:
        full = self._define(schema, namespace)
        rebuilt = {**_names_of(full), "type": kind}
        is_free = False
        if kind == "enum":
            rebuilt["symbols"] = _symbols_of(schema)
        else:
            size = schema.get("size")
            if type(size) is not int or not 0 <= size <= FIXED_BYTES_MAX:
                raise _invalid(f"the size of a fixed is no whole number from 0 to {FIXED_BYTES_MAX}")
            rebuilt["size"], is_free = size, size == 0
        cost = self._names[full] = _Cost(1, 1, is_free=is_free, has_free=is_free)
        return rebuilt, cost

    def _define(self, schema: Mapping[str, Any], namespace: str) -> str:
        name, own = schema.get("name"), schema.get("namespace", namespace)
        if not isinstance(name, str) or not _FULL_NAME.fullmatch(name):
            raise _invalid("a type has no name, or one that Avro does not allow")
        if own is None or own == "":
            own = ""
        elif not isinstance(own, str) or not _FULL_NAME.fullmatch(own):
            raise _invalid("a namespace is not one that Avro allows")
        full = name if "." in name or not own else f"{own}.{name}"
        if full in self._names or full in PRIMITIVES:
            raise _invalid(f"the name {full[:_SHOWN]} is defined twice")
        self._names[full] = None
        return full

    @staticmethod
    def _around(costs: list[_Cost], *, is_free: bool = False, has_free: bool = False) -> _Cost:
        nodes = 1 + sum(cost.nodes for cost in costs)
        depth = 1 + max((cost.depth for cost in costs), default=0)
        if nodes > NODES_MAX:
            raise InvalidEvent(f"the schema has more than {NODES_MAX} types, each counted where it is used")
        if depth > DEPTH_MAX:
            raise InvalidEvent(f"the schema has more than {DEPTH_MAX} types inside each other")
        return _Cost(nodes, depth, is_free, has_free)


def _names_of(full: str) -> dict[str, Any]:
    namespace, _, name = full.rpartition(".")
    return {"name": name, "namespace": namespace}


def _symbols_of(schema: Mapping[str, Any]) -> list[str]:
    symbols = schema.get("symbols")
    if not isinstance(symbols, list) or not symbols:
        raise _invalid("an enum has no symbols")
    if not all(isinstance(symbol, str) and _NAME.fullmatch(symbol) for symbol in symbols):
        raise _invalid("an enum has a symbol that Avro does not allow")
    if len(set(symbols)) < len(symbols):
        raise _invalid("an enum has a symbol twice")
    return symbols


def _invalid(why: str) -> InvalidEvent:
    return InvalidEvent(f"the schema is not valid Avro: {why}")
