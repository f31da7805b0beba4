"""Approve a small random share of the payments that would be declined, within a budget, to learn their labels.

A declined payment never gets a label. A model that is trained on the payments that the last one let through forgets
the fraud that it stopped.
Exploration is off by default. It buys labels with money that an operator sets aside:

    [exploration] share = 0.02, budget_minor_a_day = 500_000, payment_minor_max = 10_000

    declined, EUR 62, spent today EUR 120    2 % are approved    propensity 0.02 if approved, 0.98 if declined
    declined, EUR 400                        above the ceiling   stays declined, propensity 1
    declined by a rule                       rules are final     stays declined, propensity 1
    declined, EUR 62, spent today EUR 4,990  no budget left      stays declined, propensity 1

A policy may set other shares for bands of scores, which `paywarden policy explore` proposes from what was learnt there
(models/replay/explored_shares.py).

The *propensity* is the probability of the action that the payment got, given all that was known before the coin. It
goes into the decision. Training and replay weigh a payment by 1 / propensity, as if all such payments had been
approved.

The coin is a keyed hash of the payment's id. The same payment gets the same coin on every host and in a replay, and
nobody without the key can choose an id that is approved. A budget is spent before the answer leaves, and a payment that
does not fit is not explored whatever its coin: the budget of a day is never exceeded, not even after kill -9.

Hosts share a budget without talking to each other: each has an equal part of it. The workers of a host share a ledger.
A worker locks it for the moment in which it decides. A worker that finds it held declines, whatever the coin, and
never waits.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from paywarden.models.policy.policy import ACTIONS, APPROVE, DECLINE, SHARE_MAX
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_at
from paywarden.schemas.key_files import read_hex_key
from paywarden.schemas.private_files import make_parent, open_private

_log = logging.getLogger(__name__)

EXPLORED = "exploration"
"""The reason of a payment that was approved by the coin. The reasons why it would have been declined follow it."""
KEY_BYTES_MIN, KEY_BYTES_MAX = 16, 64
_DAY_MS = 86_400_000
_COINS = 1 << 64
_AMOUNT_MAX = 1 << 53
_RULE = "rule:"
_DECLINE = ACTIONS[DECLINE]
_LEDGER = struct.Struct("<qq")
# More than any budget: nothing is left of the day.
_ALL = 1 << 62
_LOCKED_OUT_S = 10.0


@dataclass(frozen=True)
class ExplorationSettings:
    """How much may be explored, by all hosts together. Amounts are minor units of the reference currency."""

    # The share of the payments that would be declined. 0: off.
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
        if not 0 <= self.share <= SHARE_MAX:
            raise Misconfigured(f"exploration.share: wanted 0 to {SHARE_MAX}, got {self.share:g}")
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
    """A verdict after exploration: the action, the reasons, and the probability of this action."""

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


class FileLedger:
    """The sum spent on the newest day, in 16 bytes of a file, which all workers of a host open, each after its fork.

    Its bytes outlive `kill -9` of a process at any moment, and a dead process holds no lock. After a loss of
    power the file may lack the sums of the last half minute: they can be spent again.

    The file is read and written, not mapped: one that is cut short kills no worker. The sum in a damaged one is lost,
    so the budget of that day counts as spent, and the next day begins with a new one. While the file cannot be used,
    nothing is explored. The log says so.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it for this user alone. If it cannot, `hold` tries again."""
        self._path, self._file = path, -1
        # Which file is open, and the newest that this process knows of it.
        self._at: tuple[int, int] | None = None
        self._known = (0, 0)
        self._trouble, self._held_since = "", 0.0
        try:
            self._open()
        except (OSError, Misconfigured) as error:
            self._say_unusable(error)

    @classmethod
    def require(cls, path: Path) -> None:
        """Raise Misconfigured if the ledger cannot be kept in this file."""
        try:
            ledger = cls.__new__(cls)
            ledger._path, ledger._file = path, -1
            ledger._open()
            ledger.close()
        except OSError as error:
            raise Misconfigured(f"exploration: cannot keep the spent budget in {path}: {error.strerror}") from error

    def _open(self) -> None:
        """Raises OSError, Misconfigured."""
        make_parent(self._path)
        opened = open_private(self._path, os.O_RDWR | os.O_CREAT)
        try:
            if os.fstat(opened).st_size == 0:
                # Reserve the room now: an approval must be noted on a full disk as well.
                os.posix_fallocate(opened, 0, _LEDGER.size)
            else:
                os.pwrite(opened, os.pread(opened, _LEDGER.size, 0), 0)
            status = os.fstat(opened)
        except OSError:
            os.close(opened)
            raise
        self.close()
        self._file, self._at = opened, (status.st_dev, status.st_ino)

    def hold(self) -> bool:
        """Take the ledger; returns False if another has it. The holder calls `release` soon."""
        try:
            if is_other := self._file < 0 or file_at(self._path) != self._at:
                self._open()
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_other:
                # Somebody has deleted or replaced it. The amount that this process knows to be spent stays spent.
                self._say("was deleted or replaced, and is used again")
                self._take_over()
        except BlockingIOError:
            return self._is_locked_out()
        except (OSError, Misconfigured) as error:
            self._say_unusable(error)
            return False
        self._held_since = 0.0
        return True

    def release(self) -> None:
        """Let others have the ledger."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def spent(self, day: int) -> int:
        """Returns the sum spent on `day`, in minor units. On a day before the newest it is that of the newest."""
        try:
            content = os.pread(self._file, _LEDGER.size, 0)
        except OSError as error:
            self._say(f"cannot be read, and nothing is explored: {error.strerror}")
            return _ALL
        newest, spent = _LEDGER.unpack(content) if len(content) == _LEDGER.size else (0, -1)
        if spent < 0 or newest < 0:
            self._say("is damaged: the budget of this day counts as spent")
            self._write(max(day, self._known[0]), _ALL)
            return _ALL
        if newest > day + 1:
            self._say(f"is damaged, or the clock was ahead: until its day {newest} it has no new budget. Delete it")
        self._known = newest, spent
        return 0 if day > newest else spent

    def spend(self, day: int, amount: int) -> bool:
        """Add an amount to the newest day, which is `day` if that is later. Returns False if it cannot be noted."""
        spent, (newest, _) = self.spent(day), self._known
        return spent < _ALL and self._write(max(day, newest), spent + amount)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file, self._at = -1, None

    def _write(self, day: int, spent: int) -> bool:
        try:
            whole = os.pwrite(self._file, _LEDGER.pack(day, spent), 0) == _LEDGER.size
        except OSError as error:
            self._say(f"cannot be written, and nothing is explored: {error.strerror}")
            return False
        if whole:
            self._known = day, spent
        return whole

    def _take_over(self) -> None:
        day, spent = self._known
        content = os.pread(self._file, _LEDGER.size, 0)
        if len(content) == _LEDGER.size and _LEDGER.unpack(content) < (day, spent):
            os.pwrite(self._file, _LEDGER.pack(day, spent), 0)

    def _is_locked_out(self) -> bool:
        """Returns False. Workers hold it for some microseconds each, a stranger for longer."""
        now = time.monotonic()
        self._held_since = self._held_since or now
        if now - self._held_since > _LOCKED_OUT_S:
            self._say("is locked by another process, and nothing is explored meanwhile")
        return False

    def _say_unusable(self, error: Exception) -> None:
        self._say(f"cannot be used, and nothing is explored: {getattr(error, 'strerror', None) or error}")

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.error("exploration: %s %s", self._path, trouble)
        self._trouble = trouble


