"""Histories: what is read is what was written, in columns; what is not a history is refused in one clear line."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.history.history import (
    ABSENT_COLUMNS,
    OUTCOME_COLUMNS,
    PAYMENT_COLUMNS,
    PAYMENTS_FILE,
    Coded,
    final_labels,
    history_of_tables,
    labels_known_by,
    numbered_ids,
    read_history,
    require_past,
    write_history,
)
from paywarden.schemas.errors import Misconfigured

START_MS = 1_704_067_200_000
TEXT_COLUMNS = {
    "payment_id": ["p1", "p2", "p3"],
    "card_id": ["card-b", "card-a", "card-b"],
    "merchant_id": ["m1", "m1", "m2"],
    "device_id": [None, "d1", None],
    "ip": [None, "10.0.0.1", None],
    "currency": ["EUR", "JPY", "EUR"],
    "mcc": ["5411", None, "5812"],
    "country": ["DE", "JP", None],
    "channel": ["pos", "ecom", "pos"],
}


def times(*after_start_ms: int) -> pa.Array:
    return pa.array([START_MS + after_ms for after_ms in after_start_ms], pa.int64())


def payments_table(**changed: Any) -> pa.Table:
    columns: dict[str, Any] = {name: pa.array(values, pa.string()) for name, values in TEXT_COLUMNS.items()}
    columns |= {"event_time_ms": times(1000, 2000, 2000), "amount_minor": pa.array([1050, 0, 99])}
    columns |= {"utc_offset_minutes": pa.array([60, None, -300]), "declined": pa.array([None, True, False])}
    return pa.table({name: changed.get(name, columns[name]) for name in PAYMENT_COLUMNS})


def outcomes_table(**changed: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "payment_id": pa.array(["p3", "p1", "p3"]),
        "outcome_time_ms": times(3000, 4000, 5000),
        "label": pa.array(["fraud", "genuine", "genuine"]),
        "source": pa.array(["chargeback", None, "analyst"]),
    }
    return pa.table({name: changed.get(name, columns[name]) for name in OUTCOME_COLUMNS})


def strings(column: Coded) -> list[str | None]:
    names = column.names.to_pylist()
    return [names[code] if code >= 0 else None for code in column.codes]


def avro_fields(file_name: str) -> list[str]:
    schema = json.loads(resources.files("paywarden.schemas.avsc").joinpath(file_name).read_text(encoding="utf-8"))
    return [field["name"] for field in schema["fields"]]


def test_columns_are_the_fields_of_the_avro_schemas() -> None:
    assert list(PAYMENT_COLUMNS) == avro_fields("payments.avsc")
    assert list(OUTCOME_COLUMNS) == avro_fields("outcomes.avsc")


def test_a_written_history_is_read_back(tmp_path: Path) -> None:
    write_history(tmp_path / "new" / "folder", payments_table(), outcomes_table())
    history = read_history(tmp_path / "new" / "folder")
    assert len(history) == 3
    assert history.payment_id.to_pylist() == TEXT_COLUMNS["payment_id"]
    assert history.event_time_ms.tolist() == times(1000, 2000, 2000).to_pylist()
    assert history.amount_minor.tolist() == [1050, 0, 99]
    assert history.event_time_ms.dtype == history.amount_minor.dtype == np.int64
    assert history.outcome_payment.tolist() == [2, 0, 2]
    assert history.outcome_time_ms.tolist() == times(3000, 4000, 5000).to_pylist()
    assert history.outcome_fraud.tolist() == [True, False, False]


@pytest.mark.parametrize("name", sorted(set(TEXT_COLUMNS) - {"payment_id"}))
def test_codes_stand_for_the_strings_and_minus_one_for_none(name: str) -> None:
    history = history_of_tables(payments_table(), outcomes_table())
    column = getattr(history, name.removesuffix("_id"))
    assert strings(column) == TEXT_COLUMNS[name]
    assert column.codes.dtype == np.int32


def test_codes_do_not_depend_on_encoding_and_chunks() -> None:
    unused_and_unordered = pa.DictionaryArray.from_arrays(pa.array([2, 1, 2]), pa.array(["zz", "card-a", "card-b"]))
    chunked = pa.chunked_array([["card-b"], ["card-a", "card-b"]], pa.large_string())
    for encoded in (unused_and_unordered, chunked):
        card = history_of_tables(payments_table(card_id=encoded), outcomes_table()).card
        assert card.codes.tolist() == [1, 0, 1]
        assert card.names.to_pylist() == ["card-a", "card-b"]


def test_columns_beyond_ours_are_ignored(tmp_path: Path) -> None:
    write_history(tmp_path, payments_table(), outcomes_table())
    wider = payments_table().append_column("scenario", pa.array([0, 1, 0]))
    pq.write_table(wider, tmp_path / PAYMENTS_FILE)
    assert len(read_history(tmp_path)) == 3


def test_a_history_may_be_empty(tmp_path: Path) -> None:
    write_history(tmp_path, payments_table().slice(0, 0), outcomes_table().slice(0, 0))
    history = read_history(tmp_path)
    assert len(history) == 0
    assert len(history.card.names) == 0
    assert final_labels(history).tolist() == []


# Files from before these columns existed, or from a writer that does not know them.


def test_a_missing_optional_column_is_unknown(tmp_path: Path) -> None:
    write_history(tmp_path, payments_table().drop_columns(list(ABSENT_COLUMNS)), outcomes_table())
    assert set(pq.read_schema(tmp_path / PAYMENTS_FILE).names) == set(PAYMENT_COLUMNS) - set(ABSENT_COLUMNS)
    history = read_history(tmp_path)
    assert history.utc_offset_code.tolist() == history.declined_code.tolist() == [0, 0, 0]
    assert len(history) == 3


@pytest.mark.parametrize("nothing", [pa.nulls(3), pa.nulls(3, pa.string())])
def test_optional_texts_that_were_never_set_are_not_known(nothing: pa.Array) -> None:
    history = history_of_tables(payments_table(country=nothing), outcomes_table())
    assert history.country.codes.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("kind", [pa.null(), pa.int16(), pa.int64(), pa.uint8()])
def test_offsets_that_were_never_set_are_not_known(kind: pa.DataType) -> None:
    history = history_of_tables(payments_table(utc_offset_minutes=pa.nulls(3, kind)), outcomes_table())
    assert history.utc_offset_code.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", [pa.null(), pa.bool_()])
def test_flags_that_were_never_set_are_not_known(kind: pa.DataType) -> None:
    history = history_of_tables(payments_table(declined=pa.nulls(3, kind)), outcomes_table())
    assert history.declined_code.tolist() == [0, 0, 0]


@pytest.mark.parametrize("minutes", [1440, -1440, 2**31, -(2**31), 2**63 - 1, -(2**63), -(2**63) + 1])
def test_an_offset_that_no_clock_has_is_refused(minutes: int) -> None:
    # The smallest number there is has no positive counterpart: it used to count as an offset.
    table = payments_table(utc_offset_minutes=pa.array([None, 0, minutes], pa.int64()))
    with pytest.raises(Misconfigured, match=r"^payments\.parquet, row 2: utc_offset_minutes is (above|below) "):
        history_of_tables(table, outcomes_table())


def test_the_column_of_a_key_field_is_found_by_its_name() -> None:
    history = history_of_tables(payments_table(), outcomes_table())
    assert history.coded("merchant_id") is history.merchant
    assert history.coded("ip") is history.ip
    assert history.coded("channel") is history.channel


WRONG_PAYMENTS = {
    "amounts that are not whole numbers": (
        {"amount_minor": pa.array([1.0, float("nan"), 3.0])},
        "amount_minor must be integer, got double",
    ),
    "ids that are numbers": ({"card_id": pa.array([1, 2, 3])}, "card_id must be string, got int64"),
    "a payment without a card": (
        {"card_id": pa.array(["a", None, "a"])},
        "card_id must not be null, and 1 rows are",
    ),
    "an amount that is null": ({"amount_minor": pa.array([1, None, 3])}, "amount_minor must not be null"),
    "payments out of order": ({"event_time_ms": times(1, 3, 2)}, "sorted by event_time_ms; row 2 "),
    "a payment id used twice": ({"payment_id": pa.array(["p1", "p3", "p3"])}, "payment_id must be unique; row 2 "),
    "numbers that do not fit": ({"amount_minor": pa.array([1, 2, 2**63], pa.uint64())}, "does not fit 64 bits"),
    "times that do not fit": (
        {"event_time_ms": pa.array([START_MS, START_MS, 2**63], pa.uint64())},
        "does not fit 64 bits",
    ),
    "a country by its name": (
        {"country": pa.array(["DE", None, "Germany"])},
        r"row 2: country is text of 7 characters; wanted two capital letters, A to Z \(ISO 3166-1 alpha-2\)",
    ),
    "amounts as decimals": (
        {"amount_minor": pa.array([1, 2, 3], pa.decimal128(10, 2))},
        "amount_minor must be integer, got decimal",
    ),
    "amounts of which nothing is known": ({"amount_minor": pa.nulls(3)}, "amount_minor must be integer, got null"),
    "a payment without a currency": (
        {"currency": pa.array(["EUR", None, "EUR"])},
        "currency must not be null, and 1 rows are",
    ),
    "offsets that are fractions": (
        {"utc_offset_minutes": pa.array([0.5, 1.0, float("nan")])},
        "utc_offset_minutes must be integer or null, got double",
    ),
    "offsets that do not fit": ({"utc_offset_minutes": pa.array([1, 2, 2**63], pa.uint64())}, "does not fit 64 bits"),
    "flags that are numbers": ({"declined": pa.array([0, 1, 1])}, "declined must be boolean or null, got int64"),
    "flags that are texts": ({"declined": pa.array(["no", "yes", ""])}, "declined must be boolean or null, got string"),
    "countries that are numbers": ({"country": pa.array([1, 2, 3])}, "country must be string or null, got int64"),
}


@pytest.mark.parametrize("case", list(WRONG_PAYMENTS))
def test_invalid_payments_are_refused(case: str, tmp_path: Path) -> None:
    changed, message = WRONG_PAYMENTS[case]
    with pytest.raises(Misconfigured, match=message):
        write_history(tmp_path, payments_table(**changed), outcomes_table())
    assert list(tmp_path.iterdir()) == []


WRONG_OUTCOMES = {
    "an outcome without a payment": (
        {"payment_id": pa.array(["p3", "p9", "p3"])},
        "1 of 3 outcomes are about payments that",
    ),
    "outcomes out of order": ({"outcome_time_ms": times(3000, 5000, 4000)}, "sorted by outcome_time_ms; row 2"),
    "an outcome before its payment": ({"outcome_time_ms": times(1999, 4000, 5000)}, "before its payment"),
    "an unknown label": ({"label": pa.array(["fraud", "genuine", "maybe"])}, "label must be fraud or genuine, and 1"),
}


@pytest.mark.parametrize("case", list(WRONG_OUTCOMES))
def test_invalid_outcomes_are_refused(case: str) -> None:
    changed, message = WRONG_OUTCOMES[case]
    with pytest.raises(Misconfigured, match=message):
        history_of_tables(payments_table(), outcomes_table(**changed))


def test_refusals_name_no_id() -> None:
    with pytest.raises(Misconfigured) as refused:
        history_of_tables(payments_table(payment_id=pa.array(["secret", "secret", "p3"])), outcomes_table())
    assert "secret" not in str(refused.value)


def test_outcomes_of_the_future_are_refused_where_now_is_known() -> None:
    history = history_of_tables(payments_table(), outcomes_table())
    require_past(history, START_MS + 5000)
    with pytest.raises(Misconfigured, match=r"outcome_time_ms must not be later than now; row 2 breaks that"):
        require_past(history, START_MS + 4999)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(Misconfigured, match="cannot write a history to"):
        write_history(tmp_path / "taken", payments_table(), outcomes_table())


def test_a_label_is_known_from_its_own_millisecond_and_corrected_later() -> None:
    history = history_of_tables(payments_table(), outcomes_table())
    assert labels_known_by(history, START_MS + 2999).tolist() == [-1, -1, -1]
    assert labels_known_by(history, START_MS + 3000).tolist() == [-1, -1, 1]
    assert labels_known_by(history, START_MS + 4999).tolist() == [0, -1, 1]
    assert labels_known_by(history, START_MS + 5000).tolist() == [0, -1, 0]
    assert final_labels(history).tolist() == [0, -1, 0]


@given(
    said=st.lists(st.tuples(st.integers(0, 2), st.integers(2000, 2009), st.booleans()), max_size=30),
    asked_ms=st.integers(1998, 2011),
)
def test_labels_known_by_agree_with_hearing_outcomes_one_by_one(
    said: list[tuple[int, int, bool]], asked_ms: int
) -> None:
    said.sort(key=lambda outcome: outcome[1])
    outcomes = pa.table(
        {
            "payment_id": pa.array([f"p{row + 1}" for row, _, _ in said], pa.string()),
            "outcome_time_ms": times(*(time_ms for _, time_ms, _ in said)),
            "label": pa.array(["fraud" if fraud else "genuine" for _, _, fraud in said], pa.string()),
            "source": pa.nulls(len(said), pa.string()),
        }
    )
    heard = [-1, -1, -1]
    for row, time_ms, fraud in said:
        if time_ms <= asked_ms:
            heard[row] = int(fraud)
    assert labels_known_by(history_of_tables(payments_table(), outcomes), START_MS + asked_ms).tolist() == heard


@given(numbers=st.lists(st.integers(0, 9999), max_size=20), prefix=st.sampled_from(["", "p", "card-"]))
def test_numbered_ids_are_padded_and_sort_as_their_numbers(numbers: list[int], prefix: str) -> None:
    ids = numbered_ids(prefix, numbers, width=4).to_pylist()
    assert ids == [f"{prefix}{number:04d}" for number in numbers]
    assert sorted(ids) == numbered_ids(prefix, sorted(numbers), width=4).to_pylist()


@pytest.mark.parametrize("number", [-1, 10_000])
def test_numbers_that_do_not_fit_an_id_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 9999"):
        numbered_ids("p", [number], width=4)


def test_payments_that_nobody_will_label_are_kept_apart(tmp_path: Path) -> None:
    table = payments_table().append_column("never_labelled", pa.array([True, None, False]))
    write_history(tmp_path, table, outcomes_table())
    history = read_history(tmp_path)
    assert history.never_labelled is not None
    assert history.never_labelled.tolist() == [True, False, False]
    assert history_of_tables(payments_table(), outcomes_table()).never_labelled is None
    numbers = payments_table().append_column("never_labelled", pa.array([1, 0, 0]))
    with pytest.raises(Misconfigured, match="column never_labelled must be boolean or null"):
        history_of_tables(numbers, outcomes_table())


def test_a_propensity_is_kept_and_1_where_the_row_has_none(tmp_path: Path) -> None:
    table = payments_table().append_column("propensity", pa.array([0.25, None, 1.0]))
    write_history(tmp_path, table, outcomes_table())
    history = read_history(tmp_path)
    assert history.propensity is not None
    assert history.propensity.tolist() == [0.25, 1.0, 1.0]
    assert history_of_tables(payments_table(), outcomes_table()).propensity is None
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(Misconfigured, match=r"payments.parquet, row 1: propensity must be above 0 and at most 1"):
            history_of_tables(
                payments_table().append_column("propensity", pa.array([0.25, wrong, 1.0])), outcomes_table()
            )
