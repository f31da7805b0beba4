"""The base of all words of an entity: it makes features, measures over a window, and meanings in English."""

from __future__ import annotations

from dataclasses import dataclass, field

from paywarden.features.catalogue.attributes import Attribute, Condition
from paywarden.features.catalogue.expressions import (
    Column,
    Derived,
    Expression,
    Feature,
    Operation,
    Reduction,
    WindowedMeasure,
)
from paywarden.features.catalogue.windows import (
    EVER,
    duration_ms,
    line_of_caller,
    recent_window,
    window_of,
    wrong_at,
)

# Fields that every payment has.
_ALWAYS_THERE = frozenset({"card_id", "merchant_id"})


@dataclass(frozen=True)
class EntityWords:
    """An entity's name, its key, and the line that declares it."""

    name: str
    key: str | tuple[str, ...]
    line: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Raises Misconfigured for a key that is no name of a field, and no tuple of names."""
        object.__setattr__(self, "line", line_of_caller())
        names = (self.key,) if isinstance(self.key, str) else self.key
        if not isinstance(names, tuple) or not all(isinstance(one, str) for one in names):
            told = f"entity {self.name!r}: key must be the name of a field, or a tuple of names, as in key='card_id'"
            raise wrong_at(self.line, f"{told}, got {names!r}")

    @property
    def keys(self) -> tuple[str, ...]:
        """Returns the payment's fields that identify the entity, in order."""
        return (self.key,) if isinstance(self.key, str) else self.key

    def _feature(
        self, name: str, value: Expression, meaning: str, unit: str, missing: str = "", window: str = ""
    ) -> Feature:
        optional = " or ".join(key for key in self.keys if key not in _ALWAYS_THERE)
        reasons = [reason for reason in (missing, optional and f"the payment has no {optional}") if reason]
        missing = "; ".join(reasons) or "never"
        return Feature(name, value, meaning, unit, missing, self.name, window, line_of_caller())

    def _over(
        self,
        name: str,
        column: Column,
        window: str,
        delay: str,
        hop: str,
        reduction: Reduction = Reduction.SUM,
        *,
        is_long: bool = False,
    ) -> WindowedMeasure:
        return WindowedMeasure(self.name, column, window_of(name, window, delay, hop, is_long=is_long), reduction)

    def _total(self, name: str, column: Column, window: str, delay: str = "", hop: str = "") -> Expression:
        """Returns the sum of a column over a window that may be long, or "ever".

        All time until `delay` ago is all time without the last `delay`.
        """
        if window != EVER or not delay:
            return self._over(name, column, window, delay, hop, is_long=True)
        recent = WindowedMeasure(self.name, column, recent_window(name, delay, hop))
        return Derived(Operation.SUBTRACT, (self._over(name, column, EVER, "", "", is_long=True), recent))

    def _decayed(
        self, name: str, column: Column, half_life: str, window: str, hop: str, delay: str = ""
    ) -> WindowedMeasure:
        over = window_of(name, window, delay, hop)
        return WindowedMeasure(self.name, column, over, Reduction.DECAYED, duration_ms(name, half_life))


def spoken(window: str, delay: str = "") -> str:
    """Returns how a meaning speaks of a window."""
    if window == EVER:
        return f"all time until {delay} ago" if delay else "all time"
    return f"the {window} that ended {delay} ago" if delay else f"the last {window}"


def spoken_where(condition: Condition | Attribute | None) -> str:
    """Returns how a meaning speaks of a condition."""
    if condition is None:
        return ""
    return f" where {condition.text if isinstance(condition, Condition) else condition.name + ' is true'}"


def spoken_half_life(half_life: str) -> str:
    """Returns how a meaning speaks of a half-life."""
    return f", each weighing half as much for every {half_life} of age"


def spoken_including(including_this: bool) -> str:
    """Returns how a meaning says that this payment counts."""
    return ", this one included" if including_this else ""
