"""The append-only log in which a scoring worker leaves its decisions for the companion to ship.

Each worker has one directory. A *position* counts bytes since the outbox was first opened:

    <outbox>/<worker>/00000000000000000000.log     records from position 0 on           finished, shipped or not
                      00000000000067108839.log     records from that position on        active: the worker appends here
                      cursor                       the position up to which the companion has shipped, and its CRC-32
                      clock                        when the time of day has leaped (streams/companion/file_ages.py)
                      lock                         held by the one writer

    record = u32 payload size │ u32 crc32 of the payload │ payload          little endian, size 1 … 256 KiB

1. The writer appends records to the end of the last segment with one `write`, and starts a new segment when that one
   is full. When `append` has returned, the record has left the process: `kill -9` cannot take it back.
2. A crash can leave part of a record, or zeros, at the end. A reader stops before them and waits. The next writer
   leaves them and continues in a new segment behind them: a position is never used twice, since a reader may have read
   a whole record there before its bytes were damaged. No caller was answered for part of a record.
3. Anything else that is not a record is damage: a wrong checksum or size with more bytes after it, a segment that ends
   early, a gap between segments. The reader raises OutboxDamaged instead of skipping it, and says on request where the
   next whole record begins (`after_damage`). Zeros behind the last record of a finished segment are passed: they hold
   nothing.
4. The reader deletes segments that are shipped whole and so old that no repeated payment can ask for their decisions.
   The writer's `total_bytes_max` bounds the unshipped bytes; shipped segments that are kept come on top.

Room for the next megabytes is reserved on disk (scoring/state/disk_room.py). On most file systems a full disk therefore
refuses a write before any of it is there. To reserve takes microseconds, or as long as the file system writes its
journal: tens of milliseconds, in which the worker answers nobody. A writer therefore reserves seldom. It begins with a
megabyte and doubles that each time, up to sixteen.

After a failure that leaves nothing behind (no room, no descriptor, a write of no byte) appends are refused. Each tries
again, as does `look`, which the worker calls twice a second. After any other one only the next process may append, so
the worker ends:

    a write is cut short              A reader may have passed its first whole records: they are decisions, as after
                                      `kill -9`. The part of a record behind them is cut off.
    a new segment is half begun       It may exist already, so the old one must not grow any more.
    a sync fails                      The records stay, since the reader may have shipped them. The kernel takes pages
                                      for clean that are not on disk, so the next writer writes everything that is not
                                      shipped once more, and syncs it, before its first append.
    the files were deleted            The next writer begins a new outbox.

The setting `fsync` decides which records survive a loss of power, see OutboxSettings.

The folder of the outboxes may hold other folders. Only those with the name of a worker, and RETRIED, are outboxes: a
copy such as `worker-0.bak` must not be shipped.
"""

from paywarden.scoring.state.outbox.files import PAYLOAD_BYTES_MAX, framed, records_in
from paywarden.scoring.state.outbox.outbox_reader import (
    RETRIED,
    Cursor,
    Frames,
    OutboxReader,
    is_outbox,
    strangers,
    workers,
)
from paywarden.scoring.state.outbox.outbox_settings import (
    OutboxDamaged,
    OutboxFull,
    OutboxSettings,
    OutboxUnavailable,
    OutboxUnsynced,
)
from paywarden.scoring.state.outbox.writer import OutboxMetrics, OutboxWriter

__all__ = [
    "PAYLOAD_BYTES_MAX",
    "RETRIED",
    "Cursor",
    "Frames",
    "OutboxDamaged",
    "OutboxFull",
    "OutboxMetrics",
    "OutboxReader",
    "OutboxSettings",
    "OutboxUnavailable",
    "OutboxUnsynced",
    "OutboxWriter",
    "framed",
    "is_outbox",
    "records_in",
    "strangers",
    "workers",
]
