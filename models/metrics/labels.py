"""Three kinds of label: fraud, genuine, and not known.

A payment without an outcome may be genuine (only frauds are ever reported), or nobody may know (never reviewed, or too
new). The setting `[training] unknown_labels` says which:

    genuine     a payment without an outcome counts as genuine
    leave_out   it is left out of training and of all measures
    auto        the data itself decides, the default:
                - Where at least half of the mature payments have an outcome, the mature ones without are not known, and
                  left out. A payment is mature when 95 % of the outcomes "genuine" would have arrived.
                - Elsewhere only frauds seem to be reported: a payment without an outcome counts as genuine, unless it
                  was declined. No one learns whether a declined payment was fraud.
                - A payment that is not mature counts as genuine until its outcome arrives. Frauds are often reported
                  sooner than anything else: without the others, the newest days would seem to hold little but fraud.

A history may say itself of some payments that nobody knows (`never_labelled`: a mapping of `convert table` lists the
values that mean so). `auto` leaves those out, and decides about the others as above, as if those were not there.

Example: 10,000 payments, 40 with the outcome fraud, 25 of the others declined. 40 outcomes are less than half, so 9,935
payments count as genuine and 25 are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paywarden.schemas.errors import Misconfigured

if TYPE_CHECKING:
    from paywarden.features.history.history import History

AUTO, LEAVE_OUT, GENUINE = "auto", "leave_out", "genuine"
UNKNOWN_LABELS = (AUTO, LEAVE_OUT, GENUINE)
"""The values of `[training] unknown_labels`."""

_UNKNOWN = -1
KINDS = 24
"""How many kinds of payments `label_kinds` tells apart."""
_MATURE_SHARE = 0.95
_OUTCOMES_MAX = 1_000_000


@dataclass(frozen=True)
class LabelCounts:
    """How many payments of a window have which label. A payment counts once."""

    fraud: int
    """Payments with the outcome fraud."""
    genuine: int
    """Payments with the outcome genuine."""
    taken_for_genuine: int
    """Payments without an outcome that count as genuine."""
    left_out: int
    """Payments without an outcome that are left out."""

    @property
    def payments(self) -> int:
        """All payments of the window."""
        return self.fraud + self.genuine + self.taken_for_genuine + self.left_out

    def in_words(self) -> str:
        """Returns one line that says what happened to the payments without an outcome."""
        text = f"labels: {self.fraud} fraud, {self.genuine} genuine"
        if self.taken_for_genuine:
            text += f", {self.taken_for_genuine} without an outcome taken for genuine"
        if self.left_out:
            text += f", {self.left_out} not known and left out"
        return text


def require_setting(unknown_labels: str) -> None:
    """Raises Misconfigured for a value that is not one of UNKNOWN_LABELS."""
    if unknown_labels not in UNKNOWN_LABELS:
        raise Misconfigured(
            f"training.unknown_labels: wanted one of {', '.join(UNKNOWN_LABELS)}, got {unknown_labels!r}"
        )


def mature_before_ms(history: History, known_by_ms: int) -> int:
    """Returns the time before which payments are mature, if outcomes are known up to `known_by_ms`.

    Without any outcome "genuine", every payment is mature.
    """
    known = int(np.searchsorted(history.outcome_time_ms, known_by_ms, side="right"))
    few = slice(0, known, sampled_every(known))
    genuine = ~history.outcome_fraud[few]
    made_ms = history.event_time_ms[history.outcome_payment[few][genuine]]
    return mature_of_delays(known_by_ms, history.outcome_time_ms[few][genuine] - made_ms)


def sampled_every(outcomes: int) -> int:
    """Returns of how many outcomes, in order, one is sampled: quantiles of more than a million hardly differ."""
    return max(1, outcomes // _OUTCOMES_MAX)


def mature_of_delays(known_by_ms: int, delays_ms: NDArray[np.int64]) -> int:
    """Returns `mature_before_ms` from the delays of the sampled outcomes "genuine"."""
    return known_by_ms - int(np.quantile(delays_ms, _MATURE_SHARE)) if len(delays_ms) else known_by_ms


def end_of_labels_ms(history: History) -> int:
    """Returns the time up to which outcomes are known in the end: that of the last payment or the last outcome."""
    return max((int(times[-1]) for times in (history.event_time_ms, history.outcome_time_ms) if len(times)), default=0)


def kept_labels(
    label: NDArray[np.int8],
    is_declined: NDArray[np.bool_],
    is_mature: NDArray[np.bool_],
    unknown_labels: str,
    never_labelled: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], LabelCounts]:
    """Returns which payments keep a label, and how many there are of each kind.

    `label`: 1 fraud, 0 genuine, -1 not known. All arrays: (payments,). A kept payment with -1 counts as genuine.
    `never_labelled`: the payments of which the history itself says that nobody knows.
    """
    kind = label_kinds(label, is_declined, is_mature, never_labelled)
    is_kept, counts = kept_kinds(np.bincount(kind, minlength=KINDS), unknown_labels)
    return is_kept[kind], counts


def label_kinds(
    label: NDArray[np.int8],
    is_declined: NDArray[np.bool_],
    is_mature: NDArray[np.bool_],
    never_labelled: NDArray[np.bool_] | None = None,
) -> NDArray[np.int8]:
    """Returns the kind of each payment, below KINDS: all that decides whether it keeps its label."""
    kind = (label + 1) * np.int8(8) + is_declined * np.int8(4) + is_mature * np.int8(2)
    return np.asarray(kind if never_labelled is None else kind + never_labelled, dtype=np.int8)


def kept_kinds(count: NDArray[np.int64], unknown_labels: str) -> tuple[NDArray[np.bool_], LabelCounts]:
    """Returns which kinds keep a label, and how many payments there are. `count`: the payments of each, (KINDS,).

    Counts of parts of a history can be added.
    """
    require_setting(unknown_labels)
    kind = np.arange(KINDS)
    label, is_declined, is_mature, never_labelled = kind // 8 - 1, *((kind & bit) > 0 for bit in (4, 2, 1))
    is_unknown = label == _UNKNOWN
    unknown = int(count[is_unknown].sum())
    if unknown_labels == AUTO:
        stated = is_unknown & never_labelled
        unheard = is_unknown & is_mature & ~stated
        is_rare = 2 * count[unheard].sum() <= count[is_mature & ~stated].sum()
        # Without a single outcome nothing is known of any payment: a replay then shows actions alone, of all payments.
        is_chargebacks = unknown < count.sum() and not is_rare
        is_left_out = stated | unheard & is_rare | is_unknown & is_declined & is_chargebacks
    else:
        is_left_out = is_unknown & (unknown_labels == LEAVE_OUT)
    left_out = int(count[is_left_out].sum())
    counts = LabelCounts(
        fraud=int(count[label == 1].sum()),
        genuine=int(count[label == 0].sum()),
        taken_for_genuine=unknown - left_out,
        left_out=left_out,
    )
    return ~is_left_out, counts
