"""Faults of a scoring host with a real `serve`: descriptors, tokens, a full disk, a hung worker. Each heals."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from paywarden.schemas.proto import health_pb2
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreRequest
from paywarden.scoring.metrics.shared_metrics import totals
from paywarden.scoring.state.outbox import OutboxReader
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.patience import PATIENCE_S
from tests.services.product import internals
from tests.services.product.processes import is_ready, samples, wait_until
from tests.services.product.scoring_server import Server

PROTOBUF = "application/x-protobuf"
SLOW_CALLERS = 1100
# The usual soft limit: fewer than there are slow callers.
USUAL_LIMIT = 1024
# Far more than two segments hold.
PAYMENTS_MAX = 500
# A worker that stands still is killed after 4 s of its supervisor's time.
REPLACED_S_MAX = 60.0


class Host(Server):
    """A server with tokens and small segments, and a caller whose connections stay open."""

    def __init__(self, folder: Path) -> None:
        self.tokens = folder / "tokens"
        self.allow("first-token-0123456789")
        super().__init__(
            folder,
            more=f'connections_max = 1300\n[auth]\ntokens_file = "{self.tokens}"\n',
        )
        values = {"http": {"request_timeout_ms": 600_000}, "outbox": {"segment_bytes": 8192}}
        internals.write(folder, values | {"serve": {"hang_timeout_s": 4}})
        self._sent = 0
        self.grpc_target = self.admin = ""

    def allow(self, token: str) -> None:
        self.token = token
        self.tokens.write_text(f"{token}\n")
        self.tokens.chmod(0o600)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urllib.parse.urlsplit(self.target).netloc, timeout=PATIENCE_S)

    def call(self, client: http.client.HTTPConnection, body: bytes, path: str = "/v1/score") -> int:
        """Returns the status of a request."""
        client.request("POST", path, body, {"Content-Type": PROTOBUF, "Authorization": f"Bearer {self.token}"})
        answer = client.getresponse()
        answer.read()
        return answer.status

    def payments(self, count: int) -> list[ScoreRequest]:
        """Returns payments with ids of their own."""
        now_ms = time.time_ns() // 1_000_000
        self._sent += count
        return [
            ScoreRequest(
                payment_id=f"p-{number}",
                event_time_ms=now_ms,
                card_id="c",
                merchant_id="m",
                amount_minor=1,
                currency="EUR",
            )
            for number in range(self._sent - count, self._sent)
        ]

    def pay(self, client: http.client.HTTPConnection) -> int:
        return self.call(client, self.payments(1)[0].SerializeToString())

    def missing(self, client: http.client.HTTPConnection) -> str:
        """Returns what /readyz says."""
        client.request("GET", "/readyz")
        return client.getresponse().read().decode()

    def recorded(self) -> list[str]:
        """Returns the ids of all payments in the outbox."""
        reader, position, ids = OutboxReader(self.outbox, "worker-0"), 0, list[str]()
        while records := reader.read(position, 100):
            ids += [OutboxEntry.FromString(payload).request.payment_id for _, payload in records]
            position = records[-1][0]
        return ids

    def segment_count(self) -> int:
        return len(list(Path(self.outbox.directory).glob("*/*.log")))


@contextlib.contextmanager
def limit(kind: int, soft: int, pid: int = 0) -> Iterator[None]:
    """Lower a limit of a process for the time of the block."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with Host(tmp_path_factory.mktemp("host")) as made:
        writer = MirrorWriter(made.mirror)
        writer.apply({}, {0: 1}, time.time_ns() // 1_000_000)
        writer.close()
        with limit(resource.RLIMIT_NOFILE, USUAL_LIMIT):
            made.start()
        made.grpc_target = made.parent.first_line().removeprefix("grpc://")
        made.admin = made.parent.first_line().removeprefix("admin ")
        made.listening()
        wait_until(lambda: is_ready(made.target), "the worker is ready")
        yield made


@pytest.fixture
def caller(host: Host) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(host.connect()) as client:
        assert host.pay(client) == 200
        yield client


def test_1100_slow_callers_keep_out_no_bystander_no_segment_and_no_new_token(
    host: Host, caller: http.client.HTTPConnection
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    address = urllib.parse.urlsplit(host.target)
    with limit(resource.RLIMIT_NOFILE, hard), contextlib.ExitStack() as opened:
        for _ in range(SLOW_CALLERS):
            slow = opened.enter_context(socket.create_connection((address.hostname or "", address.port or 0), 60))
            slow.sendall(b"POST /v1/score HTTP/1.1\r\nHost: slow\r\n")
        bystander = opened.enter_context(contextlib.closing(host.connect()))
        before = host.segment_count()

        def has_begun_two(status: int) -> bool:
            assert status == 200
            return host.segment_count() >= before + 2

        pay_until(host, bystander, has_begun_two, "two segments are begun")
        assert host.missing(bystander) == '{"ready": true, "missing": []}'
        channel = opened.enter_context(grpc.insecure_channel(host.grpc_target))
        score = channel.unary_unary("/paywarden.scoring.v1.Scoring/Score")
        bearer = [("authorization", f"Bearer {host.token}")]
        score(host.payments(1)[0].SerializeToString(), metadata=bearer, timeout=PATIENCE_S)
        # The token is withdrawn. It is refused from now on, also on connections that have used it.
        withdrawn = host.token
        host.allow("other-token-0123456789")
        wait_until(lambda: host.pay(bystander) == 200, "the new token is allowed")
        host.token = withdrawn
        assert [host.pay(client) for client in (caller, bystander)] == [401, 401]
        with pytest.raises(grpc.RpcError) as refused:
            score(host.payments(1)[0].SerializeToString(), metadata=bearer, timeout=PATIENCE_S)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        host.token = "other-token-0123456789"
        assert host.pay(caller) == 200
    assert "0123456789" not in host.log()


def test_a_full_disk_refuses_a_batch_whole_and_readiness_says_so_until_it_has_room(
    host: Host, caller: http.client.HTTPConnection
) -> None:
    batch = host.payments(5)
    body = ScoreBatchRequest(requests=batch).SerializeToString()
    active = max(Path(host.outbox.directory).glob("*/*.log"))
    with grpc.insecure_channel(host.grpc_target) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")

        def health() -> str:
            answer = health_pb2.HealthCheckResponse.FromString(check(b"", timeout=PATIENCE_S))
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

        with limit(resource.RLIMIT_FSIZE, active.stat().st_size, host.workers[0].pid):
            assert host.call(caller, body, "/v1/score:batch") == 503
            wait_until(lambda: "outbox: cannot append" in host.missing(caller), "the worker is not ready")
            assert health() == "NOT_SERVING"
        assert not {payment.payment_id for payment in batch} & set(host.recorded())
        # Nobody sends a payment meanwhile.
        wait_until(lambda: '"ready": true' in host.missing(caller), "the worker is ready again")
        assert health() == "SERVING"
    assert host.call(caller, body, "/v1/score:batch") == 200
    ids = host.recorded()
    assert [ids.count(payment.payment_id) for payment in batch] == [1] * 5


def test_a_write_cut_short_ends_the_worker_and_its_batch_can_be_repeated(host: Host) -> None:
    """The first records of the batch are whole. A reader may have passed them, so they are decisions."""
    (worker,) = host.listening()
    batch = host.payments(5)
    body = ScoreBatchRequest(requests=batch).SerializeToString()
    active = max(Path(host.outbox.directory).glob("*/*.log"))
    with (
        contextlib.closing(host.connect()) as client,
        limit(resource.RLIMIT_FSIZE, active.stat().st_size + 1000, worker.pid),
    ):
        assert host.call(client, body, "/v1/score:batch") == 503
        wait_until(lambda: not worker.is_running(), "the worker ends")
    (next_worker,) = host.listening()
    assert next_worker != worker
    with contextlib.closing(host.connect()) as client:
        assert host.call(client, body, "/v1/score:batch") == 200
    ids = host.recorded()
    assert [ids.count(payment.payment_id) for payment in batch] == [1] * 5


def test_a_segment_that_cannot_be_begun_is_begun_once_it_can(host: Host, caller: http.client.HTTPConnection) -> None:
    with limit(resource.RLIMIT_NOFILE, 3, host.workers[0].pid):
        pay_until(host, caller, lambda status: status == 503, "a segment that cannot be begun refuses a payment")
        assert "outbox: cannot begin a segment: Too many open files" in host.missing(caller)
        assert not is_answered_on_a_new_connection(host)
    wait_until(lambda: '"ready": true' in host.missing(caller), "the worker is ready again")
    assert host.pay(caller) == 200
    wait_until(lambda: is_answered_on_a_new_connection(host), "a new connection is answered")
    assert len(host.recorded()) == len(set(host.recorded()))


def pay_until(host: Host, client: http.client.HTTPConnection, is_enough: Callable[[int], bool], what: str) -> None:
    """Pay until a status is the last one that is wanted. A segment holds some fifteen payments."""
    statuses: Counter[int] = Counter()
    for _ in range(PAYMENTS_MAX):
        status = host.pay(client)
        statuses[status] += 1
        if is_enough(status):
            return
    raise AssertionError(f"not within {PAYMENTS_MAX} payments: {what}; statuses: {dict(statuses)}")


def is_answered_on_a_new_connection(host: Host) -> bool:
    """Whether an answer comes within two seconds. Until then a connection waits in the kernel's queue."""
    client = http.client.HTTPConnection(urllib.parse.urlsplit(host.target).netloc, timeout=2)
    with contextlib.closing(client), contextlib.suppress(TimeoutError):
        return host.pay(client) == 200
    return False


def test_a_host_without_a_worker_says_that_it_is_not_ready(host: Host) -> None:
    """The metric was absent, and PaywardenHostNotReady silent, while the only worker could not start again."""

    def ready() -> float | None:
        return samples(host.admin, zeros=True).get(("paywarden_scoring_ready",))

    wait_until(lambda: ready() == 1, "the host is ready")
    outbox = Path(host.outbox.directory)
    outbox.rename(f"{outbox}-away")
    outbox.touch()
    try:
        # The next worker cannot begin its outbox, and ends.
        (worker,) = host.listening()
        worker.kill()
        wait_until(lambda: ready() == 0, "the host says that it is not ready")
    finally:
        outbox.unlink()
        Path(f"{outbox}-away").rename(outbox)
    wait_until(lambda: ready() == 1, "the next worker is ready")
    host.listening()


def test_a_worker_that_stands_still_is_replaced(host: Host) -> None:
    (worker,) = host.workers
    worker.suspend()
    wait_until(lambda: not worker.is_running(), "the worker that stands still is killed", timeout_s=REPLACED_S_MAX)
    host.listening()
    with contextlib.closing(host.connect()) as client:
        assert host.pay(client) == 200
    restarts = {
        dict(series.labels)["reason"]: slots[0]
        for series, slots in totals(host.folder / "metrics").items()
        if series.name == "paywarden_worker_restarts_total"
    }
    assert restarts["hung"] == 1
    assert "worker 0 has not turned for 4 s: killing it" in host.log()
