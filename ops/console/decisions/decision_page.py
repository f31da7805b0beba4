"""The page of one decision: its features, its model and policy, the decision made again, and payments around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paywarden.models.bundle.bundle import Bundle, read_manifest
from paywarden.models.bundle.explanations import read_trees
from paywarden.models.policy.policy import MODEL_ABSENT, Policy
from paywarden.ops.console.decisions.flips import Cuts, Flip, cuts_of, flips
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.decisions.links import links_of, strip_of
from paywarden.ops.console.decisions.notes import NotesOf
from paywarden.ops.console.decisions.search import PATH, PERSONAL, row_view
from paywarden.ops.console.decisions.usual_values import PAST_MAX, FeatureView, features_of
from paywarden.ops.console.page_rows import Page, Shown, Visit, not_found
from paywarden.ops.console.reasons import Listed, Reason, Reasons
from paywarden.ops.console.rendering import NO_CURRENCIES, Currencies
from paywarden.ops.deciders import KnownDeciders, Recomputed
from paywarden.schemas.errors import InvalidEvent, Misconfigured, PaywardenError
from paywarden.streams.decision_index.index import DecisionIndex, SharedEntity
from paywarden.streams.decision_index.reviews import AnalystVerdict
from paywarden.streams.decision_index.search import FoundRow, Place

Decode = Callable[[bytes], Mapping[str, Any]]
_NEAR = 5
_FACTS = (
    *("model_version", "bundle_digest", "policy_digest", "catalogue_digest", "profile_set", "rollout", "arm"),
    *("propensity", "caller", "variant", "latency_us"),
)
_UNREADABLE = (
    "the record of this decision cannot be read now: its schema is of another release, or the registry of schemas does "
    "not answer"
)


class DecisionPage:
    """Builds the page of one decision."""

    def __init__(
        self,
        opened: OpenedIndex,
        known: KnownDeciders,
        decode: Decode,
        listed: Listed = lambda: ("", {}),
        currencies: Currencies = NO_CURRENCIES,
        notes: NotesOf = lambda *_: [],
    ) -> None:
        """`listed`: the digest of the settings' catalogue, and the meaning of each feature."""
        self._opened, self._known, self._decode, self._listed = opened, known, decode, listed
        self._currencies, self._notes = currencies, notes
        self.reasons = Reasons(known, listed)
        self._made: dict[Path, Cuts | None] = {}
        self._lock = threading.Lock()

    def pages(self) -> tuple[Page, ...]:
        """Return the pages, for the section of decisions."""
        one = f"{PATH}/{{place}}"
        return (
            Page(one, self.show, "Everything about one decision"),
            Page(f"{one}/linked", self.show_linked, "The entities linked to a payment, and known frauds among them"),
        )

    def in_words(self, bodies: Iterable[bytes]) -> Mapping[str, list[Reason]]:
        """Return the reasons of decisions, the records of which are given, by their ids."""
        return self.reasons.of(one for body in bodies if (one := self._decoded(body)) is not None)

    def show(self, visit: Visit) -> Shown:
        """Show the decision of an address, or the newest one about a payment. Raises PageRefused if there is none."""
        with self._opened.used() as (index, queue):
            row, *others = _at(index, visit.path["place"])
            visit.saw(f"payment:{row.payment_id}")
            verdicts = queue.verdicts_for(row.decision_id, visit.person.name)
            view = self._view(index, row, others, verdicts, visit)
        return Shown("decisions/one.html", view, f"Payment {row.payment_id}")

    def show_linked(self, visit: Visit) -> Shown:
        """Show what a payment is linked to. The payment's page fetches it when it stands. Raises PageRefused."""
        with self._opened.used() as (index, _):
            row, *_ = _at(index, visit.path["place"])
            visit.saw(f"payment:{row.payment_id}", part="linked")
            shared = index.shared_with_frauds(row)
            links = links_of(index, row, [one for entity in shared for one in entity.newest], visit.masked)
        view = {
            "payment_id": row.payment_id,
            "place": row.place.to_text(),
            "shared": [_shared(entity, visit) for entity in shared],
            "links": links,
        }
        return Shown("decisions/linked.html", view, f"Linked to payment {row.payment_id}")

    def _view(
        self, index: DecisionIndex, row: FoundRow, others: list[FoundRow], verdicts: list[AnalystVerdict], visit: Visit
    ) -> dict[str, Any]:
        earlier, later = index.neighbours(row, PAST_MAX, _NEAR)
        past = [other.place for other in earlier]
        bodies = index.bodies([row.place, *past])
        body = bodies.pop(row.decision_id, b"")
        view: dict[str, Any] = {
            "row": row_view(row, visit),
            "before": [row_view(other, visit) for other in earlier[:_NEAR]],
            "after": [row_view(other, visit) for other in later],
            "strip": strip_of(earlier, row, self._currencies),
            "verdicts": verdicts,
            "others": [row_view(other, visit) for other in others],
            "searches": _searches(row, visit),
            "notes": self._notes(row_view(row, visit), visit),
        }
        decision = self._decoded(body)
        if decision is None:
            why = _UNREADABLE if body else "the index does not hold the record of this decision"
            nothing: dict[str, Any] = {
                "facts": {},
                "profile_age_ms": None,
                "in_words": (),
                "features": (),
                "flips": (),
                "past_count": 0,
            }
            return {**view, **nothing, "vector_why": why, "again": _again(None, why)}
        recomputed = self._known.recomputed(decision)
        in_words = self.reasons.of([decision])[row.decision_id]
        known_past = [one for body in bodies.values() if (one := self._decoded(body)) is not None]
        features, changes, why = self._features(decision, known_past, recomputed)
        return {
            **view,
            # The names of model, policy and all that decided.
            "facts": {name: str(decision[name]) for name in _FACTS if decision[name] not in ("", None)},
            "profile_age_ms": decision["profile_age_ms"],
            "in_words": in_words,
            "features": features,
            "flips": changes,
            "units": {one.name: one.unit for one in features},
            "past_count": len(known_past),
            # Why no features are shown.
            "vector_why": why,
            "again": _again(recomputed, recomputed.why),
        }

    def _decoded(self, body: bytes) -> Mapping[str, Any] | None:
        try:
            return self._decode(body)
        except PaywardenError:
            return None

    def _features(
        self, decision: Mapping[str, Any], past: list[Mapping[str, Any]], again: Recomputed
    ) -> tuple[list[FeatureView], list[Flip], str]:
        """Return features, smallest changes that change the action, and why there are none."""
        if not decision["bundle_digest"]:
            is_absent = MODEL_ABSENT in decision["flags"]
            return [], [], "no model gave a score" if is_absent else "the decision names no bundle"
        try:
            bundle, policy, folder = self._known.of(decision)
            assert bundle is not None
            assert folder is not None
            reference, cuts = self.reasons.reference(folder, bundle), self._cuts(folder, bundle, policy)
            features = self._in_words(decision, features_of(decision, past, bundle.manifest.feature_names, reference))
        except PaywardenError as error:
            return [], [], str(error)
        if again.again is None or cuts is None or not features:
            return features, [], "" if features else "the vector was not kept"
        with self._known.lock:
            return features, list(flips(decision, bundle, policy, self._known.rates, cuts)), ""

    def _in_words(self, decision: Mapping[str, Any], features: list[FeatureView]) -> list[FeatureView]:
        """Return features, each with its profile and its meaning. Raises Misconfigured."""
        digest, listed = self._listed()
        if decision["catalogue_digest"] != digest:
            return features
        return [
            replace(one, entity=said.entity or "payment", meaning=said.meaning, unit=said.unit)
            if (said := listed.get(one.name)) is not None
            else one
            for one in features
        ]

    def _cuts(self, folder: Path, bundle: Bundle, policy: Policy) -> Cuts | None:
        """Return the cuts of a bundle's models. They are read once.

        Raises BundleRefused, or Misconfigured if the folder holds another bundle by now.
        """
        key = folder / policy.digest
        with self._lock:
            if key not in self._made:
                if read_manifest(folder).digest != bundle.manifest.digest:
                    raise Misconfigured("the files of the bundle that decided were replaced")
                names = bundle.manifest.feature_names
                models = [read_trees(folder / part.model_text, len(names)) for part in bundle.manifest.parts]
                self._made[key] = cuts_of(models, policy, names)
            return self._made[key]


