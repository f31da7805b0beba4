"""Finds how a table writes numbers, from its texts.

    "12,50"  "1.234,00"     decimal = ",", thousands = "."
    "1,234.56"              thousands = ","
    "$ 12.50"  "12.50 EUR"  strip = "$ " and strip = "EUR "

A text such as "1,234" may be either; it is taken for thousands, because a price of three decimals is rare.

Text around a number is left out only where it is the same in nearly all rows: in "12.50 EUR" and "3.00 USD" it
names the currency, and "(12.50)", "12.50-" and "12.50 CR" are other sums than 12.50.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# A share of values, below 1: a few may be wrong.
MOST = 0.98
# Characters at the ends of a number: signs and codes of a currency. More than this are words.
_STRIPPED_MAX = 6
_SIGNS = frozenset("+-()\u2212")
_PLAIN = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_ENDS = re.compile(r"([^0-9+.,'-]*)(.*?)([^0-9]*)", re.DOTALL)


def is_plain_number(text: str) -> bool:
    """Returns whether a text is a number with a point, and without anything between its thousands."""
    return _PLAIN.fullmatch(text) is not None


@dataclass(frozen=True)
class NumberForm:
    """The character before the decimals, and the one between the thousands; empty if there is none."""

    decimal: str = "."
    thousands: str = ""

    def fits(self, text: str) -> bool:
        """Returns whether a text is a number in this form."""
        if not self.thousands and self.decimal == ".":
            return is_plain_number(text)
        between, point = re.escape(self.thousands), re.escape(self.decimal)
        return (
            re.fullmatch(rf"[+-]?([1-9][0-9]{{0,2}}({between}[0-9]{{3}})+|[0-9]{{1,18}})({point}[0-9]+)?", text)
            is not None
        )

    def plain(self, text: str) -> str:
        """Returns a number of this form with a point and without anything between its thousands."""
        text = text.replace(self.thousands, "") if self.thousands else text
        return text.replace(self.decimal, ".")


PLAIN = NumberForm()
_FORMS = (NumberForm(".", ","), NumberForm(",", "."), NumberForm(",", " "), NumberForm(".", "'"), NumberForm(".", " "))


def number_form_of(columns: Iterable[Collection[str]]) -> NumberForm:
    """Returns the form that reads the most columns that the plain form, with a point, does not.

    If no form reads more columns, the form with more of their texts counts: a few amounts of thousands.
    """
    gains = dict.fromkeys(_FORMS, (0, 0.0))
    for texts in columns:
        bare = _bare(texts)
        plain = _share(PLAIN, bare)
        for form in _FORMS:
            share, (columns_more, texts_more) = _share(form, bare), gains[form]
            more = (share - plain) * len(bare) if min(share, plain) > MOST else 0.0
            gains[form] = (columns_more + (share > MOST) - (plain > MOST), texts_more + more)
    best = max(gains, key=lambda form: gains[form])
    return best if gains[best] > (0, 0.0) else PLAIN


def other_form_of(texts: Collection[str], form: NumberForm) -> NumberForm | None:
    """Returns the form in which texts are numbers if they are not in `form`; None without such a form."""
    bare = _bare(texts)
    if _share(form, bare) > MOST:
        return None
    return next((other for other in (PLAIN, *_FORMS) if _share(other, bare) > MOST), None)


def stripped_of(texts: Collection[str], form: NumberForm) -> str | None:
    """Returns the characters around numbers, empty if there are none.

    None if the texts are no numbers, and if these characters mean something: `around_numbers` has them. A number with
    a sign behind it or in parentheses is not stripped, and a conversion refuses it.
    """
    around = around_numbers(texts, form)
    told = [pair for pair in around if any(pair) and not _SIGNS & set("".join(pair))]
    if not around or _SIGNS & set("".join(around[0])) or len(told) > 1:
        return None
    found = "".join(dict.fromkeys("".join(told[0]))) if told else ""
    return found if len(found) <= _STRIPPED_MAX else None


def around_numbers(texts: Collection[str], form: NumberForm) -> list[tuple[str, str]]:
    """Returns the texts before and behind the numbers, the most frequent pair first; empty if the texts are no numbers.

    Pairs are left out that the rows before them outnumber fifty to one: a conversion refuses these rows.
    """
    if not texts or _share(form, _bare(texts)) <= MOST:
        return []
    ends = (match for text in texts if (match := _ENDS.fullmatch(text)) is not None and form.fits(match[2]))
    counts = Counter((match[1].strip(), match[3].strip()) for match in ends)
    around, seen = [], 0
    for pair, count in counts.most_common():
        if seen > MOST * len(texts):
            break
        around.append(pair)
        seen += count
    return around


def _bare(texts: Collection[str]) -> Sequence[str]:
    return [match[2] if (match := _ENDS.fullmatch(text)) is not None else text for text in texts]


def _share(form: NumberForm, texts: Sequence[str]) -> float:
    return sum(form.fits(text) for text in texts) / len(texts) if texts else 0.0
