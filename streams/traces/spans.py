"""The spans of a decision, for OTLP.

A decision whose request had a `traceparent` with the flag "sampled" has two spans in the caller's trace:

    caller's span ─► score   from the arrival of the request to the decision
                       └──► ship    from the decision until the record was on Kafka

Their ids derive from the decision's id: a decision that is read twice gives the same spans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from paywarden.scoring.requests.trace_context import SAMPLED, ids_of, packed_trace

SERVICE = "paywarden"
_NS_A_MS, _NS_A_US = 1_000_000, 1_000
# OTLP holds a time in 64 bits without a sign. A decision of somebody else may have any time.
_TIME_NS_MAX = (1 << 64) - 1
_SPAN_BYTES = 8
_COPIED = ("decision_id", "action", "model_version", "arm")


def spans_of(decision: Mapping[str, Any], shipped_ms: int) -> list[Span]:
    """Returns the spans of a decision (schemas/avsc/decisions.avsc), which was on Kafka at `shipped_ms`.

    None where the caller's trace is not sampled.
    """
    packed = packed_trace((decision["traceparent"] or "").encode())
    if not packed or not packed[-1] & SAMPLED:
        return []
    ids = ids_of(packed)
    trace, decided_ns = bytes.fromhex(ids["trace_id"]), decision["decided_time_ms"] * _NS_A_MS
    score = Span(
        trace_id=trace,
        span_id=_span_id(decision["decision_id"], "score"),
        parent_span_id=bytes.fromhex(ids["span_id"]),
        name="score",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=_time_ns(decided_ns - (decision["latency_us"] or 0) * _NS_A_US),
        end_time_unix_nano=_time_ns(decided_ns),
        attributes=[_text(f"paywarden.{name}", decision[name]) for name in _COPIED if decision[name]],
    )
    ship = Span(
        trace_id=trace,
        span_id=_span_id(decision["decision_id"], "ship"),
        parent_span_id=score.span_id,
        name="ship",
        kind=Span.SPAN_KIND_PRODUCER,
        start_time_unix_nano=_time_ns(decided_ns),
        end_time_unix_nano=_time_ns(max(decided_ns, shipped_ms * _NS_A_MS)),
    )
    return [score, ship]


def request_of(spans: Iterable[Span]) -> ExportTraceServiceRequest:
    """Returns the message that a collector takes."""
    scope = ScopeSpans(scope=InstrumentationScope(name=SERVICE), spans=spans)
    resource = Resource(attributes=[_text("service.name", SERVICE)])
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])])


def _time_ns(time_ns: int) -> int:
    return min(max(0, time_ns), _TIME_NS_MAX)


def _span_id(decision_id: str, name: str) -> bytes:
    digest = hashlib.sha256(f"{decision_id}:{name}".encode()).digest()
    # All zeros would mean "no span".
    return digest[:_SPAN_BYTES] if any(digest[:_SPAN_BYTES]) else b"\1" * _SPAN_BYTES


def _text(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))
