"""Spans of a caller's trace, all the way: header of a request, decision on the topic, `paywarden traces`, collector."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_for_listener, wait_until
from tests.services.servers.collector import Collector
from tests.worlds.small import small_world
from tests.worlds.stream.topics import read_topic

TRACE = "4bf92f3577b34da6a3ce929d0e0e47"
PARENT = "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = "01", "00"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with closing(Collector()) as made:
        yield made


def pay(target: str, number: int, traceparent: str | None) -> ScoreResponse:
    body = ScoreRequest(
        payment_id=f"p-{number}",
        event_time_ms=time.time_ns() // 1_000_000,
        card_id="card-of-the-trace",
        merchant_id="merchant",
        amount_minor=100,
        currency="EUR",
    ).SerializeToString()
    headers = {"Content-Type": "application/x-protobuf"}
    if traceparent is not None:
        headers["traceparent"] = traceparent
    with urllib.request.urlopen(urllib.request.Request(f"{target}/v1/score", body, headers), timeout=60) as reply:
        return ScoreResponse.FromString(reply.read())


def test_a_sampled_request_has_its_spans_at_the_collector_and_no_other_has(
    deployment: Deployment, settings: KafkaSettings, collector: Collector
) -> None:
    shutil.copytree(small_world.trained_bundle(), deployment.bundle)
    deployment.configure("companion", "fill_from_store = false\n")
    deployment.configure("admission", "deadline_ms = 60000\nwait_ms_max = 50000\n")
    deployment.configure("tracing", f'collector = "{collector.address}"\n')
    serve = deployment.start("serve")
    deployment.start("companion")
    traces = deployment.start("traces")
    target = serve.first_line()
    # The address is printed before the worker listens there.
    wait_for_listener(target.removeprefix("http://"))
    assert traces.first_line() == f"spans go to {collector.address}"
    flags = {0: SAMPLED, 1: UNSAMPLED, 2: None, 3: SAMPLED}
    decided: dict[int, ScoreResponse] = {}
    for number, flag in flags.items():
        header = None if flag is None else f"00-{TRACE}{number:02}-{PARENT}-{flag}"
        decided[number] = pay(target, number, header)
    # A collector that is away for a moment loses none. The next answers are 503, then 200.
    collector.answers.append(503)
    decided[4] = pay(target, 4, f"00-{TRACE}04-{PARENT}-{SAMPLED}")
    sampled = (0, 3, 4)
    wait_until(lambda: len(collector.spans) >= 2 * len(sampled), "the spans are at the collector")

    decoder = Decoder("decisions", LocalSchemaIds())
    on_topic = {
        decoder.decode(record.value)["decision_id"]: record.timestamp_ms
        for record in read_topic(settings, "decisions")
        if record.value is not None
    }
    assert on_topic.keys() == {answer.decision_id for answer in decided.values()}
    spans = collector.spans
    assert {span.trace_id.hex() for span in spans} == {f"{TRACE}{number:02}" for number in sampled}
    for number in sampled:
        score, ship = sorted(
            (span for span in spans if span.trace_id.hex() == f"{TRACE}{number:02}"), key=lambda span: span.name
        )
        assert (score.name, ship.name) == ("score", "ship")
        # Both belong to the span that the caller was in, or one to the other.
        assert score.parent_span_id.hex() == PARENT
        assert attribute_values(score) >= {decided[number].decision_id, decided[number].action}
        assert score.start_time_unix_nano <= score.end_time_unix_nano <= ship.end_time_unix_nano
        assert ship.end_time_unix_nano == on_topic[decided[number].decision_id] * 1_000_000
    assert traces.stop() == 0
    assert len(collector.spans) == 2 * len(sampled)


def attribute_values(span: Span) -> set[str]:
    return {attribute.value.string_value for attribute in span.attributes}
