"""The conditions of rules and segments: a small language, compiled at start to functions that cannot fail.

    mcc in lists.gambling and amount > 500_00 and card_count_1h >= 5

How it works:

1. Python's parser turns the text into a tree.
2. `_Translation` allows only the kinds of nodes listed in `_BY_NODE`. It looks every name up in the vocabulary and
   checks the kind of every operand (number, text, list, yes or no). Errors name the character where they occur.
3. It builds a second tree from loads, comparisons and arithmetic alone, and compiles that. The function takes a
   payment's facts as arguments. It has no builtins, and its only globals are this module's pure helpers and the lists.

Example: the condition above becomes a function like this one.

    lambda payment, amount, item, score, flags: payment.mcc in list_11 and amount * 1.0 > 50000.0 and item(17) >= 5.0

With mcc 7995 in the list, amount 60_000 and card_count_1h 6 it is true. With a missing card_count_1h (NaN) it is false.

Names are the payment's fields, `amount` and all other features of the catalogue, `score`, `flags` and `lists.NAME`.
Fields that a project declares are names as well, also those that derive from others; a flag is a condition by itself:

    is_gift and buyer_domain in lists.disposable and shipping_fee > 20_00

A field's name means the field, also where a feature has the same name. A condition can ask only whether an e-mail
address is missing: a policy would hold addresses otherwise, and a replay has only keyed hashes of them.

Money is in minor units, as everywhere: 500 euros are `500_00`. A fraction such as 500.00 next to money is refused. A
number compared with a feature is rounded to float32, like the feature itself.

Entries that end are in a list of their own: `blocked_until_20261231` belongs to the list `blocked` for payments until
that UTC day, by the time of the payment. A condition names `lists.blocked` alone.

A value is missing if a field was not sent, a feature is NaN, no model gave a score, a division by zero gave it, or it
is the `amount` of a payment whose currency has no exchange rate.
Every comparison with a missing value is false, also `!=` and `not in`; arithmetic with it is missing. `missing(x)`
tests for it. `not` inverts the answer: `not mcc == "7995"` is true for a payment without an mcc.
"""

from __future__ import annotations

import ast
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from enum import Enum
from types import CodeType, FunctionType
from typing import Any, Protocol

import numpy as np

from paywarden.features.catalogue.expressions import Feature, Measure, WindowedMeasure, stored_values
from paywarden.models.policy import condition_rows
from paywarden.models.policy.lists import dated_lists
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, Form, PaymentField
from paywarden.schemas.payment_fields import PaymentFields as KnownFields

# These keep conditions readable, and limit the work of parser and compiler.
TEXT_LENGTH_MAX = 1000
DEPTH_MAX = 24
# Larger than any amount or time, and exact enough to compare.
_NUMBER_MAX = 1e18


class ConditionFields(Protocol):
    """The fields of a payment that conditions read, as in a ScoreRequest. A text that was not sent is empty."""

    event_time_ms: int
    amount_minor: int
    card_id: str
    merchant_id: str
    device_id: str
    ip: str
    currency: str
    mcc: str
    country: str
    channel: str


TEXT_FIELDS = ("card_id", "merchant_id", "device_id", "ip", "currency", "mcc", "country", "channel")

# Arguments: the payment's fields, the amount in minor units of the reference currency (NaN without a rate),
# `vector.item`, the score (NaN without one), and the flags.
Applies = Callable[[ConditionFields, float, Callable[[int], float], float, "Iterable[str]"], bool]
_ARGUMENTS = ("payment", "amount", "item", "score", "flags")


@dataclass(frozen=True)
class RuleCondition:
    """A checked condition. `applies` never raises for a vector that has `features_min` features or more.

    `fields`: the payment's fields that it reads. `listed`: those that it looks up in a list of [policy.lists], and that
    must be there, and names of features for a known fraud that an entity must have, as in `card_frauds_90d > 0`.
    """

    text: str
    applies: Applies
    fields: frozenset[str]
    features_min: int
    listed: frozenset[str] = frozenset()


class _Kind(Enum):
    NUMBER = "a number"
    TEXT = "a text"
    YES_NO = "a yes or no"
    EMAIL = "an e-mail address"
    TEXTS = "a list of texts"
    NUMBERS = "a list of numbers"
    FLAGS = "the flags"


_ROW_KINDS = {
    _Kind.NUMBER: condition_rows.NUMBER,
    _Kind.TEXT: condition_rows.TEXT,
    _Kind.YES_NO: condition_rows.TRUTH,
    _Kind.EMAIL: condition_rows.EMAIL,
    _Kind.FLAGS: condition_rows.FLAGS,
}


