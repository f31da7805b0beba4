"""Callers of the endpoint: they send requests, wait, repeat, and remember the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from tests.simulation.processes import WORKERS, Deployment
from tests.simulation.world import Failed

PATIENCE_S = 3.0
_AGAIN_S = 0.4
_ATTEMPTS_MAX = 5
# A ready worker has room for this number of decisions, an eighth of its outbox. A larger batch may not fit.
_READY_FOR = 12
_FIELDS = tuple(field.name for field in ScoreRequest.DESCRIPTOR.fields)


class Told(NamedTuple):
    """The answer that a caller got about a payment."""

    decision_id: str
    score: float
    action: str


@dataclass(eq=False)
class Request:
    """A request, with what has become of it."""

    payments: Sequence[Mapping[str, Any]]
    body: bytes
    content_type: str
    is_batch: bool
    worker: int
    # A hostile request may be answered in any way, and is sent once.
    is_hostile: bool = False
    statuses: list[int] = field(default_factory=list)
    # Whether an attempt got no answer, so that nobody knows what it did.
    is_in_doubt: bool = False
    attempts: int = 0

    @property
    def ids(self) -> list[str]:
        return [payment["payment_id"] for payment in self.payments]


def message_of(payment: Mapping[str, Any]) -> ScoreRequest:
    return ScoreRequest(**{n: v for n, v in payment.items() if n in _FIELDS and v is not None})


def request_of(
    payments: Sequence[Mapping[str, Any]], worker: int, *, as_json: bool, is_hostile: bool = False
) -> Request:
    is_batch = len(payments) > 1
    if as_json:
        rows = [{n: v for n, v in payment.items() if n in _FIELDS and v is not None} for payment in payments]
        body = json.dumps({"requests": rows} if is_batch else rows[0]).encode()
    elif is_batch:
        body = ScoreBatchRequest(requests=[message_of(p) for p in payments]).SerializeToString()
    else:
        body = message_of(payments[0]).SerializeToString()
    form = "application/json" if as_json else "application/x-protobuf"
    return Request(payments, body, form, is_batch, worker, is_hostile=is_hostile)


class Exchange:
    """One connection with one request on it. `answered` gets status and body, or None when the connection ends."""

    def __init__(self, deployment: Deployment, worker: str, data: bytes, answered: Callable[[Any], object]) -> None:
        self._answered, self._buffer, self._is_done = answered, b"", False
        self._send: Callable[[bytes], object] | None = None
        listening = deployment.listening.get(worker)
        if listening is None:
            deployment.world.after(0.01, self.end)
            return
        self._send = listening.connect(self._receive, self.end)
        self._send(data)

    def send(self, data: bytes) -> bool:
        """Send more on the connection. Returns whether it is still open."""
        if self._is_done or self._send is None:
            return False
        self._send(data)
        return not self._is_done

    def _receive(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or self._is_done:
            return
        lines = head.decode("latin-1").split("\r\n")
        sizes = [line.split(":")[1] for line in lines if line.lower().startswith("content-length:")]
        if sizes and len(body) >= int(sizes[0]):
            self._is_done = True
            self._answered((int(lines[0].split()[1]), body[: int(sizes[0])]))

    def end(self) -> None:
        if not self._is_done:
            self._is_done = True
            self._answered(None)


class Callers:
    """All callers of the host."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment, self._world = deployment, deployment.world
        self.told: dict[str, Told] = {}
        self.payments: dict[str, Mapping[str, Any]] = {}
        self.requests: list[Request] = []
        self.open = 0
        # Clocks have jumped: right requests may be refused as too old or too new.
        self.are_clocks_wrong = False
        self.is_healed = False
        # Payments whose decision was damaged in the outbox: a repeat may be decided again.
        self.spoilt: set[str] = set()
        # By worker: moments and answers of /readyz, and of requests that should have been decided.
        self._seen: dict[str, list[tuple[float, str]]] = {}

    def send(self, request: Request) -> None:
        """Send a request, and again until it is answered or the caller gives up."""
        self.requests.append(request)
        self.open += 1
        if not request.is_hostile:
            for payment in request.payments:
                self.payments.setdefault(payment["payment_id"], payment)
        self._attempt(request)

    def _attempt(self, request: Request) -> None:
        request.attempts += 1
        worker = f"worker-{(request.worker + request.attempts - 1) % WORKERS}"
        path = "/v1/score:batch" if request.is_batch else "/v1/score"
        head = f"POST {path} HTTP/1.1\r\nHost: sim\r\nContent-Type: {request.content_type}\r\n"
        data = f"{head}Content-Length: {len(request.body)}\r\n\r\n".encode() + request.body
        is_over = False

        def answered(answer: Any) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._answered(request, worker, answer)

        Exchange(self._deployment, worker, data, answered)
        self._world.after(PATIENCE_S, lambda: answered(None))

    def _answered(self, request: Request, worker: str, answer: Any) -> None:
        status, body = answer or (0, b"")
        self._world.note(f"{'+'.join(request.ids[:3])} at {worker}: {status}")
        request.statuses.append(status)
        if status == 0:
            request.is_in_doubt = True
        if status == 200:
            self._note(worker, "decided")
            self._told(request, body)
            self.open -= 1
            return
        self._check_refusal(request, worker, status, body)
        if (status in (0, 429, 503, 504)) and request.attempts < _ATTEMPTS_MAX and not request.is_hostile:
            self._world.after(_AGAIN_S * (0.5 + self._world.random.random()), lambda: self._attempt(request))
        else:
            self.open -= 1

    def _check_refusal(self, request: Request, worker: str, status: int, body: bytes) -> None:
        if status == 500:
            raise Failed("internal_error", f"{worker} answered {request.ids[:3]} with 500")
        if status == 503 and b"outbox" in body:
            if len(request.payments) <= _READY_FOR:
                self._note(worker, "cannot record")
            if self.is_healed:
                raise Failed("stuck", f"{worker} still says 503 after everything was healed: {body[:200]!r}")
        if request.is_hostile or status in (0, 429, 503, 504):
            return
        if status == 400 and self.are_clocks_wrong:
            return
        raise Failed("wrongly_refused", f"{worker} refused {request.ids[:3]} with {status}: {body[:200]!r}")

    def _told(self, request: Request, body: bytes) -> None:
        for payment_id, told in zip(request.ids, _answers(request, body), strict=True):
            earlier = self.told.setdefault(payment_id, told)
            if earlier != told and payment_id not in self.spoilt:
                raise Failed("two_answers", f"{payment_id} was told {earlier} and then {told}")

    # Readiness

    def probe(self, worker: str) -> None:
        """Ask a worker whether it is ready."""

        def answered(answer: Any) -> None:
            if answer is not None:
                self._note(worker, "ready" if answer[0] == 200 else "not ready")

        Exchange(self._deployment, worker, b"GET /readyz HTTP/1.1\r\nHost: sim\r\nConnection: close\r\n\r\n", answered)

    def _note(self, worker: str, what: str) -> None:
        seen = self._seen.setdefault(worker, [])
        seen.append((self._world.now, what))
        if what in ("decided", "not ready"):
            seen.clear()
            seen.append((self._world.now, what))
            return
        # It could not record, said "ready" long after, and still could not record.
        refused = [moment for moment, kind in seen if kind == "cannot record"]
        ready = [moment for moment, kind in seen if kind == "ready" and refused and moment > refused[0] + 1.5]
        if ready and refused[-1] > ready[0]:
            raise Failed(
                "readiness_lied",
                f"{worker} could not record a decision at {refused[0]:.2f} s, said that it is ready at "
                f"{ready[0]:.2f} s, and could not record at {refused[-1]:.2f} s",
            )

    def last_seen(self, worker: str) -> str:
        seen = self._seen.get(worker)
        return seen[-1][1] if seen else ""

    def forget_refusals(self, process: str) -> None:
        """Another fault begins: a worker that says it is ready before it meets it does not lie."""
        self._seen[process] = [
            (moment, what) for moment, what in self._seen.get(process, []) if what != "cannot record"
        ]


def _answers(request: Request, body: bytes) -> list[Told]:
    if request.content_type == "application/json":
        loaded = json.loads(body)
        rows = loaded["responses"] if request.is_batch else [loaded]
        return [Told(row["decision_id"], row["score"], row["action"]) for row in rows]
    if request.is_batch:
        responses = list(ScoreBatchResponse.FromString(body).responses)
    else:
        responses = [ScoreResponse.FromString(body)]
    return [Told(response.decision_id, response.score, response.action) for response in responses]
