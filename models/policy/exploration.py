"""Approve a small random share of the payments that would be declined, within a budget, to learn what they were.

A declined payment never gets a label. A model that is trained on what the last one let through forgets what it stopped.
Exploration is off by default. It buys labels with money that an operator sets aside:

    [exploration] share = 0.02, budget_minor_a_day = 500_000, payment_minor_max = 10_000

    declined, EUR 62, spent today EUR 120    2 % are approved    propensity 0.02 if approved, 0.98 if declined
    declined, EUR 400                        above the ceiling   declined as before, propensity 1
    declined by a rule                       a rule is a rule    declined as before, propensity 1
    declined, EUR 62, spent today EUR 4,990  no budget left      declined as before, propensity 1

The *propensity* is the probability of the action that the payment got, given all that was known before the coin. It
goes into the decision. Whoever trains or replays weighs a payment by 1 / propensity, as if all such payments had been
approved.

The coin is a keyed hash of the payment's id. The same payment gets the same coin on every host and in a replay, and
nobody without the key can choose an id that is approved. A budget is spent before the answer leaves, and a payment that
does not fit is not explored whatever its coin: the budget of a day is never exceeded, not even after kill -9.

Budgets need no talk between hosts: each has its equal part of the whole. The workers of a host share a ledger. Whoever
decides holds it for that moment. A worker that finds it held declines as before, whatever the coin, and never waits.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

from paywarden.models.policy.policy import ACTIONS, APPROVE, DECLINE
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.key_files import read_hex_key
from paywarden.schemas.private_files import make_parent, open_private

EXPLORED = "exploration"
"""The reason of a payment that was approved by the coin. The reasons why it would have been declined follow it."""
KEY_BYTES_MIN, KEY_BYTES_MAX = 16, 64
_DAY_MS = 86_400_000
_COINS = 1 << 64
# More would be a policy, not an exploration.
_SHARE_MAX = 0.5
_AMOUNT_MAX = 1 << 53
_RULE = "rule:"
_DECLINE = ACTIONS[DECLINE]
_LEDGER = struct.Struct("<qq")


@dataclass(frozen=True)
class ExplorationSettings:
    """How much may be explored, by all hosts together. Amounts are minor units of the reference currency."""

    # Of the payments that would be declined. 0: off.
    share: float = 0.0
    budget_minor_a_day: int = 0
    # A larger payment is not explored.
    payment_minor_max: int = 0
    # Scoring hosts. Each has its equal part of the budget, which its workers share.
    hosts: int = 1
    # A file of 32 to 128 hex digits, the same on all hosts: the key of the coin.
    key_file: str = ""

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting that is out of range."""
        if not 0 <= self.share <= _SHARE_MAX:
            raise Misconfigured(f"exploration.share: wanted 0 to {_SHARE_MAX}, got {self.share:g}")
        for name in ("budget_minor_a_day", "payment_minor_max"):
            if not 0 <= getattr(self, name) < _AMOUNT_MAX:
                raise Misconfigured(f"exploration.{name}: wanted 0 to below {_AMOUNT_MAX}, got {getattr(self, name)}")
        if self.hosts < 1:
            raise Misconfigured(f"exploration.hosts: wanted at least 1, got {self.hosts}")
        if self.share and not (self.budget_minor_a_day and self.payment_minor_max):
            raise Misconfigured(
                f"exploration.share: {self.share:g} needs budget_minor_a_day and payment_minor_max above 0, "
                f"got {self.budget_minor_a_day} and {self.payment_minor_max}"
            )


class Explored(NamedTuple):
    """What becomes of a verdict: the action, the reasons, and the probability of this action."""

    action: str
    reasons: list[str]
    propensity: float


def read_exploration_key(path: str) -> bytes:
    """Returns the key in a file of hex digits. Raises Misconfigured, without a word of the content."""
    if not path:
        raise Misconfigured("exploration.key_file: wanted a file with the key of the coin, the same on all hosts")
    key = read_hex_key("exploration.key_file", path)
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise Misconfigured(
            f"exploration.key_file: {path} must hold {2 * KEY_BYTES_MIN} to {2 * KEY_BYTES_MAX} hex digits "
            "(openssl rand -hex 16)"
        )
    return key