@dataclass(frozen=True)
class _Part:
    """A translated part of a condition. `is_whole`: an int, which arithmetic must convert to a float first."""

    kind: _Kind
    node: ast.expr
    is_whole: bool = False
    is_money: bool = False
    is_feature: bool = False
    counts_frauds: bool = False
    constant: float | str | None = None


class Vocabulary:
    """The names that conditions may use: fields, features in the order of the vector, flags and lists."""

    def __init__(
        self,
        features: Iterable[Feature],
        flags: Iterable[str],
        lists: Mapping[str, Set[str]],
        fields: KnownFields = TABLE_ALONE,
    ) -> None:
        self.flags, self.lists = tuple(flags), lists
        self._dated = dated_lists(lists)
        self.parts: dict[str, _Part] = {}
        self.places: dict[str, int] = {}
        for number, feature in enumerate(features):
            self.places[feature.name] = number
            item = ast.Call(_name("item"), [ast.Constant(number)], [])
            self.parts[feature.name] = _Part(
                _Kind.NUMBER,
                item,
                is_money=feature.unit == "minor units",
                is_feature=True,
                counts_frauds=_counts_frauds(feature),
            )
        for declared in fields.declared:
            self.parts[declared.name] = _declared_part(declared)
        for name in (*TEXT_FIELDS, *(derived.name for derived in fields.derived)):
            self.parts[name] = _Part(_Kind.TEXT, _field(name))
        self.parts |= {
            "event_time_ms": _Part(_Kind.NUMBER, _field("event_time_ms"), is_whole=True),
            "amount_minor": _Part(_Kind.NUMBER, _field("amount_minor"), is_whole=True, is_money=True),
            # The exact amount. The feature of this name is a float32, which is exact only up to 2**24.
            "amount": _Part(_Kind.NUMBER, _name("amount"), is_whole=True, is_money=True),
            "score": _Part(_Kind.NUMBER, _name("score")),
            "flags": _Part(_Kind.FLAGS, _name("flags")),
        }

    def kinds(self) -> dict[str, str]:
        """Return the kind of each name, as models/policy/condition_rows.py knows them."""
        return {name: _ROW_KINDS[part.kind] for name, part in self.parts.items()}

    def dated(self, name: str) -> list[tuple[int, str]]:
        """Return the lists with entries of a list that end: the first millisecond after each, and its name."""
        return self._dated.get(name, [])


def _counts_frauds(feature: Feature) -> bool:
    """Whether a feature is the number of an entity's known frauds."""
    stored = stored_values(feature.value)
    of_frauds = (isinstance(one, WindowedMeasure) and one.column.measure is Measure.FRAUD_COUNT for one in stored)
    return feature.unit == "payments" and bool(stored) and all(of_frauds)


def compile_condition(text: str, *, where: str, vocabulary: Vocabulary, until_ms: int | None = None) -> RuleCondition:
    """Check and compile a condition. Raises Misconfigured naming `where`, the character and the problem.

    `until_ms`: for payments from that time on it is false.
    """
    return _Translation(text, where, vocabulary).condition(until_ms)


