"""The append-only log in which a scoring worker leaves its decisions for the companion to ship.

Each worker has one directory. A *position* counts bytes since the outbox was first opened:

    <outbox>/<worker>/00000000000000000000.log     records from position 0 on           finished, shipped or not
                      00000000000067108839.log     records from that position on        active: the worker appends here
                      cursor                       the position up to which the companion has shipped, and its CRC-32
                      clock                        when the time of day has leaped (file_ages.py)
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

A writer's steps after a failure. Each append tries again, and so does `look`, which the worker calls twice a second:

    a write fails or is cut short     The writer cuts the file back to the last whole record. If the write had whole
                                      records, a reader may have passed them already: zeros take their place, and the
                                      writer begins a segment behind them.
    the file cannot be cut back       Nothing may follow half a record: appends are refused until the cut works.
    a segment cannot be begun         The new segment may exist already, so the old one must not grow any more: appends
                                      are refused until the new segment can be opened, at the same position.
    a sync fails                      The record stays, since the reader may have shipped it. The kernel takes pages
                                      for clean that are not on disk, so the writer writes everything since the last
                                      good sync once more, and refuses appends until that is synced. Records that it
                                      cannot read back whole are lost to a loss of power: it refuses appends until it
                                      is started again.
    the files were deleted            The worker ends, and the next one begins a new outbox.

The setting `fsync` decides which records survive a loss of power, see OutboxSettings.

The folder of the outboxes may hold other folders. Only those with the name of a worker, and RETRIED, are outboxes: a
copy such as `worker-0.bak` must not be shipped.
"""

from paywarden.scoring.state.outbox.file_ages import FileAges
from paywarden.scoring.state.outbox.files import PAYLOAD_BYTES_MAX, framed, records_in
from paywarden.scoring.state.outbox.reader import RETRIED, Cursor, Frames, OutboxReader, is_outbox, strangers, workers
from paywarden.scoring.state.outbox.settings import (
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
    "FileAges",
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
