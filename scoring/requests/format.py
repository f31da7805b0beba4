"""The interface of every request and response format: `PROTOBUF` (protobuf_form.py) and `JSON` (json_form.py).

    body ─ Format.take ─► request ─ RequestDecoder ─► row, keys, payment id
    ScoreResponse ─ Format.render ─► body

A request is its protobuf bytes, because the outbox keeps such bytes and the compiled reader reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from paywarden.scoring.requests.schema import PACKAGED, RequestSchema


class Take(Protocol):
    """Returns the one request of a body, serialised. `schema` has the fields that the deployment knows."""

    def __call__(self, body: bytes, schema: RequestSchema = PACKAGED, /) -> bytes: ...


class TakeBatch(Protocol):
    """Returns the requests of a batch, at most `size_max`."""

    def __call__(self, body: bytes, size_max: int, schema: RequestSchema = PACKAGED, /) -> Sequence[bytes]: ...


@dataclass(frozen=True)
class Format:
    """Reads requests and renders responses in one content type.

    `take` and `take_batch` raise InvalidEvent; they check only what the format itself can get wrong. `render` and
    `render_batch` are given serialised ScoreResponses.
    """

    content_type: str
    take: Take
    take_batch: TakeBatch
    render: Callable[[bytes], bytes]
    render_batch: Callable[[Sequence[bytes]], bytes]