class _Translation:
    """Translates one condition."""

    def __init__(self, text: str, where: str, vocabulary: Vocabulary) -> None:
        # A condition may have several lines. Each white-space character becomes one space, so positions stay the same.
        self._text, self._where, self._vocabulary = text, where, vocabulary
        self._flat = "".join(" " if character.isspace() else character for character in text)
        self._indent = len(self._flat) - len(self._flat.lstrip())
        self._depth = 0
        self._globals: dict[str, Any] = {"__builtins__": {}, **_HELPERS}
        self._fields: set[str] = set()
        self._listed: set[str] = set()
        self._is_negated = False
        self._features_min = 0

    def condition(self, until_ms: int | None) -> RuleCondition:
        body = self._parsed()
        part = self._part(body)
        if part.kind is not _Kind.YES_NO:
            raise self._wrong(body, f"wanted a condition, got {part.kind.value}")
        arguments, answer = ast.arguments([], [ast.arg(name) for name in _ARGUMENTS], None, [], [], None, []), part.node
        if until_ms is not None:
            self._fields.add("event_time_ms")
            is_before = ast.Compare(_field("event_time_ms"), [ast.Lt()], [ast.Constant(until_ms)])
            answer = ast.BoolOp(ast.And(), [is_before, answer])
        tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(arguments, answer)))
        compiled = compile(tree, f"<{self._where}>", "eval")
        (code,) = (constant for constant in compiled.co_consts if isinstance(constant, CodeType))
        return RuleCondition(
            self._text,
            FunctionType(code, self._globals),
            frozenset(self._fields),
            self._features_min,
            frozenset(self._listed),
        )

    def _parsed(self) -> ast.expr:
        if len(self._text) > TEXT_LENGTH_MAX:
            raise Misconfigured(
                f"{self._where}: wanted at most {TEXT_LENGTH_MAX} characters, got {len(self._text)}: long lists belong "
                "in [policy.lists]"
            )
        if "#" in self._text:
            # A comment would hide the rest of the text from the parser.
            raise self._wrong_at(self._text.index("#"), "a condition has no comments: # is not allowed")
        try:
            with warnings.catch_warnings():
                # Python only warns about some syntax that later versions will refuse.
                warnings.simplefilter("error")
                return ast.parse(self._flat.strip(), mode="eval").body
        except SyntaxError as error:
            # Offset 0 means the end of the text.
            place = self._indent + (error.offset - 1 if error.offset else len(self._flat.strip()))
            raise self._wrong_at(place, f"this cannot be read: {error.msg}") from None
        except (ValueError, MemoryError, RecursionError, Warning):
            raise Misconfigured(f"{self._where}: this cannot be read") from None

    def _part(self, node: ast.expr) -> _Part:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._wrong(node, f"nested more than {DEPTH_MAX} deep")
        translate = self._BY_NODE.get(type(node))
        if translate is None:
            raise self._wrong(node, f"{_SPOKEN.get(type(node), type(node).__name__)} is not allowed in a condition")
        part = translate(self, node)
        self._depth -= 1
        return part

    def _of_kind(self, node: ast.expr, *kinds: _Kind) -> _Part:
        part = self._part(node)
        if part.kind not in kinds:
            raise self._wrong(node, f"wanted {' or '.join(kind.value for kind in kinds)}, got {part.kind.value}")
        return part

    # One method for each kind of node.

    def _constant(self, node: ast.Constant) -> _Part:
        value = node.value
        if isinstance(value, bool):
            return _Part(_Kind.YES_NO, ast.Constant(value))
        if isinstance(value, int | float):
            if not abs(value) <= _NUMBER_MAX:
                raise self._wrong(node, f"wanted a number of at most {_NUMBER_MAX:g}")
            # `constant` keeps the int or float as written, because a float next to money is refused.
            return _Part(_Kind.NUMBER, ast.Constant(float(value)), constant=value)
        if isinstance(value, str):
            if not value:
                raise self._wrong(node, "an empty text equals nothing: missing(x) asks whether x is there")
            return _Part(_Kind.TEXT, ast.Constant(value), constant=value)
        raise self._wrong(node, "wanted a number, a text, True or False")

    def _named(self, node: ast.Name) -> _Part:
        part = self._vocabulary.parts.get(node.id)
        if part is None:
            if node.id == "lists":
                raise self._wrong(node, "a list is named as lists.NAME")
            raise self._wrong(node, f"there is no name {node.id!r}{_close(node.id, self._vocabulary.parts)}")
        if isinstance(part.node, ast.Attribute):
            self._fields.add(part.node.attr)
        if part.is_feature:
            self._features_min = max(self._features_min, self._vocabulary.places[node.id] + 1)
        return part

    def _attribute(self, node: ast.Attribute) -> _Part:
        if not (isinstance(node.value, ast.Name) and node.value.id == "lists"):
            raise self._wrong(node, "only a list has a dot in its name, as in lists.NAME")
        entries = self._vocabulary.lists.get(node.attr)
        if entries is None:
            raise self._wrong(node, f"there is no list {node.attr!r}{_close(node.attr, self._vocabulary.lists)}")
        return _Part(_Kind.TEXTS, self._global(entries))

    def _several(self, node: ast.Tuple | ast.List | ast.Set) -> _Part:
        parts = [self._of_kind(element, _Kind.NUMBER, _Kind.TEXT) for element in node.elts]
        values = [part.constant for part in parts if part.constant is not None]
        if not parts or len(values) != len(parts) or len({part.kind for part in parts}) > 1:
            raise self._wrong(node, "wanted a list of numbers, or one of texts, written out")
        return _Part(_Kind.NUMBERS if parts[0].kind is _Kind.NUMBER else _Kind.TEXTS, self._global(frozenset(values)))

    def _joined(self, node: ast.BoolOp) -> _Part:
        return _Part(_Kind.YES_NO, ast.BoolOp(node.op, [self._of_kind(v, _Kind.YES_NO).node for v in node.values]))

    def _unary(self, node: ast.UnaryOp) -> _Part:
        if isinstance(node.op, ast.Not):
            self._is_negated = not self._is_negated
            part = self._of_kind(node.operand, _Kind.YES_NO)
            self._is_negated = not self._is_negated
            return _Part(_Kind.YES_NO, ast.UnaryOp(node.op, part.node))
        if not isinstance(node.op, ast.USub | ast.UAdd):
            raise self._wrong(node, "~ is not allowed in a condition")
        part = self._of_kind(node.operand, _Kind.NUMBER)
        if isinstance(part.constant, int | float):
            value = -part.constant if isinstance(node.op, ast.USub) else part.constant
            return _Part(_Kind.NUMBER, ast.Constant(float(value)), constant=value)
        return _Part(_Kind.NUMBER, ast.UnaryOp(node.op, _as_float(part)), is_money=part.is_money)

    def _binary(self, node: ast.BinOp) -> _Part:
        if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            raise self._wrong(node, "the only arithmetic operators are +, -, * and /")
        left, right = self._of_kind(node.left, _Kind.NUMBER), self._of_kind(node.right, _Kind.NUMBER)
        if isinstance(node.op, ast.Div):
            return _Part(_Kind.NUMBER, _call("divided", _as_float(left), _as_float(right)))
        return _Part(_Kind.NUMBER, ast.BinOp(_as_float(left), node.op, _as_float(right)))

    def _called(self, node: ast.Call) -> _Part:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _FUNCTIONS:
            raise self._wrong(node, f"the functions there are: {', '.join(_FUNCTIONS)}{_close(name, _FUNCTIONS)}")
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise self._wrong(node, f"{name} takes plain arguments only")
        fewest, most = _FUNCTIONS[name]
        if not fewest <= len(node.args) <= most:
            raise self._wrong(node, f"{name} takes {fewest if fewest == most else f'{fewest} to {most}'} arguments")
        if name == "missing":
            part = self._part(node.args[0])
            if part.kind is _Kind.YES_NO and isinstance(part.node, ast.Attribute):
                return _Part(_Kind.YES_NO, ast.Compare(part.node, [ast.Is()], [ast.Constant(None)]))
            if part.kind not in (_Kind.NUMBER, _Kind.TEXT, _Kind.EMAIL):
                raise self._wrong(node.args[0], f"wanted a number or a text, got {part.kind.value}")
            if part.kind is not _Kind.NUMBER:
                return _Part(_Kind.YES_NO, ast.Compare(part.node, [ast.Eq()], [ast.Constant("")]))
            return _Part(_Kind.YES_NO, _call("is_missing", part.node))
        parts = [_as_float(self._of_kind(argument, _Kind.NUMBER)) for argument in node.args]
        return _Part(_Kind.NUMBER, _call({"abs": "absolute", "min": "smallest", "max": "largest"}[name], *parts))

    def _compared(self, node: ast.Compare) -> _Part:
        operands = [node.left, *node.comparators]
        parts = [self._part(operand) for operand in operands]
        answers: list[ast.expr] = []
        for place, operator in enumerate(node.ops):
            answers.append(self._comparison(operands[place : place + 2], parts[place], operator, parts[place + 1]))
        return _Part(_Kind.YES_NO, answers[0] if len(answers) == 1 else ast.BoolOp(ast.And(), answers))

    def _comparison(self, nodes: list[ast.expr], left: _Part, operator: ast.cmpop, right: _Part) -> ast.expr:
        if isinstance(operator, ast.In | ast.NotIn):
            return self._membership(nodes, left, operator, right)
        if isinstance(operator, ast.Is | ast.IsNot):
            raise self._wrong(nodes[0], "two things are compared with == or !=, not with is")
        for part, place in ((left, nodes[0]), (right, nodes[1])):
            if part.kind is _Kind.EMAIL:
                raise self._wrong(place, _NO_EMAILS)
        if left.kind is not right.kind or left.kind not in (_Kind.NUMBER, _Kind.TEXT):
            raise self._wrong(nodes[1], f"{left.kind.value} cannot be compared with {right.kind.value}")
        if left.kind is _Kind.TEXT:
            return self._text_comparison(nodes, left, operator, right)
        for money, other, place in ((left, right, nodes[1]), (right, left, nodes[0])):
            if money.is_money and isinstance(other.constant, float):
                raise self._wrong(place, f"amounts are whole minor units: 500.00 is 500_00, got {other.constant}")
        has_fraud = isinstance(operator, ast.Gt) and right.constant == 0
        has_fraud |= isinstance(operator, ast.GtE) and right.constant == 1
        if left.counts_frauds and has_fraud and not self._is_negated:
            assert isinstance(nodes[0], ast.Name)
            self._listed.add(nodes[0].id)
        sides = [_as_kept(left, right), _as_kept(right, left)]
        if isinstance(operator, ast.NotEq):
            return _call("unequal", *sides)
        # Python's own comparisons with NaN are false, except for !=.
        return ast.Compare(sides[0], [operator], [sides[1]])

    def _text_comparison(self, nodes: list[ast.expr], left: _Part, operator: ast.cmpop, right: _Part) -> ast.expr:
        if isinstance(operator, ast.Eq):
            if left.constant is None and right.constant is None:
                return _call("same_text", left.node, right.node)
            return ast.Compare(left.node, [operator], [right.node])
        if isinstance(operator, ast.NotEq):
            return _call("other_text", left.node, right.node)
        raise self._wrong(nodes[1], "texts have no order: they are compared with ==, != and in")

    def _membership(self, nodes: list[ast.expr], left: _Part, operator: ast.cmpop, right: _Part) -> ast.expr:
        if left.kind is _Kind.EMAIL:
            raise self._wrong(nodes[0], _NO_EMAILS)
        if right.kind is _Kind.FLAGS:
            if not isinstance(left.constant, str) or left.constant not in self._vocabulary.flags:
                hint = _close(str(left.constant), self._vocabulary.flags)
                names = ", ".join(self._vocabulary.flags)
                raise self._wrong(nodes[0], f"wanted the name of a flag, in quotes{hint} (flags: {names})")
            return ast.Compare(left.node, [operator], [right.node])
        element = {_Kind.TEXTS: _Kind.TEXT, _Kind.NUMBERS: _Kind.NUMBER}.get(right.kind)
        if element is None:
            raise self._wrong(nodes[1], f"wanted a list after in, got {right.kind.value}")
        if left.kind is not element:
            raise self._wrong(nodes[0], f"{left.kind.value} cannot be in {right.kind.value}")
        assert isinstance(right.node, ast.Name)
        entries: Set[Any] = self._globals[right.node.id]
        if element is _Kind.NUMBER:
            if left.is_money and any(isinstance(entry, float) for entry in entries):
                raise self._wrong(nodes[1], "amounts are whole minor units: 500.00 is 500_00")
            kept = self._global(frozenset(map(_float32, entries) if left.is_feature else map(float, entries)))
            if isinstance(operator, ast.NotIn):
                return _call("number_not_in", left.node, kept)
            return ast.Compare(left.node, [operator], [kept])
        must_be_listed = isinstance(operator, ast.In) is not self._is_negated
        if must_be_listed and isinstance(nodes[0], ast.Name) and isinstance(nodes[1], ast.Attribute):
            self._listed.add(nodes[0].id)
        dated = [*self._dated_entries(nodes[1], left)]
        if isinstance(operator, ast.NotIn):
            outside = _call("text_not_in", left.node, right.node)
            return (
                ast.BoolOp(ast.And(), [outside, *(ast.UnaryOp(ast.Not(), one) for one in dated)]) if dated else outside
            )
        inside = ast.Compare(left.node, [operator], [right.node])
        return ast.BoolOp(ast.Or(), [inside, *dated]) if dated else inside

    def _dated_entries(self, node: ast.expr, left: _Part) -> Iterator[ast.expr]:
        """Yield for each of a list's parts that end whether the text is in it, and the payment is before its end."""
        for end_ms, name in self._vocabulary.dated(node.attr) if isinstance(node, ast.Attribute) else ():
            self._fields.add("event_time_ms")
            inside = ast.Compare(left.node, [ast.In()], [self._global(self._vocabulary.lists[name])])
            is_before = ast.Compare(_field("event_time_ms"), [ast.Lt()], [ast.Constant(end_ms)])
            yield ast.BoolOp(ast.And(), [is_before, inside])

    _BY_NODE: Mapping[type[ast.expr], Callable[[_Translation, Any], _Part]] = {
        ast.Constant: _constant,
        ast.Name: _named,
        ast.Attribute: _attribute,
        ast.Tuple: _several,
        ast.List: _several,
        ast.Set: _several,
        ast.BoolOp: _joined,
        ast.UnaryOp: _unary,
        ast.BinOp: _binary,
        ast.Call: _called,
        ast.Compare: _compared,
    }

    def _global(self, value: Set[Any]) -> ast.expr:
        # A global instead of a constant: the compiler visits every entry of a constant, and a list may have a million.
        name = f"list_{len(self._globals)}"
        self._globals[name] = value
        return _name(name)

    def _wrong(self, node: ast.expr, what: str) -> Misconfigured:
        line = self._flat.strip().encode()
        return self._wrong_at(self._indent + len(line[: node.col_offset].decode(errors="ignore")), what)

    def _wrong_at(self, index: int, what: str) -> Misconfigured:
        return Misconfigured(f"{self._where}, character {index + 1}: {what}")


