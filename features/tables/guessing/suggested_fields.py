"""A first payment.py, with fields of one's own for the columns that no field of a payment took, and a catalogue.py.

merch_lat, merch_long    merch = coordinates("merch", 1)
dob: 1968-03-19          dob = time("dob", 3, earliest="1900-01-01", personal=True)
category: among 14       own_category = category("own_category", 4, among=[…]): `category` is a word of the file
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping

from paywarden.features.kernel import NUMBER_MAX_IN_SUMS
from paywarden.features.tables.guessing.column_names import LATITUDE, LONGITUDE, place_of
from paywarden.features.tables.guessing.number_forms import MOST, is_plain_number
from paywarden.features.tables.guessing.quoting import quoted, quoted_list
from paywarden.features.tables.guessing.table_column import TableColumn
from paywarden.schemas.payment_fields import (
    DECLARED_MAX,
    ID_BYTES_MAX,
    PATTERNS,
    WHOLE_MAX,
    Form,
    PaymentFields,
    is_address,
)

CATEGORIES_MAX = 30
"""A column with more values is a text."""
OWN = "own_"
"""What the name of a suggested field begins with if the column's own name is a word already."""
# Fields that a guess makes. A few numbers are left for later fields.
_DECLARED_GUESSED = 60
# Each takes room in the profile of every card.
_MEMORIES_MAX = 8
# The names of columns of times, and of columns of a date of birth.
_TIME_NAME = re.compile(r"time|date|(^|_)(ts|at|on|unix|epoch|since|opened|created)($|_)")
_BIRTH_NAME = re.compile(r"birth|born|(^|_)dob($|_)")
_EARLY_YEAR = re.compile(r"(?<![0-9])19[0-9]{2}(?![0-9])")


