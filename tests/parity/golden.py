"""Bytes that compiled code makes from fixed input. The next version must write the same bytes.

    python -m tests.parity.golden        rewrites golden.json: only for a change that is meant to change bytes

The catalogues belong to the tests.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.history.payment_ids import hash_texts
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.models.bundle.sigmoid import sigmoids
from paywarden.models.drift.binning import DIMENSIONS, FEATURE_BINS, Binning
from paywarden.models.drift.counts import DecisionRows, count_rows
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import TimeBounds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.records import RecordWriter, tail
from paywarden.scoring.idempotency import claim_table as claims
from paywarden.scoring.requests.fast_requests import ROWS_MAX, FastRequests
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.fast_intake import FastIntake
from tests.oracles.step_decoder import read_pieces
from tests.oracles.step_records import RequestTexts, write
from tests.parity.features_worlds import DECLARED, every_word
from tests.unit.features.kernel.profiles import USUAL, Change, apply_groups, label, payment, row, vectors

PATH = Path(__file__).with_name("golden.json")
START_MS = 1_530_403_200_000
NOW_MS = START_MS + 60 * DAY_MS
RATES = RateTable({"EUR": [(0, RATE_SCALE)], "USD": [(0, 900_001), (NOW_MS - 1000, 910_007)], "JPY": [(0, 6_123)]})
_ENGINES: dict[str, Callable[[], FeatureEngine]] = {
    "usual": lambda: FeatureEngine(USUAL),
    "every_word": lambda: FeatureEngine(every_word(DECLARED)),
}
_GROUPS, _EVENTS, _VECTORS = 6, 80, 12


def made() -> dict[str, Any]:
    """Returns all parts as golden.json holds them: text, numbers and hexadecimal bytes."""
    engines = {name: make() for name, make in _ENGINES.items()}
    profiles = {name: _profiles(engine, random.Random(name)) for name, engine in engines.items()}
    return {
        "profiles": {
            # The first profile of each kind in full, and all profiles by their hash.
            name: {entity: [of[0].hex(), _hash(b"".join(of))] for entity, of in kinds.items()}
            for name, kinds in profiles.items()
        },
        "vectors": {name: _vectors(engine, profiles[name]) for name, engine in engines.items()},
        "migrations": _migrations(engines, profiles),
        "outbox_frames": _outbox_frames(),
        "requests": _requests(engines["every_word"]),
        "stream_payments": _stream_payments(engines["every_word"]),
        "claims": _claims(),
        "drift_counts": _drift_counts(),
        "sigmoids": [value.hex() for value in sigmoids(np.array([-800.0, -3.5, 0.0, 1e-9, 2.25, np.nan]))],
        "id_hashes": _id_hashes(),
    }


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _change(chance: random.Random, number: int) -> Change:
    """Returns the events of some weeks, some of them out of order. A fifth are labels."""
    time_ms = START_MS + number * 17 * HOUR_MS + chance.randrange(HOUR_MS)
    if chance.random() < 0.1:
        time_ms = max(START_MS, time_ms - chance.randrange(20 * DAY_MS))
    fields = {
        "card_id": f"c{chance.randrange(3)}",
        "merchant_id": f"m{chance.randrange(12)}",
        "device_id": chance.choice([None, "d1", "d2"]),
        "mcc": chance.choice([None, "5411", "5812", "4829"]),
        "country": chance.choice([None, "DE", "FR", "NZ", "de"]),
        "channel": chance.choice([None, "ecom", "pos"]),
        "currency": chance.choice(["EUR", "USD"]),
        "utc_offset_minutes": chance.choice([None, 0, -720, 330]),
        "declined": chance.choice([None, True, False]),
    }
    amount = chance.choice([0, 100, 9_999, 22_000, chance.randrange(1_000_000), 2**33])
    source, offset = chance.randrange(-1, 5), number * 7
    if chance.random() < 0.2:
        return label(time_ms, chance.choice([1, 1, -1, 0]), amount=amount, source=source, offset=offset, **fields)
    return payment(time_ms, amount, source=source, offset=offset, **fields)


def _profiles(engine: FeatureEngine, chance: random.Random) -> dict[str, list[bytes]]:
    """Returns profiles of every kind of entity, written in two steps: the second reads what the first has packed."""
    found: dict[str, list[bytes]] = {}
    for entity in engine.plan.entity_names:
        states: list[bytes | None] = [None] * _GROUPS
        for begin in (0, _EVENTS // 2):
            groups = [
                [_change(chance, number) for number in range(begin, begin + _EVENTS // 2 * group // (_GROUPS - 1))]
                for group in range(_GROUPS)
            ]
            states = list(apply_groups(engine, entity, groups, states).states)
        found[entity] = [state for state in reversed(states) if state is not None]
    return found


def _vectors(engine: FeatureEngine, profiles: dict[str, list[bytes]]) -> list[list[str]]:
    """Returns each value as exact text, so that any difference shows."""
    chance = random.Random(3)
    rows, known = [], []
    for number in range(_VECTORS):
        change = _change(chance, 0)
        rows.append((NOW_MS + number * HOUR_MS, *change.row[1:]))
        known.append(
            {
                name: of[number % (_GROUPS + 1)] if number % (_GROUPS + 1) < _GROUPS else None
                for name, of in profiles.items()
            }
        )
    known[0] = {}
    return [[f"{value:.9g}" for value in vector] for vector in vectors(engine, rows, known).tolist()]


def _migrations(engines: dict[str, FeatureEngine], profiles: dict[str, dict[str, list[bytes]]]) -> dict[str, list[str]]:
    """Returns profiles of one catalogue, migrated to the other."""
    found = {}
    for old, new in (("usual", "every_word"), ("every_word", "usual")):
        names = engines[new].plan.entity_names
        for entity in ("card", "merchant", "device"):
            migrated = [engines[new].migrated(names.index(entity), state) for state in profiles[old][entity]]
            found[f"{entity}: {old} to {new}"] = [migrated[0].hex(), _hash(b"".join(migrated))]
    return found


def _outbox_frames() -> list[str]:
    """Returns chunks of decisions with parts of every length class."""
    features = np.linspace(-1.0, 1.0, 21, dtype=np.float32).reshape(3, 7)
    writer = RecordWriter(features, "0123456789abcdef", "golden")
    kept = writer.keep_tail(tail("approve", (), "model-1", ()))
    assert kept is not None
    found = []
    for age_ms, sizes in ((None, (1, 127, 128)), (0, (5, 300, 20_000)), (2**40, (2,))):
        writer.begin()
        own = writer.add_tail(tail("decline", ("rule:x", "feature:a=1 (+0.50)"), "model-2", ("unknown_card",)))
        bodies = [bytes(place % 251 for place in range(size)) for size in sizes]
        ids = [f"payment-{'x' * (size % 140)}".encode() for size in sizes]
        numbers = [kept, own, kept][: len(sizes)]
        texts = RequestTexts(bodies, ids, [b""] * len(ids))
        written = write(writer, texts, [0.25, None, 0.0][: len(sizes)], numbers, age_ms, NOW_MS)
        small = len(written.frames) < 2000
        found += [written.frames.hex() if small else _hash(written.frames), _hash(b"".join(written.responses))]
    return found


def _requests(engine: FeatureEngine) -> list[object]:
    """Returns usual requests and some unusual ones."""
    chance = random.Random(11)
    bodies = []
    for number in range(40):
        one = ScoreRequest(
            payment_id=f"payment-{number}",
            event_time_ms=NOW_MS - chance.randrange(DAY_MS),
            card_id=f"card-{chance.randrange(9)}",
            merchant_id="m" * chance.randrange(1, 30),
            amount_minor=chance.choice([0, 1, 127, 128, 10**6]),
            currency=chance.choice(["EUR", "USD", "JPY"]) if number % 9 else "XXX",
        )
        if number % 3:
            one.device_id, one.ip, one.mcc = "d-1", "10.0.0.1", "5411" if number % 5 else "54"
        if number % 4:
            one.country, one.channel = chance.choice(["DE", "NZ"]), "ecom" if number % 7 else "é"
            one.utc_offset_minutes = chance.choice([0, -720, 840])
        bodies.append(one.SerializeToString())
    # A request that is cut short, a repeated field, an unknown tag, and a number of ten bytes.
    bodies += [bodies[0][:-3], bodies[0] + bodies[0], bodies[0] + b"\x78\x01", b"\x10" + b"\xff" * 9 + b"\x01", b""]
    rows = np.zeros((ROWS_MAX, len(row(0))), dtype=np.int64)
    fast = FastRequests(engine.plan, RATES, RequestLimits(), rows)
    pieces = read_pieces(fast, bodies, NOW_MS)
    usual = [place for place, is_usual in enumerate(pieces.is_usual) if is_usual]
    return [
        pieces.is_usual.hex(),
        [rows[place].tolist() for place in usual[:6]],
        _hash(b"".join(rows[place].tobytes() for place in usual)),
        [key.decode() for key in pieces.keys[:8]],
        _hash(b"\0".join(pieces.keys) + b"\0".join(pieces.ids)),
    ]


def _stream_payments(engine: FeatureEngine) -> list[object]:
    """Returns payments of the topic, and the offsets of those that only the slow decoder reads."""
    chance = random.Random(13)
    ids = LocalSchemaIds()
    encoder = Encoder("payments", ids.id_of("payments"))
    values = []
    for number in range(40):
        record = {
            "payment_id": f"payment-{number}",
            "event_time_ms": NOW_MS - chance.randrange(DAY_MS),
            "card_id": chance.choice(["card-1", "card-2"]) if number % 8 else "kärte",
            "merchant_id": "m" * chance.randrange(1, 30),
            "device_id": chance.choice([None, "d-1"]),
            "ip": chance.choice([None, "10.0.0.1"]),
            "amount_minor": chance.choice([0, 1, 63, 64, 10**6])
            if number % 7
            else chance.choice([2**62, 2**63 - 1, -1, -(2**63)]),
            "currency": chance.choice(["EUR", "USD", "JPY"]) if number % 9 else "XXX",
            "mcc": chance.choice([None, "5411"]),
            "country": chance.choice([None, "DE", "de", "Germany"]),
            "channel": chance.choice([None, "ecom"]),
            "utc_offset_minutes": chance.choice([None, 0, -720, 1440, -(2**31)]),
            "declined": chance.choice([None, True, False]),
        }
        values.append(encoder.encode(record))
    values += [values[0][:-1], values[0] + b"\0", values[0][:5], b""]
    records = [Record("payments", 3, offset, b"k", value, NOW_MS, ()) for offset, value in enumerate(values)]
    slow: list[int] = []

    def slowly(record: Record) -> NoReturn:
        slow.append(record.offset)
        raise InvalidEvent("is left to the slow decoder")

    events = FastIntake(engine.plan, RATES, ids, TimeBounds(past_ms_max=40 * 86_400_000, future_ms_max=1000)).payments(
        records, NOW_MS, slowly
    )
    read = [
        [event.payment_id, event.attributes, [key.decode() for key in event.keys]]
        for event in events
        if not isinstance(event, InvalidEvent)
    ]
    return [slow, json.loads(json.dumps(read[:5])), _hash(json.dumps(read).encode())]


def _claims() -> list[object]:
    """Fill a table of two buckets. Returns which claim wins, the conflicts, and the table afterwards."""
    table = np.zeros(claims.BUCKETS_AT + 2 * claims.BUCKET_SIZE, dtype=np.int64)
    table[claims.BUCKET_COUNT_AT], table[claims.WORKERS_AT + claims.INCARNATION] = 2, 1
    owner = 1 << claims.INCARNATION_SHIFT
    tags = np.array([(number * 0x9E3779B97F4A7C1 + 1) % 2**62 for number in range(20)] + [1, 1], dtype=np.int64)
    results = np.zeros(len(tags), dtype=np.int64)
    won = claims.claim_all(table, tags, len(tags), owner | 1000, 1000, 600, results)
    claims.free_all(table, results[3:5].copy(), 2, owner)
    again = np.zeros(len(tags), dtype=np.int64)
    claims.claim_all(table, tags, len(tags), owner | 1001, 1001, 600, again)
    return [won, results.tolist(), again.tolist(), _hash(table.tobytes())]


def _drift_counts() -> str:
    chance = random.Random(5)
    count = 200
    edges = np.array([[0.0, 1.0, *[np.inf] * (FEATURE_BINS - 3)], range(FEATURE_BINS - 1)], dtype=np.float32)
    rows = DecisionRows(
        scores=np.array([chance.choice([0.0, 0.1, 0.3, 0.9, np.nan]) for _ in range(count)]),
        actions=np.array([chance.randrange(3) for _ in range(count)]),
        vectors=np.array([[chance.choice([-1, 0, 0.5, 3, 99, np.inf, np.nan]) for _ in "ab"] for _ in range(count)]),
        flags=[("unknown_card",) if place % 5 == 0 else () for place in range(count)],
        ages_ms=np.array([chance.randrange(-1000, 3_000_000) for _ in range(count)]),
        values=[[chance.choice(["pos", "DE", None]) for _ in range(count)] for _ in DIMENSIONS],
    )
    binning = Binning(np.array([0.1, 0.5]), edges, (("pos",), ("DE",), ()), ("unknown_card",))
    return _hash(b"".join(array.tobytes() for array in count_rows(binning, rows).arrays))


def _id_hashes() -> list[int]:
    texts = [b"", b"a", b"payment-1", b"x" * 100]
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    hashes = np.zeros(len(texts), dtype=np.uint64)
    hash_texts(offsets, np.frombuffer(b"".join(texts), dtype=np.uint8).copy(), 0, len(texts), hashes)
    return [int(value) for value in hashes]


if __name__ == "__main__":
    PATH.write_text(json.dumps(made(), indent=1) + "\n", encoding="utf-8")
