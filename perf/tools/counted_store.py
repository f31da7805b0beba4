"""The profile store of a benchmark of whole processes, with counts of what it is asked.

    with counted_store("aerospike", folder) as store:
        store.config                the sections of paywarden.toml that name it
        store.counts(stream_pid)    StoreCounts(requests=1880, moved_bytes=1422365), since its start

- `lmdb`: the store of one machine: files. A request is a commit to any of them (profiles, profile sets, and the records
  beside them). The bytes are those that the stream passes to the kernel in writes, and a page for each commit, because
  a commit ends with a write of some bytes that takes a page of the disk. LMDB writes a changed page once, and each
  commit waits for the disk, so these bytes reach it. Reads ask nobody.
- `aerospike`: the official client against the tests' stand-in, in a process of its own. A request is a message of the
  client, and the bytes are those on the connection. What the client asks about the cluster itself is not counted.
  With PAYWARDEN_TEST_AEROSPIKE=host:port it is that real server, whose sets are emptied first. It counts its requests
  itself, but no bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from mmap import PAGESIZE
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import aerospike
import lmdb
import psutil

from paywarden.features.stores.aerospike.client import AerospikeSettings, connect
from paywarden.features.stores.aerospike.scan import set_counts
from paywarden.features.stores.aerospike.servers import ask, pairs_of
from paywarden.features.stores.aerospike.store import SET_SEPARATOR
from tests.standin.aerospike_server import StandIn

KINDS = ("lmdb", "aerospike")
_STOP_S = 10.0
_TRUNCATE_TIMEOUT_S, _TRUNCATE_LOOK_S = 60.0, 0.2
# Statistics of a server: batches that began, and calls for one record by their end.
_REQUESTS = re.compile(r"batch_index_initiate|client_(read|write|delete)_(success|error|timeout|not_found)")


class StoreCounts(NamedTuple):
    """What a store has been asked: requests, and the bytes of requests and answers."""

    requests: int
    moved_bytes: int


@dataclass(frozen=True)
class CountedStore:
    """A store that runs."""

    config: str
    counts: Callable[[int], StoreCounts]
    """Takes the pid of the process that writes the store."""


@contextmanager
def counted_store(kind: str, folder: Path) -> Iterator[CountedStore]:
    """Run a store of one of KINDS."""
    if kind == "lmdb":
        path = folder / "store"
        yield CountedStore(
            f'[store]\nkind = "lmdb"\n[lmdb]\npath = "{path}"\n', lambda writer: _lmdb_counts(path, writer)
        )
        return
    if address := os.environ.get("PAYWARDEN_TEST_AEROSPIKE", ""):
        settings = AerospikeSettings((address,), os.environ.get("PAYWARDEN_TEST_AEROSPIKE_NAMESPACE", "test"))
        # The first profile set, and the records beside all profile sets: no prefix before the last separator.
        truncate_sets(settings, lambda name: not name.rpartition(SET_SEPARATOR)[0])
        with closing(connect(settings)) as client:
            yield CountedStore(_sections(address, settings.namespace), lambda _: _server_counts(client, settings))
        return
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_serve, args=(its,), daemon=True)
    process.start()
    try:
        port = mine.recv()

        def counts(_: int) -> StoreCounts:
            mine.send("counts")
            return StoreCounts(*mine.recv())

        yield CountedStore(_sections(f"127.0.0.1:{port}", "test"), counts)
    finally:
        mine.close()
        process.join(_STOP_S)
        if process.is_alive():
            process.terminate()


def _sections(address: str, namespace: str) -> str:
    return f'[store]\nkind = "aerospike"\n[aerospike]\nhosts = ["{address}"]\nnamespace = "{namespace}"\n'


def truncate_sets(settings: AerospikeSettings, is_wanted: Callable[[str], bool]) -> None:
    """Empty the sets of these names. Unlike deletes on a Community server, it leaves no markers."""
    deadline = time.monotonic() + _TRUNCATE_TIMEOUT_S
    with closing(connect(settings)) as client:
        while names := [name for name in set_counts(client, settings) if is_wanted(name)]:
            assert time.monotonic() < deadline, "the server does not truncate the sets of an earlier run"
            for name in names:
                client.info_random_node(f"truncate:namespace={settings.namespace};set={name}")
            time.sleep(_TRUNCATE_LOOK_S)


def _server_counts(client: aerospike.Client, settings: AerospikeSettings) -> StoreCounts:
    """Returns what the nodes have counted: batches, and calls for one record, whatever became of them."""
    of_namespace, requests = f"namespace/{settings.namespace}", 0
    for node in client.get_node_names():
        said = ask(client, settings, node["node_name"], "statistics", of_namespace) or {}
        for name, value in (pairs_of(";".join(said.values()), ";")).items():
            if _REQUESTS.fullmatch(name):
                requests += int(value)
    return StoreCounts(requests, 0)


def _serve(connection: Connection) -> None:
    """Run the stand-in until the other end of the connection is closed. Answers each message with its counts."""
    with StandIn() as server:
        connection.send(server.port)
        try:
            while connection.recv():
                requests = len(server.record_counts) + len(server.scans)
                connection.send(StoreCounts(requests, server.bytes_in + server.bytes_out))
        except EOFError:
            return


def _lmdb_counts(path: Path, writer: int) -> StoreCounts:
    commits = 0
    for folder in (path, Path(f"{path}.sets")):
        for file in folder.rglob("data.mdb"):
            with lmdb.open(str(file.parent), readonly=True, lock=False) as environment:
                commits += environment.info()["last_txnid"]
    # Not `write_bytes`: where a file system keeps large folios, Linux counts the whole folio for each page in it that
    # changes (ext4, Linux 6.18: twelve times what the disk gets).
    return StoreCounts(commits, psutil.Process(writer).io_counters().write_chars + commits * PAGESIZE)
