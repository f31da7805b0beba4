"""Say in a person's words what moved a payment's score, from the declaration of the features and the training payments.

    amount_to_merchant_mean_30d = 9.6   9.6 times the mean amount of this merchant's payments in the last 30 days;
                                        usually 0.8
    card_count_1h = 110                 110 payments of this card in the last hour; usually 1

1. The features are those that the decision names, or those that moved the model's answer most towards fraud.
2. The words are the feature's meaning in the catalogue. A window of `1h` is an hour, and another feature's name in
   it is that feature's meaning.
3. The usual value is the median of the training payments, from the bundle's reference, which counts them in bins.

A page writes value and usual value in the form of the person's locale: `Reason` keeps them as numbers.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paywarden.models.drift.reference import Reference, load_reference
from paywarden.ops.recomputation import vector_of
from paywarden.schemas.errors import PaywardenError

if TYPE_CHECKING:
    from paywarden.features.profiles.feature_docs import ListedFeature
    from paywarden.models.bundle.bundle import Bundle
    from paywarden.ops.deciders import KnownDeciders

REASONS_MAX = 3
Listed = Callable[[], tuple[str, Mapping[str, "ListedFeature"]]]
_NAMED = re.compile(r"feature:([^=]+)=")
_LENGTHS = {"s": "second", "m": "minute", "h": "hour", "d": "day"}
_LENGTH = re.compile(r"\b([0-9]+)([smhd])\b")
_COUNTED = re.compile(
    r"number of (?:this (?P<who>[\w ]+?)'s (?P<what>payments|known frauds)|(?P<values>different .+?))\b"
)
_MONEY, _RATIO, _TRUTH = "minor units", "ratio", "0 or 1"
_COUNTS = ("payments", "values")


@dataclass(frozen=True)
class Reason:
    """One reason. `words` has a `{}` for the value, if the value is a part of the sentence.

    `unit` is the catalogue's. `usual`: the median of the training payments, and for a truth the share of payments for
    which it holds. `value` and `usual` are NaN where the value is missing, and `usual` is None where it is not known.
    """

    words: str
    value: float = math.nan
    unit: str = ""
    usual: float | None = None
    feature: str = ""


class Reasons:
    """Makes the reasons of decisions. Thread-safe: the references of bundles are read once."""

    def __init__(self, known: KnownDeciders, listed: Listed) -> None:
        """`listed`: the digest of the settings' catalogue, and the declaration of each feature."""
        self._known, self._listed = known, listed
        self._references: dict[tuple[Path, str], Reference | None] = {}
        self._lock = threading.Lock()

    def of(self, decisions: Iterable[Mapping[str, Any]]) -> dict[str, list[Reason]]:
        """Return at most REASONS_MAX reasons of each decision, the strongest first, by its id.

        A decision whose bundle or catalogue is not here has the reasons of its record alone.
        """
        # Looking for a bundle that is not here reads all manifests: once for a page is enough.
        bundles: dict[tuple[str, str], tuple[Bundle, Reference | None] | None] = {}
        told = {}
        for decision in decisions:
            key = decision["bundle_digest"], decision["catalogue_digest"]
            if key not in bundles:
                bundles[key] = self._bundle(*key)
            told[decision["decision_id"]] = self._reasons(decision, bundles[key])
        return told

    def reference(self, folder: Path, bundle: Bundle) -> Reference | None:
        """Return the reference of a bundle; None without one. Raises BundleRefused."""
        key = folder, bundle.manifest.digest
        with self._lock:
            if key not in self._references:
                self._references[key] = load_reference(folder)
            return self._references[key]

    def _bundle(self, digest: str, catalogue: str) -> tuple[Bundle, Reference | None] | None:
        try:
            if not digest or catalogue != self._listed()[0]:
                return None
            bundle, folder = self._known.bundle(digest, catalogue)
            return bundle, self.reference(folder, bundle)
        except PaywardenError:
            return None

    def _reasons(self, decision: Mapping[str, Any], by: tuple[Bundle, Reference | None] | None) -> list[Reason]:
        given = [one for one in decision["reasons"] if one]
        others = [Reason(_in_words(one)) for one in given if not _NAMED.match(one)]
        try:
            of_features = [] if by is None else self._of_features(decision, _features_named(given), *by)
        except PaywardenError:
            of_features = []
        return (of_features + others)[:REASONS_MAX]

    def _of_features(
        self, decision: Mapping[str, Any], named: Sequence[str], bundle: Bundle, reference: Reference | None
    ) -> list[Reason]:
        """Return the reasons of the named features, or without a name those of the strongest."""
        vector, names = vector_of(decision), bundle.manifest.feature_names
        if len(vector) != len(names):
            return []
        if not named:
            with self._known.lock:
                named = _features_named(bundle.explainer.reasons(np.ascontiguousarray(vector, np.float32), REASONS_MAX))
        values = dict(zip(names, map(float, vector), strict=True))
        listed = self._listed()[1]
        return [reason_of(name, values[name], listed, reference) for name in named if name in values and name in listed]


