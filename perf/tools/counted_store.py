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
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import PAGESIZE
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import lmdb
import psutil

from tests.standin.aerospike_server import StandIn

KINDS = ("lmdb", "aerospike")
_STOP_S = 10.0


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
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_serve, args=(its,), daemon=True)
    process.start()
    try:
        port = mine.recv()

        def counts(_: int) -> StoreCounts:
            mine.send("counts")
            return StoreCounts(*mine.recv())

        sections = f'[store]\nkind = "aerospike"\n[aerospike]\nhosts = ["127.0.0.1:{port}"]\n'
        yield CountedStore(sections, counts)
    finally:
        mine.close()
        process.join(_STOP_S)
        if process.is_alive():
            process.terminate()


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
