"""A collector of OpenTelemetry: it takes spans over HTTP in OTLP's own wire format, and keeps them."""

from __future__ import annotations

import http.server
import threading

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Takes what is posted, after it has answered the codes of `answers`."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.codes: list[int] = []
        self.taken: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = collector.answers.pop(0) if collector.answers else 200
                collector.codes.append(code)
                if code == 200:
                    assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                    collector.taken.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for one in self.taken
            for part in one.resource_spans
            for scope in part.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
