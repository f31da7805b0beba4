"""Render the content of a page as HTML. Templates escape everything; a name that a template misspells is an error."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from babel import Locale, UnknownLocaleError
from babel.numbers import format_decimal
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from paywarden.models.replay.report.plots import PLOT_TEMPLATE, Drawing
from paywarden.ops.console.case import MENTION
from paywarden.ops.console.page_rows import Missing, address
from paywarden.ops.console.people import Person
from paywarden.ops.console.words import what_moved, where
from paywarden.schemas.currencies import MINOR_DIGITS

if TYPE_CHECKING:
    from paywarden.ops.console.reasons import Reason
    from paywarden.ops.console.saved_searches import SavedSearch

TEMPLATES = Path(__file__).with_name("templates")
# Characters without a sign or a width, and those that turn the direction. Line ends, tabs, and the two that join parts
# of one letter or sign do not count.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000


@dataclass(frozen=True)
class Link:
    """An entry of the navigation."""

    title: str
    path: str
    is_here: bool
    badge: int | None


@dataclass(frozen=True)
class Currencies:
    """The form of money. `reference`: the currency of amounts without one; "" if it is not known."""

    reference: str = ""

    def text(self, minor: int | float | None, currency: str = "") -> str:
        """Return an amount in minor units as units: `12,345.00 EUR`, `12,345 JPY`; a dash for None."""
        if minor is None or not math.isfinite(minor):
            return "–"
        currency = currency or self.reference
        digits = MINOR_DIGITS.get(currency, 2)
        return f"{localised(minor / 10**digits, digits)} {currency}".rstrip()

    def units(self, minor: int) -> str:
        """Return an amount of the reference currency as somebody would write it: `12345.00`. The way back: `minor`."""
        digits = MINOR_DIGITS.get(self.reference, 2)
        whole, part = divmod(minor, 10**digits)
        return f"{whole}.{part:0{digits}}" if digits else str(whole)

    def minor(self, text: str) -> int | None:
        """Return an amount that somebody wrote in the reference currency, `12,345.50`; None for another text."""
        digits = MINOR_DIGITS.get(self.reference, 2)
        found = re.fullmatch(r"([0-9]{1,3}(?:,?[0-9]{3})*|[0-9]+)(?:\.([0-9]*))?", text, re.ASCII)
        if found is None or len(found[2] or "") > digits:
            return None
        return int(found[1].replace(",", "") + (found[2] or "").ljust(digits, "0"))

    def measured(self, value: float | None, unit: str, digits: int = 4) -> str:
        """Return a feature's value in its unit in the catalogue: money, a length of time, a share, or a number."""
        if value is None or not math.isfinite(value):
            return "–" if value is None else "missing" if math.isnan(value) else f"{value:+}"
        if unit == "minor units":
            return self.text(value)
        if unit == "seconds":
            return ago(round(value * 1000))
        return percent(value) if unit == "share" else number(value, digits)

    def reason(self, reason: Reason) -> str:
        """Return a reason of a decision as a sentence: `110 payments of this card in the last hour; usually 2`."""
        digits = 3 if reason.unit == "ratio" else 4
        sentence = reason.words.replace("{}", self.measured(reason.value, reason.unit, digits))
        if reason.usual is None:
            return sentence
        if reason.unit == "0 or 1":
            return f"{sentence}; so in {percent(reason.usual if reason.value else 1 - reason.usual)} of payments"
        usual = "not known" if math.isnan(reason.usual) else self.measured(reason.usual, reason.unit, min(digits, 2))
        return f"{sentence}; usually {usual}"


NO_CURRENCIES = Currencies()
"""Amounts as they are written where no rates are known: two digits, and no name of the reference currency."""


@dataclass(frozen=True)
class SearchPage:
    """A page whose searches a person can keep. `query`: the present one; `saved`: those that the person has kept."""

    path: str
    query: str
    saved: tuple[SavedSearch, ...]


LATE_MS = 120_000
"""Payments of a small bank pause for a minute at night."""


@dataclass(frozen=True)
class PageFrame:
    """The frame of each page: navigation, person, missing services, and a message to show once."""

    title: str
    links: tuple[Link, ...] = ()
    person: Person | None = None
    missing: tuple[Missing, ...] = ()
    message: str = ""
    now_ms: int = 0
    is_demo: bool = False
    currencies: Currencies = NO_CURRENCIES
    newest_ms: int = 0
    here: SearchPage | None = None

    @property
    def is_late(self) -> bool:
        """Whether the newest decision is so old that payments, or what brings them here, may stand still."""
        return self.now_ms - self.newest_ms > LATE_MS


@cache
def templates() -> dict[str, str]:
    """Return all templates by name. A console reads them at its start: without descriptors it can still show pages."""
    own = {path.relative_to(TEMPLATES).as_posix(): path.read_text("utf-8") for path in TEMPLATES.rglob("*.html")}
    return own | {"plot.html": PLOT_TEMPLATE.read_text("utf-8")}


@cache
def environment(currencies: Currencies = NO_CURRENCIES) -> Environment:
    """Return the templates and their filters. Templates that others import see no frame, but the currencies."""
    made = Environment(
        loader=DictLoader(templates()),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        time=time_tag,
        second=second_tag,
        ago=ago,
        percent=percent,
        money=currencies.text,
        units=currencies.units,
        measured=currencies.measured,
        reason=currencies.reason,
        fixed=localised,
        number=number,
        whole=whole,
        path=path_part,
        title_of=title,
        moved=what_moved,
        where=where,
        mentions=with_mentions,
    )
    # Each form that makes something has a token of its own: it acts once (idempotency.py).
    made.globals["address"] = address
    made.globals["once"] = lambda: secrets.token_urlsafe(16)
    return made


