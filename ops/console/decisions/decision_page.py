"""The page of one decision: its features, its model and policy, the decision made again, and payments around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paywarden.models.policy.policy import MODEL_ABSENT
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.rows import RowView, row_view
from paywarden.ops.console.decisions.usual_values import PAST_MAX, FeatureView, features_of
from paywarden.ops.console.pages import Shown, Visit, not_found
from paywarden.ops.deciders import KnownDeciders, Recomputed
from paywarden.schemas.errors import InvalidEvent, Misconfigured, PaywardenError
from paywarden.scoring.engine.flips import Flip
from paywarden.streams.decision_index.reviews import AnalystVerdict
from paywarden.streams.decision_index.search import FoundRow, Place

if TYPE_CHECKING:
    from paywarden.features.profiles.feature_docs import ListedFeature
    from paywarden.models.bundle.bundle import Bundle
    from paywarden.models.drift.reference import Reference
    from paywarden.models.policy.policy import Policy
    from paywarden.scoring.engine.flips import Cuts
    from paywarden.streams.decision_index.index import DecisionIndex, SharedEntity

Decode = Callable[[bytes], Mapping[str, Any]]
Listed = Callable[[], tuple[str, Mapping[str, "ListedFeature"]]]
_NEAR = 5


@dataclass(frozen=True)
class AgainView:
    """The decision made again. `why`: the part that is not equal, or why it could not be made again."""

    is_known: bool
    is_equal: bool
    score: float | None
    action: str
    reasons: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class SharedView:
    """An entity of the payment and its known frauds. `is_all`: False where only its newest decisions were looked at."""

    kind: str
    value: str
    decisions: int
    fraud_count: int
    frauds: tuple[RowView, ...]
    is_all: bool


@dataclass(frozen=True)
class DecisionView:
    """Everything about one decision. `facts`: who decided, by name. `vector_why`: why no features are shown.

    `searches`: the addresses of searches for its card, device and IP address, for who may see these.
    """

    row: RowView
    facts: Mapping[str, str]
    profile_age_ms: int | None
    features: tuple[FeatureView, ...]
    past_count: int
    vector_why: str
    again: AgainView
    flips: tuple[Flip, ...]
    before: tuple[RowView, ...]
    after: tuple[RowView, ...]
    shared: tuple[SharedView, ...]
    verdicts: tuple[AnalystVerdict, ...]
    others: tuple[RowView, ...]
    searches: Mapping[str, str]


class OnePage:
    """Builds the page of one decision."""

    def __init__(
        self, opened: OpenedIndex, known: KnownDeciders, decode: Decode, listed: Listed = lambda: ("", {})
    ) -> None:
        """`listed`: the digest of the settings' catalogue, and the meaning of each feature."""
        self._opened, self._known, self._decode, self._listed = opened, known, decode, listed
        self._made: dict[Path, tuple[Reference | None, Cuts | None]] = {}
        self._lock = threading.Lock()

    def show(self, visit: Visit) -> Shown:
        """Show the decision of an address, or the newest one about a payment. Raises PageRefused if there is none."""
        with self._opened.used() as (index, queue):
            rows = _at(index, visit.path["place"])
            if not rows:
                raise not_found("decision of this address, and none about a payment of this id")
            row, *others = rows
            visit.saw(f"payment:{row.payment_id}")
            view = self._view(index, row, others, queue.verdicts_for(row.decision_id, visit.person.name), visit)
        return Shown("decisions/one.html", view, f"Payment {row.payment_id}")

    def _view(
        self, index: DecisionIndex, row: FoundRow, others: list[FoundRow], verdicts: list[AnalystVerdict], visit: Visit
    ) -> DecisionView:
        past = [other.place for other in index.neighbours(row, PAST_MAX)[0]]
        before, after = index.neighbours(row, _NEAR)
        bodies = index.bodies([row.place, *past])
        body = bodies.pop(row.decision_id, b"")
        decision = self._decoded(body)
        rows = tuple(row_view(other, visit) for other in before), tuple(row_view(other, visit) for other in after)
        shared = tuple(_shared(entity, visit) for entity in index.shared_with_frauds(row))
        other_rows = tuple(row_view(other, visit) for other in others)
        around = (rows[0], rows[1], shared, tuple(verdicts), other_rows, _searches(row, visit))
        if decision is None:
            why = (
                "the record of this decision cannot be read now: its schema is of another release, or the registry of "
                "schemas does not answer"
                if body
                else "the index does not hold the record of this decision"
            )
            again = AgainView(False, False, None, "", (), why)
            return DecisionView(row_view(row, visit), {}, None, (), 0, why, again, (), *around)
        again_ = self._known.recomputed(decision)
        known_past = [one for body in bodies.values() if (one := self._decoded(body)) is not None]
        features, flips, why = self._features(decision, known_past, again_)
        facts = {name: str(decision[name]) for name in _FACTS if decision[name] not in ("", None)}
        return DecisionView(
            row_view(row, visit),
            facts,
            decision["profile_age_ms"],
            features,
            len(known_past),
            why,
            _again(again_),
            flips,
            *around,
        )

    def _decoded(self, body: bytes) -> Mapping[str, Any] | None:
        try:
            return self._decode(body)
        except PaywardenError:
            return None

    def _features(
        self, decision: Mapping[str, Any], past: list[Mapping[str, Any]], again: Recomputed
    ) -> tuple[tuple[FeatureView, ...], tuple[Flip, ...], str]:
        from paywarden.scoring.engine.flips import flips

        if not decision["bundle_digest"]:
            is_absent = MODEL_ABSENT in decision["flags"]
            return (), (), "no model gave a score" if is_absent else "the decision names no bundle"
        try:
            bundle, policy, folder = self._known.of(decision)
            assert bundle is not None
            assert folder is not None
            reference, cuts = self._of_bundle(folder, bundle, policy)
            features = self._in_words(decision, features_of(decision, past, bundle.manifest.feature_names, reference))
        except PaywardenError as error:
            return (), (), str(error)
        if again.again is None or cuts is None or not features:
            return features, (), "" if features else "the vector was not kept"
        with self._known.lock:
            return features, tuple(flips(decision, bundle, policy, self._known.rates, cuts)), ""

    def _in_words(self, decision: Mapping[str, Any], features: list[FeatureView]) -> tuple[FeatureView, ...]:
        """Returns features, each with its profile and its meaning. Raises Misconfigured."""
        digest, listed = self._listed()
        if decision["catalogue_digest"] != digest:
            return tuple(features)
        return tuple(
            replace(one, entity=said.entity or "payment", meaning=said.meaning, unit=said.unit)
            if (said := listed.get(one.name)) is not None
            else one
            for one in features
        )

    def _of_bundle(self, folder: Path, bundle: Bundle, policy: Policy) -> tuple[Reference | None, Cuts | None]:
        """Returns the reference of a bundle and the cuts of its models. They are read once.

        Raises BundleRefused, or Misconfigured if the folder holds another bundle by now.
        """
        from paywarden.models.bundle.bundle import read_manifest
        from paywarden.models.bundle.explanations import read_trees
        from paywarden.models.drift.reference import load_reference
        from paywarden.scoring.engine.flips import cuts_of

        key = folder / policy.digest
        with self._lock:
            if key not in self._made:
                if read_manifest(folder).digest != bundle.manifest.digest:
                    raise Misconfigured("the files of the bundle that decided were replaced")
                names = bundle.manifest.feature_names
                models = [read_trees(folder / part.model_text, len(names)) for part in bundle.manifest.parts]
                self._made[key] = load_reference(folder), cuts_of(models, policy, names)
            return self._made[key]


