"""Mirrors that hold a part of the cards: a fleet at 100,000 payments a second and 50 million cards, simulated.

Simulated: the hosts' shards by the real table, cards spread over shards, and each second's payments with the host that
the gateway sends them to. At second 10 a host dies, and until the gateway has noticed (two health checks) its calls
fail. At second 30 it is taken out of `hosts`: the survivors copy the shards that they gain. At second 40 the host that
shares most cards with it dies. Memory and the companion's work come from the coefficients of `paywarden capacity`.

    unheld_share_worst     the largest share of a second's payments scored without their card's profiles, one host away
    unheld_share_two       the same with a second host away, after the survivors have copied: 0 again
    moved_share            shards whose owner changes when a host goes; at most 1.5 / hosts
    mirror_gb_host         the fullest mirror; mirror_gb_whole: one that holds everything
    companion_cores_host   cores that the busiest companion keeps busy; companion_cores_whole: without shards
    copy_seconds           until each shard is on two hosts again after a host was taken out, at a copy's measured rate
    skip_us                the time to find out that a record's card is on other hosts, for each record

    python -m perf.shards [--hosts N] [--cards N] [--rate N] [--json FILE]

Used for: the figures of docs/operate/shards.md and of `paywarden capacity`. No Kafka and no process runs here;
perf.shards_live has both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.ops.capacity.coefficients import SIZES
from paywarden.ops.capacity.measured_costs import MEASURED
from paywarden.scoring.state.shards import CardShards, mask_of, ranked_hosts
from paywarden.streams.companion.shard_moves import unheld
from perf.tools.measuring import arguments_of, finish

COUNT, COPIES = 1024, 2
SECONDS, DIES_AT, TAKEN_OUT_AT, SECOND_DIES_AT = 60, 10, 30, 40
# Two failed health checks, a quarter of a second apart.
NOTICED_S = 0.5
# Profiles of other kinds: merchants and devices, which every host has.
OTHERS = {"merchant": 500_000, "device": 10_000_000}
# How fast a companion copies profiles beside its other work: a scan of the store is bounded by this on Aerospike.
COPY_PER_SECOND = 100_000
_KEY = b"a route key for measuring only"
_BATCH = 2_000


@dataclass(frozen=True)
class Fleet:
    """Hosts by number, and for each shard their order. Shape (shards, hosts)."""

    names: tuple[str, ...]
    orders: NDArray[np.int64]

    @classmethod
    def of(cls, names: Iterable[str]) -> Fleet:
        """Returns the fleet of the real table."""
        known = tuple(names)
        numbers = {name: number for number, name in enumerate(known)}
        ranked = ranked_hosts(COUNT, tuple(sorted(known)))
        return cls(known, np.array([[numbers[name] for name in order] for order in ranked]))

    def asked(self, away: set[int]) -> NDArray[np.int64]:
        """Returns by shard the host that the gateway asks. Shape (shards,)."""
        is_well = ~np.isin(self.orders, list(away))
        found: NDArray[np.int64] = self.orders[np.arange(len(self.orders)), is_well.argmax(axis=1)]
        return found

    def holders(self, copies: int) -> NDArray[np.bool_]:
        """Returns whether a host holds a shard. Shape (shards, hosts)."""
        held = np.zeros(self.orders.shape, dtype=bool)
        held[np.arange(len(self.orders))[:, None], self.orders[:, :copies]] = True
        return held


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--hosts", {"type": int, "default": 10, "help": "scoring hosts"}),
        ("--cards", {"type": int, "default": 50_000_000, "help": "cards"}),
        ("--rate", {"type": float, "default": 100_000.0, "help": "payments a second of all hosts"}),
    )
    finish(measured(arguments.hosts, arguments.cards, arguments.rate), arguments.json)


def measured(hosts: int, cards: int, rate: float) -> dict[str, float]:
    """Simulate a minute, print it, and return its figures."""
    random = np.random.default_rng(1)
    cards_of = random.multinomial(cards, np.full(COUNT, 1 / COUNT))
    fleet = Fleet.of(f"scoring-{number}" for number in range(hosts))
    dead = 3 % hosts
    figures = _sizes(fleet, cards_of, rate)
    figures["moved_share"] = float((fleet.asked(set()) != fleet.asked({dead})).mean())
    assert figures["moved_share"] <= 1.5 / hosts
    # The host that shares most cards with it.
    pairs = np.bincount(fleet.orders[fleet.orders[:, 0] == dead, 1], minlength=hosts)
    second = int(pairs.argmax())
    gained = _gained(fleet, dead, cards_of)
    figures["copy_seconds"] = float(gained.max() / COPY_PER_SECOND)
    print(f"{'second':>8} {'asked of':>10} {'failed':>10} {'not held':>10}")
    for copies in (1, COPIES):
        worst = {"one": 0.0, "two": 0.0}
        for at in range(SECONDS):
            failed, not_held = _second(
                fleet, cards_of, rate, at, (dead, second), copies, figures["copy_seconds"], random
            )
            case = "two" if at >= SECOND_DIES_AT else "one"
            worst[case] = max(worst[case], not_held)
            if copies == COPIES and at in (0, DIES_AT, DIES_AT + 1, TAKEN_OUT_AT, SECOND_DIES_AT, SECONDS - 1):
                print(f"{at:>8} {rate:>10,.0f} {failed:>10.2%} {not_held:>10.2%}")
        suffix = "" if copies == COPIES else "_one_copy"
        figures[f"unheld_share_worst{suffix}"], figures[f"unheld_share_two{suffix}"] = worst["one"], worst["two"]
    figures["skip_us"] = _skip_us()
    return figures


def _sizes(fleet: Fleet, cards_of: NDArray[np.int64], rate: float) -> dict[str, float]:
    """Returns the memory and the work of the fullest host, with shards and without."""
    cards, others = int(cards_of.sum()), sum(OTHERS.values())
    held = fleet.holders(COPIES)
    in_mirror = (held * cards_of[:, None]).sum(axis=0)
    share = in_mirror.max() / cards
    profile_us, skip_us = MEASURED.cpu_us_per_profile, MEASURED.cpu_us_per_skipped_profile
    # Each payment changes its card, its merchant and its device.
    whole = (1 + len(OTHERS)) * rate * profile_us / 1e6
    host = rate * (len(OTHERS) * profile_us + share * profile_us + (1 - share) * skip_us) / 1e6
    return {
        "hosts": len(fleet.names),
        "mirror_gb_whole": (cards + others) * SIZES.mirror_profile / 1e9,
        "mirror_gb_host": float(in_mirror.max() + others) * SIZES.mirror_profile / 1e9,
        "uneven": float(in_mirror.max() / in_mirror.mean()),
        "companion_cores_whole": whole,
        "companion_cores_host": float(host),
    }


def _gained(fleet: Fleet, dead: int, cards_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns by host the cards that it copies when a host is taken out."""
    left = Fleet.of(name for number, name in enumerate(fleet.names) if number != dead)
    before = np.delete(fleet.holders(COPIES), dead, axis=1)
    gained = left.holders(min(COPIES, len(left.names))) & ~before
    found: NDArray[np.int64] = (gained * cards_of[:, None]).sum(axis=0)
    return found


