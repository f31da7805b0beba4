"""HTTP/1.1, without sockets: the bytes of a request, and a reader of one answer.

reader = AnswerReader()
reader.feed(data) ─► False: more is needed      True: `status` and `body` are whole, `keeps` says whether the
                                                connection may be used again
reader.end()      ─► the connection has ended: whether that made the answer whole
"""

from __future__ import annotations

from collections.abc import Iterable

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 1024 * 1024
# A chunk's size in hexadecimal digits, and its extensions.
_CHUNK_LINE_MAX = 1024
_UNKNOWN = -1


class AnswerError(Exception):
    """What came is no answer in HTTP/1.1, or too large. Its text holds nothing of it."""


def request_bytes(path: str, authority: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """Returns a POST as bytes. The caller has checked that no header holds a control character."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"POST {path} HTTP/1.1\r\nhost: {authority}\r\n{lines}content-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


class AnswerReader:
    """Reads one answer."""

    __slots__ = ("_chunked", "_data", "_is_head_read", "_length", "body", "keeps", "says_close", "status")

    def __init__(self) -> None:
        self._data = b""
        self._is_head_read = self._chunked = False
        self._length = _UNKNOWN
        self.status, self.body = 0, b""
        # Whether the connection may be used again, and whether the host said that it will not be.
        self.keeps, self.says_close = False, False

    def feed(self, data: bytes) -> bool:
        """Take what was received. Returns whether the answer is whole. Raises AnswerError."""
        self._data = self._data + data if self._data else data
        while not self._is_head_read:
            end = self._data.find(b"\r\n\r\n")
            if end > HEAD_BYTES_MAX or (end < 0 and len(self._data) > HEAD_BYTES_MAX):
                raise AnswerError("the head is too large")
            if end < 0:
                return False
            head, self._data = self._data[:end], self._data[end + 4 :]
            self._read_head(head)
        if self._chunked:
            return self._read_chunks()
        if self._length != _UNKNOWN:
            if len(self._data) < self._length:
                return False
            self.body = self._data[: self._length]
            # Bytes that nobody asked for.
            self.keeps = self.keeps and len(self._data) == self._length
            return True
        if len(self._data) > BODY_BYTES_MAX:
            raise AnswerError("the body is too large")
        return False

    def end(self) -> bool:
        """Note that the connection has ended. Returns whether that made the answer whole."""
        if not self._is_head_read or self._chunked or self._length != _UNKNOWN:
            return False
        self.body, self.keeps = self._data, False
        return True

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        if not (first[:7] == b"HTTP/1." and first[7:9] in (b"0 ", b"1 ") and first[9:12].isdigit()):
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
        while True:
            line_end = self._data.find(b"\r\n")
            if line_end < 0:
                if len(self._data) > _CHUNK_LINE_MAX:
                    raise AnswerError("a chunk without a size")
                return False
            digits = self._data[:line_end].partition(b";")[0].strip()
            if not digits or len(digits) > 8 or digits.strip(b"0123456789abcdefABCDEF"):
                raise AnswerError("a chunk without a size")
            size = int(digits, 16)
            if len(self.body) + size > BODY_BYTES_MAX:
                raise AnswerError("the body is too large")
            if size == 0:
                return self._read_trailers(line_end + 2)
            end = line_end + 2 + size
            if len(self._data) < end + 2:
                return False
            if self._data[end : end + 2] != b"\r\n":
                raise AnswerError("a chunk longer than its size")
            self.body += self._data[line_end + 2 : end]
            self._data = self._data[end + 2 :]

    def _read_trailers(self, begin: int) -> bool:
        rest = self._data[begin:]
        if rest.startswith(b"\r\n"):
            self.keeps = self.keeps and len(rest) == 2
            return True
        end = rest.find(b"\r\n\r\n")
        if len(rest) > HEAD_BYTES_MAX:
            raise AnswerError("the trailers are too large")
        if end < 0:
            return False
        self.keeps = self.keeps and end + 4 == len(rest)
        return True