def _at(index: DecisionIndex, text: str) -> list[FoundRow]:
    """Return the decisions of a place, or about a payment: links from alerts and cases know the payment's id alone.

    Raises PageRefused if there is none.
    """
    try:
        found = index.at(Place.from_text(text))
    except InvalidEvent:
        found = []
    if rows := found or index.about(text):
        return rows
    raise not_found("decision of this address, and none about a payment of this id")


def _searches(row: FoundRow, visit: Visit) -> dict[str, str]:
    """Return the addresses of searches for personal values, for a person who may see these."""
    values = {name: getattr(row, name) for name in PERSONAL if visit.person.sees_cards}
    return {name: visit.address(PATH, {name: value}, (name,)) for name, value in values.items() if value}


def _again(recomputed: Recomputed | None, why: str) -> dict[str, Any]:
    """Return the decision made again. `why`: the part that is not equal, or why it could not be made again."""
    again = None if recomputed is None else recomputed.again
    if recomputed is None or again is None:
        return {"is_known": False, "is_equal": False, "score": None, "action": "", "reasons": (), "why": why}
    made = {"score": again.score, "action": again.action, "reasons": again.reasons, "why": why}
    return {"is_known": True, "is_equal": recomputed.is_equal, **made}


def _shared(entity: SharedEntity, visit: Visit) -> dict[str, Any]:
    """Return an entity and its known frauds. `is_all`: False where only its newest decisions were looked at."""
    return {
        "kind": entity.kind,
        "value": entity.value if entity.kind == "merchant_id" else visit.masked(entity.value),
        "decisions": entity.decisions,
        "fraud_count": entity.fraud_count,
        "frauds": [{"place": one.place.to_text(), "payment_id": one.payment_id} for one in entity.frauds],
        "is_all": entity.is_all,
    }