# Helpers that compiled conditions call. They are pure, and no argument makes them raise.


def _divided(dividend: float, divisor: float) -> float:
    return dividend / divisor if divisor else math.nan


def _absolute(value: float) -> float:
    return abs(value)


def _smallest(*values: float) -> float:
    return math.nan if any(value != value for value in values) else min(values)


def _largest(*values: float) -> float:
    return math.nan if any(value != value for value in values) else max(values)


def _is_missing(value: float) -> bool:
    return value != value


def _unequal(left: float, right: float) -> bool:
    return left < right or left > right


def _same_text(left: str, right: str) -> bool:
    return left == right and left != ""


def _other_text(left: str, right: str) -> bool:
    return left != right and left != "" and right != ""


def _text_not_in(text: str, texts: Set[str]) -> bool:
    return text not in texts and text != ""


def _number_not_in(value: float, numbers: frozenset[float]) -> bool:
    return value == value and value not in numbers


_HELPERS: Mapping[str, Callable[..., Any]] = {
    "divided": _divided,
    "absolute": _absolute,
    "smallest": _smallest,
    "largest": _largest,
    "is_missing": _is_missing,
    "unequal": _unequal,
    "same_text": _same_text,
    "other_text": _other_text,
    "text_not_in": _text_not_in,
    "number_not_in": _number_not_in,
}
_NO_EMAILS = "an e-mail address cannot be compared, only its domain (email_domain), or be asked for with missing(x)"
# The fewest and the most arguments of each function.
_FUNCTIONS = {"abs": (1, 1), "min": (2, 8), "max": (2, 8), "missing": (1, 1)}
_SPOKEN: Mapping[type[ast.AST], str] = {
    ast.Subscript: "[…]",
    ast.Lambda: "lambda",
    ast.IfExp: "if … else",
    ast.NamedExpr: ":=",
    ast.JoinedStr: "an f-string",
    ast.ListComp: "a loop",
    ast.SetComp: "a loop",
    ast.DictComp: "a loop",
    ast.GeneratorExp: "a loop",
    ast.Dict: "a dictionary",
    ast.Starred: "*",
}


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _field(name: str) -> ast.Attribute:
    return ast.Attribute(_name("payment"), name, ast.Load())


def _declared_part(field: PaymentField) -> _Part:
    """Returns the part of a declared field. A missing number is NaN, a missing text empty, a missing flag None."""
    node = _field(field.name)
    if field.form is Form.EMAIL:
        return _Part(_Kind.EMAIL, node)
    if field.is_text:
        return _Part(_Kind.TEXT, node)
    if field.form is Form.FLAG:
        return _Part(_Kind.YES_NO, node)
    return _Part(_Kind.NUMBER, node, is_whole=field.is_number, is_money=field.form is Form.MONEY)


def _call(helper: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_name(helper), list(arguments), [])


def _as_float(part: _Part) -> ast.expr:
    """Convert ints to floats. Arithmetic with ints could exceed the largest float, and raise."""
    return ast.BinOp(part.node, ast.Mult(), ast.Constant(1.0)) if part.is_whole else part.node


def _as_kept(part: _Part, other: _Part) -> ast.expr:
    """Round a number that is compared with a feature to float32. Otherwise no feature would ever equal 0.1."""
    if other.is_feature and isinstance(part.constant, int | float):
        return ast.Constant(_float32(part.constant))
    return part.node


def _float32(value: float) -> float:
    return float(np.float32(value))


def _close(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""
