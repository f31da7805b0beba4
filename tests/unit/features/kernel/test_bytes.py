"""The compiled toolkit for bytes: varints, zigzag, checksums, ranges and frames, against the obvious way."""

from __future__ import annotations

import ctypes
import zlib
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features.kernel.plan_schema import PlanRecollection, positions, section
from paywarden.features.kernel.toolkit import byte_ranges
from paywarden.features.kernel.toolkit.byte_ranges import (
    capital_letters,
    card_digits,
    copy_bytes,
    is_ascii,
    is_printable,
    may_be_card_number,
    passes_luhn,
)
from paywarden.features.kernel.toolkit.crc import PART_BYTES, crc32_of_record, crc32_of_text
from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.features.kernel.toolkit.varint import (
    decode_varints,
    decode_zigzag,
    encode_varint,
    encode_zigzag,
    read_varint,
    unzigzag,
    varint_size,
    write_varint,
    zigzag,
)
from paywarden.schemas import payment_fields
from paywarden.schemas.payment_fields import looks_like_card_number

INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 127, 128, 2**14 - 1, 2**14, 2**62, -1])
NUMBERS = st.integers(0, 2**63 - 1) | st.sampled_from([0, 127, 128, 2**14 - 1, 2**14, 2**56, 2**63 - 1])


def buffer(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(data), dtype=np.uint8)


def signed(number: int) -> int:
    """64 bits as an int64."""
    return number - 2**64 if number >= 2**63 else number


@given(NUMBERS)
def test_a_varint_is_written_and_read_as_the_plain_code_does(number: int) -> None:
    encoded = encode_varint(number)
    out = buffer(bytes(12))
    assert write_varint(out, 1, number) == 1 + len(encoded)
    assert varint_size(number) == len(encoded)
    assert out[1 : 1 + len(encoded)].tobytes() == encoded
    assert read_varint(out, 1, len(out)) == (number, 1 + len(encoded))
    assert [*decode_varints(encoded)] == [number]


def test_a_varint_is_as_protobuf_documents_it() -> None:
    assert encode_varint(300) == b"\xac\x02"
    assert [*decode_varints(b"\xac\x02\x00\x7f")] == [300, 0, 127]


@given(st.integers(0, 2**64 - 1))
def test_a_varint_of_64_bits_is_read_whole(number: int) -> None:
    encoded = encode_varint(number)
    assert read_varint(buffer(encoded), 0, len(encoded)) == (signed(number), len(encoded))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 9 + b"\x02", b"\xff" * 10 + b"\x01"])
def test_a_varint_without_an_end_or_over_64_bits_is_refused(data: bytes) -> None:
    # The bytes behind are not its own.
    assert read_varint(buffer(data + b"\x01"), 0, len(data))[1] == -1


@given(st.integers(0, 2**63 - 1), st.integers(1, 9))
def test_a_varint_that_is_longer_than_it_must_be_is_refused(number: int, more: int) -> None:
    encoded = encode_varint(number)
    longer = encoded[:-1] + bytes([encoded[-1] | 128]) + b"\x80" * (more - 1) + b"\x00"
    assert read_varint(buffer(longer), 0, len(longer))[1] == -1


def test_plain_varints_without_an_end_are_refused() -> None:
    with pytest.raises(ValueError, match="no end"):
        [*decode_varints(b"\x01\x80")]


@given(INT64)
def test_zigzag_goes_there_and_back(number: int) -> None:
    coded = 2 * number if number >= 0 else -2 * number - 1
    assert encode_zigzag(number) == coded
    assert zigzag(number) == signed(coded)
    assert unzigzag(signed(coded)) == decode_zigzag(coded) == number


@given(st.binary(max_size=300), st.integers(0, 3))
def test_both_checksums_are_zlibs(data: bytes, start: int) -> None:
    array = buffer(bytes(start) + data + b"\0" * 8)
    for checksum in (crc32_of_text, crc32_of_record):
        assert checksum(array, start, start + len(data)) == zlib.crc32(data)


