"""Renders answers as bytes of HTTP/1.1, from heads that are prepared once a second.

    HTTP/1.1 200 OK … Content-Type: … Date: … Content-Length:   prepared for each status and content type
    123 … {"payment_id": …}                                     written for each answer

Only the length of the body and the body itself differ between most answers.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

from paywarden.scoring.http.http_connection import HttpCall
from paywarden.scoring.http.refusals import RETRY_LATER, STATUS_HEADERS


class AnswerHeads:
    """Keeps the beginning of each kind of answer, up to the body's length, and renews it when the second changes."""

    def __init__(self, now_ms: int) -> None:
        self._date = b""
        self._retries_later = False
        self._begun: dict[tuple[int, str], bytes] = {}
        # The beginnings of answers with status 200, which nearly all are.
        self._begun_ok: dict[str, bytes] = {}
        self.set_time(now_ms)

    def set_time(self, now_ms: int) -> None:
        """Set the Date of every answer from now on; HTTP requires one. `now_ms` is in epoch milliseconds."""
        date = b"\r\nDate: " + formatdate(now_ms / 1000, usegmt=True).encode() + b"\r\nContent-Length: "
        if date != self._date:
            self._date = date
            self._begun.clear()
            self._begun_ok.clear()

    def render(self, call: HttpCall, *, closes: bool) -> bytes:
        """Returns the whole answer to a call. `closes`: it says that the connection closes."""
        body, status, head = call.body, call.status, call.head
        if status == 200 and not (closes or head.says_keep_alive or head.is_head):
            begun = self._begun_ok.get(call.content_type) or self._begin_ok(call.content_type)
            return b"%b%d\r\n\r\n%b" % (begun, len(body), body)
        begun = self._begun.get((status, call.content_type)) or self._begin(status, call.content_type)
        connection = b""
        if closes:
            connection = b"Connection: close\r\n"
        elif head.says_keep_alive:
            connection = b"Connection: keep-alive\r\n"
        always = STATUS_HEADERS.get(status, b"")
        if status == 429:
            self._retries_later = not self._retries_later
            always = RETRY_LATER if self._retries_later else always
        headers = always + call.headers + connection
        return b"%b%d\r\n%b\r\n%b" % (begun, len(body), headers, b"" if head.is_head else body)

    def _begin_ok(self, content_type: str) -> bytes:
        return self._begun_ok.setdefault(content_type, self._begin(200, content_type))

    def _begin(self, status: int, content_type: str) -> bytes:
        line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}".encode()
        return self._begun.setdefault((status, content_type), line + self._date)
