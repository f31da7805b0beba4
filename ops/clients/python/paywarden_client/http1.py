"""HTTP/1.1, without sockets: the bytes of a request, and a reader of one answer.

reader = AnswerReader()
reader.feed(data) ─► False: more is needed      True: `status` and `body` are whole, `keeps` says whether the
                                                connection may be used again
reader.end()      ─► the connection has ended: whether that made the answer whole
"""

from __future__ import annotations

from collections.abc import Iterable

# To read the largest answer takes a few milliseconds, since a host may send it just before the deadline. The service's
# own answers have some 2 KB.
HEAD_BYTES_MAX = 16 * 1024
BODY_BYTES_MAX = 64 * 1024
CHUNKS_MAX = 1000
# A chunk's size in hexadecimal digits, and its extensions.
_CHUNK_LINE_MAX = 1024
_UNKNOWN = -1


class AnswerError(Exception):
    """The answer is not HTTP/1.1, or too large. The error's text repeats nothing of the answer."""


def request_bytes(path: str, authority: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """Returns a POST as bytes. The caller has checked that no header holds a control character."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"POST {path} HTTP/1.1\r\nhost: {authority}\r\n{lines}content-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


class AnswerReader:
    """Reads one answer."""

    __slots__ = (
        *("_at", "_chunk_count", "_chunked", "_data", "_is_head_read", "_length", "_passed"),
        *("body", "keeps", "says_close", "status"),
    )

    def __init__(self) -> None:
        # The bytes before `_at` were read. Interim answers had `_passed` bytes.
        self._data, self._at, self._passed, self._chunk_count = b"", 0, 0, 0
        self._is_head_read = self._chunked = False
        self._length = _UNKNOWN
        self.status, self.body = 0, b""
        # Whether the connection may be used again, and whether the host said that it will not be.
        self.keeps, self.says_close = False, False

    def feed(self, data: bytes) -> bool:
        """Take received bytes. Returns whether the answer is whole. Raises AnswerError."""
        self._data, self._at = (self._data[self._at :] + data if self._at < len(self._data) else data), 0
        while not self._is_head_read:
            end = self._data.find(b"\r\n\r\n", self._at)
            size = (len(self._data) if end < 0 else end) - self._at
            if self._passed + size > HEAD_BYTES_MAX:
                raise AnswerError("the head is too large")
            if end < 0:
                return False
            head, self._at = self._data[self._at : end], end + 4
            self._passed += size + 4
            self._read_head(head)
        if self._chunked:
            return self._read_chunks()
        size = len(self._data) - self._at
        if self._length != _UNKNOWN:
            if size < self._length:
                return False
            self.body = self._data[self._at : self._at + self._length]
            # Bytes that nobody asked for.
            self.keeps = self.keeps and size == self._length
            return True
        if size > BODY_BYTES_MAX:
            raise AnswerError("the body is too large")
        return False

    def end(self) -> bool:
        """Note that the connection has ended. Returns whether that made the answer whole."""
        if not self._is_head_read or self._chunked or self._length != _UNKNOWN:
            return False
        self.body, self.keeps = self._data[self._at :], False
        return True

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        is_answer = first[:7] == b"HTTP/1." and first[7:9] in (b"0 ", b"1 ") and first[12:13] in (b"", b" ")
        if not (is_answer and first[9:12].isdigit()):
            raise AnswerError("not an answer in HTTP/1.1")
        self.status = int(first[9:12])
        if 100 <= self.status < 200:
            if self.status == 101:
                raise AnswerError("an upgrade that nobody asked for")
            return
        self._is_head_read = True
        connection = b""
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise AnswerError("a header without a name")
            name, value = name.lower(), value.strip()
            if name == b"content-length":
                self._set_length(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or self._chunked:
                    raise AnswerError("a transfer encoding other than chunked")
                self._chunked = True
            elif name == b"connection":
                connection += b"," + value.lower()
        if self._chunked and self._length != _UNKNOWN:
            raise AnswerError("two lengths")
        if self.status in (204, 304):
            self._length, self._chunked = 0, False
        options = [option.strip() for option in connection.split(b",")] if connection else ()
        self.says_close = b"close" in options
        is_old = first[7:8] == b"0"
        self.keeps = not self.says_close and (not is_old or b"keep-alive" in options)

    def _set_length(self, value: bytes) -> None:
        # More digits than these are more than is taken.
        if not value.isdigit() or len(value) > 9:
            raise AnswerError("a length that is no number, or too large")
        if self._length not in (_UNKNOWN, int(value)):
            raise AnswerError("two lengths")
        self._length = int(value)
        if self._length > BODY_BYTES_MAX:
            raise AnswerError("the body is too large")

    def _read_chunks(self) -> bool:
        data = self._data
        while True:
            line_end = data.find(b"\r\n", self._at)
            if line_end < 0:
                if len(data) - self._at > _CHUNK_LINE_MAX:
                    raise AnswerError("a chunk without a size")
                return False
            digits = data[self._at : line_end].partition(b";")[0].strip()
            if not digits or len(digits) > 8 or digits.strip(b"0123456789abcdefABCDEF"):
                raise AnswerError("a chunk without a size")
            size = int(digits, 16)
            if line_end - self._at > _CHUNK_LINE_MAX or len(self.body) + size > BODY_BYTES_MAX:
                raise AnswerError("the body is too large")
            if size == 0:
                return self._read_trailers(line_end + 2)
            end = line_end + 2 + size
            if len(data) < end + 2:
                return False
            if data[end : end + 2] != b"\r\n":
                raise AnswerError("a chunk longer than its size")
            self._chunk_count += 1
            if self._chunk_count > CHUNKS_MAX:
                raise AnswerError("too many chunks")
            self.body += data[line_end + 2 : end]
            self._at = end + 2

    def _read_trailers(self, begin: int) -> bool:
        rest = self._data[begin:]
        if rest.startswith(b"\r\n"):
            self.keeps = self.keeps and len(rest) == 2
            return True
        end = rest.find(b"\r\n\r\n")
        if (len(rest) if end < 0 else end) > HEAD_BYTES_MAX:
            raise AnswerError("the trailers are too large")
        if end < 0:
            return False
        self.keeps = self.keeps and end + 4 == len(rest)
        return True
