"""Callers who pay through a gateway and ask again, while workers of the hosts behind it are killed."""

from __future__ import annotations

import hashlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from tests.services.clients.served_clients import Host
from tests.services.product.processes import wait_until

# A caller gets these while a worker is away, another one decides the payment, or the host is overloaded: it asks again.
_AGAIN = (429, 503, 504)
_CARDS = 200
_PATIENCE_S = 60.0
# A payment that was answered is asked for once more in this share of cases, as a caller does who has lost the answer.
_ONCE_MORE = 0.1


def route_of(card: str) -> str:
    """Returns the value of the routing header."""
    return hashlib.sha256(card.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Killed:
    """`double` counts the payments with two decisions, in the outboxes of all hosts or in answers."""

    kills: int
    payments: int
    repeats: int
    double: int


class _Caller(threading.Thread):
    """Pays for one card after the other, and repeats a call with its id and route until it is answered."""

    def __init__(self, url: str, key: str, name: str, pause_s: float) -> None:
        super().__init__()
        self._address, self._key, self._name, self._pause_s = urlsplit(url).netloc, key, name, pause_s
        self._rng = random.Random(name)
        self._connection: http.client.HTTPConnection | None = None
        self._is_over = threading.Event()
        self.decisions: dict[str, set[str]] = {}
        self.repeats = 0
        self._last = ""
        self.error: Exception | None = None

    def run(self) -> None:
        count = 0
        try:
            while not self._is_over.wait(self._pause_s):
                payment_id = f"{self._name}-{count}"
                count += 1
                for _ in range(2 if self._rng.random() < _ONCE_MORE else 1):
                    self.decisions.setdefault(payment_id, set()).add(
                        self._decided(payment_id, f"card-{count % _CARDS}")
                    )
        except (RuntimeError, AssertionError, ValueError) as error:
            # The thread that joins raises it.
            self.error = error
        finally:
            self._disconnect()

    def stop(self) -> None:
        self._is_over.set()

    def _decided(self, payment_id: str, card: str) -> str:
        """Ask until the payment is decided; returns the decision's id."""
        body = ScoreRequest(
            payment_id=payment_id,
            event_time_ms=time.time_ns() // 1_000_000,
            card_id=card,
            merchant_id="merchant",
            amount_minor=100,
            currency="EUR",
        ).SerializeToString()
        headers = {
            "Content-Type": "application/x-protobuf",
            "Authorization": f"Bearer {self._key}",
            "x-paywarden-route": route_of(card),
        }
        until = time.monotonic() + _PATIENCE_S
        while (answer := self._ask(body, headers)) is None:
            if time.monotonic() > until:
                raise RuntimeError(f"no answer within {_PATIENCE_S:.0f} s; the last one was {self._last}")
            self.repeats += 1
        assert answer.payment_id == payment_id
        return answer.decision_id

    def _ask(self, body: bytes, headers: dict[str, str]) -> ScoreResponse | None:
        """Returns the answer, None if the caller must ask again."""
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._address, timeout=_PATIENCE_S)
            self._connection.request("POST", "/v1/score", body, headers)
            reply = self._connection.getresponse()
            data = reply.read()
        except (OSError, http.client.HTTPException) as error:
            self._last = repr(error)
            self._disconnect()
            time.sleep(0.01)
            return None
        if reply.status in _AGAIN:
            self._last = f"{reply.status} {data.decode(errors='replace')}"
            time.sleep(0.01)
            return None
        if reply.status != 200:
            raise RuntimeError(f"a payment was answered {reply.status}")
        return ScoreResponse.FromString(data)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def killed_under_load(
    url: str, hosts: Sequence[Host], kills: int, *, key: str, name: str, callers: int = 8, pause_s: float = 0.005
) -> Killed:
    """Kill a worker at a time, each once all workers listen again, while callers pay through the gateway at `url`.

    Raises RuntimeError when a payment is not answered, or is refused for another reason than a host in trouble.
    """
    rng = random.Random(name)
    threads = [_Caller(url, key, f"{name}-{number}", pause_s) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(thread.decisions or thread.error for thread in threads), "every caller has an answer")
        for _ in range(kills):
            # Waits until all workers of the host listen.
            rng.choice(hosts).kill_worker(rng)
            time.sleep(rng.uniform(0.02, 0.2))
    finally:
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join()
    for thread in threads:
        if thread.error is not None:
            raise thread.error
    answers = {payment: decided for thread in threads for payment, decided in thread.decisions.items()}
    in_outboxes: Counter[str] = sum((host.decisions() for host in hosts), Counter())
    missing = answers.keys() - in_outboxes.keys()
    assert not missing, f"{len(missing)} of {len(answers)} answered payments are in no outbox"
    double = sum(len(decided) > 1 or in_outboxes[payment] > 1 for payment, decided in answers.items())
    return Killed(kills, len(answers), sum(thread.repeats for thread in threads), double)