class Exploration:
    """The exploration of one scoring worker. Not thread-safe."""

    def __init__(self, settings: ExplorationSettings, *, key: bytes, ledger: FileLedger) -> None:
        """`key`: a secret of the deployment. Raises Misconfigured for a key of a wrong size."""
        if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
            raise Misconfigured(f"exploration key: wanted {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes, got {len(key)}")
        self.share = settings.share
        self.budget = settings.budget_minor_a_day // settings.hosts
        self._payment_max = min(settings.payment_minor_max, self.budget)
        self._hash = blake2b(digest_size=8, key=key, person=b"exploration")
        self._ledger = ledger

    def explore(
        self,
        action: str,
        reasons: Sequence[str],
        *,
        payment_id: str,
        amount: int,
        now_ms: int,
        share: float | None = None,
    ) -> Explored:
        """Returns a verdict of the policy after exploration. Never raises.

        `amount`: minor units of the reference currency. `now_ms`: when it is decided. `share`: that of the payment's
        score band; None for the one of the settings. Only a decline can change, and only to an approval.
        """
        share = self.share if share is None else share
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
            if self.coin(payment_id) >= math.floor(share * _COINS):
                return Explored(action, list(reasons), 1.0 - share)
            if not self._ledger.spend(day, amount):
                # An amount that cannot be noted is not spent.
                return Explored(action, list(reasons), 1.0)
        finally:
            self._ledger.release()
        return Explored(ACTIONS[APPROVE], [EXPLORED, *reasons], share)

    def coin(self, payment_id: str) -> int:
        """Returns the coin of a payment: 0 to 2^64 - 1. One below share x 2^64 approves."""
        hashed = self._hash.copy()
        hashed.update(payment_id.encode())
        return int.from_bytes(hashed.digest(), "big")
