"""Requests to the endpoint about simulated payments, for tests below the load generator."""

from __future__ import annotations

import pyarrow as pa

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest


def requests_of(payments: pa.Table, *, id_prefix: str) -> list[ScoreRequest]:
    """Returns a request for each row of a table of simulated payments. Payment ids get the prefix."""
    names = [name for name in payments.column_names if name in ScoreRequest.DESCRIPTOR.fields_by_name]
    requests = []
    for row in payments.select(names).to_pylist():
        request = ScoreRequest(**{name: value for name, value in row.items() if value is not None})
        request.payment_id = id_prefix + request.payment_id
        requests.append(request)
    return requests
