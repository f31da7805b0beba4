"""Searches of the index of decisions, claims of its review queue, and decisions that are decided again.

    python -m perf.decisions_index --rows 100000000 --folder DIR      16 GB; goes on where it was when it is run again

`--rows N` synthetic decisions over 100 days, written as the index writes them, without their bodies: a million cards,
100,000 merchants, a few with most of the payments, 3 % of the scores from 0.02 on. Then `--searches` searches of
eighteen kinds, each for random values, through `DecisionIndex.search`, as a page does, without its HTML. `--postgres
ADDRESS` does the same there. The law that the tables follow stands in docs/concepts/reviews.md.

Every search is checked: all rows meet what was asked for, newest first. The claims: four analysts race for each of
1,000 payments, and nobody may hold a payment that another holds.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paywarden.streams.decision_index.database import Database, DuckDbDatabase, PostgresDatabase
from paywarden.streams.decision_index.filler import FILL_TIDY_KEYS
from paywarden.streams.decision_index.index import HOUR_MS, DecisionIndex
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewSettings
from paywarden.streams.decision_index.search import ACTIONS, Search, key_hash, score_key
from perf.tools.measuring import arguments_of, finish

CARDS, MERCHANTS, RULES = 1_000_000, 100_000, 20
START_MS, DAYS = 1_704_067_200_000, 100
_CHUNK = 500_000
_HALF_DAY_MS = 43_200_000


class World:
    """Synthetic decisions by number: the same for the same number of rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._hashes = {
            "card_id": self._of("card_id", "card", CARDS),
            "merchant_id": self._of("merchant_id", "m", MERCHANTS),
            "device_id": self._of("device_id", "d", CARDS),
        }
        self._rules = self._of("rule", "rule", RULES)
        self._bands = np.array([score_key(band) for band in range(101)], dtype=np.int64)
        self._actions = np.array([key_hash("action", action) for action in ACTIONS], dtype=np.int64)

    @staticmethod
    def _of(kind: str, prefix: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.fromiter((key_hash(kind, f"{prefix}-{number}") for number in range(count)), np.int64, count)

    def add(self, database: Database, first: int, count: int) -> None:
        """Write rows `first` to `first + count` as the index does."""
        rng = np.random.default_rng(first)
        span_ms = DAYS * 86_400_000
        numbers = np.arange(first, first + count)
        time_ms = START_MS + (numbers * (span_ms / self.rows)).astype(np.int64)
        payment = np.fromiter((key_hash("payment_id", f"p-{number}") for number in numbers.tolist()), np.int64, count)
        ids = {
            "card_id": rng.integers(0, CARDS, count),
            "merchant_id": (MERCHANTS * rng.random(count) ** 4).astype(np.int64),
            "device_id": rng.integers(0, CARDS, count),
        }
        score = rng.beta(0.08, 25, count)
        action = (score > 0.1).astype(np.int16) + (score > 0.25)
        rule = rng.integers(0, RULES, count)
        is_told = action > 0
        # numpy's texts, since Python's would take as long as everything else.
        names = {kind: pa.array(np.char.add(prefix, ids[kind].astype(str))) for kind, prefix in _PREFIXES.items()}
        payments = pa.array(np.char.add("p-", numbers.astype(str)))
        reasons = np.where(is_told, np.char.add(np.char.add('["rule:rule-', rule.astype(str)), '"]'), "[]")
        nothing = pa.array([""] * count)
        with database.transaction() as transaction:
            transaction.append(
                "decisions",
                {
                    "decided_time_ms": time_ms,
                    "payment_hash": payment,
                    "decision_id": payments,
                    "payment_id": payments,
                    "event_time_ms": time_ms,
                    **names,
                    "ip": nothing,
                    "amount_minor": rng.integers(100, 100_000, count),
                    "currency": pa.array(["EUR"] * count),
                    "worth_minor": rng.integers(100, 100_000, count),
                    "country": nothing,
                    "channel": nothing,
                    "score": score,
                    "action": action,
                    "reasons": pa.array(reasons),
                    "flags": pa.array(["[]"] * count),
                    "model_version": pa.array(["m"] * count),
                },
            )
            every = [payment, *(self._hashes[kind][ids[kind]] for kind in _PREFIXES)]
            some: list[tuple[Any, Any]] = [(self._actions[action], is_told), (self._rules[rule], is_told)]
            some += [(self._bands[(score * 100).astype(np.int64)], score >= 0.02)]
            chosen = [np.ones(count, bool)] * len(every) + [mask for _, mask in some]
            hashes = [*every, *(hashes for hashes, _ in some)]
            columns: dict[str, Any] = {
                "decided_time_ms": time_ms,
                "payment_hash": payment,
                "score": score,
                "action": action,
            }
            transaction.append(
                "keys",
                {
                    "hash": np.concatenate([each[mask] for each, mask in zip(hashes, chosen, strict=True)]),
                    **{name: np.concatenate([column[mask] for mask in chosen]) for name, column in columns.items()},
                },
            )
            hours, counts = np.unique(time_ms // HOUR_MS, return_counts=True)
            for hour, number in zip(hours.tolist(), counts.tolist(), strict=True):
                transaction.execute(
                    "INSERT INTO hours (hour, decisions) VALUES (?, ?) "
                    "ON CONFLICT (hour) DO UPDATE SET decisions = hours.decisions + excluded.decisions",
                    (hour, number),
                )


_PREFIXES = {"card_id": "card-", "merchant_id": "m-", "device_id": "d-"}


def fill(index: DecisionIndex, rows: int) -> dict[str, float]:
    """Adds the decisions that are missing to have `rows`; returns how fast. A run that was ended goes on where it was.

    Each chunk is one transaction, and the number of rows that the times are for stands in the database.
    """
    database = index.database
    with database.transaction() as transaction:
        transaction.append("facts", {"name": ["perf_rows"], "value": [str(rows)]})
        ((known,),) = transaction.execute("SELECT value FROM facts WHERE name = ?", ("perf_rows",))
    assert known == str(rows), f"the database is for {known} rows"
    start = index.count()
    if start >= rows:
        return {}
    world, began = World(rows), time.perf_counter()
    for first in range(start, rows, _CHUNK):
        world.add(database, first, min(_CHUNK, rows - first))
        database.tidy(at_least=FILL_TIDY_KEYS)
        done = min(rows, first + _CHUNK)
        per_second = (done - start) / (time.perf_counter() - began)
        left_s = (rows - done) / per_second
        print(f"{done:,} of {rows:,} rows, {per_second:,.0f} a second, {left_s / 60:.0f} min left", file=sys.stderr)
    database.tidy(at_least=1)
    return {"rows_per_second": (rows - start) / (time.perf_counter() - began)}


def searches(rows: int) -> dict[str, Callable[[random.Random], Search]]:
    """Returns searches by name, each of random values."""

    def card(rng: random.Random) -> str:
        return f"card-{rng.randrange(CARDS)}"

    def merchant(rng: random.Random, power: float = 4.0) -> str:
        return f"m-{int(MERCHANTS * rng.random() ** power)}"

    def day(rng: random.Random) -> int:
        return START_MS + rng.randrange(DAYS) * 86_400_000

    def half_day(rng: random.Random) -> tuple[int, int]:
        first = day(rng)
        return first, first + _HALF_DAY_MS

    def band(rng: random.Random) -> tuple[float, float]:
        low = 0.02 + 0.9 * rng.random()
        return low, min(1.0, low + rng.random() * 0.3)

    return {
        "payment": lambda rng: Search(payment_id=f"p-{rng.randrange(rows)}"),
        "card": lambda rng: Search(card_id=card(rng)),
        "device": lambda rng: Search(device_id=f"d-{rng.randrange(CARDS)}"),
        "merchant": lambda rng: Search(merchant_id=merchant(rng)),
        "busiest_merchant": lambda _: Search(merchant_id="m-0"),
        "merchant_declined": lambda rng: Search(merchant_id=merchant(rng, 16.0), action="decline"),
        "card_at_merchant": lambda rng: Search(card_id=card(rng), merchant_id="m-0"),
        "review": lambda rng: Search(action="review", last_ms=day(rng)),
        "rule": lambda rng: Search(rule=f"rule-{rng.randrange(RULES)}", last_ms=day(rng)),
        "score": lambda rng: Search(score_min=0.3, last_ms=day(rng)),
        "score_range": lambda rng: Search(**dict(zip(("score_min", "score_max"), band(rng), strict=True))),  # type: ignore[arg-type]
        "high_score": lambda _: Search(score_min=0.9),
        "rule_score": lambda rng: Search(rule=f"rule-{rng.randrange(RULES)}", score_min=0.4, last_ms=day(rng)),
        "merchant_day": lambda rng: Search(
            merchant_id=merchant(rng, 16.0),
            **dict(zip(("first_ms", "last_ms"), half_day(rng), strict=True)),  # type: ignore[arg-type]
        ),
        "since": lambda rng: Search(first_ms=day(rng)),
        "time": lambda rng: Search(**dict(zip(("first_ms", "last_ms"), half_day(rng), strict=True))),  # type: ignore[arg-type]
        "newest": lambda _: Search(),
        "low_score": lambda rng: Search(action="approve", score_min=0.0199, score_max=0.019901, last_ms=day(rng)),
    }


def measure(index: DecisionIndex, rows: int, count: int) -> dict[str, float]:
    """Run searches in turn; returns their quantiles, over all and by kind."""
    rng, took_ms, cpu_by_kind = random.Random(1), dict[str, list[float]](), dict[str, list[float]]()
    kinds = searches(rows)
    for number in range(count):
        name = list(kinds)[number % len(kinds)]
        search = kinds[name](rng)
        began, cpu_began = time.perf_counter(), time.process_time()
        page = index.search(search)
        took_ms.setdefault(name, []).append((time.perf_counter() - began) * 1000)
        cpu_by_kind.setdefault(name, []).append((time.process_time() - cpu_began) * 1000)
        places = [row.place for row in page.rows]
        assert places == sorted(places, reverse=True)
        assert all(search.score_min <= row.score <= search.score_max for row in page.rows)
        assert all(search.action in ("", row.action) and search.card_id in ("", row.card_id) for row in page.rows)
        if search.payment_id:
            assert [row.payment_id for row in page.rows] == [search.payment_id]
    every = [value for values in took_ms.values() for value in values]
    cpu_ms = [value for values in cpu_by_kind.values() for value in values]
    told = {"search_p50_ms": float(np.median(every)), "search_p99_ms": float(np.quantile(every, 0.99))}
    told["search_max_ms"] = max(every)
    # The cost of a search whatever else runs on the machine: DuckDB's threads included, PostgreSQL's processes not.
    told |= {"search_cpu_p50_ms": float(np.median(cpu_ms)), "search_cpu_p99_ms": float(np.quantile(cpu_ms, 0.99))}
    for name, values in took_ms.items():
        told |= {
            f"{name}_p50_ms": float(np.median(values)),
            f"{name}_p99_ms": float(np.quantile(values, 0.99)),
            f"{name}_max_ms": max(values),
            f"{name}_cpu_p99_ms": float(np.quantile(cpu_by_kind[name], 0.99)),
        }
    return told


def races(database: Database, count: int) -> dict[str, float]:
    """Let four analysts race for each of `count` payments; returns how many were held by two."""
    queue, now_ms = ReviewQueue(database, ReviewSettings(second_share=0.0)), START_MS
    run = time.time_ns()
    names = [f"{run}-{number}" for number in range(count)]
    asked: list[dict[str, Any]] = [
        {"decision_id": name, "decided_time_ms": now_ms, "payment_id": name, "score": 0.5, "action": "review"}
        for name in names
    ]
    with database.transaction() as transaction:
        queue.add_decisions(transaction, asked, [1] * count)
    start = threading.Barrier(4)

    def race(analyst: str) -> list[str]:
        start.wait()
        held = []
        while claim := queue.claim(analyst, now_ms):
            held.append(claim.waiting.payment_id)
            queue.decide(analyst, claim.token, "genuine", "other", "", now_ms)
        return held

    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        held = [payment for of_one in pool.map(race, "abcd") for payment in of_one]
    took_s = time.perf_counter() - began
    assert set(held) == set(names)
    return {"races": count, "held_twice": len(held) - len(set(held)), "verdicts_per_second": count / took_s}


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rows", {"type": int, "default": 2_000_000}),
        ("--searches", {"type": int, "default": 390}),
        ("--races", {"type": int, "default": 1_000}),
        ("--postgres", {"help": "measure PostgreSQL at this address"}),
        ("--folder", {"help": "keep the database in this folder, and use what is there"}),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.folder or folder) / "decisions.duckdb"
        database: Database = (
            PostgresDatabase(arguments.postgres, schema="perf", timeout_ms=600_000)
            if arguments.postgres
            else DuckDbDatabase(path, memory_mb=4096)
        )
        index = DecisionIndex(database)
        figures: dict[str, float] = {"rows": arguments.rows, **fill(index, arguments.rows)}
        if path.exists():
            figures["bytes_per_row"] = os.path.getsize(path) / arguments.rows
        figures |= measure(index, arguments.rows, arguments.searches)
        figures |= races(database, arguments.races)
        database.close()
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
