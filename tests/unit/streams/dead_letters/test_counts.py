"""Metrics of dead letters: the labels come from our schemas, never from the letters."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from paywarden.streams.dead_letters.letter_counts import DeadLetterCounts


def letter(topic: str, reason: str, failed_time_ms: int = 1_000) -> dict[str, Any]:
    return {"topic": topic, "reason": reason, "failed_time_ms": failed_time_ms}


def counted(*letters: dict[str, Any], now_ms: int = 10_000) -> CollectorRegistry:
    registry = CollectorRegistry()
    counts = DeadLetterCounts(registry, "eu-")
    for one in letters:
        counts.count(one, now_ms)
    return registry


def value(registry: CollectorRegistry, topic: str, field: str) -> float | None:
    return registry.get_sample_value("paywarden_dead_letters_total", {"topic": topic, "field": field})


def newest(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("paywarden_dead_letter_newest_timestamp_seconds")


def test_a_letter_counts_for_its_topic_and_the_field_its_reason_names() -> None:
    registry = counted(letter("eu-payments", "currency: is not known"), letter("eu-outcomes", "payment_id: who: where"))
    assert value(registry, "payments", "currency") == 1
    assert value(registry, "outcomes", "payment_id") == 1
    assert value(registry, "payments", "record") == 0


def test_a_reason_without_a_field_counts_for_the_whole_record() -> None:
    registry = counted(
        letter("eu-payments", "wrong magic byte: wanted 0, got 1"),
        letter("eu-payments", "truncated"),
        letter("eu-payments", "label: is a field of outcomes"),
        letter("eu-payments", "card_id and merchant_id: two"),
        letter("eu-payments", "currency"),
    )
    # "currency" alone is the text before the first ": " too.
    assert value(registry, "payments", "record") == 4
    assert value(registry, "payments", "currency") == 1


def test_no_letter_adds_a_label() -> None:
    before = len(list(counted().collect())), _series(counted())
    registry = counted(letter("payments", "card_id: x"), letter("eu-nonsense", "4711: x"), letter("", ""))
    assert (len(list(registry.collect())), _series(registry)) == before
    assert value(registry, "other", "record") == 3


def test_the_newest_time_only_rises_and_never_passes_the_clock() -> None:
    assert newest(counted()) == 0
    assert newest(counted(letter("eu-payments", "a", 9_000), letter("eu-payments", "a", 4_000))) == 9
    assert newest(counted(letter("eu-payments", "a", 2**62))) == 10


def _series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())
