"""A first mapping, guessed from names and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paywarden.features.tables.guess import guess_mapping
from paywarden.features.tables.mapping import parse_mapping
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE

CARDS = ("4111111111111111", "5500005555555559", "378282246310005")
HEAD = (
    "trans_num;trans_date_trans_time;cc_num;merchant;category;amt;gender;lat;merch_long;is_fraud;buyer_email;unix_time"
)


def table(folder: Path, *, head: str = HEAD) -> Path:
    path = folder / "table.csv"
    rows = [
        f"t{n};0{1 + n % 9}/14/2024 12:00:{n:02};{CARDS[n % 3]};m{n % 5};{'ab'[n % 2]}_net;{n},5{n % 10};F;52.5;NULL;"
        f"{int(n == 3)};a{n}@example.com;{1_705_000_000 + n}"
        for n in range(30)
    ]
    path.write_text("\n".join([head, *rows]).replace(",", "."), encoding="utf-8")
    return path


def test_a_guess_is_a_mapping_that_can_be_read(tmp_path: Path) -> None:
    guessed = guess_mapping(table(tmp_path), TABLE_ALONE)
    mapping = parse_mapping(guessed.mapping, "guess")
    assert mapping.fields["payment_id"].column == "trans_num"
    assert mapping.fields["event_time_ms"].column == "trans_date_trans_time"
    assert mapping.fields["event_time_ms"].time.format == "%m/%d/%Y %H:%M:%S"
    assert (mapping.fields["card_id"].column, mapping.fields["card_id"].hash) == ("cc_num", True)
    assert (mapping.fields["merchant_id"].column, mapping.fields["amount_minor"].column) == ("merchant", "amt")
    assert (mapping.input.delimiter, mapping.input.missing) == (";", ("NULL",))
    assert mapping.label is not None
    assert (mapping.label.column, mapping.label.fraud, mapping.label.genuine) == ("is_fraud", ("1",), ("0",))
    assert not any(card in guessed.mapping + guessed.payment for card in CARDS)


def test_columns_that_no_field_covers_become_declared_fields(tmp_path: Path) -> None:
    guessed = guess_mapping(table(tmp_path), TABLE_ALONE)
    names: dict[str, Any] = {}
    exec(compile(guessed.payment, str(tmp_path / "payment.py"), "exec"), names)  # noqa: S102 - what we wrote ourselves
    fields = {field.name: field.form.value for field in names["PAYMENT"].fields.declared}
    assert fields == {"category": "id", "buyer_email": "e-mail", "unix_time": "integer"}
    assert names["PAYMENT"].fields.by_name["category"].among == ("a_net", "b_net")


def test_a_table_without_what_a_payment_needs_says_so(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,x\n2,y\n")
    guessed = guess_mapping(tmp_path / "table.csv", TABLE_ALONE)
    assert '# event_time_ms = { column = "?" }    # no column holds times' in guessed.mapping
    assert "# [label]    # no column says what was fraud" in guessed.mapping
    with pytest.raises(Misconfigured, match="must say where event_time_ms, amount_minor comes from"):
        parse_mapping(guessed.mapping, "guess")
