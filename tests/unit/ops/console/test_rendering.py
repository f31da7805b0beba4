"""Amounts are written as people write them, and texts of others so that all of them is seen."""

from __future__ import annotations

import re

import pytest

from paywarden.ops.console.rendering import Currencies, environment, templates
from paywarden.streams.decision_index.routing import VERDICTS


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("1234.5", 123_450), ("1,234.50", 123_450), ("0", 0), ("0.07", 7), ("12345678901234.99", 1_234_567_890_123_499),
        ("1.234,50", None), ("12,34", None), ("-1", None), ("1.005", None), ("", None), ("1e3", None), ("١٢", None),
    ],
)  # fmt: skip
def test_an_amount_is_read_as_it_is_written(text: str, minor: int | None) -> None:
    """People had to type minor units: 1234 for 12.34."""
    euro = Currencies("EUR")
    assert euro.minor(text) == minor
    assert minor is None or euro.minor(euro.units(minor)) == minor
    yen = Currencies("JPY")
    assert (yen.minor("1,656"), yen.minor("1.5"), yen.units(1_656)) == (1_656, None, "1656")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("shop-7\u202efdp.exe", "shop-7[U+202E]fdp.exe"),
        ("shop\u200b-7", "shop[U+200B]-7"),
        ("shop\u3164", "shop[U+3164]"),
        ("\u2066admin\u2069", "[U+2066]admin[U+2069]"),
        ("a\u0000\u0085b", "a[U+0000][U+0085]b"),
        ("<b>\u202e", "&lt;b&gt;[U+202E]"),
        ("à l’usage de « chaque » jour\u00a0; 支付 · مرحبا · 👩\u200d💻\nnext\tline", None),
    ],
)
def test_what_nobody_can_see_is_written_out(text: str, shown: str | None) -> None:
    """A merchant could choose an id that reads as another one's."""
    template = "{% macro again(one) %}{{ one }}{% endmacro %}{{ text }}|{{ again(text) }}"
    made = environment().from_string(template).render(text=text)
    assert made == f"{shown or text}|{shown or text}"


PAGES = sorted(name for name, text in templates().items() if '{% extends "base.html" %}' in text)


@pytest.mark.parametrize("name", PAGES)
def test_each_page_says_in_its_help_what_it_shows_and_which_keys_work(name: str) -> None:
    """Analysts learned the keys from each other, and words such as stake or lag from nobody."""
    template = environment().get_template(name)
    text = templates()[name]
    helped = text.partition("{% block help %}")[2].partition("{% endblock %}")[0]
    words = re.sub(r"<[^>]+>", "", helped).split()
    assert 15 <= len(words) <= 150
    keys = set(re.findall(r"<kbd>(.)</kbd>", helped))
    pressed = set(re.findall(r'data-key="(.)"', text))
    if 'data-key="{{ one[0] }}"' in text:
        pressed |= {verdict[0] for verdict in VERDICTS}
    if "data-rows" in text:
        pressed |= {"j", "k"}
    assert pressed <= keys
    assert "help" in template.blocks
