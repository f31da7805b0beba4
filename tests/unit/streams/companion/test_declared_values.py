"""Payments with declared fields through the scorer: what features and conditions see, and what is kept of them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import ip
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.fields import Payment
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import hashed_id
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.policy.policy import ConfiguredRule, Policy, PolicySettings, flags_of
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheSettings
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter
from paywarden.streams.companion.shipment import read_entry
from paywarden.streams.companion.shipping import decision_of
from tests.oracles.step_decoder import StepDecoder
from tests.worlds.small.certain_bundle import CertainBundle

NOW_MS = 1_720_000_000_000
CUSTOMER = fields.text("customer_id", 1, personal=True)
MAIL = fields.email("buyer_email", 2)
DOMAIN = fields.email_domain("buyer_domain", 3, of=MAIL)
WEIGHT = fields.decimal("weight", 4, unit="kg", least=0, most=500)
GIFT = fields.flag("is_gift", 5)
FEE = fields.money("fee_minor", 6)
NETWORK = fields.network("ip_network", 7, of=ip)
customer, buyer, network = (
    Entity("customer", "customer_id"),
    Entity("buyer", "buyer_email"),
    Entity("network", ("ip_network", "buyer_domain")),
)
CATALOGUE = Catalogue(
    [customer, buyer, network],
    [
        customer.count("payments", "1d"),
        buyer.count("heavy", "1d", where=WEIGHT >= 20),
        network.count("gifts", "1d", where=GIFT),
        request.holds("is_heavy", WEIGHT >= 20),
        request.holds("is_wrapped", GIFT),
        request.holds("is_dear", FEE >= 20_00),
    ],
    Payment(CUSTOMER, MAIL, DOMAIN, WEIGHT, GIFT, FEE, NETWORK),
)
ENGINE = FeatureEngine(CATALOGUE)
SECRETS = ("sec.ret", "hush-hush", "whisper")
VALUES: dict[str, Any] = {
    "event_time_ms": NOW_MS,
    "card_id": "c",
    "merchant_id": "m",
    "amount_minor": 100,
    "currency": "EUR",
    "ip": "192.0.2.77",
    "customer_id": "customer-whisper",
    "buyer_email": "Sec.Ret@Hush-Hush.example",
    "weight": 25.5,
    "is_gift": True,
    "fee_minor": 19_99,
}


@dataclass
class Host:
    """A scorer with everything that it writes in a folder."""

    decoder: StepDecoder
    scorer: PaymentScorer
    outbox: OutboxSettings

    def score(self, values: dict[str, Any], *, as_json: bool = False) -> ScoreResponse:
        body = self.decoder.schema.message(**values).SerializeToString()
        taken = JSON.take(json.dumps(values).encode(), self.decoder.schema) if as_json else body
        (answer,) = self.scorer.score(Chunk([taken]), NOW_MS)
        assert isinstance(answer, bytes)
        return ScoreResponse.FromString(answer)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp("host")
    settings = OutboxSettings(directory=str(folder / "outbox"))
    cache = DecisionCacheSettings(path=str(folder / "answered"), payments_max=4096)
    decision_cache.prepare(cache)
    rules = (
        ConfiguredRule("hidden", 'buyer_domain in ("hush-hush.example", "x.org") and is_gift', "review"),
        ConfiguredRule("dear", "fee_minor >= 20_00 and weight < 25.6", "decline"),
    )
    names = ENGINE.plan.entity_names
    decoder = StepDecoder(ENGINE.plan, RateTable({"EUR": [(0, RATE_SCALE)]}), RequestLimits())
    scorer = PaymentScorer(
        engine=ENGINE,
        intake=decoder,
        models=ModelChain(
            [cast(Bundle, CertainBundle("is_heavy", 3))], metrics=ModelMetrics.declare(MetricsRegistry())
        ),
        policy=Policy(
            PolicySettings(rules=rules, on_mirror_absent="approve"), review_at=0.5, decline_at=0.9, catalogue=CATALOGUE
        ),
        mirror=MirrorSettings(path=str(folder / "mirror"), size_mb=16),
        outbox=OutboxWriter(settings, "worker-0"),
        metrics=ScoringMetrics.declare(MetricsRegistry(), flags=flags_of(names), entities=names),
        options=ScorerOptions(answered=DecisionCache(cache, settings, 0)),
    )
    return Host(decoder, scorer, settings)


def vector_of(host: Host) -> list[float]:
    return cast(list[float], host.scorer._vectors[0].tolist())


def test_features_and_conditions_see_declared_fields_in_every_format(host: Host) -> None:
    for as_json in (False, True):
        number = "json" if as_json else "protobuf"
        answer = host.score({**VALUES, "payment_id": f"1-{number}"}, as_json=as_json)
        assert (answer.action, list(answer.reasons)[:1]) == ("review", ["rule:hidden"])
        assert vector_of(host)[3:] == [1.0, 1.0, 0.0]
        # A text that is not ASCII goes the slow way, and every other field with it.
        dear = {**VALUES, "payment_id": f"2-{number}", "customer_id": "é-whisper", "fee_minor": 20_00}
        answer = host.score(dear, as_json=as_json)
        assert (answer.action, list(answer.reasons)[:1]) == ("decline", ["rule:dear"])
        assert vector_of(host)[3:] == [1.0, 1.0, 1.0]


def test_keys_of_personal_and_derived_fields_are_hashes(host: Host) -> None:
    body = host.decoder.schema.message(**VALUES, payment_id="k").SerializeToString()
    payments, _ = host.decoder.read([body], NOW_MS)
    key = ENGINE.plan.key
    of_network = f"network:{hashed_id(key.of('192.0.2.0/24'))}\x1f{hashed_id(key.of('hush-hush.example'))}"
    assert payments.keys == [
        f"customer:{hashed_id(key.of('customer-whisper'))}".encode(),
        f"buyer:{hashed_id(key.of('sec.ret@hush-hush.example'))}".encode(),
        of_network.encode(),
    ]


def test_no_declared_value_reaches_a_file_a_topic_or_a_log(
    host: Host, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for number, more in enumerate(({}, {"customer_id": "é-whisper"}, {"buyer_email": "sec.ret@hush-hush@"})):
        values = {**VALUES, "payment_id": f"hidden-{number}", **more}
        chunk = Chunk([host.decoder.schema.message(**values).SerializeToString()])
        told = [str(answer) for answer in host.scorer.score(chunk, NOW_MS)]
        # The same payment once more gets the decision that the outbox holds.
        told += [str(answer) for answer in host.scorer.score(chunk, NOW_MS)]
        assert_no_secret("".join(told).encode(), "an answer")
    reader = OutboxReader(host.outbox, "worker-0")
    records = [payload for _, payload in reader.read(reader.oldest(), 100)]
    assert len(records) >= 2
    encoder = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
    for payload in records:
        entry = read_entry(payload)
        size = entry.request.ByteSize()
        entry.request.DiscardUnknownFields()
        assert entry.request.ByteSize() == size
        assert_no_secret(encoder.encode(decision_of(entry)), "the topic")
    folder = Path(host.outbox.directory).parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("outbox" in str(path) for path in files)
    for path in files:
        assert_no_secret(path.read_bytes(), path.name)
    out, err = capfd.readouterr()
    assert_no_secret((caplog.text + out + err).encode(), "the log")


def assert_no_secret(data: bytes, where: str) -> None:
    for secret in SECRETS:
        assert secret.encode() not in data.lower(), where
