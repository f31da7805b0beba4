"""Turns the bytes of one connection into requests.

    bytes ─┬─ a cached head and its whole body are there ─► two slices
           └─ anything else ─► the parser httptools, whose callbacks assemble the request

1. Both ways give the same requests for the same bytes. The cache serves only whole requests. The parser keeps no state
   between two requests, so it does not miss requests that the cache served.
2. The reader feeds an unknown head to the parser, up to the first empty line and not a byte more. If the parser then
   has found the end of an ordinary head, the reader caches it (`Heads.learn`). An ordinary head has a Content-Length
   and asks for no upgrade. It may ask for 100-continue, which has no effect when the body is there.
"""

from __future__ import annotations

from typing import Protocol

import httptools

from paywarden.scoring.http import refusals as refused
from paywarden.scoring.http.heads import DEADLINE_MARK, KEPT_HEADERS, TRACE_MARK, HeadFields, Heads, RequestHead
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.http.refusals import HttpRefusal

_HEAD_END = b"\r\n\r\n"
# Bytes of a chunked body that the parser gets at once. Only the parser knows where such a body ends.
_PIECE_BYTES = 2048
_UNKNOWN = RequestHead(None)


class RequestSink(Protocol):
    """Takes requests in order."""

    def take(self, head: RequestHead, body: bytes, deadline_s: float, trace: bytes = b"") -> None:
        """Take a complete request, or one that is refused. No other follows a head that closes."""

    def is_full(self) -> bool:
        """Whether further requests should be left unread for now."""


class HeldBytes:
    """Bytes of requests that a worker's HTTP connections hold: bodies that are incomplete, and bytes left unread.

    It bounds memory for any number of connections. Bodies of requests that were refused are not kept at all.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.count = 0

    def take(self, size: int) -> bool:
        """Hold `size` more bytes. Returns False, and holds none of them, when that would be too many."""
        if self.count + size > self._bytes_max:
            return False
        self.count += size
        return True

    def give_back(self, size: int) -> None:
        """Hold `size` bytes less."""
        self.count -= size


class _Arriving:
    """One request that the parser has begun and not finished."""

    def __init__(self) -> None:
        self.fields = HeadFields()
        self.header_count = 0
        self.head_bytes = 0
        self.head: RequestHead | None = None
        # Bytes received after the read in which the request began, including the overhead of chunks.
        self.wire_bytes = 0
        self.body: bytes | bytearray = b""
        # The size of the body so far. Nothing of it is kept when the head is refused.
        self.body_bytes = 0
        self.continue_due = False
        self.upgrades = False

    def head_without_upgrade(self) -> bytes:
        """Returns the head without the caller's wish to upgrade to another protocol."""
        fields = self.fields
        lines = [b"%b %b HTTP/1.1" % (fields.method, fields.target)]
        lines += [b"%b: %b" % (name, value) for name, value in fields.headers.items() if name != b"connection"]
        lines += [] if fields.keeps_alive else [b"connection: close"]
        return b"\r\n".join(lines) + _HEAD_END


class _RefusedError(Exception):
    """Raised in a callback, which is the only way to stop the parser."""

    def __init__(self, refusal: HttpRefusal) -> None:
        self.refusal = refusal