def _features_named(reasons: Iterable[str]) -> list[str]:
    return [match[1] for one in reasons if (match := _NAMED.match(one))]


def reason_of(
    name: str, value: float, listed: Mapping[str, ListedFeature], reference: Reference | None = None
) -> Reason:
    """Return the reason of one feature's value."""
    said = listed[name]
    words = _plain(said.meaning, listed)
    usual = None if reference is None else usual_value(reference, name, is_truth=said.unit == _TRUTH)
    if math.isnan(value):
        return Reason(f"{_capital(words)}: not known ({_plain(said.missing_when, listed)})", feature=name)
    if said.unit == _TRUTH:
        claim = words.removeprefix("whether ")
        return Reason(_capital(claim if value else f"not the case: {claim}"), value, said.unit, usual, name)
    top, _, bottom = said.meaning.partition(" divided by ")
    if said.unit == _RATIO and bottom:
        words = f"{{}} times the {_plain(bottom, listed)}"
        if top != "amount":
            words = f"{_capital(_plain(top, listed))} is {words}"
    elif said.unit.split(",")[0] in _COUNTS and (counted := _COUNTED.match(words)):
        what = counted["values"] or f"{counted['what']} of this {counted['who']}"
        if value == 1 and counted["what"]:
            what = f"{counted['what'][:-1]} of this {counted['who']}"
        words = f"{{}} {what}{words[counted.end() :]}"
    else:
        words = f"{_capital(words)}: {{}}"
    return Reason(words, value, said.unit, usual, name)


def usual_value(reference: Reference, name: str, *, is_truth: bool = False) -> float | None:
    """Return the median of a feature in training, exact to a bin; NaN where most payments lacked it, None if not known.

    `is_truth`: return the share of the payments with 1 among those with 0 or 1 instead.
    """
    if name not in reference.feature_names:
        return None
    place = reference.feature_names.index(name)
    edges = reference.binning.feature_edges[place].astype(np.float64)
    counts = reference.counts.features[0, place].astype(np.float64)
    known, missing = counts[: len(edges) + 1], counts[len(edges) + 1 :].sum()
    if known.sum() + missing == 0:
        return None
    if is_truth:
        return (
            float(known[int(np.searchsorted(edges, 1.0, side="right")) :].sum() / known.sum()) if known.sum() else None
        )
    if missing > known.sum():
        return math.nan
    bin_ = int(np.searchsorted(np.cumsum(known), known.sum() / 2))
    # A bin starts at its edge, and a value that many payments have is the edge itself.
    low, high = edges[max(bin_ - 1, 0)], edges[min(bin_, len(edges) - 1)]
    if bin_ == 0 or not math.isfinite(high) or np.nextafter(np.float32(low), np.float32(np.inf)) >= high:
        return float(low)
    return float(low + (high - 1 - low) // 2) if _is_whole(edges) else float((low + high) / 2)


def _is_whole(edges: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Return whether a feature counts something: its edges are whole, but for those just above a value."""
    finite = edges[np.isfinite(edges)]
    return bool(np.all(np.abs(finite - np.round(finite)) < 1e-5 * np.maximum(1, finite)))


def _plain(text: str, listed: Mapping[str, ListedFeature]) -> str:
    """Return a meaning of the catalogue without names of features and units of windows."""
    names = re.sub(r"\w+_\w+", lambda word: listed[word[0]].meaning if word[0] in listed else word[0], text)
    names = re.sub(r"\bdifferent (\w+)_id\b", r"different \1s", names).replace(" == ", " is ")
    names = re.sub(r"\b(\w+)_id\b", r"the \1", names)
    lengths = _LENGTH.sub(lambda found: _length(int(found[1]), found[2]), names)
    article = re.sub(r"\b(the last|every|the) 1 (\w+)", r"\1 \2", lengths)
    return re.sub(r"\bthe (card|merchant|device|[a-z_]+(?: [a-z_]+)?)('s\b)", r"this \1\2", article).replace(
        "of the card", "of this card"
    )


def _length(count: int, unit: str) -> str:
    return f"{count} {_LENGTHS[unit]}{'' if count == 1 else 's'}"


def _in_words(reason: str) -> str:
    """Return a reason of the record that names no feature: `rule:large` is `Rule: large`."""
    return _capital(reason.replace("_", " ").replace(":", ": "))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
