"""`traceparent`: what is valid is kept to the bit, anything else counts as none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.scoring.requests.trace_context import TRACE_BYTES, ids_of, packed_trace, traceparent_of

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def nonzero(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size).filter(any)


@given(nonzero(16), nonzero(8), st.integers(0, 255))
def test_a_valid_header_comes_back(trace: bytes, span: bytes, flags: int) -> None:
    header = f"00-{trace.hex()}-{span.hex()}-{flags:02x}"
    packed = packed_trace(header.encode())
    assert len(packed) == TRACE_BYTES
    assert traceparent_of(packed) == header
    assert ids_of(packed) == {"trace_id": trace.hex(), "span_id": span.hex()}


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    later = VALID.replace("00-4b", "01-4b")
    assert traceparent_of(packed_trace(later.encode())) == VALID
    assert traceparent_of(packed_trace(f"{later}-more".encode())) == VALID


@pytest.mark.parametrize(
    "header",
    [
        *("", "00", VALID[:-1], VALID + "0", VALID + "-more", VALID.upper(), VALID.replace("-", "_"), f" {VALID}"),
        VALID.replace("00-4b", "ff-4b"),
        VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        VALID.replace("00f067aa0ba902b7", "0" * 16),
        f"{VALID},{VALID}",
        VALID.replace("00-4b", "01-4b") + "more",
    ],
)
def test_anything_else_is_no_trace(header: str) -> None:
    assert packed_trace(header.encode()) == b""


@given(st.binary(max_size=80))
def test_any_bytes_are_a_trace_or_none(header: bytes) -> None:
    packed = packed_trace(header)
    assert packed == b"" or len(packed) == TRACE_BYTES


def test_without_a_trace_there_is_no_header_and_no_id() -> None:
    assert traceparent_of(b"") is None
    assert ids_of(b"") == {}
