"""Conditions of rules: their meaning, the errors, and that a condition can only return an answer."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.models.policy import rules
from paywarden.models.policy.policy import flags_of
from paywarden.models.policy.rules import (
    DEPTH_MAX,
    TEXT_FIELDS,
    TEXT_LENGTH_MAX,
    RuleCondition,
    Vocabulary,
    compile_condition,
)
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

NAMES = [feature.name for feature in CATALOGUE.features]
LISTS = {"gambling": frozenset({"7995", "7800"}), "nothing": frozenset[str]()}
FLAGS = flags_of(entity.name for entity in CATALOGUE.entities)
VOCABULARY = Vocabulary(CATALOGUE.features, FLAGS, LISTS)
PAYMENT = ScoreRequest(
    card_id="card-1",
    merchant_id="shop",
    mcc="7995",
    currency="USD",
    amount_minor=55_000,
    event_time_ms=1_700_000_000_000,
)


def compiled(text: str) -> RuleCondition:
    return compile_condition(text, where="rule", vocabulary=VOCABULARY)


def holds(
    text: str,
    payment: ScoreRequest = PAYMENT,
    *,
    amount: int = 50_000,
    score: float | None = 0.5,
    flags: Sequence[str] = (),
    **features: float,
) -> bool:
    vector = vector_of(features)
    answer = compiled(text).applies(payment, amount, vector.item, math.nan if score is None else score, flags)
    assert type(answer) is bool
    return answer


def vector_of(features: dict[str, float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([features.get(name, math.nan) for name in NAMES], dtype=np.float32)


# The meaning of conditions


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('currency == "USD"', True),
        ('currency != "USD"', False),
        ('currency in ("EUR", "USD")', True),
        ('currency not in ["EUR", "USD"]', False),
        ("amount_minor == 550_00", True),
        ("amount == 500_00", True),
        ("event_time_ms == 1700000000000", True),
        ("400_00 < amount <= 500_00", True),
        ("400_00 < amount < 500_00", False),
        ("score in (0.5, 1)", True),
        ("score not in (0.25, 1)", True),
        ("not (score > 0.5 or amount > 500_00)", True),
        ("-score == -0.5", True),
        ("abs(score - 1) == 0.5", True),
        ("min(score, 0.1, 7) == 0.1 and max(score, 0.1) == 0.5", True),
        ("score * 4 / 2 + 1 - 0.5 == 1.5", True),
        ('"unknown_card" in flags', True),
        ('"mirror_stale" not in flags', True),
        ("mcc in lists.nothing", False),
        ("mcc not in lists.nothing", True),
        ("merchant_id == card_id", False),
        ("merchant_id != card_id", True),
        ("False or True", True),
        ("  score\n  ==\t0.5 ", True),
    ],
)
def test_conditions_have_their_documented_meaning(text: str, answer: bool) -> None:
    assert holds(text, flags=("unknown_card",)) is answer


@pytest.mark.parametrize(
    "text",
    [
        'channel == "ecom"',
        'channel != "ecom"',
        'channel in ("ecom", "pos")',
        'channel not in ("ecom", "pos")',
        "channel not in lists.gambling",
        "channel == device_id",
        "channel != mcc",
        "card_count_1h == 1",
        "card_count_1h != 1",
        "card_count_1h < 1",
        "card_count_1h >= 1",
        "card_count_1h in (0, 1)",
        "card_count_1h not in (0, 1)",
        "card_count_1h + 1 != 1",
        "-card_count_1h != 1",
        "abs(card_count_1h) != 1",
        "max(card_count_1h, amount) > 1",
        "min(amount, card_count_1h) != 1",
        "score / 0 != 1",
        "score / 0 == score / 0",
        "amount / (amount - amount) > 0",
    ],
)
def test_a_comparison_with_what_is_missing_is_false(text: str) -> None:
    assert not holds(text)
    assert holds(f"not ({text})")


def test_a_feature_equals_the_number_it_was_kept_as() -> None:
    """0.1 as a float32 is more than 0.1."""
    share = float(np.float32(0.1))
    assert holds(
        "merchant_fraud_share_30d == 0.1 and not merchant_fraud_share_30d > 0.1", merchant_fraud_share_30d=share
    )
    assert holds("merchant_fraud_share_30d in (0.1, 7)", merchant_fraud_share_30d=share)


def test_the_amount_is_exact_where_a_float32_is_not() -> None:
    assert holds("amount == 16777217", amount=2**24 + 1)
    assert not holds("amount == 16777216", amount=2**24 + 1)


def test_whole_numbers_do_not_outgrow_a_float() -> None:
    product = f"({'*'.join(['amount'] * 12)})"
    assert holds(f"{product} * {product} * {product} + 0.5 > 1", amount=10**13)


# Refused conditions


@pytest.mark.parametrize(
    ("text", "character", "what"),
    [
        ("card_cuont_1h > 5", 1, "there is no name 'card_cuont_1h'; did you mean card_count_1h or card_count_1d?"),
        ("amount > 5 and mcc in lists.gamblin", 23, "there is no list 'gamblin'; did you mean gambling?"),
        ('mcc > "1"', 7, "texts have no order: they are compared with ==, != and in"),
        ("mcc == 7995", 8, "a text cannot be compared with a number"),
        ('amount == "5"', 11, "a number cannot be compared with a text"),
        ("amount > 500.00", 10, "amounts are whole minor units: 500.00 is 500_00, got 500.0"),
        ("0.5 < card_amount_mean_1d", 1, "amounts are whole minor units: 500.00 is 500_00, got 0.5"),
        ("amount in (1, 2.5)", 11, "amounts are whole minor units: 500.00 is 500_00"),
        ("amount", 1, "wanted a condition, got a number"),
        ("lists.gambling", 1, "wanted a condition, got a list of texts"),
        ("mcc in lists", 8, "a list is named as lists.NAME"),
        ("mcc in flags", 1, "wanted the name of a flag, in quotes"),
        ('"unknown_crad" in flags', 1, "wanted the name of a flag, in quotes; did you mean unknown_card"),
        ('mcc in "7995"', 8, "wanted a list after in, got a text"),
        ('amount in ("a", "b")', 1, "a number cannot be in a list of texts"),
        ("mcc in (1, 2)", 1, "a text cannot be in a list of numbers"),
        ('mcc in ("1", 2)', 8, "wanted a list of numbers, or one of texts, written out"),
        ("mcc in ()", 8, "wanted a list of numbers, or one of texts, written out"),
        ("amount in (score, 1)", 11, "wanted a list of numbers, or one of texts, written out"),
        ('mcc == ""', 8, "an empty text equals nothing: missing(x) asks whether x is there"),
        ("amount > 5 and 7", 16, "wanted a yes or no, got a number"),
        ("not amount", 5, "wanted a yes or no, got a number"),
        ("mcc + 1 > 2", 1, "wanted a number, got a text"),
        ("(amount > 5) == True", 17, "a yes or no cannot be compared with a yes or no"),
        ("mcc is card_id", 1, "two things are compared with == or !=, not with is"),
        ("amount ** 2 > 4", 1, "the only arithmetic operators are +, -, * and /"),
        ("amount % 2 == 0", 1, "the only arithmetic operators are +, -, * and /"),
        ("~amount > 2", 1, "~ is not allowed in a condition"),
        ("amount > 1e19", 10, "wanted a number of at most 1e+18"),
        ("score > 1e999", 9, "wanted a number of at most 1e+18"),
        ("score > 1j", 9, "wanted a number, a text, True or False"),
        ("score == None", 10, "wanted a number, a text, True or False"),
        ("mcc == b'a'", 8, "wanted a number, a text, True or False"),
        ("ab(score) > 1", 1, "the functions there are: abs, min, max, missing; did you mean abs?"),
        ("abs(score, 1) > 1", 1, "abs takes 1 arguments"),
        ("min(score) > 1", 1, "min takes 2 to 8 arguments"),
        ("abs(*flags) > 1", 1, "abs takes plain arguments only"),
        ("max(score, 1, key=score) > 1", 1, "max takes plain arguments only"),
        ("mcc.upper() == 'A'", 1, "the functions there are: abs, min, max, missing"),
        ("mcc.real == 'A'", 1, "only a list has a dot in its name, as in lists.NAME"),
        ("lists.gambling.pop == 'A'", 1, "only a list has a dot in its name, as in lists.NAME"),
        ("lists.__class__ == 'A'", 1, "there is no list '__class__'"),
        ("mcc[0] == 'A'", 1, "[…] is not allowed in a condition"),
        ("(lambda: True)()", 1, "the functions there are"),
        ("[x for x in flags] == 1", 1, "a loop is not allowed in a condition"),
        ("(x := 5) > 1", 2, ":= is not allowed in a condition"),
        ("f'{mcc}' == 'A'", 1, "an f-string is not allowed in a condition"),
        ("True if score > 1 else False", 1, "if … else is not allowed in a condition"),
        ("__import__('os') == 1", 1, "the functions there are"),
        ("payment == 1", 1, "there is no name 'payment'"),
        ("item == 1", 1, "there is no name 'item'"),
        ("divided == 1", 1, "there is no name 'divided'"),
        ("amount > 5 # much", 12, "a condition has no comments: # is not allowed"),
        ("amount > ", 9, "this cannot be read"),
        ("", 1, "this cannot be read"),
        ("amount > 5; amount", 11, "this cannot be read"),
        ("a = 5", 3, "this cannot be read"),
        ('  "ä" == mcc and oops', 18, "there is no name 'oops'"),
    ],
)
def test_an_error_in_a_condition_is_refused_with_its_position(text: str, character: int, what: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        compiled(text)
    assert str(refused.value).startswith(f"rule, character {character}: {what}")


def test_a_condition_has_a_length_and_a_depth() -> None:
    with pytest.raises(Misconfigured, match=f"rule: wanted at most {TEXT_LENGTH_MAX} characters, got"):
        compiled("score > 1" + TEXT_LENGTH_MAX * " ")
    deepest = "not " * (DEPTH_MAX - 2) + "score > 1"
    assert compiled(deepest)
    with pytest.raises(Misconfigured, match=f"nested more than {DEPTH_MAX} deep"):
        compiled("not " + deepest)


@given(st.text(max_size=60))
def test_any_text_is_compiled_or_refused(text: str) -> None:
    try:
        compiled(text)
    except Misconfigured:
        return


# Random conditions, compared with a simple interpreter

TEXTS = ("7995", "ecom", "USD", "shop")
NUMBER_NAMES = ("amount", "amount_minor", "score", "card_count_1h", "merchant_fraud_share_30d", "hour")
numbers = st.sampled_from(["0", "1", "2", "5", "100", "0.1", "0.5", "-1", "7e17"])
whole_numbers = st.sampled_from(["0", "1", "2", "100", "-1"])
number_names = st.sampled_from(NUMBER_NAMES)
text_names = st.sampled_from(TEXT_FIELDS)
texts = st.sampled_from([repr(text) for text in TEXTS])


def grown(number: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, number, st.sampled_from("+-*/"), number),
        st.builds("-{}".format, number),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), number, number),
        st.builds("abs({})".format, number),
    )


# Contains a name, so that no amount is compared with a literal fraction.
arithmetic = st.recursive(number_names | numbers, grown, max_leaves=6).map(lambda text: f"({text} + 0)")
comparisons = st.one_of(
    st.builds("{} {} {}".format, arithmetic, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), arithmetic),
    st.builds("{} {} {}".format, number_names, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), whole_numbers),
    st.builds("merchant_fraud_share_30d {} {}".format, st.sampled_from(["<", ">=", "==", "!="]), numbers),
    st.builds("{} {} ({}, {})".format, number_names, st.sampled_from(["in", "not in"]), whole_numbers, whole_numbers),
    st.builds("{} {} {}".format, text_names, st.sampled_from(["==", "!="]), text_names | texts),
    st.builds("{} {} ({}, {})".format, text_names, st.sampled_from(["in", "not in"]), texts, texts),
    st.builds("{} {} lists.{}".format, text_names, st.sampled_from(["in", "not in"]), st.sampled_from(sorted(LISTS))),
    st.builds("{!r} {} flags".format, st.sampled_from(FLAGS), st.sampled_from(["in", "not in"])),
    st.builds("missing({})".format, arithmetic | text_names),
    st.sampled_from(["True", "False"]),
    st.builds("{} < {} <= {}".format, arithmetic, arithmetic, arithmetic),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=5,
).filter(lambda text: len(text) <= TEXT_LENGTH_MAX)
some_text = st.sampled_from(["", *TEXTS, "other"])
payments = st.builds(
    ScoreRequest,
    amount_minor=st.sampled_from([0, 1, 100, 10**11]),
    event_time_ms=st.just(1),
    **dict.fromkeys(TEXT_FIELDS, some_text),
)
values = st.sampled_from([math.nan, 0.0, 1.0, 5.0, -1.0, math.inf, float(np.float32(0.1)), 3e38])
feature_values = st.fixed_dictionaries(dict.fromkeys(NUMBER_NAMES[3:], values))


class Missing(Exception):
    """Raised when a value is missing."""


class Interpreter:
    """Interprets the tree node by node."""

    def __init__(self, payment: ScoreRequest, amount: int, features: dict[str, float], score: float | None) -> None:
        self.known: dict[str, Any] = {name: getattr(payment, name) or None for name in TEXT_FIELDS}
        self.known |= features
        self.known |= {"amount_minor": payment.amount_minor, "amount": amount, "score": score}

    def number(self, node: ast.expr) -> float:
        value = self.plain_number(node)
        if math.isnan(value):
            raise Missing
        return value

    def plain_number(self, node: ast.expr) -> float:
        match node:
            case ast.Constant(int() | float() as value):
                return float(value)
            case ast.Name(name):
                found = self.known[name]
                return math.nan if found is None else float(found)
            case ast.UnaryOp(ast.USub(), operand):
                return -self.plain_number(operand)
            case ast.BinOp(left, operator, right):
                one, other = self.number(left), self.number(right)
                match operator:
                    case ast.Add():
                        return one + other
                    case ast.Sub():
                        return one - other
                    case ast.Mult():
                        return one * other
                    case ast.Div() if other == 0:
                        raise Missing
                return one / other
            case ast.Call(ast.Name(name), arguments):
                given = [self.number(argument) for argument in arguments]
                return abs(given[0]) if name == "abs" else min(given) if name == "min" else max(given)
        raise AssertionError(ast.dump(node))

    def value(self, node: ast.expr, beside: ast.expr | None = None) -> Any:
        match node:
            case ast.Constant(str(text)):
                return text
            case ast.Name(name) if name in TEXT_FIELDS:
                if self.known[name] is None:
                    raise Missing
                return self.known[name]
        value = self.number(node)
        is_written = isinstance(node, ast.Constant) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
        )
        kept = isinstance(beside, ast.Name) and beside.id in NAMES and beside.id != "amount"
        return float(np.float32(value)) if is_written and kept else value

    def holds(self, node: ast.expr, flags: Sequence[str]) -> bool:
        match node:
            case ast.BoolOp(ast.And(), parts):
                return all(self.holds(part, flags) for part in parts)
            case ast.BoolOp(ast.Or(), parts):
                return any(self.holds(part, flags) for part in parts)
            case ast.UnaryOp(ast.Not(), part):
                return not self.holds(part, flags)
            case ast.Constant(bool(value)):
                return value
            case ast.Call(ast.Name("missing"), [part]):
                try:
                    self.value(part)
                except Missing:
                    return True
                return False
            case ast.Compare(left, operators, rights):
                lefts = [left, *rights[:-1]]
                return all(
                    self.compared(one, operator, other, flags)
                    for one, operator, other in zip(lefts, operators, rights, strict=True)
                )
        raise AssertionError(ast.dump(node))

    def compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, flags: Sequence[str]) -> bool:
        try:
            one = self.value(left, right)
            match right:
                case ast.Attribute(_, name):
                    others: Any = LISTS[name]
                case ast.Name("flags"):
                    others = flags
                case ast.Tuple(elements):
                    others = [self.value(element, left) for element in elements]
                case _:
                    others = self.value(right, left)
        except Missing:
            return False
        match operator:
            case ast.In() | ast.NotIn():
                return (one in others) is isinstance(operator, ast.In)
            case ast.Eq() | ast.NotEq():
                return (one == others) is isinstance(operator, ast.Eq)
            case ast.Lt() | ast.LtE():
                return bool(one < others or (isinstance(operator, ast.LtE) and one == others))
        return bool(one > others or (isinstance(operator, ast.GtE) and one == others))


@given(
    text=conditions,
    payment=payments,
    amount=st.sampled_from([0, 1, 100, 10**13]),
    features=feature_values,
    score=st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
    flags=st.lists(st.sampled_from(FLAGS), max_size=2),
)
@settings(max_examples=150)
def test_a_condition_answers_as_its_tree_says(
    text: str,
    payment: ScoreRequest,
    amount: int,
    features: dict[str, float],
    score: float | None,
    flags: list[str],
) -> None:
    wanted = Interpreter(payment, amount, features, score).holds(ast.parse(text, mode="eval").body, flags)
    assert holds(text, payment, amount=amount, score=score, flags=flags, **features) is wanted


@given(conditions)
def test_a_condition_can_reach_nothing_but_its_facts_and_the_helpers(text: str) -> None:
    function: Any = compiled(text).applies
    code = function.__code__
    allowed = {*rules._HELPERS, *TEXT_FIELDS, "amount_minor", "event_time_ms"}
    lists = {name for name in function.__globals__ if name.startswith("list_")}
    assert set(code.co_names) <= allowed | lists
    assert code.co_varnames == rules._ARGUMENTS
    assert not code.co_freevars
    assert function.__closure__ is None
    assert function.__globals__.keys() == {"__builtins__", *rules._HELPERS, *lists}
    assert function.__globals__["__builtins__"] == {}
    assert not any(isinstance(constant, type(code)) for constant in code.co_consts)
