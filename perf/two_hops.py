"""What features two hops away cost a worker: CPU per payment, by the number of neighbours, in chunks of 1, 8 and 32.

    one call: read ─► claim ─► look up ─► [neighbours] ─► vectors ─► margins ─► records        outbox: none

Each catalogue is the packaged one, with two features of the last k merchants of a card; with k = 0 it has none. They
share one list, and so does any number of such features. Each has a mirror of its own, filled with the same history of
5,000 cards and 4,000 merchants, a process of its own, and its turn in each round. The model is stubbed: it costs
nothing and looks at no vector. The figures are medians of the rounds.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, cast

import numpy as np

from paywarden.features import kernel
from paywarden.features.catalogue.catalogue import CATALOGUE, card, merchant
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.policy.policy import Policy, PolicySettings, flags_of
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.one_call import OneCall
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.identity_index import index_of
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.mirror_writer import MirrorWriter
from perf.tools.measuring import arguments_of, finish
from tests.parity.features_worlds import RATES
from tests.unit.features.kernel import profiles as words
from tests.worlds.small.even_chain import NativeEvenChain

NEIGHBOURS = (0, 1, 4, 8)
CHUNKS = (1, 8, 32)
CARDS, MERCHANTS = 5_000, 4_000
NOW_MS, DAY_S = 1_764_000_000_000, 86_400
_AT_ONCE = 1_000
_ASKED = "merchant_fraud_share_30d"


def catalogue_of(neighbours: int) -> Catalogue:
    if neighbours == 0:
        return CATALOGUE
    hops = (
        card.largest_of_last("worst_merchant", merchant, _ASKED, neighbours),
        card.mean_of_last("merchants_frauds", merchant, _ASKED, neighbours),
    )
    return Catalogue(CATALOGUE.entities, (*CATALOGUE.features, *hops))


def requests(random_: random.Random, first: int, count: int) -> Iterator[ScoreRequest]:
    for number in range(first, first + count):
        yield ScoreRequest(
            payment_id=f"p{number}",
            event_time_ms=NOW_MS,
            card_id=f"c{random_.randrange(CARDS)}",
            merchant_id=f"m{random_.randrange(MERCHANTS)}",
            device_id=f"d{random_.randrange(CARDS)}",
            amount_minor=random_.randrange(1, 50_000),
            currency="EUR",
            mcc="5411",
            country="DE",
            channel="pos",
        )


def decoder_of(engine: FeatureEngine) -> RequestDecoder:
    return RequestDecoder(engine.plan, RATES, RequestLimits(past_ms_max=60 * DAY_S * 1000))


def fill(folder: str, neighbours: int, payments: int) -> int:
    """Fill a mirror with a month of payments, of which 1 % are known frauds; returns how many profiles it has."""
    engine = FeatureEngine(catalogue_of(neighbours))
    names, decoder, random_ = engine.plan.entity_names, decoder_of(engine), random.Random(1)
    groups: dict[bytes, list[words.Change]] = {}
    for first in range(0, payments, _AT_ONCE):
        bodies = []
        for request in requests(random_, first, _AT_ONCE):
            request.event_time_ms -= random_.randrange(1, 30 * DAY_S) * 1000
            bodies.append(request.SerializeToString())
        checked, errors = decoder.read(bodies, NOW_MS)
        assert not errors
        frauds = [random_.random() < 0.01 for _ in bodies]
        for place, key in enumerate(checked.keys):
            number = place // len(names)
            row = tuple(checked.rows[number].tolist())
            groups.setdefault(key, []).append(words.Change(kernel.PAYMENT, row, 1))
            if frauds[number]:
                groups[key].append(words.Change(kernel.LABEL, row, 1))
    writer = MirrorWriter(MirrorSettings(path=folder, size_mb=1024))
    list(writer.keep_index(index_of(engine.plan)))
    for name in names:
        own = [key for key in groups if key.startswith(f"{name}:".encode())]
        for first in range(0, len(own), _AT_ONCE):
            part = own[first : first + _AT_ONCE]
            changes = [sorted(groups[key], key=lambda change: change.time_ms) for key in part]
            states = words.apply_groups(engine, name, changes, [None] * len(part)).states
            writer.apply(dict(zip(part, states, strict=True)), {0: 1}, NOW_MS)
    count = writer.profile_count()
    writer.close()
    return count


class _NoOutbox:
    position = 0

    def trouble(self) -> str:
        return ""

    def append_frames(self, _frames: bytes) -> int:
        return 0


def cpu_us(folder: str, neighbours: int, count: int) -> dict[str, float]:
    """Returns the CPU per payment by chunk, in µs. Each chunk must be one compiled call, and some have neighbours."""
    engine = FeatureEngine(catalogue_of(neighbours))
    plan = engine.plan
    scorer = PaymentScorer(
        engine=engine,
        models=cast(ModelChain, NativeEvenChain()),
        policy=Policy(PolicySettings(), review_at=0.9, decline_at=0.95),
        mirror=MirrorSettings(path=folder, size_mb=1024),
        outbox=_NoOutbox(),
        metrics=ScoringMetrics.declare(
            MetricsRegistry(), flags=flags_of(plan.entity_names), entities=plan.entity_names
        ),
    )
    call, random_, found = OneCall(scorer, decoder_of(engine)), random.Random(2), dict[str, float]()
    for chunk in CHUNKS:
        sent = [
            [request.SerializeToString() for request in requests(random_, first, chunk)]
            for first in range(0, count, chunk)
        ]
        for bodies in sent[:100]:
            assert call.score(bodies, NOW_MS) is not None
        began = time.process_time()
        for bodies in sent:
            call.score(bodies, NOW_MS)
        found[f"cpu_us_{neighbours}_neighbours_{chunk}"] = (time.process_time() - began) * 1e6 / (len(sent) * chunk)
    if neighbours:
        assert np.isfinite(scorer.parts.vectors[: CHUNKS[-1], plan.names.index("worst_merchant")]).any()
    scorer.close_mirror()
    return found


def measured(payments: int, count: int, rounds: int) -> dict[str, float]:
    """Returns the figures of all catalogues, which take turns."""
    taken: dict[str, list[float]] = {}
    # LMDB may be open only once in a process, and what one catalogue leaves in the caches is not the next one's.
    with tempfile.TemporaryDirectory() as folder:
        spawned: Mapping[str, Any] = {"max_workers": 1, "mp_context": get_context("spawn"), "max_tasks_per_child": 1}
        with ProcessPoolExecutor(**spawned) as pool:
            for neighbours in NEIGHBOURS:
                profiles = pool.submit(fill, f"{folder}/{neighbours}", neighbours, payments).result()
                print(f"{neighbours} neighbours: {profiles} profiles", file=sys.stderr)
            for _ in range(rounds):
                for neighbours in NEIGHBOURS:
                    figures = pool.submit(cpu_us, f"{folder}/{neighbours}", neighbours, count).result()
                    for name, value in figures.items():
                        taken.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--payments", {"type": int, "default": 60_000, "help": "of the history in the mirrors"}),
        ("--count", {"type": int, "default": 40_000, "help": "payments that are scored for a figure"}),
        ("--rounds", {"type": int, "default": 7}),
    )
    finish(measured(arguments.payments, arguments.count, arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
