"""The vectors of all clients are what the Python client's rules give, and card numbers are those of the service."""

from __future__ import annotations

import make_vectors
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.payment_fields import FIELDS, is_number_of_a_network, looks_like_card_number
from paywarden_client.card_numbers import is_card_number


def test_the_vectors_are_what_the_rules_give() -> None:
    stored = {path.stem: path.read_text(encoding="utf-8") for path in make_vectors.FOLDER.glob("*.json")}
    assert stored == {name: make_vectors.text_of(name) for name in make_vectors.FILES}


grouped = st.text("0123456789 -", max_size=30)
networks = st.builds(
    lambda begin, rest: begin + rest,
    st.sampled_from(("4", "51", "2221", "34", "3095", "6", "8171", "9")),
    st.text("0123456789", min_size=8, max_size=18),
)


@given(grouped | networks | st.text(max_size=20), st.sampled_from([field.name for field in FIELDS if field.is_text]))
def test_the_client_and_the_service_refuse_the_same_card_numbers(text: str, field: str) -> None:
    refused = looks_like_card_number(text) if field == "card_id" else is_number_of_a_network(text)
    # The client leaves digits that are not ASCII to the service.
    assert is_card_number(field, text) == (refused and text.isascii())
