"""The page a report is: its frame and style, its tables, and how numbers are written for people.

One HTML file without scripts and without anything from elsewhere. Every text from data goes through `escape`.
Colours are those of Okabe and Ito, told apart by people with any colour vision; what they say is also said in words,
dashes or place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from features.money import REFERENCE_MINOR_DIGITS

_MINOR_PER_UNIT = 10**REFERENCE_MINOR_DIGITS
NO_NUMBER = "–"
PAST = {"approve": "approved", "review": "reviewed", "decline": "declined"}
"""What a payment is after each action."""

_STYLE = """
:root { --ink: #1d2530; --soft: #5b6573; --rule: #dfe3e8; --paper: #ffffff; --wash: #f5f7f9;
  --blue: #0072b2; --sky: #56b4e9; --green: #009e73; --amber: #e69f00; --red: #d55e00; --purple: #9a4a86; }
* { box-sizing: border-box; }
html { background: var(--wash); }
body { margin: 0 auto; max-width: 1120px; padding: 40px 44px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 46px 0 6px; padding-top: 14px; border-top: 2px solid var(--ink); }
h3 { font-size: 15.5px; margin: 26px 0 4px; }
p { margin: 6px 0 12px; max-width: 82ch; }
.soft, figcaption, .card small { color: var(--soft); }
.lead { font-size: 17px; line-height: 1.5; margin: 18px 0; }
.notice { border-left: 4px solid var(--amber); background: #fdf6e7; padding: 8px 14px; margin: 10px 0;
  max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 12px; margin: 16px 0; }
.card { border: 1px solid var(--rule); border-radius: 6px; padding: 12px 14px; }
.card b { display: block; font-size: 24px; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.card span { font-weight: 600; font-size: 13.5px; }
.card small { display: block; font-size: 12.5px; line-height: 1.4; margin-top: 3px; }
.card em { font-style: normal; color: var(--purple); display: block; font-size: 13px; font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr));
  gap: 22px 30px; margin: 14px 0; }
