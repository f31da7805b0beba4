"""The text of `paywarden drift status` about an alert, in lines that fit a terminal of 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from paywarden.ops.reporting import printable
from paywarden.ops.times import spoken

if TYPE_CHECKING:
    from paywarden.streams.alerts.journal import KnownAlert

_WIDTH = 80
_BAR_WIDTH_MAX = 30
_SHARE_WIDTH = 8
# A share from here on is printed as "every payment".
_ALL = 0.9995
_MINUTE_MS = 60_000
# Where to begin looking, by cause. The console shows it, too.
LOOK_AT = {
    "profiles": "stream workers and companions: /readyz, consumer lag, paywarden_companion_mirror_age_seconds",
    "input": "what fills this field upstream: a release, a unit, a source that is gone; then the payments themselves",
    "traffic": "who sends these payments: a merchant that came or went, routing, card testing; the model is as it was",
    "score": "the bundle and the policy that were put in place last, and fraud of a new kind: outcomes tell later",
    "outcome": "outcome-metrics; fraud of a new kind, or what changed when it began: bundle, policy, features",
}


def explained(alert: KnownAlert) -> list[str]:
    """Returns everything known about an alert, in lines for people."""
    record = alert.record
    lines = wrapped(
        "", f"alert {alert.alert_id}: {record['severity']}, {record['state']} {spoken(record['time_ms'])} UTC"
    )
    lines += ["", *_line("what moved", f"{record['subject']} {record['signal']}".strip() + since_training(record))]
    for sentence in in_words(record):
        lines += _line("in words", sentence)
    lines += _line("where", record["segment"])
    lines += _line("cause", record["cause"] or "not said")
    from_on = (
        _percent(record["threshold"]) if record["statistic"] == "relative_change" else _number(record["threshold"])
    )
    lines += _line("by how much", f"{size_of(record)}; from {from_on} on it matters")
    lines += _line("value", values_of(record))
    if record["outside"] is not None:
        lines += _line("outside", f"{_percent(record['outside'])} of the payments are not where they were in training")
    if record["evidence_threshold"]:
        lines += _line(
            "how certain",
            f"evidence 10^{record['evidence']:.1f}; 10^{record['evidence_threshold']:.1f} is enough",
        )
    if record["reminders"]:
        lines += _line("reminders", f"{record['reminders']}: it is open still")
    lines += _line("first seen", f"about {spoken(record['first_seen_time_ms'])} UTC")
    lines += _line(
        "window",
        f"{spoken(record['window_start_time_ms'])} to {spoken(record['window_end_time_ms'])} UTC, "
        f"{(record['window_end_time_ms'] - record['window_start_time_ms']) // _MINUTE_MS} min",
    )
    lines += _line("payments", f"{record['current_count']}, in the reference {record['reference_count']}")
    if record["reference_start_time_ms"] and record["reference_end_time_ms"]:
        lines += _line(
            "reference",
            f"{spoken(record['reference_start_time_ms'])} to {spoken(record['reference_end_time_ms'])} UTC",
        )
    lines += _line("model", record["model_version"])
    if record["statistics"]:
        lines += _line("distances", ", ".join(f"{one['name']} {_number(one['value'])}" for one in record["statistics"]))
    if some := [one for one in record["flags"] if one["share"] < _ALL]:
        lines += _line("flags", ", ".join(f"{one['flag']} {_percent(one['share'])}" for one in some))
    lines += _bars(record)
    lines += _moved(record)
    lines += ["", "its life"]
    for time_ms, state, severity, subject in alert.states:
        lines += wrapped(f"  {spoken(time_ms)}  {state:<10} {severity:<9} ", printable(subject))
    for said in alert.acknowledgements:
        until = f" until {spoken(said.until_ms)}" if said.until_ms else ""
        note = f": {printable(said.note)}" if said.note else ""
        lines += wrapped(f"  {spoken(said.time_ms)}  ", f"{said.kind}{until} by {printable(said.by)}{note}")
    if record["cause"] in LOOK_AT:
        lines += ["", *_line("look at", LOOK_AT[record["cause"]])]
    return lines


def in_words(record: dict[str, Any]) -> list[str]:
    """Returns a share as a sentence, and a sentence for each flag that all payments have; empty for other signals."""
    sentences = []
    subject, signal, share = record["subject"], record["signal"], record["current"]
    if subject == "traffic" and record["segment"].endswith("=other"):
        dimension = record["segment"].removesuffix("=other")
        was = _percent(record["expected"])
        sentences.append(f"payments whose {dimension} the reference does not list: {_percent(share)}, expected {was}")
    if record["statistic"] == "relative_change" and (what := _counted_by(subject, signal)):
        sentences.append(
            what.every if share >= _ALL else f"{what.share}: {_percent(share)}, expected {_percent(record['expected'])}"
        )
    if record["statistic"] == "evidence":
        sentences.append(
            f"{record['current_count']:,} payments came during a burst of tries that looks like card testing"
        )
    if record["comparison"] == "training":
        sentences += most_moved_bin(record)
    sentences += [_flagged(one["flag"]).every for one in record["flags"] if one["share"] >= _ALL]
    return list(dict.fromkeys(sentences))


def most_moved_bin(record: Mapping[str, Any]) -> list[str]:
    """Returns which bin of the histograms has most of the change: for a category, the value that came or went."""
    reference, current = record["reference_histogram"], record["current_histogram"]
    if reference is None or current is None or len(reference["counts"]) != len(current["counts"]):
        return []
    was, now = _shares(reference), _shares(current)
    places = range(len(was))
    place = max(
        places, key=lambda place: (now[place] - was[place]) * math.log((now[place] + 1e-6) / (was[place] + 1e-6))
    )
    label, share = _labels(reference)[place], _percent(now[place])
    return [f"most in {label}: {share} of the payments, in training {_percent(was[place])}"]


class _Words(NamedTuple):
    """The sentence for all payments, and the words before a share of them."""

    every: str
    share: str


def _counted_by(subject: str, signal: str) -> _Words | None:
    """Returns the words for the payments that a share counts; None for other signals."""
    from paywarden.models.drift.signals import FEATURE_PREFIX, FLAG_PREFIX

    if subject.startswith(FLAG_PREFIX):
        return _flagged(subject.removeprefix(FLAG_PREFIX))
    if subject.startswith(FEATURE_PREFIX) and signal == "missing":
        name = subject.removeprefix(FEATURE_PREFIX)
        return _Words(f"{name} is missing in every payment", f"payments without {name}")
    if subject == "action":
        done = {"review": "reviewed", "decline": "declined"}.get(signal, signal)
        return _Words(f"every payment is {done}", f"payments {done}")
    return None


def _flagged(flag: str) -> _Words:
    entity = flag.removeprefix("unknown_")
    if entity != flag:
        return _Words(f"every {entity} is unknown", f"payments whose {entity} is unknown")
    return _Words(f"every payment has the flag {flag}", f"payments with the flag {flag}")


def _bars(record: dict[str, Any]) -> list[str]:
    """Returns both histograms as bars, one line for each bin; empty if the record has no histograms."""
    reference, current = record["reference_histogram"], record["current_histogram"]
    if reference is None or current is None or len(reference["counts"]) != len(current["counts"]):
        return []
    was, now = _shares(reference), _shares(current)
    longest = max(*was, *now) or 1.0
    labels = _labels(reference)
    width = max(map(len, labels))
    # The room next to the label, the two shares of 8 characters and the spaces between.
    bar_width = min(_BAR_WIDTH_MAX, (_WIDTH - width - 2 * (2 + _SHARE_WIDTH)) // 2)
    lines = ["", f"{'':<{width}}  {'reference':<{bar_width + _SHARE_WIDTH}}  now"]
    for label, before, after in zip(labels, was, now, strict=True):
        if before or after:
            bars = (_bar(share, longest, bar_width) for share in (before, after))
            lines.append(f"{label:<{width}}  {'  '.join(bars)}".rstrip())
    return lines


def _labels(histogram: dict[str, Any]) -> list[str]:
    edges = histogram["edges"]
    return [*(f"[{_number(low)}, {_number(high)})" for low, high in pairwise(edges)), "missing"]


def _shares(histogram: dict[str, Any]) -> list[float]:
    counts = [*histogram["counts"], histogram["missing"]]
    total = sum(counts) or 1
    return [count / total for count in counts]


def _bar(share: float, longest: float, width: int) -> str:
    filled = round(width * share / longest)
    return f"{100 * share:6.2f}% {'█' * filled:<{width}}"


def _moved(record: dict[str, Any]) -> list[str]:
    if not record["moved"]:
        return []
    lines = ["", "what moved with it"]
    for moved in record["moved"]:
        name = f"{moved['subject']} {moved['signal']}"
        where = "" if moved["segment"] == "overall" else f" in {moved['segment']}"
        lines += wrapped(f"  {_number(moved['value']):>9}  {moved['deviation']:>+9.1f} sd  ", printable(name + where))
    return lines


def since_training(record: Mapping[str, Any]) -> str:
    """Returns the suffix of the name of a move away from the training window; empty for other moves."""
    return ", since training" if record["comparison"] == "training" else ""


def values_of(record: Mapping[str, Any]) -> str:
    """Returns the value and the expected one, with as many digits as show that they differ.

    Also the values between which the signal counts as unchanged: `0.5411, expected 0.538 (0.532 to 0.54 is as usual)`.
    """
    current, expected = record["current"], record["expected"]
    digits = next((places for places in range(4, 10) if f"{current:.{places}g}" != f"{expected:.{places}g}"), 4)
    low, high = record["unchanged_low"], record["unchanged_high"]
    usual = "" if low is None or high is None else f" ({low:.{digits}g} to {high:.{digits}g} is as usual)"
    word = "in training" if record["comparison"] == "training" else "expected"
    return f"{current:.{digits}g}, {word} {expected:.{digits}g}{usual}"


def finite(value: Any) -> Any:
    """Returns the value with null in place of infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size_of(record: dict[str, Any]) -> str:
    """Returns the size of the change, as its statistic has it: `+40 %`, or `psi 0.31`."""
    if record["statistic"] == "relative_change":
        if record["current"] >= record["expected"]:
            return f"+{100 * record['value']:.0f} %"
        # An alert that clears has the size of its rise beside a share that is back to nothing.
        return f"-{100 * min(record['value'], 1):.0f} %"
    return f"{record['statistic']} {_number(record['value'])}"


def _line(name: str, text: str) -> list[str]:
    """Returns a name and a text in lines that fit."""
    return wrapped(f"{name:<13}", printable(text))


def wrapped(head: str, text: str) -> list[str]:
    """Returns `head` and the text after it; further lines begin below the text."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    ) or [head.rstrip()]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _number(value: float) -> str:
    return f"{value:.4g}"
