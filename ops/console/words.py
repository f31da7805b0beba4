"""Names signals and segments in an analyst's words: the names of the code mean nothing to an analyst.

feature:amount_to_mean location     amount to mean · level
outcome:recall                      frauds that were caught (recall)
overall, country=BR                 all payments, country BR
"""

from __future__ import annotations

_SUBJECTS = {
    "score": "scores",
    "action": "actions",
    "traffic": "traffic (who pays where)",
    "profile_age": "age of the profiles",
    "recall": "frauds that were caught (recall)",
    "precision": "frauds among the stopped payments (precision)",
    "average_precision": "frauds among the highest scores (average precision)",
    "brier_score": "error of the scores (Brier score)",
    "calibration_error": "scores against real frauds (calibration)",
}
_SIGNALS = {"location": "level", "missing": "missing values", "share": ""}
_OVERALL = "overall"


def what_moved(subject: str, signal: str = "") -> str:
    """Return a subject that moved, in words. `signal`: the part that moved, such as its level; "" or `share`: all."""
    kind, _, name = subject.rpartition(":")
    words = _SUBJECTS.get(name, name.replace("_", " ")) if kind != "feature" else name.replace("_", " ")
    if kind == "flag":
        words = f"flag {words}"
    of_it = _SIGNALS.get(signal, signal.replace("_", " "))
    return f"{words} · {of_it}" if of_it else words


def where(segment: str) -> str:
    """Return the payments of a segment."""
    return "all payments" if segment == _OVERALL else segment.replace("=", " ", 1)
