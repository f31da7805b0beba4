"""Decides about a payment when the service does not: limits by amount, merchant category and card.

    {"name": "small-shops", "otherwise": "approve", "limits": [
        {"name": "large",    "action": "review",  "amount_over": {"EUR": 20000, "*": 10000}},
        {"name": "gambling", "action": "decline", "mcc_in": ["7995", "7800-7802"]},
        {"name": "often",    "action": "review",  "card_count_over": 3, "window_s": 600}]}

    250.00 EUR, mcc 5411  ─►  review, ["stand_in:late", "limit:large"]

A limit holds if all its conditions hold. The strictest action of the limits that hold decides; without one, `otherwise`
does. Counts and sums of a card are those of the payments that this process approved or sent to review in the service's
place within the window, with the payment in hand. They cost nothing while the service answers.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import ACTIONS, DECLINE, REVIEW, Decision
from .errors import WrongSettings
from .payments import AMOUNT_MAX, Payment

LIMITS_MAX = 64
WINDOW_S_MAX = 86_400
COUNT_MAX = 100
# Payments kept for a card. If all of them are within the longest window, every limit by card holds.
PAYMENTS_OF_CARD_MAX = 128

_NAME = re.compile(r"[a-z0-9_-]{1,40}")
_CURRENCY = re.compile(r"[A-Z]{3}|\*")
_MCC = re.compile(r"([0-9]{4})(?:-([0-9]{4}))?")
_POLICY_KEYS = ("name", "otherwise", "limits")
_LIMIT_KEYS = ("name", "action", "amount_over", "mcc_in", "card_count_over", "card_sum_over", "window_s")
_CONDITIONS = ("amount_over", "mcc_in", "card_count_over", "card_sum_over")


@dataclass(frozen=True)
class Limit:
    """One limit of a policy. A condition that is None asks nothing."""

    name: str
    action: str
    amount_over: Mapping[str, int] | None = None
    mcc_in: tuple[tuple[str, str], ...] | None = None
    mcc_may_be_missing: bool = False
    card_count_over: int | None = None
    card_sum_over: Mapping[str, int] | None = None
    window_ms: int = 0


@dataclass(frozen=True)
class StandInPolicy:
    """The policy that decides in the service's place. The default sends every payment to review."""

    name: str = "review-all"
    otherwise: str = REVIEW
    limits: tuple[Limit, ...] = ()
    window_ms: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window_ms", max((limit.window_ms for limit in self.limits), default=0))

    @classmethod
    def parse(cls, text: str | bytes) -> StandInPolicy:
        """Returns the policy of a JSON text. Raises WrongSettings with the path of the wrong part."""
        try:
            found = json.loads(text)
        except ValueError:
            raise WrongSettings("", "the policy is not JSON") from None
        return cls.of(found)

    @classmethod
    def of(cls, found: Any) -> StandInPolicy:
        """Returns the policy of an object as JSON has it. Raises WrongSettings with the path of the wrong part."""
        if not isinstance(found, dict):
            raise WrongSettings("", "wanted an object")
        _require_known(found, _POLICY_KEYS, "")
        name = _name_of(found, "name")
        otherwise = _action_of(found, "otherwise")
        limits = found.get("limits", [])
        if not isinstance(limits, list) or len(limits) > LIMITS_MAX:
            raise WrongSettings("limits", f"wanted a list of at most {LIMITS_MAX}")
        parsed = tuple(_limit_of(limit, f"limits[{place}]") for place, limit in enumerate(limits))
        names = [limit.name for limit in parsed]
        for place, limit in enumerate(parsed):
            if limit.name in names[:place]:
                raise WrongSettings(f"limits[{place}].name", "wanted a name that no other limit has")
        return cls(name, otherwise, parsed)


class StandIn:
    """Decides by a policy, and counts by card. Not safe for threads: the client holds a lock."""

    def __init__(self, policy: StandInPolicy, cards_max: int = 100_000) -> None:
        """`cards_max`: beyond it, the card that was counted longest ago is forgotten."""
        self._policy, self._cards_max = policy, cards_max
        # In the order of each card's newest payment. A payment: time, id, amount, currency.
        self._cards: dict[str, deque[tuple[float, str, int, str]]] = {}

    def decide(self, payment: Payment, cause: str, now_ms: float) -> Decision:
        """Returns the decision. `now_ms` is of a clock that never goes back."""
        policy = self._policy
        earlier = self._earlier(payment, now_ms) if policy.window_ms else ()
        holding = [limit for limit in policy.limits if _holds(limit, payment, earlier, now_ms)]
        action = max((limit.action for limit in holding), key=ACTIONS.index, default=policy.otherwise)
        reasons = [f"stand_in:{cause}", *(f"limit:{limit.name}" for limit in holding if limit.action == action)]
        if action != DECLINE and policy.window_ms:
            self._note(payment, now_ms)
        return Decision(payment.payment_id, action, reasons=tuple(reasons), flags=("stand_in",), stand_in=True)

    def _earlier(self, payment: Payment, now_ms: float) -> Sequence[tuple[float, str, int, str]]:
        kept = self._cards.get(payment.card_id)
        if kept is None:
            return ()
        while kept and now_ms - kept[0][0] >= self._policy.window_ms:
            kept.popleft()
        # The same payment, asked again, counts once.
        return [one for one in kept if one[1] != payment.payment_id]

    def _note(self, payment: Payment, now_ms: float) -> None:
        kept = self._cards.pop(payment.card_id, None)
        if kept is None:
            kept = deque(maxlen=PAYMENTS_OF_CARD_MAX)
            if len(self._cards) >= self._cards_max:
                del self._cards[next(iter(self._cards))]
        self._cards[payment.card_id] = kept
        if all(one[1] != payment.payment_id for one in kept):
            kept.append((now_ms, payment.payment_id, payment.amount_minor, payment.currency))


