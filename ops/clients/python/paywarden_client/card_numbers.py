"""Tells a card's number from a token, by the rules of the service.

    "4111 1111 1111 1111"   13 to 19 digits with a right check digit: a card number
    "4111111111111112"      a wrong check digit: a token
    "tok-4111111111111111"  other characters: a token

A `card_id` of such digits is refused. Any other text is refused only if the digits also begin as the numbers of a card
network do, because one order number in ten has a right check digit by chance.
"""

from __future__ import annotations

# The first four digits (from, to) and the lengths (from, to) of card networks' numbers.
_NETWORKS = (
    (2200, 2204, 16, 19),
    (2221, 2720, 16, 16),
    (3000, 3059, 14, 19),
    (3095, 3095, 14, 19),
    (3400, 3499, 15, 15),
    (3528, 3589, 16, 19),
    (3600, 3699, 14, 19),
    (3700, 3799, 15, 15),
    (3800, 3999, 14, 19),
    (4000, 4999, 13, 19),
    (5000, 5099, 13, 19),
    (5100, 5599, 16, 16),
    (5600, 5899, 13, 19),
    (6000, 6999, 13, 19),
    (8171, 8171, 16, 19),
)
# The number that a doubled digit adds to the sum.
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def is_card_number(field: str, text: str) -> bool:
    """Returns whether a text of this field is refused as a card number."""
    # Nearly every token begins with a letter, or is too short.
    if len(text) < 13 or not (text[0].isdigit() or text[0] in " -"):
        return False
    digits = text.replace(" ", "").replace("-", "")
    if not (13 <= len(digits) <= 19 and digits.isascii() and digits.isdigit() and _passes_luhn(digits)):
        return False
    if field == "card_id":
        return True
    begin = int(digits[:4])
    return any(first <= begin <= last and least <= len(digits) <= most for first, last, least, most in _NETWORKS)


def _passes_luhn(digits: str) -> bool:
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[::2]) + sum(_DOUBLED[value] for value in values[1::2])) % 10 == 0
