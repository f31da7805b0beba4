"""Aerospike for a benchmark: the tests' stand-in in a process of its own, or a real server.

With PAYWARDEN_TEST_AEROSPIKE=host:port it is that server, and the sets of the benchmark are emptied first.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection

from paywarden.features.stores.aerospike.client import AerospikeSettings, connect
from paywarden.features.stores.aerospike.scan import set_counts
from paywarden.features.stores.aerospike.store import SET_SEPARATOR
from tests.standin.aerospike_server import StandIn

_STOP_S = 10.0
_TRUNCATE_TIMEOUT_S, _LOOK_S = 60.0, 0.2


@contextmanager
def running_aerospike() -> Iterator[str]:
    """Yield the sections of a configuration whose profile store is an Aerospike without profiles."""
    if address := os.environ.get("PAYWARDEN_TEST_AEROSPIKE", ""):
        namespace = os.environ.get("PAYWARDEN_TEST_AEROSPIKE_NAMESPACE", "test")
        _empty(AerospikeSettings((address,), namespace))
        yield _sections(address, namespace)
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_stand_in, args=(theirs,), daemon=True)
    process.start()
    try:
        yield _sections(f"127.0.0.1:{ours.recv()}", "test")
    finally:
        ours.send("end")
        process.join(_STOP_S)
        if process.is_alive():
            process.terminate()


def _sections(address: str, namespace: str) -> str:
    return f'[store]\nkind = "aerospike"\n[aerospike]\nhosts = ["{address}"]\nnamespace = "{namespace}"\n'


def _stand_in(connection: Connection) -> None:
    with StandIn() as server:
        connection.send(server.port)
        connection.recv()


def _empty(settings: AerospikeSettings) -> None:
    """Empty the first profile set and the records beside all profile sets, without the markers that deletes leave."""
    deadline = time.monotonic() + _TRUNCATE_TIMEOUT_S
    with closing(connect(settings)) as client:
        # Their names have no prefix before the last separator.
        while names := [name for name in set_counts(client, settings) if not name.rpartition(SET_SEPARATOR)[0]]:
            assert time.monotonic() < deadline, "the server does not truncate the sets of an earlier run"
            for name in names:
                client.info_random_node(f"truncate:namespace={settings.namespace};set={name}")
            time.sleep(_LOOK_S)
