"""Aerospike for a benchmark: the tests' stand-in in a process of its own, or a real server.

With PAYWARDEN_TEST_AEROSPIKE=host:port it is that server, and the sets of the benchmark are emptied first.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection

from paywarden.features.stores.aerospike.client import AerospikeSettings, connect
from paywarden.features.stores.aerospike.scan import set_counts
from tests.standin.aerospike_server import StandIn

_STOP_S = 10.0
_TRUNCATE_TIMEOUT_S, _LOOK_S = 60.0, 0.2


@contextmanager
def running_aerospike(is_emptied: Callable[[str], bool]) -> Iterator[AerospikeSettings]:
    """Yield the settings of a store whose sets of these names are empty."""
    if address := os.environ.get("PAYWARDEN_TEST_AEROSPIKE", ""):
        settings = AerospikeSettings((address,), os.environ.get("PAYWARDEN_TEST_AEROSPIKE_NAMESPACE", "test"))
        _truncate(settings, is_emptied)
        yield settings
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_stand_in, args=(theirs,), daemon=True)
    process.start()
    try:
        yield AerospikeSettings((f"127.0.0.1:{ours.recv()}",), "test")
    finally:
        ours.send("end")
        process.join(_STOP_S)
        if process.is_alive():
            process.terminate()


def _stand_in(connection: Connection) -> None:
    with StandIn() as server:
        connection.send(server.port)
        connection.recv()


def _truncate(settings: AerospikeSettings, is_emptied: Callable[[str], bool]) -> None:
    """Empty the sets of these names. Unlike deletes on a Community server, it leaves no markers."""
    deadline = time.monotonic() + _TRUNCATE_TIMEOUT_S
    with closing(connect(settings)) as client:
        while names := [name for name in set_counts(client, settings) if is_emptied(name)]:
            assert time.monotonic() < deadline, "the server does not truncate the sets of an earlier run"
            for name in names:
                client.info_random_node(f"truncate:namespace={settings.namespace};set={name}")
            time.sleep(_LOOK_S)