class RequestReader:
    """Reads the requests of one connection. The methods `on_*` are the parser's callbacks."""

    def __init__(self, heads: Heads, settings: HttpSettings, taker: RequestSink, held: HeldBytes) -> None:
        self._heads, self._settings, self._taker, self._held = heads, settings, taker, held
        self._parser = httptools.HttpRequestParser(self)
        # The request that has begun and is not complete.
        self.arriving: _Arriving | None = None
        # No request is read from now on.
        self.is_done = False
        self._upgrade_ignored = False

    def feed(self, data: bytes, at: int) -> int:
        """Take received bytes from data[at:], and hand on the requests that are complete now, until the taker is full.

        Returns where the bytes begin that were not looked at, to be fed again later.
        """
        self._upgrade_ignored = False
        unfinished = self.arriving
        end = len(data)
        try:
            end = self._read(data, at)
        except _RefusedError as error:
            self.refuse(error.refusal)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _RefusedError):
                raise
            self.refuse(error.__context__.refusal)
        except httptools.HttpParserError:
            # After a request that closes, `refuse` does nothing: the bytes that follow do not matter.
            self.refuse(refused.NOT_HTTP)
        if unfinished is not None and unfinished is self.arriving:
            self._check_wire_bytes(unfinished, end - at)
        return end

    def refuse(self, refusal: HttpRefusal) -> None:
        """Refuse the request that is arriving, and take no further ones."""
        if self.is_done:
            return
        head = _UNKNOWN if self.arriving is None or self.arriving.head is None else self.arriving.head
        self.drop()
        self._hand_on(head.refused(refusal._replace(closes=True)), b"")

    def drop(self) -> None:
        """Forget the request that is arriving."""
        if self.arriving is not None:
            self._held.give_back(len(self.arriving.body))
            self.arriving = None

    def takes_continue(self) -> bool:
        """Whether the caller waits for "100 Continue" before sending the body. Returns True only once per request."""
        if self.arriving is None or not self.arriving.continue_due:
            return False
        self.arriving.continue_due = False
        return True

    def _hand_on(self, head: RequestHead, body: bytes) -> None:
        self.is_done = head.closes
        self._taker.take(head, body, head.deadline_s, head.trace)

    def _read(self, data: bytes, at: int) -> int:
        """Returns where the first request begins that the taker has no room for, or the end of `data`."""
        start, size = at, len(data)
        known = self._heads.known()
        take = self._taker.take
        while start < size and not self.is_done:
            if self._taker.is_full():
                return start
            if self.arriving is not None:
                rest = self._rest_of(self.arriving, data, start)
                self._parse(data[start : start + rest])
                start += rest
                continue
            end = data.find(_HEAD_END, start) + 4
            if end < 4:
                self._parse(data[start:] if start else data)
                return size
            if data.find(DEADLINE_MARK, start, end) >= 0:
                head, deadline_s, trace = self._heads.find(data[start:end])
            else:
                head, trace = known.get(data[start:end]), b""
                if head is not None:
                    deadline_s = head.deadline_s
                elif data.find(TRACE_MARK, start, end) >= 0:
                    head, deadline_s, trace = self._heads.find(data[start:end])
            if head is None:
                start = self._read_unknown(data, start, end)
                continue
            following = end + head.content_length
            if following > size:
                self._parse(data[start:] if start else data)
                return size
            self.is_done = head.closes
            take(head, data[end:following], deadline_s, trace)
            start = following
        return size

    def _rest_of(self, arriving: _Arriving, data: bytes, start: int) -> int:
        """Returns how many bytes from data[start:] to feed to the parser for the request that it has begun.

        Many more requests may follow in `data`. The parser would take them all, whether or not the taker has room.
        """
        if arriving.head is None:
            end = data.find(_HEAD_END, start)
            return (len(data) if end < 0 else end + 4) - start
        if arriving.head.content_length > arriving.body_bytes:
            return arriving.head.content_length - arriving.body_bytes
        return min(len(data) - start, _PIECE_BYTES)

    def _read_unknown(self, data: bytes, start: int, end: int) -> int:
        """Feed an unknown head, and the rest of the request, to the parser. Returns where to continue in `data`."""
        head_bytes = data[start:end]
        self._parse(head_bytes)
        arriving = self.arriving
        if arriving is None or arriving.head is None or arriving.body_bytes or not self._is_ordinary(arriving):
            return end
        self._heads.learn(head_bytes, arriving.head)
        following = end + arriving.head.content_length
        self._parse(data[end:following])
        return following

    def _is_ordinary(self, arriving: _Arriving) -> bool:
        """Whether the request ends where its Content-Length says, and the parser has read its head unchanged."""
        return b"content-length" in arriving.fields.headers and not arriving.upgrades and not self._upgrade_ignored

    def _parse(self, data: bytes) -> None:
        """Feed the parser, and ignore a wish to upgrade, as HTTP allows. (Java's client asks for h2c first.)

        The parser reads no body after such a head. A new parser therefore gets the head again, without the wish.
        """
        rest = self._parse_until_upgrade(data)
        while rest is not None and not self.is_done:
            if self._upgrade_ignored:
                raise _RefusedError(refused.NOT_HTTP)  # only once per read: each time copies `data`
            self._upgrade_ignored = True
            assert self.arriving is not None, "the parser has found a head"
            head = self.arriving.head_without_upgrade()
            self._parser = httptools.HttpRequestParser(self)
            rest = self._parse_until_upgrade(head + rest)

    def _parse_until_upgrade(self, data: bytes) -> bytes | None:
        """Returns the bytes after a head that asks for an upgrade, or None."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return data[upgrade.args[0] :]
        return None

    def _check_wire_bytes(self, arriving: _Arriving, size: int) -> None:
        """Refuse an endless header. The parser collects it, or a chunk's, without calling back."""
        arriving.wire_bytes += size
        settings = self._settings
        if arriving.head is None and arriving.wire_bytes > settings.head_bytes_max:
            self.refuse(self._heads.head_too_large)
        elif arriving.wire_bytes > settings.head_bytes_max + 2 * settings.body_bytes_max:
            self.refuse(self._heads.too_large(None))

    # The parser's side

    def on_message_begin(self) -> None:
        self.arriving = _Arriving()

    def on_url(self, part: bytes) -> None:
        arriving = self._current
        arriving.fields.target += part
        self._count_head(arriving, len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        arriving = self._current
        arriving.header_count += 1
        self._count_head(arriving, len(name) + len(value) + 4)
        lowered = name.lower()
        # A trailer after a chunked body changes nothing: the head has been decided by then.
        if lowered in KEPT_HEADERS:
            headers = arriving.fields.headers
            earlier = headers.get(lowered)
            headers[lowered] = value if earlier is None else earlier + b", " + value

    def on_headers_complete(self) -> None:
        arriving = self._current
        fields, parser = arriving.fields, self._parser
        fields.method = parser.get_method()
        fields.keeps_alive = parser.should_keep_alive()
        if not fields.keeps_alive or b"connection" in fields.headers:
            fields.version = parser.get_http_version()
            arriving.upgrades = parser.should_upgrade()
        arriving.head = head = self._heads.decide(fields)
        expects = b"expect" in fields.headers
        if head.refusal is not None and (head.refusal.closes or expects):
            # A caller who waits for 100 may send the body after this answer or not, so the request's end is unknown.
            raise _RefusedError(head.refusal)
        arriving.continue_due = expects and fields.version == "1.1"

    def on_body(self, part: bytes) -> None:
        arriving = self._current
        arriving.continue_due = False
        head = arriving.head
        assert head is not None, "a body follows its head"
        arriving.body_bytes += len(part)
        if arriving.body_bytes > self._heads.body_bytes_max(head.route):
            raise _RefusedError(self._heads.too_large(head.route))
        if head.refusal is not None:
            return
        if not self._held.take(len(part)):
            raise _RefusedError(refused.NO_ROOM)
        if not arriving.body:
            arriving.body = part
        else:
            if isinstance(arriving.body, bytes):
                # Appending to bytes copies all of it every time: a body of tiny chunks would cost seconds.
                arriving.body = bytearray(arriving.body)
            arriving.body += part

    def on_message_complete(self) -> None:
        arriving = self._current
        if arriving.upgrades:
            return  # the parser takes the rest for another protocol; see _parse
        self.drop()
        if not self.is_done:
            assert arriving.head is not None, "a message has a head"
            self._hand_on(arriving.head, bytes(arriving.body))

    @property
    def _current(self) -> _Arriving:
        assert self.arriving is not None, "the parser begins every message"
        return self.arriving

    def _count_head(self, arriving: _Arriving, size: int) -> None:
        arriving.head_bytes += size
        settings = self._settings
        if arriving.head_bytes > settings.head_bytes_max or arriving.header_count > settings.header_count_max:
            raise _RefusedError(self._heads.head_too_large)
