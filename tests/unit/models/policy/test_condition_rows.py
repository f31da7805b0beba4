"""Rows of a form are the condition that they came from, and name what can never hold."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.models.policy.condition_rows import (
    OPERATORS,
    Row,
    RowRefused,
    Rows,
    contradictions,
    row_text,
    rows_of,
    text_of,
)
from paywarden.models.policy.policy import policy_vocabulary
from paywarden.models.policy.rules import compile_condition

LISTS = {"bad": frozenset({"a"}), "empty": frozenset[str](), "bad_until_20261231": frozenset({"late"})}
VOCABULARY = policy_vocabulary(CATALOGUE, LISTS)
KINDS = VOCABULARY.kinds()
NUMBERS = st.integers(-(10**6), 10**6).map(str) | st.sampled_from(["0.25", "500_00", "1e3"])
TEXTS = st.text("abcXY 09'\"\\é", min_size=1, max_size=6).map(str.strip).filter(bool)
ATOMS = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["amount", "score"]), st.sampled_from(["<", ">=", "=="]), NUMBERS),
    st.builds(lambda text: row_text(Row("mcc", "==", text), KINDS), TEXTS),
    st.sampled_from(
        [
            "mcc in lists.bad",
            'mcc not in ("1", "2")',
            'mcc in ["1"]',
            "missing(card_id)",
            "not missing(ip)",
            '"model_absent" in flags',
            "1 < amount < 5",
            "amount + 1 > 5",
            'not mcc == "7995"',
        ]
    ),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.builds(
        lambda joint, parts: joint.join(f"({part})" for part in parts),
        st.sampled_from([" and ", " or "]),
        st.lists(inner, min_size=2, max_size=3),
    ),
    max_leaves=8,
)


@given(text=CONDITIONS)
def test_the_rows_of_a_condition_are_the_same_condition(text: str) -> None:
    again = text_of(rows_of(text, KINDS), KINDS)
    assert ast.dump(ast.parse(again, mode="eval")) == ast.dump(ast.parse(text, mode="eval"))


NAMED = st.one_of(
    st.builds(Row, st.sampled_from(["amount", "card_count_1h"]), st.sampled_from(["<", ">=", "!=", "in"]), NUMBERS),
    st.builds(Row, st.just("country"), st.sampled_from(["==", "!="]), TEXTS),
    st.builds(Row, st.sampled_from(["mcc", "ip"]), st.sampled_from(OPERATORS["text"][-2:]), st.just("")),
    st.just(Row("flags", "holds", "model_absent")),
    st.just(Row("card_id", "in", "lists.bad")),
)
GROUPS = st.lists(st.lists(NAMED, min_size=1, max_size=3).map(tuple), min_size=2, max_size=3).map(tuple)


@given(groups=GROUPS.filter(lambda groups: any(len(group) > 1 for group in groups)), joins_any=st.booleans())
def test_rows_with_names_come_back_as_they_were(groups: Any, joins_any: bool) -> None:
    rows = Rows(groups, joins_any)
    assert rows_of(text_of(rows, KINDS), KINDS) == rows


def test_a_condition_that_cannot_be_read_is_one_row() -> None:
    assert rows_of("amount >", KINDS).groups == ((Row("", "", "amount >"),),)


@pytest.mark.parametrize(
    "row", [Row("amount", ">", "5 or True"), Row("amount", "holds", ""), Row("no_such", ">", "1"), Row("mcc", "==", "")]
)
def test_a_row_that_is_no_comparison_is_refused(row: Row) -> None:
    with pytest.raises(RowRefused):
        row_text(row, KINDS)


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("amount > 100 and amount < 50", True),
        ("amount > 100 and amount <= 100", True),
        ("amount >= 100 and amount <= 100", False),
        ('mcc == "1" and mcc == "2"', True),
        ('mcc == "1" or mcc == "2"', False),
        ('mcc == "1" and mcc != "1"', True),
        ("amount == 5 and amount > 6", True),
        ('missing(mcc) and mcc == "1"', True),
        ("card_id in lists.empty", True),
        ("card_id in lists.bad", False),
        ("(amount > 2 and amount < 1) or score > 0.5", False),
        ("(amount > 2 or amount < 1) and score > 0.5 and score < 0.1", True),
        ("amount + 1 > 5", False),
    ],
)
def test_a_rule_that_can_never_hold_is_named(text: str, never: bool) -> None:
    assert bool(contradictions(rows_of(text, KINDS), LISTS)) == never


@pytest.mark.parametrize(
    ("card", "day", "holds"), [("a", 40, True), ("late", 40, False), ("late", -1, True), ("b", -1, False)]
)
def test_entries_of_a_list_end_with_their_day(card: str, day: int, holds: bool) -> None:
    end_ms = 1_798_761_600_000  # The first millisecond of 2027.
    payment: Any = SimpleNamespace(card_id=card, event_time_ms=end_ms + day)
    for text, wanted in (("card_id in lists.bad", holds), ("card_id not in lists.bad", not holds)):
        condition = compile_condition(text, where="rule", vocabulary=VOCABULARY)
        assert condition.applies(payment, 1.0, lambda _: 0.0, 0.5, ()) == wanted
        assert condition.fields == {"card_id", "event_time_ms"}
