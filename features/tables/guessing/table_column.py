"""One column of a table, as a guess sees it: its name, its type and its values in the first rows.

trans_date: 2019-01-01 00:00:18, …      time_format "iso"
unix_time: 1371816865, …                is_number, is_whole, time_format "seconds"
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from paywarden.features.tables.columns.time_texts import read_times
from paywarden.features.tables.guessing.number_forms import MOST, PLAIN, NumberForm, is_plain_number
from paywarden.schemas.payment_fields import looks_like_card_number

VALUES_READ = 2000
"""Values of a column that are read to find how it writes numbers and times."""
# Letters that Unicode does not take apart.
_WITHOUT_STROKES = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ı": "i", "ß": "ss",
                                  "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th"})  # fmt: skip
_TIME_FORMATS = (
    "iso",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H.%M.%S",
    "%d.%m.%Y %H.%M",
    "%Y/%m/%d %H:%M:%S",
    "%Y-%m-%d %H.%M.%S",
    "%d-%m-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%d/%m/%Y %I:%M:%S %p",
    "%m/%d/%Y %I:%M %p",
    "%d/%m/%Y %I:%M %p",
    "%m/%d/%y %I:%M %p",
    "%m/%d/%y %H:%M",
    "%d/%m/%y %H:%M",
    "%d.%m.%y %H:%M",
    "%b %d, %Y %I:%M %p",
    "%b %d, %Y %H:%M:%S",
    "%d-%b-%Y %H:%M:%S",
    "%Y%m%d%H%M%S",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d.%m.%y",
    "%b %d, %Y",
)
# Epoch numbers of the years from 2000 to 2100.
_EPOCHS = (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))
EPOCH_UNITS = tuple(unit for unit, _ in _EPOCHS)


@dataclass
class TableColumn:
    """A column's name, type and values in the first rows."""

    name: str
    texts: list[str]
    rows: int
    kind: pa.DataType
    numbers: NumberForm = PLAIN
    plain: str = field(init=False)

    def __post_init__(self) -> None:
        name = _without_accents(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name)).lower()
        self.plain = re.sub(r"[^a-z0-9]+", "_", name).strip("_")
        self.distinct = Counter(self.texts)
        if self.numbers != PLAIN and self.share(self.numbers.fits) > MOST:
            self.texts = [self.numbers.plain(text) for text in self.texts]
            self.distinct = Counter(self.texts)

    def share(self, is_right: Callable[[str], bool]) -> float:
        """Returns which share of the values that are there are right."""
        right = sum(count for text, count in self.distinct.items() if is_right(text))
        return right / len(self.texts) if self.texts else 0.0

    @property
    def is_number(self) -> bool:
        return self.share(is_plain_number) > MOST

    @property
    def is_whole(self) -> bool:
        return self.share(lambda text: re.fullmatch(r"[+-]?[0-9]+", text) is not None) > MOST

    @property
    def holds_cards(self) -> bool:
        return self.share(looks_like_card_number) > 0.5

    @property
    def time_format(self) -> str:
        """Returns the format of times that are texts, or the unit of times that are numbers; empty for others."""
        if pa.types.is_timestamp(self.kind) or pa.types.is_date(self.kind):
            return "iso"
        if self.is_number:
            # A card number may look like a time in microseconds.
            if self.holds_cards:
                return ""
            numbers = [float(text) for text in self.distinct if is_plain_number(text)]
            within = [unit for unit, scale in _EPOCHS if all(9.46e8 * scale <= one < 4.1e9 * scale for one in numbers)]
            return within[0] if within else ""
        return next((form for form in _TIME_FORMATS if self.reads(form)), "")

    def reads(self, form: str) -> bool:
        """Returns whether nearly all values are times of a format. A day's do not tell day and month apart."""
        texts = list(self.distinct)
        return _reads(form, texts[:VALUES_READ]) and _reads(form, texts)


def _without_accents(text: str) -> str:
    """Returns a text with the letters below accents and strokes: "Händler" is "Handler", "Płatność" is "Platnosc"."""
    plain = unicodedata.normalize("NFKD", text.translate(_WITHOUT_STROKES))
    return "".join(one for one in plain if not unicodedata.combining(one))


def _reads(form: str, texts: Sequence[str]) -> bool:
    """Returns whether nearly all texts are times of a format."""
    return bool(texts) and bool((~read_times(pa.array(texts, pa.string()), form).is_wrong).mean() > MOST)
