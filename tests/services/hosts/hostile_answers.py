"""Answers of a broken or hostile host, word by word, and the results that a client must return for them.

    HOSTILE["nan_score"].cause     the cause of the stand-in: "failed"
    HOSTILE["nan_score"].parts     the bytes of the answer, in the parts that are sent; endless for some words

A scripted host plays these words as it plays its own (scripted_host.py). The causes are those of rules 13, 21 and 22 of
ops/clients/SPECIFICATION.md.
"""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

# More than any limit of a client, in parts as large as a socket takes at once.
_PART = 64 * 1024
# So that the deadline passes between two bytes, again and again.
_DRIP_S = 0.01


@dataclass(frozen=True)
class Hostile:
    """An answer that is none. `parts` makes it for the id of a payment."""

    cause: str
    parts: Callable[[str], Iterable[bytes]]
    # How the host goes on after the last part: it serves on, closes, or closes with a reset.
    then: str = "serve"
    # Whether it lasts until the caller leaves, by its own limits or at its deadline.
    is_endless: bool = False


def _decision(payment_id: str, **changed: object) -> bytes:
    return json.dumps({"payment_id": payment_id, "score": 0.25, "action": "approve"} | changed).encode()


def _answer(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


def _dripped(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        yield data[place : place + 1]
        time.sleep(_DRIP_S)


def _once(make: Callable[[str], bytes]) -> Callable[[str], Iterable[bytes]]:
    return lambda payment_id: (make(payment_id),)


def _endless(head: bytes, part: bytes) -> Callable[[str], Iterable[bytes]]:
    return lambda _: itertools.chain((head,), itertools.repeat(part * (_PART // len(part) + 1)))


_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_GOAWAY = b"\0\0\x08\x07\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\x0b"
_RST_STREAM = b"\0\0\x04\x03\0\0\0\0\x01" + b"\0\0\0\x08"

HOSTILE: Mapping[str, Hostile] = {
    # Not an answer of HTTP/1.1.
    "silence_then_end": Hostile("broken", _once(lambda _: b""), then="close"),
    "cut_head": Hostile("broken", _once(lambda _: b"HTTP/1.1 200 O"), then="close"),
    "reset": Hostile("broken", _once(lambda _: b""), then="reset"),
    "reset_in_head": Hostile("broken", _once(lambda _: _OK + b"Content-Le"), then="reset"),
    "reset_in_body": Hostile("broken", _once(lambda p: _answer(_decision(p)[:20], length=80)), then="reset"),
    "http2_goaway": Hostile("broken", _once(lambda _: _GOAWAY), then="close"),
    "http2_rst_stream": Hostile("broken", _once(lambda _: _RST_STREAM), then="close"),
    "upgrade": Hostile(
        "failed", _once(lambda _: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n" + _GOAWAY)
    ),
    "four_digits": Hostile("failed", _once(lambda p: _answer(_decision(p), status="2000 OK"))),
    "http_3": Hostile("failed", _once(lambda p: _answer(_decision(p)).replace(b"/1.1", b"/3.0"))),
    # Lengths that are wrong, and what has no end.
    "length_too_short": Hostile("failed", _once(lambda p: _answer(_decision(p), length=20))),
    "length_too_long": Hostile("broken", _once(lambda p: _answer(_decision(p), length=500)), then="close"),
    "two_lengths": Hostile("failed", _once(lambda p: _answer(_decision(p), headers="Content-Length: 5\r\n"))),
    "length_and_chunked": Hostile(
        "failed", _once(lambda p: _answer(_decision(p), headers="Transfer-Encoding: chunked\r\n"))
    ),
    "negative_length": Hostile("failed", _once(lambda p: _answer(_decision(p), length=-1))),
    "gigabyte": Hostile("failed", _endless(_OK + b"Content-Length: 1000000000\r\n\r\n", b" "), is_endless=True),
    "gigabyte_to_end": Hostile("failed", _endless(_OK + b"\r\n", b" "), is_endless=True),
    "endless_chunks": Hostile("failed", _endless(_CHUNKED, b"3e8\r\n" + b" " * 1000 + b"\r\n"), is_endless=True),
    "endless_small_chunks": Hostile("failed", _endless(_CHUNKED, b"1\r\n \r\n"), is_endless=True),
    "endless_chunk_line": Hostile("failed", _endless(_CHUNKED, b"1;a"), is_endless=True),
    "endless_trailers": Hostile("failed", _endless(_CHUNKED + b"0\r\n", b"x: y\r\n"), is_endless=True),
    "endless_headers": Hostile("failed", _endless(_OK, b"X-Filler: yes\r\n"), is_endless=True),
    "endless_header": Hostile("failed", _endless(_OK + b"X-Filler: ", b"y"), is_endless=True),
    "endless_line": Hostile("failed", _endless(b"", b"HTTP/1.1 "), is_endless=True),
    "endless_continues": Hostile("failed", _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), is_endless=True),
    "chunk_size_of_words": Hostile("failed", _once(lambda _: _CHUNKED + b"many\r\n{}\r\n0\r\n\r\n")),
    # Answers of somebody else: of a proxy, of another service, about another payment.
    "redirect": Hostile(
        "failed", _once(lambda _: _answer(b"", status="302 Found", headers="Location: /elsewhere\r\n"))
    ),
    "not_modified": Hostile("failed", _once(lambda _: b"HTTP/1.1 304 Not Modified\r\n\r\n")),
    "no_content": Hostile("failed", _once(lambda _: b"HTTP/1.1 204 No Content\r\n\r\n")),
    "error_page": Hostile(
        "failed", _once(lambda _: _answer(b"<html>try again</html>", headers="Content-Type: text/html\r\n"))
    ),
    "gzip": Hostile(
        "failed", _once(lambda p: _answer(gzip.compress(_decision(p)), headers="Content-Encoding: gzip\r\n"))
    ),
    "protobuf": Hostile(
        "failed", _once(lambda _: _answer(b"\x0a\x03p-1\xff\xff", headers="Content-Type: application/x-protobuf\r\n"))
    ),
    "empty": Hostile("failed", _once(lambda _: _answer(b""))),
    "cut_json": Hostile("failed", _once(lambda p: _answer(_decision(p)[:-1]))),
    "list": Hostile("failed", _once(lambda p: _answer(b"[" + _decision(p) + b"]"))),
    "deep": Hostile("failed", _once(lambda _: _answer(b"[" * 30_000))),
    "not_utf_8": Hostile(
        "failed", _once(lambda p: _answer(_decision(p, model_version="é").replace(b"\\u00e9", b"\xe9")))
    ),
    "another_payment": Hostile("failed", _once(lambda _: _answer(_decision("p-another")))),
    "no_payment": Hostile("failed", _once(lambda _: _answer(_decision("").replace(b'"payment_id"', b'"id"')))),
    # Decisions that are none.
    "unknown_action": Hostile("failed", _once(lambda p: _answer(_decision(p, action="allow")))),
    "upper_case_action": Hostile("failed", _once(lambda p: _answer(_decision(p, action="APPROVE")))),
    "no_action": Hostile("failed", _once(lambda p: _answer(_decision(p, action=None)))),
    "number_for_an_action": Hostile("failed", _once(lambda p: _answer(_decision(p, action=1)))),
    "nan_score": Hostile("failed", _once(lambda p: _answer(_decision(p, score=float("nan"))))),
    "infinite_score": Hostile("failed", _once(lambda p: _answer(_decision(p, score=float("inf"))))),
    "score_of_a_text": Hostile("failed", _once(lambda p: _answer(_decision(p, score="0.5")))),
    "nan_elsewhere": Hostile("failed", _once(lambda p: _answer(_decision(p, later=float("nan"))))),
    "large_age": Hostile("failed", _once(lambda p: _answer(_decision(p, profile_age_ms=1e300)))),
    # Slowly, past any deadline.
    "drip": Hostile("late", lambda p: _dripped(_answer(_decision(p, reasons=["r" * 100_000]))), is_endless=True),
    "dripped_head": Hostile("late", lambda _: _dripped(_OK + b"X-Filler: " + b"y" * 10_000), is_endless=True),
    "dripped_continues": Hostile("late", lambda _: _dripped(b"HTTP/1.1 100 Continue\r\n\r\n" * 500), is_endless=True),
}
