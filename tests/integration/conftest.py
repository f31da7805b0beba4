"""Fixtures on real services: a stand-in of Aerospike, and the records that workers keep there beside profiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from paywarden.features.stores.aerospike.sets import AerospikeSets
from paywarden.features.stores.aerospike.store import AerospikeSettings
from paywarden.features.stores.base import ProfileStore
from tests.standin.aerospike_server import StandIn


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.fixture
def store(standin: StandIn) -> Iterator[ProfileStore]:
    """An empty store that belongs to no profile set."""
    sets = AerospikeSets(AerospikeSettings(hosts=(standin.address,), namespace=standin.namespace), ("card",))
    with closing(sets.open_beside()) as opened:
        for entity in ("drift", "outcomes", "outcome"):
            for key, _ in list(opened.scan(entity)):
                opened.delete([key])
        yield opened
