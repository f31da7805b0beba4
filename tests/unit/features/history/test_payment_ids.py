"""Payments found by their ids: exactly, in parts of any size, and where hashes collide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.history.payment_ids import Ids, find_rows, first_repeated, hash_texts

TEXTS = st.lists(st.text("abß", max_size=3), max_size=30)


def ids(texts: Sequence[str], collisions: int = 0) -> Ids:
    """With `collisions` there are only that many different hashes."""
    encoded = [text.encode() for text in texts]
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in encoded]))).astype(np.int64)
    content = np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)
    hashes = np.zeros(len(texts), dtype=np.uint64)
    hash_texts(offsets, content, 0, len(texts), hashes)
    return Ids(offsets, content, hashes % np.uint64(collisions) if collisions else hashes)


@given(texts=TEXTS, part_ids=st.integers(1, 40), collisions=st.sampled_from([0, 1, 3]))
def test_the_first_repeated_id_is_found(texts: list[str], part_ids: int, collisions: int) -> None:
    wanted = next((row for row, text in enumerate(texts) if text in texts[:row]), -1)
    assert first_repeated(ids(texts, collisions), part_ids=part_ids) == wanted


def test_the_first_row_of_all_repeated_ids_is_found() -> None:
    texts = [f"p{number}" for number in range(50)] * 2
    assert first_repeated(ids(texts), part_ids=10) == 50


@given(texts=TEXTS, asked=TEXTS, part_ids=st.integers(1, 40), collisions=st.sampled_from([0, 1, 3]))
def test_each_id_is_found_in_its_row_or_counted_as_lost(
    texts: list[str], asked: list[str], part_ids: int, collisions: int
) -> None:
    known = list(dict.fromkeys(texts))
    rows = np.full(len(asked), 99, dtype=np.int64)
    lost = find_rows(ids(known, collisions), ids(asked, collisions), rows, part_ids=part_ids)
    wanted = [known.index(text) if text in known else -1 for text in asked]
    assert rows.tolist() == wanted
    assert lost == wanted.count(-1)


@pytest.mark.parametrize("count", [100_000])
def test_hashes_of_numbered_ids_spread_over_parts(count: int) -> None:
    hashes = ids([f"p{number:010}" for number in range(count)]).hashes
    assert len(np.unique(hashes)) == count
    share = np.bincount((hashes % np.uint64(7)).astype(np.int64)) / count
    assert share.min() > 0.13
    assert share.max() < 0.16
