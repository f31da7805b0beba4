from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worlds.endpoint.http_world import Client, Served, serving


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as one:
        yield one


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with served.connected() as one:
        yield one
