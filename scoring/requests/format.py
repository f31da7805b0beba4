"""The interface of every request and response format: `PROTOBUF` (protobuf_form.py) and `JSON` (json_form.py).

    body ─ Format.take ─► request ─ RequestDecoder ─► row, keys, payment id
    ScoreResponse ─ Format.render ─► body

A request is its protobuf bytes, because the outbox keeps such bytes and the compiled reader reads them. A format that
had to parse a request, and sees that the compiled reader will leave it out, hands on a ParsedRequest: nobody parses it
again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests.schema import PACKAGED, RequestSchema


class ParsedRequest(NamedTuple):
    """One request that its format has parsed already: values of the right types, not checked any further."""

    body: bytes
    """The request as canonical protobuf."""
    message: ScoreRequest
    values: Mapping[str, Any]
    """The values by field. A field that is absent is None, or not in here."""


TakenRequest = bytes | ParsedRequest
"""One request of a body: a serialised ScoreRequest, or a parsed one."""


class Take(Protocol):
    """Returns the one request of a body. `schema` has the fields that the deployment knows."""

    def __call__(self, body: bytes, schema: RequestSchema = PACKAGED, /) -> TakenRequest: ...


class TakeBatch(Protocol):
    """Returns the requests of a batch, at most `size_max`."""

    def __call__(self, body: bytes, size_max: int, schema: RequestSchema = PACKAGED, /) -> Sequence[TakenRequest]: ...


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
