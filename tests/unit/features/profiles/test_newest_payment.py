"""Reading when a stored profile's newest payment was made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.profiles.newest_payment import newest_payment_ms
from paywarden.features.profiles.shape import decode_shape, numbers_of, shape_of
from tests.worlds.small import small_history


def test_it_is_the_time_that_the_whole_profile_says() -> None:
    states = [state for state in small_history.profiles().values() if state is not None]
    assert len(states) > 100
    for state in states:
        first_ms, last_after_ms = numbers_of(state, decode_shape(shape_of(state)[1]))[:2].tolist()
        assert newest_payment_ms(state) == first_ms + last_after_ms


@given(st.integers(0, 300), st.binary(max_size=40))
def test_damaged_bytes_have_a_time_or_none_and_never_raise(size: int, more: bytes) -> None:
    state = next(state for state in small_history.profiles().values() if state is not None)
    for damaged in (state[:size], state[:size] + more, more):
        newest_ms = newest_payment_ms(damaged)
        assert newest_ms is None or newest_ms >= 0


def test_other_bytes_than_a_profile_have_none() -> None:
    assert newest_payment_ms(b"") is None
    assert newest_payment_ms(b"\xff\x01") is None
    assert newest_payment_ms(b"\x06" + bytes(20)) is None
