"""A decision, and the meaning of the service's statuses and bodies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .errors import WrongRequest

APPROVE, REVIEW, DECLINE = ACTIONS = ("approve", "review", "decline")

# Why a decision stands in for the service's.
LATE, BUSY, UNREACHABLE, BROKEN = "late", "busy", "unreachable", "broken"
OVERLOADED, UNAVAILABLE, UNAUTHORIZED, FAILED, CLOSED = "overloaded", "unavailable", "unauthorized", "failed", "closed"
CAUSES = (LATE, BUSY, UNREACHABLE, BROKEN, OVERLOADED, UNAVAILABLE, UNAUTHORIZED, FAILED, CLOSED)
# Other statuses than these and 200 are FAILED.
_CAUSE_OF = {401: UNAUTHORIZED, 403: UNAUTHORIZED, 429: OVERLOADED, 503: UNAVAILABLE, 504: LATE}
_WRONG_REQUEST = frozenset((400, 409, 413, 415))
_MESSAGE_MAX = 300
# The largest whole number that all languages read exactly.
_WHOLE_MAX = 2**53 - 1


@dataclass(frozen=True)
class Decision:
    """The decision about a payment.

    `stand_in` is True if this process decided, because the service did not: then `score` is None, `decision_id` and
    `model_version` are empty, and `reasons` begins with `stand_in:CAUSE`.
    """

    payment_id: str
    action: str
    decision_id: str = ""
    score: float | None = None
    reasons: tuple[str, ...] = ()
    model_version: str = ""
    flags: tuple[str, ...] = ()
    profile_age_ms: int | None = None
    stand_in: bool = False


def read_answer(payment_id: str, status: int, body: bytes) -> Decision | str:
    """Returns the decision, or the cause why there is none. Raises WrongRequest if the service refuses the payment."""
    if status == 200:
        return _decision_of(payment_id, body) or FAILED
    if status in _WRONG_REQUEST:
        raise _refusal_of(status, body)
    return _CAUSE_OF.get(status, FAILED)


def _decision_of(payment_id: str, body: bytes) -> Decision | None:
    """Returns the decision of a body; None if it is none, or about another payment. Unknown names are skipped."""
    found = _object_of(body)
    score, age = found.get("score", 0.0), found.get("profile_age_ms")
    decision_id, version = found.get("decision_id", ""), found.get("model_version", "")
    reasons, flags = found.get("reasons", []), found.get("flags", [])
    if (
        found.get("payment_id") != payment_id
        or found.get("action") not in ACTIONS
        or not (_is_number(score) and 0 <= score <= 1)
        or not (age is None or (_is_number(age) and abs(age) <= _WHOLE_MAX and age == age // 1))
        or not (isinstance(decision_id, str) and isinstance(version, str))
        or not (_are_texts(reasons) and _are_texts(flags))
    ):
        return None
    return Decision(
        payment_id,
        found["action"],
        decision_id,
        float(score),
        tuple(reasons),
        version,
        tuple(flags),
        None if age is None else int(age),
    )


def _refusal_of(status: int, body: bytes) -> WrongRequest:
    error = _object_of(body).get("error")
    if not isinstance(error, dict):
        error = {}
    code, field, message = (error.get(name) for name in ("code", "field", "message"))
    return WrongRequest(
        message[:_MESSAGE_MAX] if isinstance(message, str) and message else f"was refused with status {status}",
        field=field[:_MESSAGE_MAX] if isinstance(field, str) else "",
        code=code[:_MESSAGE_MAX] if isinstance(code, str) and code else "refused",
        status=status,
    )


def _object_of(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse(_: str) -> None:
    """Infinity and NaN are no JSON."""
    raise ValueError


def _is_number(value: Any) -> bool:
    # Not an instance of bool, which is an int. A number may be too large for a float.
    return type(value) is int or (type(value) is float and abs(value) < float("inf"))


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
