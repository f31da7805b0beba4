"""Addresses and their networks, as compiled code reads them, against Python's ipaddress."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.kernel import declared_texts as texts
from paywarden.schemas.payment_fields import NetworkPrefix, is_address

KEY = IdentityKey.of_bytes(b"sixteen bytes...")
GROUPS = st.one_of(st.just(0), st.just(0xFFFF), st.integers(0, 0xFFFF))


@st.composite
def written(draw: st.DrawFn) -> str:
    """An IPv6 address in one of its many forms: leading zeros, capital letters, a gap of any group that is zero."""
    groups = [draw(GROUPS) for _ in range(8)]
    parts = [format(group, draw(st.sampled_from(["x", "X", "04x"]))) for group in groups]
    first, end = draw(st.integers(0, 8)), draw(st.integers(0, 8))
    if first < end and draw(st.booleans()):
        text = ":".join(parts[:first]) + "::" + ":".join(parts[end:])
    else:
        text = ":".join(parts)
    return text


def read(text: str) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    data, buffer = np.frombuffer(b"<" + text.encode() + b">", dtype=np.uint8), texts.new_buffer()
    return int(texts.ipv6_address(data, 1, len(data) - 1, buffer)), buffer


def check(text: str, bits: int) -> None:
    found, buffer = read(text)
    is_v6 = is_address(text) and ":" in text
    if found == texts.UNUSUAL_ADDRESS:
        # A text that only Python reads: there is an IPv4 address in it, or would be in its network.
        assert ":" in text
        assert "." in text or ipaddress.IPv6Address(text).ipv4_mapped is not None
        return
    assert (found == 1) == is_v6, text
    if is_v6:
        wanted = NetworkPrefix("n", 1, "a", 24, bits).value_of(text)
        assert texts.ipv6_network_identity(bits, KEY.low, KEY.high, buffer) == KEY.of(wanted), (text, wanted)


@settings(max_examples=125, deadline=None)
@given(text=written(), bits=st.one_of(st.sampled_from([48, 56, 64]), st.integers(1, 128)))
def test_an_ipv6_address_has_the_network_that_python_writes(text: str, bits: int) -> None:
    check(text, bits)


@settings(max_examples=125, deadline=None)
@given(text=st.one_of(written(), st.just("::ffff:192.0.2.7"), st.text("01aF:.", max_size=12)), data=st.data())
def test_a_text_is_an_address_exactly_if_python_says_so(text: str, data: st.DataObject) -> None:
    place, end = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 2))
    more = data.draw(st.text(":.0fFg%/ é", max_size=2))
    check(text[:place] + more + text[place + end :], 64)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("::", 1), ("::1", 1), ("1::", 1), ("1:2:3:4:5:6:7:8", 1), ("1:2:3:4:5:6:7::", 1), ("::2:3:4:5:6:7:8", 1),
        ("1::2:3:4:5:6:7:8", 0), (":", 0), (":1::", 0), ("1:", 0), (":::", 0), ("1::2::3", 0), ("12345::", 0), ("", 0),
        ("1:2:3:4:5:6:7:8:9", 0), ("1:2:3:4:5:6:7:8::", 0), ("fe80::1%eth0", 0), ("192.0.2.7", 0),
        ("::ffff:1:2", -1), ("::ffff:192.0.2.7", -1), ("1::1.2.3.4", -1),
    ],
)  # fmt: skip
def test_edges_of_the_form(text: str, wanted: int) -> None:
    assert read(text)[0] == wanted
    check(text, 48)
