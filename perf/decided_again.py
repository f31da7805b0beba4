"""Decisions that are kept, found in the index and decided again: `recomputed_equal_share` must be 1.

10,000 payments of a simulated past go through the real scorer, with its mirror of profiles, a compiled model of 20
trees, a policy with rules and a segment, and reasons. The outbox's records become records of topic decisions, as the
companion makes them, and go into an index as bytes. Then each is read back, and decided again by `KnownDeciders`,
as `decisions explain` and the console's page do. Equal means: the score in its 64 bits, the action, every reason.

To check the check, `--break-one` changes the last bit of one stored score: the share must then be below 1.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from paywarden.models.policy.policy import FLAGS, ConfiguredRule, ConfiguredSegment, Policy, PolicySettings
from paywarden.ops.deciders import KnownDeciders
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.settings import read_source
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.mirror_writer import MirrorWriter
from paywarden.streams.companion.shipping import decision_of
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.index import DecisionIndex, Stored
from paywarden.streams.decision_index.search import Place, key_hash
from perf.tools.measuring import arguments_of, finish
from tests.worlds.endpoint import payments
from tests.worlds.endpoint.requests import requests_of
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

PLAN = small_world.engine().plan
NOW_MS = int(small_world.history().event_time_ms[-1]) + 1000
POLICY = PolicySettings(
    review_at=0.01,
    decline_at=0.05,
    rules=(
        ConfiguredRule("busy", "card_count_1h >= 3", "review"),
        ConfiguredRule("large", "amount > 300_00 and score > 0.004", "decline"),
    ),
    segments=(ConfiguredSegment("online", 'channel == "ecom"', review_at=0.006),),
)
_SETTINGS = """[serve]
bundle = "{bundle}"
runtime = "{folder}"
[policy]
review_at = 0.01
decline_at = 0.05
[[policy.rules]]
name = "busy"
when = "card_count_1h >= 3"
action = "review"
[[policy.rules]]
name = "large"
when = "amount > 300_00 and score > 0.004"
action = "decline"
[[policy.segments]]
name = "online"
when = 'channel == "ecom"'
review_at = 0.006
"""
_AT_ONCE = 100


class _Outbox:
    """Keeps the records that a scorer appends."""

    def __init__(self) -> None:
        self.entries: list[OutboxEntry] = []

    @property
    def position(self) -> int:
        return len(self.entries)

    def trouble(self) -> str:
        return ""

    def append_frames(self, frames: bytes) -> int:
        while frames:
            size = int.from_bytes(frames[:4], "little")
            self.entries.append(OutboxEntry.FromString(frames[8 : 8 + size]))
            frames = frames[8 + size :]
        return len(self.entries)


def decided(folder: Path, count: int) -> list[dict[str, Any]]:
    """Returns decisions that a scorer made, in the form of their topic."""
    bundle = small_world.loaded_bundle()
    manifest = bundle.manifest
    policy = Policy(POLICY, review_at=manifest.review_at, decline_at=manifest.decline_at)
    mirror, outbox = MirrorSettings(path=str(folder / "mirror"), size_mb=64), _Outbox()
    writer = MirrorWriter(mirror)
    writer.apply(profiles(), {0: 1}, NOW_MS)
    writer.close()
    scorer = PaymentScorer(
        engine=small_world.engine(),
        models=ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry())),
        policy=policy,
        mirror=mirror,
        outbox=outbox,
        metrics=ScoringMetrics.declare(MetricsRegistry(), flags=FLAGS, entities=PLAN.entity_names),
        origins=(Origin(manifest.digest, policy.digest), Origin("", policy.digest)),
    )
    decoder = RequestDecoder(PLAN, small_world.rates(), RequestLimits())
    requests = requests_of(small_world.tables()[0].slice(0, count), id_prefix="p-")
    for number, request in enumerate(requests):
        request.event_time_ms = NOW_MS
        payments.score_many(scorer, [request], decoder, NOW_MS + number)
    return [dict(decision_of(entry)) for entry in outbox.entries]


def measured(count: int, *, is_broken: bool = False) -> dict[str, float]:
    """Returns the figures of `count` decisions; `is_broken` changes one score by its last bit."""
    ids = LocalSchemaIds()
    encoder, decoder = Encoder("decisions", ids.id_of("decisions")), Decoder("decisions", ids)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        decisions = decided(folder, count)
        if is_broken:
            decisions[0]["score"] = float(np.nextafter(decisions[0]["score"], 1.0))
        config = folder / "paywarden.toml"
        config.write_text(_SETTINGS.format(bundle=small_world.trained_bundle(), folder=folder), encoding="utf-8")
        database = DuckDbDatabase(folder / "decisions.duckdb")
        index = DecisionIndex(database)
        with database.transaction() as transaction:
            index.add_decisions(transaction, [Stored(each, encoder.encode(each)) for each in decisions])
        places = [Place(each["decided_time_ms"], key_hash("payment_id", each["payment_id"])) for each in decisions]
        known = KnownDeciders(read_source(str(config), {}), None, None)
        began, equal, actions = time.perf_counter(), 0, dict[str, int]()
        for first in range(0, len(places), _AT_ONCE):
            for body in index.bodies(places[first : first + _AT_ONCE]).values():
                told = known.recomputed(decoder.decode(body))
                equal += told.is_equal
                actions[told.stored.action] = actions.get(told.stored.action, 0) + 1
        took_s = time.perf_counter() - began
        database.close()
    assert sum(actions.values()) == len(decisions)
    return {
        "decisions": len(decisions),
        "recomputed_equal_share": equal / len(decisions),
        "recomputed_per_second": len(decisions) / took_s,
        **{f"{action}_count": number for action, number in actions.items()},
    }


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--decisions", {"type": int, "default": 10_000}),
        ("--break-one", {"action": "store_true", "help": "change one score by its last bit"}),
    )
    finish(measured(arguments.decisions, is_broken=arguments.break_one), arguments.json)


if __name__ == "__main__":
    main()
