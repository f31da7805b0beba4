"""A condition as rows of a form, and back to the same text.

    mcc in lists.gambling and (amount > 500_00 or card_count_1h >= 5)

    all of these groups     any row of a group
    group 1                 mcc             in    lists.gambling
    group 2                 amount          >     500_00
                            card_count_1h   >=    5

1. A condition is groups of rows. Either all groups must hold, each by any of its rows, or any group, by all its rows.
2. A row compares a name with a value. A part that a row cannot show, such as a sum or a third level of brackets, is a
   row without a name: its value is the part's text in the language of models/policy/rules.py.
3. `text_of(rows_of(text))` is the same condition as `text`: both have the same tree.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

NUMBER, TEXT, TRUTH, EMAIL, FLAGS = "number", "text", "truth", "email", "flags"
LIST = "lists."
MISSING, PRESENT, HOLDS, HOLDS_NOT = "is missing", "is there", "holds", "does not hold"
ORDER: Mapping[type[ast.cmpop], str] = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<="}
_EQUAL: Mapping[type[ast.cmpop], str] = {ast.Eq: "==", ast.NotEq: "!="}
_AMONG: Mapping[type[ast.cmpop], str] = {ast.In: "in", ast.NotIn: "not in"}
_SIGNS = {**ORDER, **_EQUAL, **_AMONG}
_THERE = (MISSING, PRESENT)
OPERATORS: Mapping[str, tuple[str, ...]] = {
    NUMBER: (*ORDER.values(), *_EQUAL.values(), *_AMONG.values(), *_THERE),
    TEXT: (*_EQUAL.values(), *_AMONG.values(), *_THERE),
    TRUTH: (HOLDS, HOLDS_NOT, *_THERE),
    EMAIL: _THERE,
    FLAGS: (HOLDS, HOLDS_NOT),
}
_NUMBER = re.compile(r"-?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class RowRefused(Exception):
    """A row is no condition."""


@dataclass(frozen=True)
class Row:
    """One comparison. Without a name, `value` is a part in the language of conditions."""

    name: str
    operator: str
    value: str


@dataclass(frozen=True)
class Rows:
    """Groups of rows. `joins_any`: any group must hold, by all its rows; otherwise all groups, each by any row."""

    groups: tuple[tuple[Row, ...], ...]
    joins_any: bool = True


def rows_of(text: str, kinds: Mapping[str, str]) -> Rows:
    """Return a condition as rows; one that cannot be read is one row. `kinds`: of each name (`Vocabulary.kinds`)."""
    flat = "".join(" " if character.isspace() else character for character in text).strip()
    try:
        body = ast.parse(flat, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return Rows(((Row("", "", flat),),))

    def row(node: ast.expr) -> Row:
        return _row_of(node, flat, kinds) or Row("", "", ast.get_source_segment(flat, node) or "")

    if not isinstance(body, ast.BoolOp):
        return Rows(((row(body),),))
    is_any = isinstance(body.op, ast.Or)
    inner = ast.And if is_any else ast.Or
    if not any(_joins(part, inner) for part in body.values):
        # One group is enough: all of it for `and`, any of it for `or`.
        return Rows((tuple(map(row, body.values)),), joins_any=not is_any)
    groups = [part.values if isinstance(part, ast.BoolOp) and _joins(part, inner) else [part] for part in body.values]
    return Rows(tuple(tuple(map(row, group)) for group in groups), joins_any=is_any)


def _joins(node: ast.expr, operator: type[ast.boolop]) -> bool:
    return isinstance(node, ast.BoolOp) and isinstance(node.op, operator)


def _row_of(node: ast.expr, text: str, kinds: Mapping[str, str]) -> Row | None:
    """Return a part as a row with a name; None if no row says it."""
    negated = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    plain = node.operand if isinstance(node, ast.UnaryOp) and negated else node
    if isinstance(plain, ast.Name) and kinds.get(plain.id) == TRUTH:
        return Row(plain.id, HOLDS_NOT if negated else HOLDS, "")
    if isinstance(plain, ast.Call):
        name = plain.args[0].id if len(plain.args) == 1 and isinstance(plain.args[0], ast.Name) else ""
        is_asked = isinstance(plain.func, ast.Name) and plain.func.id == "missing" and not plain.keywords
        return Row(name, PRESENT if negated else MISSING, "") if is_asked and name in kinds else None
    if negated or not isinstance(plain, ast.Compare) or len(plain.ops) > 1:
        return None
    left, operator, right = plain.left, type(plain.ops[0]), plain.comparators[0]
    if isinstance(right, ast.Name) and kinds.get(right.id) == FLAGS and operator in _AMONG:
        flag = _constant(left, text, TEXT)
        return None if flag is None else Row(right.id, HOLDS if operator is ast.In else HOLDS_NOT, flag)
    kind = kinds.get(left.id, "") if isinstance(left, ast.Name) else ""
    if not isinstance(left, ast.Name) or _SIGNS.get(operator) not in OPERATORS.get(kind, ()):
        return None
    value = _constant(right, text, kind)
    if operator in _AMONG:
        value = _several(right, text, kind)
    return None if value is None else Row(left.id, _SIGNS[operator], value)


def _constant(node: ast.expr, text: str, kind: str) -> str | None:
    if kind == TEXT:
        value = node.value if isinstance(node, ast.Constant) else None
        is_plain = isinstance(value, str) and value and value == value.strip() and value.isprintable()
        return str(value) if is_plain else None
    written = ast.get_source_segment(text, node) or ""
    return written if _NUMBER.fullmatch(written) else None


def _several(node: ast.expr, text: str, kind: str) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and kind == TEXT:
        return f"{LIST}{node.attr}" if node.value.id == LIST[:-1] else None
    if not isinstance(node, ast.Tuple):
        return None
    entries = [_constant(one, text, kind) for one in node.elts]
    if not entries or any(one is None or "," in one for one in entries):
        return None
    # A text that looks like the name of a list is none.
    written = ", ".join(map(str, entries))
    return None if written.startswith(LIST) else written


def text_of(rows: Rows, kinds: Mapping[str, str]) -> str:
    """Return the condition of rows. Raises RowRefused for the first that is none."""
    inner, outer = (" and ", " or ") if rows.joins_any else (" or ", " and ")
    is_alone = sum(map(len, rows.groups)) == 1
    groups = []
    for group in rows.groups:
        parts = [row_text(row, kinds) for row in group]
        if not is_alone:
            parts = [part if row.name else f"({part})" for row, part in zip(group, parts, strict=True)]
        joined = inner.join(parts)
        groups.append(f"({joined})" if len(parts) > 1 and len(rows.groups) > 1 else joined)
    return outer.join(groups)


def row_text(row: Row, kinds: Mapping[str, str]) -> str:
    """Return the condition of one row. Raises RowRefused."""
    name, operator, value = row.name, row.operator, row.value
    if not name:
        return value
    kind = kinds.get(name)
    if kind is None:
        raise RowRefused(f"there is no name {name}")
    if operator not in OPERATORS[kind]:
        raise RowRefused(f"wanted one of these for {name}: {', '.join(OPERATORS[kind])}")
    if operator in _THERE:
        return f"missing({name})" if operator == MISSING else f"not missing({name})"
    if kind == FLAGS:
        return f"{_written(value, TEXT)} {'in' if operator == HOLDS else 'not in'} {name}"
    if kind == TRUTH:
        return name if operator == HOLDS else f"not {name}"
    if operator not in _AMONG.values():
        return f"{name} {operator} {_written(value, kind)}"
    if value.startswith(LIST) and kind == TEXT:
        return f"{name} {operator} {value}"
    entries = [_written(entry.strip(), kind) for entry in value.split(",") if entry.strip()]
    if not entries:
        raise RowRefused("wanted values with commas between them, or a list")
    return f"{name} {operator} ({', '.join(entries)}{',' if len(entries) == 1 else ''})"


def _written(value: str, kind: str) -> str:
    if not value:
        raise RowRefused("wanted a value")
    if kind == TEXT:
        return json.dumps(value, ensure_ascii=False)
    if not _NUMBER.fullmatch(value):
        raise RowRefused("wanted a number such as 5, 0.25 or 500_00")
    return value


def contradictions(rows: Rows, lists: Mapping[str, Iterable[str]]) -> list[str]:
    """Return why rows can never hold; empty if they may. A row without a name may always hold."""
    if rows.joins_any:
        found = [_contradiction(group, lists) for group in rows.groups]
        return [one for one in found if one] if all(found) else []
    # All groups must hold: those of one row must hold together.
    whole = _contradiction(list(chain.from_iterable(group for group in rows.groups if len(group) == 1)), lists)
    never = (all(_contradiction([row], lists) for row in group) for group in rows.groups)
    return [whole] if whole else ["no row of a group can hold"] if any(never) else []


def _contradiction(group: Sequence[Row], lists: Mapping[str, Iterable[str]]) -> str:
    by_name: dict[str, list[Row]] = {}
    for row in group:
        if row.name:
            by_name.setdefault(row.name, []).append(row)
    for name, rows in by_name.items():
        if wrong := next(_clashes(name, rows, lists), ""):
            return wrong
    return ""


def _clashes(name: str, rows: Sequence[Row], lists: Mapping[str, Iterable[str]]) -> Iterator[str]:
    operators = {row.operator for row in rows}
    if MISSING in operators and len(operators) > 1:
        yield f"{name} is missing, and another row wants a value of it"
    if HOLDS in operators and HOLDS_NOT in operators:
        asked = [{row.value for row in rows if row.operator == one} for one in (HOLDS, HOLDS_NOT)]
        if asked[0] & asked[1]:
            yield f"{name} holds and does not hold"
    for row in rows:
        entries = lists.get(row.value.removeprefix(LIST)) if row.value.startswith(LIST) else None
        if row.operator == "in" and entries is not None and not list(entries):
            yield f"the list {row.value.removeprefix(LIST)} is empty"
    wanted = [_values(row) for row in rows if row.operator in ("==", "in") and not row.value.startswith(LIST)]
    refused = set(chain.from_iterable(_values(row) for row in rows if row.operator in ("!=", "not in")))
    allowed = set.intersection(*wanted) - refused if wanted else None
    if allowed is not None and not allowed:
        yield f"{name} has no value that all its rows allow"
    low, high = -math.inf, math.inf
    is_open = False
    for row in rows:
        if row.operator in ORDER.values() and _NUMBER.fullmatch(row.value):
            value = float(row.value)
            is_lower, strict = row.operator[0] == ">", len(row.operator) == 1
            bound = low if is_lower else high
            is_open |= strict and (value >= bound if is_lower else value <= bound)
            low, high = (max(low, value), high) if is_lower else (low, min(high, value))
    if low > high or (low == high and is_open):
        yield f"{name} is wanted above {low:g} and below {high:g}"
    elif allowed and all(isinstance(one, float) and not low <= one <= high for one in allowed):
        yield f"{name} has no value that all its rows allow"


def _values(row: Row) -> set[str | float]:
    parts = row.value.split(",") if row.operator in _AMONG.values() else [row.value]
    texts = [part.strip() for part in parts]
    return {float(text) if _NUMBER.fullmatch(text) else text for text in texts}