def _holds(limit: Limit, payment: Payment, earlier: Sequence[tuple[float, str, int, str]], now_ms: float) -> bool:
    if limit.amount_over is not None and not _is_over(payment.amount_minor, payment.currency, limit.amount_over):
        return False
    if limit.mcc_in is not None:
        mcc = payment.mcc
        if not (limit.mcc_may_be_missing if not mcc else any(low <= mcc <= high for low, high in limit.mcc_in)):
            return False
    if limit.window_ms == 0 or len(earlier) >= PAYMENTS_OF_CARD_MAX:
        return True
    within = [one for one in earlier if now_ms - one[0] < limit.window_ms]
    if limit.card_count_over is not None and len(within) + 1 <= limit.card_count_over:
        return False
    if limit.card_sum_over is None:
        return True
    total = payment.amount_minor + sum(one[2] for one in within if one[3] == payment.currency)
    return _is_over(total, payment.currency, limit.card_sum_over)


def _is_over(amount: int, currency: str, largest: Mapping[str, int]) -> bool:
    """Returns whether an amount is over its currency's limit, or that of "*". A currency without one is over."""
    most = largest.get(currency, largest.get("*"))
    return most is None or amount > most


def _limit_of(found: Any, at: str) -> Limit:
    if not isinstance(found, dict):
        raise WrongSettings(at, "wanted an object")
    _require_known(found, _LIMIT_KEYS, at)
    name, action = _name_of(found, "name", at), _action_of(found, "action", at)
    if not any(condition in found for condition in _CONDITIONS):
        raise WrongSettings(at, f"wanted a condition: one of {', '.join(_CONDITIONS)}")
    mccs = _mccs_of(found["mcc_in"], f"{at}.mcc_in") if "mcc_in" in found else None
    by_card = "card_count_over" in found or "card_sum_over" in found
    if by_card != ("window_s" in found):
        raise WrongSettings(f"{at}.window_s", "wanted with card_count_over or card_sum_over, and only there")
    return Limit(
        name,
        action,
        _amounts_of(found["amount_over"], f"{at}.amount_over") if "amount_over" in found else None,
        None if mccs is None else tuple(pair for pair in mccs if pair is not None),
        mccs is not None and None in mccs,
        _whole(found["card_count_over"], f"{at}.card_count_over", 0, COUNT_MAX) if "card_count_over" in found else None,
        _amounts_of(found["card_sum_over"], f"{at}.card_sum_over") if "card_sum_over" in found else None,
        1000 * _whole(found["window_s"], f"{at}.window_s", 1, WINDOW_S_MAX) if by_card else 0,
    )


def _require_known(found: Mapping[str, Any], names: Sequence[str], at: str) -> None:
    for name in found:
        if name not in names:
            raise WrongSettings(_path(at, name), f"is unknown; wanted one of {', '.join(names)}")


def _path(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _name_of(found: Mapping[str, Any], key: str, at: str = "") -> str:
    name = found.get(key)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WrongSettings(_path(at, key), "wanted 1 to 40 of a to z, 0 to 9, _ and -")
    return name


def _action_of(found: Mapping[str, Any], key: str, at: str = "") -> str:
    action = found.get(key)
    wanted = ACTIONS if key == "otherwise" else (REVIEW, DECLINE)
    if action not in wanted:
        raise WrongSettings(_path(at, key), f"wanted one of {', '.join(wanted)}")
    return str(action)


def _whole(value: Any, at: str, least: int, most: int) -> int:
    # 20000.0 is a whole number, too: not every language tells the two apart.
    if type(value) not in (int, float) or not least <= value <= most or value != value // 1:
        raise WrongSettings(at, f"wanted a whole number from {least} to {most}")
    return int(value)


def _amounts_of(found: Any, at: str) -> Mapping[str, int]:
    if not isinstance(found, dict) or not found:
        raise WrongSettings(at, 'wanted amounts by currency, such as {"EUR": 20000}')
    amounts = {}
    for currency, amount in found.items():
        if not _CURRENCY.fullmatch(currency):
            raise WrongSettings(f"{at}.{currency}", 'wanted three capital letters, or "*"')
        amounts[currency] = _whole(amount, f"{at}.{currency}", 0, AMOUNT_MAX)
    return amounts


def _mccs_of(found: Any, at: str) -> list[tuple[str, str] | None]:
    """Returns ranges of codes, both ends included, and None for a payment without a code."""
    if not isinstance(found, list) or not found:
        raise WrongSettings(at, 'wanted a list such as ["7995", "7800-7802", "missing"]')
    pairs: list[tuple[str, str] | None] = []
    for place, text in enumerate(found):
        if text == "missing":
            pairs.append(None)
            continue
        match = _MCC.fullmatch(text) if isinstance(text, str) else None
        low, high = match.groups() if match else ("", "")
        if match is None or (high is not None and high < low):
            raise WrongSettings(f"{at}[{place}]", 'wanted four digits, a range of them, or "missing"')
        pairs.append((low, high or low))
    return pairs