.beside > div { min-width: 0; }
.beside { display: grid; grid-template-columns: 4fr 3fr; gap: 22px 36px; } .beside h3 { margin-top: 14px; }
figure { margin: 0; break-inside: avoid; }
figure h3 { margin: 0 0 4px; }
figcaption { font-size: 13px; line-height: 1.45; max-width: 64ch; }
svg { width: 100%; height: auto; display: block; font: inherit; overflow: visible; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .base, svg .notch { stroke: var(--soft); stroke-width: 1; }
svg .tick { font-size: 11.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .axis { font-size: 12px; fill: var(--ink); }
svg .note { font-size: 11.5px; fill: var(--ink); paint-order: stroke; stroke: #fff; stroke-width: 3px; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .upright { stroke-width: 1.5; stroke-dasharray: 2 3; stroke: var(--ink); }
svg .bar { stroke: #fff; stroke-width: 0.4; }
.champion { stroke: var(--blue); }
.key.champion, .dot.champion, .bar.champion { fill: var(--blue); background: var(--blue); }
.challenger { stroke: var(--purple); } path.challenger { stroke-dasharray: 6 4; }
.key.challenger, .dot.challenger, .bar.challenger { fill: var(--purple); background: var(--purple); }
.ideal { stroke: var(--soft); stroke-width: 1.2; } path.ideal { stroke-dasharray: 3 4; }
.key.ideal { background: var(--soft); }
.first { stroke: var(--blue); } .key.first { background: var(--blue); }
.second { stroke: var(--red); } path.second { stroke-dasharray: 7 3; } .key.second { background: var(--red); }
.third { stroke: var(--green); } path.third { stroke-dasharray: 2 3; } .key.third { background: var(--green); }
.bar.genuine { fill: var(--sky); } .key.genuine { background: var(--sky); }
.bar.fraud { fill: var(--red); } .key.fraud { background: var(--red); }
.bar.review { fill: var(--amber); } .key.review { background: var(--amber); }
.bar.decline { fill: var(--red); } .key.decline { background: var(--red); }
.bar.stopped { fill: var(--green); } .key.stopped { background: var(--green); }
.bar.missed { fill: #4a4f57; } .key.missed { background: #4a4f57; }
.dot { stroke: #fff; stroke-width: 1; }
.legend { margin: 2px 0 4px; font-size: 13px; } .legend span { margin-right: 18px; white-space: nowrap; }
.key { display: inline-block; width: 22px; height: 4px; margin-right: 6px; vertical-align: middle; }
.key.challenger, .key.second { -webkit-mask: repeating-linear-gradient(90deg, #000 0 6px, transparent 6px 8px); }
.key.third, .key.ideal { -webkit-mask: repeating-linear-gradient(90deg, #000 0 3px, transparent 3px 6px); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 14px; font-size: 13.5px; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 4px 0; }
th { text-align: right; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink);
  vertical-align: bottom; }
td { text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th, td { padding: 4px 0 4px 12px; }
.wide th:first-child, .wide td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; }
table.full { width: 100%; }
tr.faint td { color: #7a8492; } tr.sum td { font-weight: 600; border-top: 1px solid var(--ink); }
td.same { background: var(--wash); }
td.better { color: #007356; font-weight: 600; } td.worse { color: #b34700; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; font-size: 14px; margin: 8px 0; }
dt { font-weight: 600; } dd { margin: 0; max-width: 110ch; }
@media (max-width: 620px) { body { padding: 20px 16px; } .figures, .beside { grid-template-columns: 1fr; } }
@media print { html { background: #fff; } body { max-width: none; padding: 0; font-size: 11px; }
  h1 { font-size: 20px; } h2 { font-size: 15px; margin-top: 24px; } h3 { font-size: 12px; margin-top: 12px; }
  h2, h3, caption, h2 + p { break-after: avoid; } tr, .card, .notice, .beside { break-inside: avoid; }
  .lead { font-size: 12.5px; } .legend, figcaption, dl, .card span, .card em, .card small { font-size: 9.5px; }
  .card { padding: 8px 9px; } .card b { font-size: 16px; } .cards { grid-template-columns: repeat(5, 1fr); gap: 7px; }
  .figures { grid-template-columns: 1fr 1fr; gap: 14px; } table { font-size: 9.5px; } th, td { padding-left: 8px; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } @page { size: A4; margin: 14mm; } }
"""


class Cell(NamedTuple):
    """A table's cell with a class of the style sheet."""

    text: str
    style: str


def page(title: str, sections: Iterable[str]) -> str:
    """The whole file."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def figure(title: str, drawing: str, caption: str) -> str:
    """A plot under its title, with what it shows in words. `drawing` is SVG."""
    return f"<figure><h3>{escape(title)}</h3>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(*drawn: str) -> str:
    """Plots or other parts side by side, where the page is wide enough."""
    return f'<div class="figures">{"".join(drawn)}</div>'


def beside(wide: str, narrow: str) -> str:
    """Two parts side by side, the first wider than the second."""
    return f'<div class="beside"><div>{wide}</div><div>{narrow}</div></div>'


def card(title: str, value: str, meaning: str, challenger: str = "") -> str:
    """A number with what it means; beside it the challenger's, where there is one."""
    other = f"<em>challenger {escape(challenger)}</em>" if challenger else ""
    return (
        f'<div class="card"><span>{escape(title)}</span><b>{escape(value)}</b>{other}'
        f"<small>{escape(meaning)}</small></div>"
    )


def cards(*made: str) -> str:
    return f'<div class="cards">{"".join(made)}</div>'


def paragraph(text: str, style: str = "") -> str:
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def notice(text: str) -> str:
    """What a reader must not miss."""
    return paragraph(text, "notice")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    caption: str = "",
    text_columns: int = 1,
    is_full: bool = True,
    row_styles: Sequence[str] = (),
) -> str:
    """A table of texts; the first `text_columns` columns are set left, the rest are numbers. Cells are escaped."""
    kinds = ["text" if number < text_columns else "" for number in range(len(heads))]
    head = "".join(_cell("th", text, kind) for text, kind in zip(heads, kinds, strict=True))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(_cell("td", text, kind) for text, kind in zip(row, kinds, strict=True))
        style = row_styles[number] if number < len(row_styles) else ""
        lines.append(f'<tr class="{style}">{cells}</tr>' if style else f"<tr>{cells}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = ' class="full"' if is_full else ""
    return (
        f'<div class="wide"><table{kind}>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(tag: str, content: str | Cell, kind: str) -> str:
    text, style = (content.text, content.style) if isinstance(content, Cell) else (content, "")
    kind = " ".join(filter(None, (kind, style)))
    return f'<{tag} class="{kind}">{escape(text)}</{tag}>' if kind else f"<{tag}>{escape(text)}</{tag}>"


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in entries)
    return f"<dl>{items}</dl>"


def whole(number: float) -> str:
    """1,234,567."""
    return f"{number:,.0f}"


def decimal(number: float, digits: int = 3) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else NO_NUMBER


def percent(share: float, digits: int = 1) -> str:
    """A share as 12.3 %; a small one with as many digits as it takes to see it."""
    if not math.isfinite(share):
        return NO_NUMBER
    if share and abs(share) < 0.001:
        digits = max(digits, 3)
    elif share and abs(share) < 0.01:
        digits = max(digits, 2)
    return f"{100 * share:.{digits}f}%"


def fixed_percent(share: float, digits: int = 1) -> str:
    """The same with as many digits as all of its column."""
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else NO_NUMBER


def count_of(number: int, noun: str) -> str:
    """1 payment, 2 payments."""
    return f"{whole(number)} {noun}" if number == 1 else f"{whole(number)} {noun}s"


def money(amount_minor: float, currency: str, *, is_signed: bool = False) -> str:
    """Whole units of the reference currency, as EUR 1,234; `is_signed` sets a plus before a gain."""
    text = amount(amount_minor, is_signed=is_signed)
    return f"{currency} {text}" if currency else text


def amount(amount_minor: float, *, is_signed: bool = False, digits: int = 0) -> str:
    """The same without the currency, for tables that name it in their heads."""
    units = amount_minor / _MINOR_PER_UNIT
    text = f"{abs(units):,.{digits}f}"
    if not text.strip("0.,"):
        return text
    return f"−{text}" if units < 0 else f"+{text}" if is_signed else text


def short_amount(amount_minor: float) -> str:
    """An amount for a plot's axis: 1.2M, 340k, 12."""
    units = amount_minor / _MINOR_PER_UNIT
    for size, letter in ((1e9, "bn"), (1e6, "M"), (1e3, "k")):
        if abs(units) >= size:
            return f"{units / size:g}{letter}".replace("-", "−")
    return f"{units:g}".replace("-", "−")