def test_the_checksum_of_a_record_of_any_length_is_zlibs() -> None:
    data = np.random.default_rng(1).bytes(6 * 3 * PART_BYTES)
    for size in range(len(data) - 2):
        assert crc32_of_record(buffer(data), 2, 2 + size) == zlib.crc32(data[2 : 2 + size])


@given(st.binary(max_size=20) | st.text("ABZaz [\x7f\x80", max_size=6).map(str.encode))
def test_checks_of_byte_ranges_agree_with_python(data: bytes) -> None:
    array = buffer(b"\xff" + data + b"\xff")
    end = 1 + len(data)
    assert is_ascii(array, 1, end) == data.isascii()
    assert is_printable(array, 1, end) == (data.isascii() and data.decode("latin-1").isprintable())
    out = buffer(bytes(len(array)))
    assert copy_bytes(array, 1, len(data), out, 2 if len(data) < 20 else 0) == len(data) + (2 if len(data) < 20 else 0)
    assert data in out.tobytes()


@given(st.text("0123456789", min_size=13, max_size=19), st.integers(0, 3))
def test_a_check_digit_is_right_where_python_says_so(digits: str, grouped: int) -> None:
    text = "".join(digit + " -"[:grouped] * (place % 4 == 3) for place, digit in enumerate(digits))
    data = buffer(b"7" + text.encode() + b"7")
    end = 1 + len(text)
    assert card_digits(data, 1, end) == len(digits)
    assert passes_luhn(data, 1, end) == looks_like_card_number(digits)
    assert may_be_card_number(data, 1, end) == looks_like_card_number(digits)


def test_lengths_of_card_numbers_are_those_of_the_table() -> None:
    table = payment_fields.CARD_DIGITS_MIN, payment_fields.CARD_DIGITS_MAX
    assert table == (byte_ranges.CARD_DIGITS_MIN, byte_ranges.CARD_DIGITS_MAX)


@pytest.mark.parametrize("text", [b"", b"tok_4111111111111111", b"4111111111111111x", b"4111.1111", b" - "])
def test_other_texts_have_no_digits_of_a_card(text: bytes) -> None:
    assert card_digits(buffer(text + b"1"), 0, len(text)) == 0


@pytest.mark.parametrize(
    ("text", "code"), [(b"A", 0), (b"DE", 26 * 3 + 4), (b"ZZZ", 26**3 - 1), (b"D1", -1), (b"de", -1)]
)
def test_capital_letters_are_digits_of_base_26(text: bytes, code: int) -> None:
    assert capital_letters(buffer(text), 0, len(text)) == code


# Frames and sections.


class Slots(NamedTuple):
    first: int
    second: int


def test_a_frame_holds_the_address_and_size_of_each_array_by_its_slot() -> None:
    first, second = np.arange(3), np.zeros((2, 5))
    frame = Frame(positions(Slots), {"second": second, "first": first})
    assert slots_of(frame) == [first.ctypes.data, 3, second.ctypes.data, 10]
    larger = np.arange(9)
    frame.put("first", larger)
    assert slots_of(frame) == [larger.ctypes.data, 9, second.ctypes.data, 10]


def slots_of(frame: Frame) -> list[int]:
    return list((ctypes.c_int64 * 4).from_address(frame.address))


@pytest.mark.parametrize("names", [["first"], ["first", "second", "third"], ["first", "other"]])
def test_a_frame_takes_an_array_for_each_slot_and_no_other(names: list[str]) -> None:
    with pytest.raises(AssertionError):
        Frame(positions(Slots), {name: np.zeros(1) for name in names})


def test_a_frame_takes_no_array_with_gaps() -> None:
    with pytest.raises(AssertionError):
        Frame(positions(Slots), {"first": np.zeros(4)[::2], "second": np.zeros(1)})


def test_a_section_is_read_by_the_names_it_is_written_by() -> None:
    words = np.array([9, 9, *PlanRecollection(kind=3, slot=70, place=1, field=2), 9])
    assert section(words, PlanRecollection, 2) == PlanRecollection(kind=3, slot=70, place=1, field=2)
    assert words[2 + positions(PlanRecollection).slot] == 70
