"""The inputs of the fuzz targets, replayed: each that once failed, and those that reach deep."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.__main__ import mutate
from tests.fuzz.corpus import CORPUS, inputs
from tests.fuzz.targets import TARGETS, made


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_is_read_or_refused(name: str) -> None:
    paths = inputs(name)
    assert paths, "python -m tests.fuzz --seeds writes the first ones"
    for path in paths:
        made(name)(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_near_the_corpus_are_read_or_refused(name: str) -> None:
    known = [path.read_bytes() for path in inputs(name)]
    chance = random.Random(0)
    for _ in range(60):
        data = mutate(chance, known)
        try:
            made(name)(data)
        except Exception as error:  # noqa: BLE001  # whatever a target raises is a failure
            pytest.fail(f"{name} fails on {data.hex()}: {error!r}")


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 500_000
