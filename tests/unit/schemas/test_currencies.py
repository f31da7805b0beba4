"""The table of ISO 4217 against Java's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from paywarden.schemas.currencies import MINOR_DIGITS
from tests.services.fetch import tool

# Java 17 is older than these currencies, or has none for accounts alone.
_NOT_IN_JAVA = {"SLE", "UYW", "VED", "XAD", "XCG", "ZWG"}
_PROGRAM = """
public class Currencies {
    public static void main(String[] codes) {
        for (String code : codes) {
            try {
                System.out.println(code + " " + java.util.Currency.getInstance(code).getDefaultFractionDigits());
            } catch (IllegalArgumentException unknown) { }
        }
    }
}
"""


def test_every_currency_has_the_minor_digits_of_iso_4217(tmp_path: Path) -> None:
    program = tmp_path / "Currencies.java"
    program.write_text(_PROGRAM, encoding="utf-8")
    done = subprocess.run([tool("java"), str(program), *MINOR_DIGITS], capture_output=True, check=True, text=True)
    of_java = dict(line.split() for line in done.stdout.splitlines())
    assert MINOR_DIGITS.keys() - of_java.keys() <= _NOT_IN_JAVA
    assert {code: str(MINOR_DIGITS[code]) for code in of_java} == of_java


@pytest.mark.parametrize("code", ["XXX", "XAU", "XTS", "XXQ", "eur", "OMN", ""])
def test_a_code_without_a_minor_unit_is_no_currency(code: str) -> None:
    assert code not in MINOR_DIGITS