class SuggestedFields:
    """Suggests fields for columns, by name, beside the `fields` that a payment has already."""

    def __init__(self, columns: Mapping[str, TableColumn], fields: PaymentFields) -> None:
        self._left, self._fields = columns, fields
        # The features of the suggested fields, one a line, and the names that they need.
        self._features: list[str] = []
        self._names: list[str] = []

    def payment(self) -> tuple[str, int, int]:
        """Returns a payment.py for the columns left, how many of them it has, and for how many it has no room."""
        chosen: dict[str, tuple[str, str, str]] = {}
        left_out = 0
        taken = {*self._fields.by_name, *keyword.kwlist}
        places, fields = self._places(), 0
        for column in self._left.values():
            name = column.plain if column.plain[:1].isalpha() else f"field_{column.plain}"
            word, rest, columns = *self._declared(column, name), f"column {column.name!r}"
            if column.name in places:
                (name, columns), word, rest = places[column.name], "coordinates", ""
            name = name[:50] if name not in taken else f"{OWN}{name}"[:50]
            if not word or name in chosen:
                continue
            more = 2 if word == "coordinates" else 1
            if fields + more <= _DECLARED_GUESSED:
                chosen[name] = word, rest, columns
                fields += more
            else:
                left_out += more
        lines, names, words = list[str](), list[str](), [word for word, _, _ in chosen.values()]
        number = 1
        for place, (name, (word, rest, columns)) in enumerate(chosen.items(), 1):
            # A field is a variable of payment.py. The words of its other lines must stay words.
            name = f"{OWN}{name}"[:63] if name in words[place:] else name
            names.append(name)
            lines.append(f"{name} = {word}({quoted(name)}, {number}{rest})    # {columns}")
            self._add_feature(name, word, rest)
            # Coordinates are two fields.
            number += 2 if word == "coordinates" else 1
        if left_out:
            lines.append(f"# {left_out} columns more could be fields. A payment has at most {DECLARED_MAX}: choose.")
        if not names:
            return "", 0, 0
        head = [
            '"""Fields of our own: a first guess. A number belongs to its field for ever."""',
            "",
            f"from paywarden.features.catalogue.fields import Payment, {', '.join(sorted(set(words)))}",
        ]
        payment = "\n".join([*head, "", *lines, "", f"PAYMENT = Payment({', '.join(names)})", ""])
        return payment, fields, left_out

    def catalogue(self) -> str:
        """Returns a catalogue.py: the packaged features, and one of each field that `payment` has suggested."""
        return "\n".join(
            [
                '"""The packaged features, and one of each field of our own: a first guess."""',
                "",
                f"from payment import {', '.join(['PAYMENT', *self._names])}",
                "",
                "from paywarden.features.catalogue.catalogue import CATALOGUE as PACKAGED",
                "from paywarden.features.catalogue.catalogue import card",
                "from paywarden.features.catalogue.entity import Catalogue, request",
                "",
                "CATALOGUE = Catalogue(",
                "    entities=PACKAGED.entities,",
                "    features=(",
                "        *PACKAGED.features,",
                *(f"        {feature}," for feature in self._features),
                "    ),",
                "    payment=PAYMENT,",
                '    label_delay="7d",',
                ")",
                "",
            ]
        )

    def _add_feature(self, name: str, word: str, rest: str) -> None:
        feature = quoted(f"{OWN}{name}"[:60])
        made = {
            "flag": f"request.holds({feature}, {name})",
            "category": f"request.category({feature}, {name}, {rest.partition('among=')[2]})",
            "integer": f"request.number({feature}, {name})",
            "decimal": f"request.number({feature}, {name})",
            "time": f'request.seconds_since({feature}, {name}, most="365d")',
            "coordinates": f"card.distance_to_last_km({feature}, {name})",
        }.get(word, f"card.is_new({feature}, {name}, among=8)")
        if made.startswith("card.") and sum(one.startswith("card.") for one in self._features) == _MEMORIES_MAX:
            return
        self._names.append(name)
        self._features.append(made)

    def _places(self) -> dict[str, tuple[str, str]]:
        """Returns the place that a column is a side of, and both columns' names in words, by the column's name."""
        sides: list[dict[str, TableColumn]] = []
        for side in (LATITUDE, LONGITUDE):
            holds_side = [
                one
                for one in self._left.values()
                if re.fullmatch(side.pattern, one.plain) and one.is_number and one.share(side.holds) > MOST
            ]
            sides.append({place_of(one.plain, side): one for one in holds_side})
        latitudes, longitudes = sides
        found: dict[str, tuple[str, str]] = {}
        for place in latitudes.keys() & longitudes.keys():
            pair = latitudes[place], longitudes[place]
            both = f"columns {pair[0].name!r} and {pair[1].name!r}"
            found |= {one.name: (place, both) for one in pair}
        return found

    def _declared(self, column: TableColumn, name: str) -> tuple[str, str]:
        """Returns a word of features/catalogue/fields.py and its other arguments; empty for a column without use."""
        if len(column.texts) < column.rows * 0.01 or len(column.distinct) < 2:
            return "", ""
        for side in (LATITUDE, LONGITUDE):
            if column.is_number and re.fullmatch(side.pattern, name) and column.share(side.holds) > MOST:
                most = side.degrees
                return "decimal", f', unit="degrees", least=-{most}, most={most}, decimals=6, personal=True'
        if re.search(r"(^|_)(bin|iin)$", name) and column.share(_is_bin) > MOST:
            return "bin_number", ""
        if column.holds_cards:
            return "", ""
        if {text.lower() for text in column.distinct} <= {"0", "1", "true", "false", "yes", "no", "y", "n", "t", "f"}:
            return "flag", ""
        if column.share(lambda text: re.fullmatch(PATTERNS[Form.EMAIL], text) is not None) > MOST:
            return "email", ""
        if not column.is_number and column.share(is_address) > MOST:
            return "address", ""
        if column.time_format and (not column.is_number or _TIME_NAME.search(name)):
            is_early = not column.is_number and any(map(_EARLY_YEAR.search, column.distinct))
            earliest = ', earliest="1900-01-01"' if is_early else ""
            return "time", earliest + (", personal=True" if _BIRTH_NAME.search(name) else "")
        if re.search("country", name) and column.share(lambda text: re.fullmatch("[A-Z]{2}", text) is not None) > MOST:
            return "country", ""
        if column.is_number:
            return self._number(column, name)
        # Rows with line breaks or long notes would be refused.
        if column.share(is_word) <= MOST:
            return "", ""
        if len(column.distinct) <= CATEGORIES_MAX:
            return "category", f", among={quoted_list(sorted(filter(is_word, column.distinct)))}"
        return "text", ", personal=True"

    def _number(self, column: TableColumn, name: str) -> tuple[str, str]:
        if re.search(r"(^|_)(id|num|no|number|zip|code|acct|account)$", name):
            return "text", ", personal=True"
        numbers = [float(text) for text in column.distinct if is_plain_number(text)]
        finest = 0 if column.is_whole else max(len(text.partition(".")[2]) for text in column.distinct)
        decimals = min(6, finest)
        # A field holds 2**53 units of its last digit.
        while decimals and 10 * max(map(abs, numbers)) * 10**decimals > WHOLE_MAX:
            decimals -= 1
        bounds = [_beyond(one, 10**decimals) for one in numbers]
        least, most = min(0, *bounds), max(1, *bounds)
        if column.is_whole:
            return "integer", f', unit="count", least={least}, most={most}'
        return "decimal", f', unit="units", least={least}, most={most}, decimals={decimals}'


def _beyond(number: float, scale: int) -> int:
    """Returns a round bound of a field with 1 / scale as its last digit: a number that was seen is within it.

    It is ten times further out, or as far as sums allow (kernel.NUMBER_MAX_IN_SUMS).
    """
    next_round = int(f"1{'0' * len(str(int(abs(number))))}")
    size = next((one for one in (10 * next_round, next_round) if one * scale <= NUMBER_MAX_IN_SUMS), next_round)
    size = min(size, WHOLE_MAX // scale)
    return -size if number < 0 else size


def is_word(text: str) -> bool:
    """Returns whether a text could be the value of a field."""
    return text.isprintable() and len(text.encode()) <= ID_BYTES_MAX


def _is_bin(text: str) -> bool:
    return re.fullmatch(PATTERNS[Form.BIN], text) is not None