class SpentLedger(Protocol):
    """Remembers what was spent on the newest day by those who share it. Never raises."""

    def hold(self) -> bool:
        """Take the ledger; returns False if another has it. The holder calls `release` soon."""

    def release(self) -> None:
        """Let others have the ledger."""

    def spent(self, day: int) -> int:
        """Returns what is spent on `day`, in minor units. On a day before the newest it is that of the newest."""

    def spend(self, day: int, amount: int) -> None:
        """Add an amount to the newest day, which is `day` if that is later."""


class MemoryLedger:
    """A ledger that ends with its process: for replays and tests."""

    def __init__(self) -> None:
        self._day, self._spent = 0, 0

    def hold(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def spent(self, day: int) -> int:
        return 0 if day > self._day else self._spent

    def spend(self, day: int, amount: int) -> None:
        if day > self._day:
            self._day, self._spent = day, 0
        self._spent += amount


class MappedLedger:
    """A ledger in 16 bytes of a mapped file, which all workers of a host open, each after its fork.

    What is written outlives `kill -9` of the process at any moment, and a dead process holds nothing. A new day is
    written before its sum. A process that dies between the two has spent the earlier day's sum, which is more than it
    has. After a loss of power the file may lack what was spent in the last half minute: that can be spent again.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it for this user alone. Raises Misconfigured."""
        try:
            make_parent(path)
            self._file = open_private(path, os.O_RDWR | os.O_CREAT)
            try:
                if os.fstat(self._file).st_size != _LEDGER.size:
                    os.ftruncate(self._file, _LEDGER.size)
                # Reserve the room now. A later write through the mapping to a full disk would kill the worker.
                os.posix_fallocate(self._file, 0, _LEDGER.size)
                self._map = mmap.mmap(self._file, _LEDGER.size)
            except (OSError, ValueError):
                os.close(self._file)
                raise
        except (OSError, ValueError) as error:
            raise Misconfigured(f"exploration: cannot keep the spent budget in {path}: {error}") from error
        self._words = memoryview(self._map).cast("q")

    def hold(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def spent(self, day: int) -> int:
        return 0 if day > self._words[0] else int(self._words[1])

    def spend(self, day: int, amount: int) -> None:
        words = self._words
        if day > words[0]:
            words[0] = day
            words[1] = amount
        else:
            words[1] += amount

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self._file)


class Exploration:
    """The exploration of one scoring worker. Not thread-safe."""

    def __init__(self, settings: ExplorationSettings, *, key: bytes, ledger: SpentLedger, workers: int = 1) -> None:
        """`key`: a secret of the deployment. Raises Misconfigured for a key of a wrong size.

        `workers`: how many ledgers each host has. With one, which its workers share, it holds the host's whole part.
        """
        if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
            raise Misconfigured(f"exploration key: wanted {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes, got {len(key)}")
        assert workers >= 1
        self.share = settings.share
        self.budget = settings.budget_minor_a_day // (settings.hosts * workers)
        self._payment_max = min(settings.payment_minor_max, self.budget)
        self._hash = blake2b(digest_size=8, key=key, person=b"exploration")
        self._below = math.floor(settings.share * _COINS)
        self._ledger = ledger

    def explore(self, action: str, reasons: Sequence[str], *, payment_id: str, amount: int, now_ms: int) -> Explored:
        """Returns what becomes of a verdict of the policy. Never raises.

        `amount`: minor units of the reference currency. `now_ms`: when it is decided. Only a decline can change, and
        only to an approval.
        """
        if action != _DECLINE or not self.share:
            return Explored(action, list(reasons), 1.0)
        day = now_ms // _DAY_MS
        if not 0 <= amount <= self._payment_max or any(reason.startswith(_RULE) for reason in reasons):
            return Explored(action, list(reasons), 1.0)
        if not self._ledger.hold():
            return Explored(action, list(reasons), 1.0)
        try:
            if self._ledger.spent(day) + amount > self.budget:
                return Explored(action, list(reasons), 1.0)
            if self.coin(payment_id) >= self._below:
                return Explored(action, list(reasons), 1.0 - self.share)
            self._ledger.spend(day, amount)
        finally:
            self._ledger.release()
        return Explored(ACTIONS[APPROVE], [EXPLORED, *reasons], self.share)

    def coin(self, payment_id: str) -> int:
        """Returns the coin of a payment: 0 to 2^64 - 1. One below share x 2^64 approves."""
        hashed = self._hash.copy()
        hashed.update(payment_id.encode())
        return int.from_bytes(hashed.digest(), "big")