_FACTS = (
    "model_version", "bundle_digest", "policy_digest", "catalogue_digest", "profile_set", "rollout", "arm",
    "propensity", "caller", "variant", "latency_us",
)  # fmt: skip


def _at(index: DecisionIndex, text: str) -> list[FoundRow]:
    """Returns the decisions of a place, or about a payment: links from alerts and cases know the payment's id alone."""
    try:
        found = index.at(Place.from_text(text))
    except InvalidEvent:
        found = []
    return found or index.about(text)


def _searches(row: FoundRow, visit: Visit) -> dict[str, str]:
    """Returns the addresses of searches for personal values; they open in this session alone."""
    if not visit.person.sees_cards:
        return {}
    values = {"card_id": row.card_id, "device_id": row.device_id, "ip": row.ip}
    return {name: visit.seal.address("/decisions", {name: value}, (name,)) for name, value in values.items() if value}


def _again(again: Recomputed) -> AgainView:
    if again.again is None:
        return AgainView(False, False, None, "", (), again.why)
    said = again.again
    return AgainView(True, again.is_equal, said.score, said.action, tuple(said.reasons), again.why)


def _shared(entity: SharedEntity, visit: Visit) -> SharedView:
    value = entity.value if entity.kind == "merchant_id" else visit.masked(entity.value)
    frauds = tuple(row_view(row, visit) for row in entity.frauds)
    return SharedView(entity.kind, value, entity.decisions, entity.fraud_count, frauds, entity.is_all)
