"""The HTTP front with cached heads and the compiled call, and one that does all in steps: what they tell must be equal.

An input is a byte and reads, with READ_END between them. Bit N of the byte says whether the loop turns after read N.
Ten ids of payments, `payment_id(0)` to `payment_id(9)`, stand for others of the same length that no input before had.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvloop

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.state.outbox import OutboxReader
from tests.oracles.step_scorer import StepScorer
from tests.patience import PATIENCE_S
from tests.worlds.endpoint.http_worker import Worker, request

READ_END = b"\xfe\xfe"
_PAYMENT_ID = re.compile(rb"id-000000([0-9])")
# Turns of the loop in which a worker answers what it has read.
_TURNS = 3


class Front:
    """A worker with its connections, and how far its records were read."""

    def __init__(self, folder: Path, *, is_plain: bool) -> None:
        folder.mkdir()
        self.worker, self._read_to = Worker(folder, scorer=StepScorer if is_plain else PaymentScorer), 0
        self._prefix = b""
        if is_plain:
            self.worker.server.heads.usual = lambda _: None  # type: ignore[assignment,method-assign]

    async def told(self, reads: Sequence[bytes], turns: int) -> tuple[bytes, list[bytes]]:
        """Returns all that a caller of these reads gets, and the records of the decisions."""
        caller = await self.worker.connect()
        for number, data in enumerate(reads):
            if not caller.connection._transport.is_closing():
                caller.connection.data_received(data)
            for _ in range(_TURNS if turns >> number & 1 else 0):
                await asyncio.sleep(0)
        with suppress(OSError):
            caller.raw.shutdown(1)
        said = await self._all_bytes(caller.raw)
        self.worker.hang_up()
        records = [self._plain(entry) for entry in self._new_records()]
        return re.sub(rb"\r\nDate: [^\r]*", b"", said.replace(self._prefix, b"")), records

    async def _all_bytes(self, raw: object) -> bytes:
        loop, said = asyncio.get_running_loop(), b""
        with suppress(ConnectionResetError):
            while data := await asyncio.wait_for(loop.sock_recv(raw, 65536), PATIENCE_S):  # type: ignore[arg-type]
                said += data
        return said

    def _new_records(self) -> list[OutboxEntry]:
        records = OutboxReader(self.worker.where, "worker-0").read(self._read_to, 10_000)
        self._read_to = records[-1][0] if records else self._read_to
        return [OutboxEntry.FromString(payload) for _, payload in records]

    def _plain(self, entry: OutboxEntry) -> bytes:
        """Returns a record without what differs between two workers."""
        self._prefix = entry.response.decision_id.partition("-")[0].encode()
        entry.ClearField("latency_us")
        return entry.SerializeToString(deterministic=True).replace(self._prefix, b"")


class TwoFronts:
    """Both fronts in one event loop."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._usual, self._plain = self._loop.run_until_complete(self._open())
        self._count = 0

    async def _open(self) -> tuple[Front, Front]:
        folder = Path(tempfile.mkdtemp(prefix="paywarden-fuzz-"))
        return Front(folder / "usual", is_plain=False), Front(folder / "plain", is_plain=True)

    def compare(self, data: bytes) -> None:
        """Give an input to both, twice: then its heads are known. Raises AssertionError if they differ."""
        turns = data[:1] or b"\0"
        for _ in range(2):
            self._count += 1
            reads = _PAYMENT_ID.sub(b"id-%06d\\1" % self._count, data[1:]).split(READ_END)
            self._loop.run_until_complete(self._compare([read for read in reads if read], turns[0]))

    async def _compare(self, reads: Sequence[bytes], turns: int) -> None:
        usual, plain = [await front.told(reads, turns) for front in (self._usual, self._plain)]
        assert usual == plain, f"{usual} and {plain}"


def payment_id(number: int) -> str:
    """Returns one of the ten ids."""
    return f"id-000000{number}"


def usual(number: int, *, place: int = 0) -> bytes:
    """Return a usual request, with one of the ten ids. `place`: whose payment it is."""
    return request(place, payment_id(number))
