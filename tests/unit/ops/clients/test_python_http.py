"""The Python client's reading of answers and its kept connections, without a service."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden_client.connections import Address, Addresses
from paywarden_client.errors import WrongSettings
from paywarden_client.http1 import AnswerError, AnswerReader
from paywarden_client.settings import ClientSettings

BODY = b'{"payment_id": "p"}'
CHUNKED = b"%x\r\n%b\r\n%x;name=value\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (5, BODY[:5], len(BODY) - 5, BODY[5:])
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n%b" % (len(BODY), BODY),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    b"HTTP/1.0 200 OK\r\nConnection: x, Keep-Alive\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
)


def parts_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = sorted({cut % len(data) for cut in cuts} - {0})
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 1000), max_size=6))
def test_an_answer_is_the_same_in_whatever_parts_it_arrives(answer: bytes, cuts: list[int]) -> None:
    reader = AnswerReader()
    *before, last = parts_of(answer, cuts)
    assert not any(reader.feed(part) for part in before)
    assert reader.feed(last)
    assert (reader.status, reader.body, reader.keeps, reader.says_close) == (200, BODY, True, False)


@given(st.binary(max_size=60), st.sampled_from(ANSWERS), st.integers(0, 60))
def test_whatever_arrives_is_an_answer_or_an_error(junk: bytes, answer: bytes, at: int) -> None:
    reader = AnswerReader()
    with contextlib.suppress(AnswerError):
        reader.feed(answer[:at] + junk + answer[at:])
    reader.end()


def test_an_address_that_failed_is_left_out_for_a_second_unless_all_have() -> None:
    one, other = ((socket.AF_INET, (host, 1)) for host in ("127.0.0.1", "127.0.0.2"))
    addresses: Addresses = Addresses()
    every: list[Address] = [one, other]
    addresses.set(every)
    assert {addresses.take(0.0), addresses.take(0.0)} == {one, other}
    addresses.failed(one, 10.0)
    assert {addresses.take(10.5) for _ in range(4)} == {other}
    addresses.failed(other, 10.5)
    assert {addresses.take(10.6) for _ in range(4)} == {one, other}
    assert {addresses.take(11.1) for _ in range(4)} == {one}
    addresses.set([])
    assert addresses.take(20.0) in every


def test_settings_never_show_a_secret() -> None:
    settings = ClientSettings("http://127.0.0.1:1", token="the-token", route_key=b"the-key-of-routes")
    assert "the-" not in repr(settings)
    with pytest.raises(WrongSettings) as caught:
        ClientSettings("http://127.0.0.1:1", token="the token")
    assert "the token" not in str(caught.value)
