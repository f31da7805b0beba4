"""How long a demonstration waits for its processes, and what it says meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.ops.demo.processes import Patience


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_wait_tells_now_and_then_what_is_missing() -> None:
    clock, told = Clock(), list[str]()
    patience = Patience(900.0, told.append, clock)
    for _ in range(40):
        clock.now_s += 1.0
        assert patience.goes_on("`paywarden stream` is not ready")
    assert told == [f"waiting for {after} s: `paywarden stream` is not ready" for after in (15, 30)]


def test_a_wait_goes_on_as_long_as_more_is_done() -> None:
    clock = Clock()
    patience = Patience(60.0, lambda _: None, clock)
    for done in range(100):
        clock.now_s += 50.0
        assert patience.goes_on("not all", done)
    clock.now_s += 50.0
    assert patience.goes_on("not all", 99)
    clock.now_s += 50.0
    assert not patience.goes_on("not all", 99)


def test_a_wait_without_a_count_ends_at_its_time() -> None:
    clock = Clock()
    patience = Patience(900.0, lambda _: None, clock)
    clock.now_s += 899.0
    assert patience.goes_on("not ready")
    clock.now_s += 1.0
    assert not patience.goes_on("still not ready")
