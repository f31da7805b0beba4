"""The catalogue as a table: the meaning of each feature, and the size of each entity's profiles.

feature        entity  window  hop  unit      meaning                                         missing when
card_count_1d  card    1d      1h   payments  number of the card's payments in the last 1d    never
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import AttributeKind, number_code
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.entity_words.arguments import is_moment
from paywarden.features.catalogue.expressions import Feature, WindowedMeasure, stored_values
from paywarden.features.catalogue.windows import DAY_MS, in_units
from paywarden.features.profiles.engine import Events, FeatureEngine

_COLUMNS = ("feature", "entity", "window", "hop", "unit", "meaning", "missing when")


_WINDOWS = (
    "A window holds every tile that it touches, and a tile is one hop long, so a window may reach one hop further back "
    "than its length. A window that ended some time ago has its length, and may have ended one hop earlier. A payment "
    "counts itself only if its feature says so.\n\n"
    "Three rules hold for all features. A feature of an entity is missing if the payment does not name the entity. A "
    "quotient is missing if one of its parts is, or the divisor is 0. A statistic of a window, other than a count or "
    "sum, is missing without payments in the window."
)


@dataclass(frozen=True)
class ListedFeature:
    """One feature. `entity` is empty for a feature of the payment itself, `window` and `hop` without a window."""

    name: str
    entity: str
    window: str
    hop: str
    unit: str
    meaning: str
    missing_when: str


@dataclass(frozen=True)
class ListedEntity:
    """One kind of entity. The sizes are those of a packed profile in the store: after one payment, and at most."""

    name: str
    key: str
    features: int
    bytes_after_one_payment: int
    bytes_max: int
    kept_days: int

    @property
    def cost(self) -> str:
        """Returns the cost of a profile, in a sentence."""
        return (
            f"{self.name} (by {self.key}): {self.features} features; a profile takes "
            f"{self.bytes_after_one_payment} bytes after one payment and at most {self.bytes_max:,}; "
            f"it is kept for {self.kept_days} days after its last change"
        )


@dataclass(frozen=True)
class Listing:
    """The whole catalogue. A bundle serves only with the catalogue `digest` that it was trained with."""

    digest: str
    entities: tuple[ListedEntity, ...]
    features: tuple[ListedFeature, ...]

    def to_dict(self) -> dict[str, object]:
        """Returns the listing for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """Returns aligned columns for a terminal."""
        rows = [_COLUMNS, *(_cells(feature) for feature in self.features)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *(entity.cost for entity in self.entities), f"catalogue {self.digest}"])

    def to_markdown(self) -> str:
        """Returns the page docs/reference/features.md."""
        lines = [
            "# Features",
            "",
            "Generated from `features/catalogue/catalogue.py` by `paywarden features --markdown`.",
        ]
        lines += ["", _WINDOWS, "", "In brackets: entity, window and hop, unit.", ""]
        for feature in self.features:
            window = ", " + " by ".join(filter(None, (feature.window, feature.hop))) if feature.window else ""
            missing = f"; missing when: {rule}" if (rule := self._own_rule(feature)) else ""
            entity = feature.entity or "payment"
            lines.append(f"- `{feature.name}` ({entity}{window}, {feature.unit}): {feature.meaning}{missing}")
        lines += ["", "## Profiles", ""]
        lines += [f"- {entity.cost}" for entity in self.entities]
        return "\n".join(lines)

    def _own_rule(self, feature: ListedFeature) -> str:
        """When the feature is missing, without the rules that the page gives for all features."""
        if feature.missing_when.endswith(" is 0"):
            return ""
        keys = {entity.name: entity.key.split(" + ") for entity in self.entities}
        general = {"never", "no payments in the window"}
        general |= {f"the payment has no {key}" for key in keys.get(feature.entity, ())}
        return "; ".join(rule for rule in feature.missing_when.split("; ") if rule not in general)


def listing_of(catalogue: Catalogue, engine: FeatureEngine) -> Listing:
    """Returns the listing of a catalogue. `engine` is the catalogue's; it measures the size of profiles."""
    plan = engine.plan
    entities = tuple(
        ListedEntity(
            name=entity.name,
            key=" + ".join(entity.keys),
            features=sum(feature.entity == entity.name for feature in catalogue.features),
            bytes_after_one_payment=_bytes_after_one_payment(catalogue, engine, number),
            bytes_max=plan.profile_bytes_max(number),
            kept_days=plan.ttl_s(number) // 86_400,
        )
        for number, entity in enumerate(catalogue.entities)
    )
    return Listing(plan.digest, entities, listed_features(catalogue))


def listed_features(catalogue: Catalogue) -> tuple[ListedFeature, ...]:
    """Returns the meaning of each feature, in the order of the vector."""
    return tuple(
        ListedFeature(f.name, f.entity, f.window, _hops(f), f.unit, f.meaning, f.missing) for f in catalogue.features
    )


def _hops(feature: Feature) -> str:
    """Returns the hops of a feature's windows: "1h", or "1h : 1d" for two windows."""
    windows = [stored.window for stored in stored_values(feature.value) if isinstance(stored, WindowedMeasure)]
    return " : ".join(dict.fromkeys(in_units(window.hop_ms) for window in windows if not window.is_ever))


def _cells(feature: ListedFeature) -> tuple[str, ...]:
    entity = feature.entity or "payment"
    return feature.name, entity, feature.window, feature.hop, feature.unit, feature.meaning, feature.missing_when


def _bytes_after_one_payment(catalogue: Catalogue, engine: FeatureEngine, entity: int) -> int:
    one, none, first = np.ones(1, np.int64), np.full(1, -1, np.int64), np.zeros(1, np.int64)
    events = Events(np.array([0, 1]), np.zeros(1, np.uint8), first, one, first, one, none)
    attributes = np.full((1, engine.plan.row_width), 10_000, dtype=np.int64)
    # A time in 2025: tile numbers have as many bytes as in the coming years.
    attributes[0, kernel.TIME_MS] = 1_764_000_000_000
    for attribute in catalogue.payment.attributes:
        if attribute.kind is AttributeKind.NUMBER:
            # A moment a year ago; any other number like the amount.
            number = 1_764_000_000_000 - 365 * DAY_MS if is_moment(attribute) else 10_000
            attributes[0, attribute.column] = number_code(number)
    return len(engine.apply(entity, events, attributes, [None], engine.new_slots(0)).states[0])
