"""Which folder holds the profile store, and what an Aerospike store shows of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.companion import fill_source
from paywarden.ops.wiring.stream_parts import await_store
from paywarden.schemas.settings import Source
from tests.standin.aerospike_server import Fault, StandIn


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_new_store_lies_outside_the_folder_of_histories(empty_folder: Path) -> None:
    stores.open_store(Source({}, {})).close()
    assert (empty_folder / ".paywarden" / "store" / "data.mdb").exists()
    assert not (empty_folder / "data").exists()


# Metrics and findings of an Aerospike store


@pytest.fixture
def aerospike_source() -> Iterator[Source]:
    with StandIn() as server:
        yield Source({"store": {"kind": "aerospike"}, "aerospike": {"hosts": [server.address]}}, {})


def test_a_stream_waits_for_a_store_that_does_not_answer_yet() -> None:
    with StandIn() as server:
        aerospike = {"hosts": [server.address], "total_timeout_ms": 200}
        source = Source({"store": {"kind": "aerospike"}, "aerospike": aerospike}, {})
        server.faults.add(Fault.never_answer())
        stop = Event()
        await_store(source, stop)
        assert server.done_count > 0
        stop.set()
        server.stop()
        await_store(source, stop)


def test_every_store_of_a_process_counts_in_its_registry(aerospike_source: Source) -> None:
    registry = CollectorRegistry()
    with (
        closing(stores.open_store(aerospike_source, registry=registry)) as store,
        closing(stores.set_stores(aerospike_source, registry).open_beside()) as beside,
    ):
        store.write({b"card:1": b"value"}, ttl_s=60)
        beside.write({b"drift:1": b"value"}, ttl_s=60)
        stores.live_set(aerospike_source, registry)
    shown = generate_latest(registry).decode()
    assert 'paywarden_store_records_total{what="written"} 2.0' in shown
    assert 'paywarden_store_findings{level="warning"} 2.0' in shown


def test_a_companion_that_fills_its_mirror_shows_the_store_s_metrics(aerospike_source: Source) -> None:
    registry = CollectorRegistry()
    fill = fill_source(aerospike_source, registry)
    live = fill.look()
    fill.open_store(live).close()
    assert registry.get_sample_value("paywarden_store_calls_total", {"operation": "read"}) == 1
