"""Requests and responses as protobuf. One request stays the bytes it came as; a batch is only cut into its requests.

The decoder writes a request again that holds more than the service understands (see scoring/requests/decoder.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.schemas.proto.split_pb2 import SplitBatchRequest, SplitBatchResponse
from paywarden.scoring.requests.format import Format
from paywarden.scoring.requests.schema import PACKAGED, RequestSchema
from paywarden.scoring.requests.validation import REQUEST_BYTES_MAX, RequestTooLarge, check_batch_size


def parse(body: bytes, schema: RequestSchema = PACKAGED) -> ScoreRequest:
    """Returns the request of a serialised ScoreRequest. Raises InvalidEvent when it is not one."""
    try:
        return schema.message.FromString(body)
    except DecodeError:
        raise InvalidEvent("not a protobuf paywarden.scoring.v1.ScoreRequest") from None


def canonical(request: ScoreRequest) -> bytes:
    """Returns a request as bytes, without fields that this release does not know: they are taken out of `request`, too.

    protobuf refuses a message of more than 100 levels. An unknown field may have 99 of them, and would be one level
    deeper in the outbox's record than in the request.
    """
    request.DiscardUnknownFields()
    return request.SerializeToString()


def _take_protobuf(body: bytes, _: RequestSchema = PACKAGED) -> bytes:
    return body


def _split_protobuf_batch(body: bytes, size_max: int, _: RequestSchema = PACKAGED) -> Sequence[bytes]:
    try:
        batch = SplitBatchRequest.FromString(body)
    except DecodeError:
        raise InvalidEvent("not a protobuf paywarden.scoring.v1.ScoreBatchRequest") from None
    check_batch_size(len(batch.requests), size_max)
    requests = list(batch.requests)
    if max(map(len, requests)) > REQUEST_BYTES_MAX:
        raise RequestTooLarge(index=next(i for i, one in enumerate(requests) if len(one) > REQUEST_BYTES_MAX))
    return requests


def _join_protobuf_batch(responses: Sequence[bytes]) -> bytes:
    return SplitBatchResponse(responses=responses).SerializeToString()


PROTOBUF = Format(
    content_type="application/x-protobuf",
    take=_take_protobuf,
    take_batch=_split_protobuf_batch,
    render=lambda response: response,
    render_batch=_join_protobuf_batch,
)