def visible(value: Any) -> Any:
    """Return a value that a template is about to write, with invisible characters written out: `[U+202E]`.

    Ids, names and notes come from topics that others write. A character that turns the direction of a text, or that has
    no width, would make one merchant look like another.
    """
    # A macro's result has been through this already. Most of a page is plain, and a look at it is cheap.
    if not isinstance(value, str) or (value.isascii() and value.isprintable()) or isinstance(value, Markup):
        return value
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", value)


def with_mentions(note: str, known: Collection[str]) -> Markup:
    """Return a note in which the known people that it mentions stand out."""
    parts = MENTION.split(note)
    # Texts and names take turns.
    for place, part in enumerate(parts):
        is_known = place % 2 and part in known
        parts[place] = Markup("<strong>@{}</strong>").format(part) if is_known else f"{'@' * (place % 2)}{part}"
    return Markup().join(escape(visible(part)) for part in parts)


def rendered(template: str, frame: PageFrame, view: object) -> str:
    """Return the HTML of a page."""
    return environment(frame.currencies).get_template(template).render(frame=frame, view=view)


def as_json(value: Any) -> Any:
    """Return a view for JSON: dataclasses as objects, infinities and NaN as null, a drawing as its description."""
    if isinstance(value, Drawing):
        return value.description
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(part) for part in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    # Markup and other texts.
    return str(value)


ENGLISH = Locale("en")
# An amount is always below this. A feature of a broken record may be above.
_DIGITS_BELOW = 1e20
LOCALE: ContextVar[Locale] = ContextVar("locale", default=ENGLISH)
"""The locale of the person whose request is answered: of numbers, shares and money."""


@lru_cache(maxsize=256)
def locale_of(languages: str) -> Locale:
    """Return the first locale of a browser's Accept-Language that is known; English without one."""
    for part in languages[:200].split(","):
        try:
            return Locale.parse(part.partition(";")[0].strip(), sep="-")
        except (ValueError, TypeError, UnknownLocaleError):
            continue
    return ENGLISH


def localised(value: float, digits: int) -> str:
    """Return a number with this many digits after the point, grouped and pointed as the person is used to."""
    if abs(value) >= _DIGITS_BELOW:
        return f"{value:.6g}"
    locale = LOCALE.get()
    pattern = locale.decimal_formats[None].pattern.partition(".")[0] + ("." + "0" * digits if digits else "")
    # A locale's minus may come with a character that turns the direction.
    text = format_decimal(Decimal(f"{abs(value):.{digits}f}"), pattern, locale)
    return f"-{text}" if value < 0 else text


def time_tag(time_ms: int | None, form: str = "%Y-%m-%d %H:%M") -> str:
    """Return a time in UTC as an element; the script of the pages writes the person's local time beside it."""
    if time_ms is None or (text := time_text(time_ms, form)) == str(time_ms):
        return "–" if time_ms is None else str(time_ms)
    exact = time_text(time_ms, "%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}">{} UTC</time>').format(exact, text)


def second_tag(time_ms: int | None) -> str:
    """Return a time in UTC to the second as an element."""
    return time_tag(time_ms, "%Y-%m-%d %H:%M:%S")


def second_text(time_ms: int | None) -> str:
    """Return a time in UTC to the second: `2026-10-01 08:30:15`; a dash for None."""
    return time_text(time_ms, "%Y-%m-%d %H:%M:%S")


def time_text(time_ms: int | None, form: str = "%Y-%m-%d %H:%M") -> str:
    """Return a time in UTC, to the minute by default: `2026-10-01 08:30`; a dash for None."""
    if time_ms is None:
        return "–"
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime(form)
    except (ValueError, OverflowError, OSError):
        return str(time_ms)


def ago(length_ms: int) -> str:
    """Return a length of time in its largest unit: `25 min`, `3 h`, `2 d`."""
    if length_ms < _MINUTE_MS:
        return f"{max(0, length_ms) // 1000} s"
    if length_ms < 2 * _HOUR_MS:
        return f"{length_ms // _MINUTE_MS} min"
    return f"{length_ms // _HOUR_MS} h" if length_ms < 2 * _DAY_MS else f"{length_ms // _DAY_MS} d"


def percent(share: float | None) -> str:
    """Return a share with three digits: `12.5 %`; a dash for None."""
    return "–" if share is None or not math.isfinite(share) else f"{_short(100 * share, 3)} %"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with four digits or all before the point: `0.1267`, `123,456`; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    return localised(value, 0) if 10_000 <= abs(value) < 1e12 else _short(value, digits)


def _short(value: float, digits: int) -> str:
    """Return a number with at most this many digits; a very small or large one with its power of ten."""
    text = f"{value:.{digits}g}"
    return text if "e" in text else localised(value, len(text.partition(".")[2]))


def whole(value: int | None) -> str:
    """Return a whole number with commas; a dash for None."""
    return "–" if value is None else localised(value, 0)


def path_part(text: str) -> str:
    """Return a text as one part of an address."""
    return quote(text, safe="")


def title(text: str) -> str:
    """Return a name of the code in words: `model_owner` is `model owner`, `rule:large` is `rule: large`."""
    return text.replace("_", " ").replace(":", ": ")