def _second(
    fleet: Fleet,
    cards_of: NDArray[np.int64],
    rate: float,
    at: int,
    lost: tuple[int, int],
    copies: int,
    copy_s: float,
    random: np.random.Generator,
) -> tuple[float, float]:
    """Returns the shares of a second's payments that failed, and that a host scored without their card's profiles."""
    dead, second = lost
    payments = random.multinomial(int(rate), cards_of / cards_of.sum())
    away = {host for host, since in ((dead, DIES_AT), (second, SECOND_DIES_AT)) if at >= since}
    just_died = {host for host, since in ((dead, DIES_AT), (second, SECOND_DIES_AT)) if at == since}
    asked, held = fleet.asked(away), fleet.holders(copies)
    if at >= TAKEN_OUT_AT + copy_s:
        # Survivors have copied the shards that the table without the dead host gives them.
        names = [name for number, name in enumerate(fleet.names) if number != dead]
        numbers = np.array([number for number in range(len(fleet.names)) if number != dead])
        held[:, numbers] |= Fleet.of(names).holders(copies)
    owner_died = np.isin(fleet.asked(away - just_died), list(just_died))
    failed = payments[owner_died].sum() * NOTICED_S
    not_held = payments[~held[np.arange(COUNT), asked]].sum()
    return float(failed / payments.sum()), float(not_held / payments.sum())


def _skip_us() -> float:
    """Returns the CPU time of finding the keys that a host does not hold, for each record of a batch."""
    cards = CardShards(COUNT, _KEY, {"card": 1})
    held = mask_of(range(0, COUNT, 5), COUNT)
    batches = [[b"card:c-%09d" % (begin + number) for number in range(_BATCH)] for begin in range(0, 100_000, _BATCH)]
    unheld(batches[0], cards, held)
    begun = time.process_time()
    skipped = sum(len(unheld(batch, cards, held)) for batch in batches)
    took_s = time.process_time() - begun
    assert 0.7 < skipped / (len(batches) * _BATCH) < 0.9
    return took_s / (len(batches) * _BATCH) * 1e6


if __name__ == "__main__":
    main()
