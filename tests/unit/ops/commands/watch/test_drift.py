"""`paywarden drift`: what it shows of alerts, and what it refuses before it talks to a broker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from paywarden.ops.alert_text import explained, most_moved_bin
from paywarden.ops.commands.watch import drift
from paywarden.ops.commands.watch.drift import WatchedModel, _as_json, not_watched_because, row_of
from paywarden.streams.alerts.alert_records import Acknowledgement, Histograms, record_of
from paywarden.streams.alerts.alerts import Alert, MovedSignal, Severity, State
from paywarden.streams.alerts.journal import Journal, KnownAlert
from paywarden.streams.drift.models import SeenModel
from tests.unit.streams.drift.test_training_watch import Watched, changed
from tests.worlds.drift.made_decisions import ramp

NOW_MS = 1_714_564_800_000  # 2024-05-01T12:00:00Z
ALERT = Alert(
    alert_id="00ffee", model_version="model-1", state=State.RAISED, severity=Severity.WARNING, time_ms=NOW_MS,
    first_seen_ms=NOW_MS - 600_000, slack_ms=0, raised_ms=NOW_MS, subject="feature:amount", statistic="location",
    segment="channel=ecom", length_ms=300_000, effect=0.5, effect_min=0.02, value=0.4, expected=0.5, count=100,
    evidence=6.0, evidence_min=5.5, shift=-2.0, window_start_ms=NOW_MS - 300_000, window_end_ms=NOW_MS,
    attached=(MovedSignal("score", "location", "overall", 0.1, -3.0),),
)  # fmt: skip
HISTOGRAMS = Histograms(
    np.array([-np.inf, 10.0, 20.0, np.inf]), np.array([500, 400, 100]), np.array([25, 25, 0]), 0, 50
)


def journal_of(*alerts: Alert) -> Journal:
    journal = Journal()
    for alert in alerts:
        journal.take_alert(record_of(alert, histograms=HISTOGRAMS))
    return journal


def known(*alerts: Alert) -> KnownAlert:
    return journal_of(*(alerts or (ALERT,))).alerts["00ffee"]


class _Reader:
    """A journal in memory, and what is written to it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.said: list[Acknowledgement] = []

    def read(self) -> Journal:
        return self.journal

    def write(self, said: Acknowledgement) -> None:
        self.said.append(said)

    def close(self) -> None:
        pass

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def run(
    reader: _Reader,
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    models: Sequence[WatchedModel] = (WatchedModel("model-1", NOW_MS, ""),),
    not_known: str = "",
) -> tuple[str, BaseException | None]:
    monkeypatch.setattr(drift, "_reading", lambda _: reader)
    monkeypatch.setattr(drift, "_writer", lambda _: reader)
    monkeypatch.setattr(drift, "_models", lambda _: (list(models), not_known))
    monkeypatch.setattr(drift, "_now_ms", lambda: NOW_MS)
    done = CliRunner().invoke(drift.drift, arguments)
    return done.stdout, done.exception


def test_status_lists_what_is_open_the_worst_first(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = replace(ALERT, alert_id="11", severity=Severity.CRITICAL, subject="traffic", statistic="share")
    over = replace(ALERT, alert_id="22", state=State.CLEARED)
    reader = _Reader(journal_of(ALERT, worse, over))
    shown, error = run(reader, monkeypatch, "status")
    assert error is None
    assert shown.index("traffic share") < shown.index("feature:amount location")
    assert "2 open alerts of 3 known" in shown
    assert "cleared" in shown
    old = _Reader(journal_of(ALERT, replace(over, time_ms=NOW_MS - 8 * 86_400_000)))
    assert "cleared" not in run(old, monkeypatch, "status")[0]
    assert "cleared" in run(old, monkeypatch, "status", "--all")[0]


def test_an_alert_that_cleared_stays_visible_with_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = replace(ALERT, state=State.CLEARED, time_ms=NOW_MS - 1, effect=0.0, value=0.5, evidence=0.0)
    reader = _Reader(journal_of(replace(ALERT, time_ms=NOW_MS - 60_000), quiet))
    status = json.loads(run(reader, monkeypatch, "status", "--json")[0])
    assert (status["open"], status["alerts"]) == (0, [])
    (cleared,) = status["cleared"]
    assert [cleared[name] for name in ("state", "time_ms", "value", "evidence")] == ["cleared", NOW_MS - 1, 0.5, 6.0]
    assert [state["state"] for state in cleared["states"]] == ["raised", "cleared"]


def test_status_says_which_models_are_not_watched_in_full_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _Reader(Journal())
    models = [WatchedModel("model-1", NOW_MS, ""), WatchedModel("model-2/b", NOW_MS, "the stream has no bundle of it")]
    shown, error = run(reader, monkeypatch, "status", models=models)
    assert error is None
    assert " ".join(shown.split()).endswith(
        "watched in full: model-1 not watched in full: model-2/b, last decision 2024-05-01 12:00:00 UTC: the stream "
        "has no bundle of it. Only its scores, actions and flags are held against its own past."
    )
    assert max(map(len, shown.splitlines())) <= 80
    status = json.loads(run(reader, monkeypatch, "status", "--json", models=models)[0])
    assert status["models"] == [
        {"version": "model-1", "newest_time_ms": NOW_MS, "not_watched_because": ""},
        {"version": "model-2/b", "newest_time_ms": NOW_MS, "not_watched_because": "the stream has no bundle of it"},
    ]


def test_status_says_when_it_cannot_know_which_models_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, error = run(_Reader(journal_of(ALERT)), monkeypatch, "status", models=(), not_known="the store is away")
    assert error is None
    assert "feature:amount location" in shown
    assert shown.endswith("Which models are watched is not known: the store is away\n")
    assert run(_Reader(Journal()), monkeypatch, "status", models=())[0].endswith("counted in the last two days.\n")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (SeenModel("model-1", 1, has_reference=True), ""),
        (SeenModel("model-1/b", 1, has_reference=True), ""),
        (SeenModel("model-3/b", 1, has_reference=False), "name its folder in [drift] bundles"),
        (SeenModel("model-2/b", 1, has_reference=False), "its bundle has no reference"),
        (SeenModel("model-1", 1, has_reference=False), "the stream was started without its bundle"),
        (SeenModel("other", 1, has_reference=False), "beyond the first four"),
    ],
)
def test_the_reason_follows_from_the_bundles_of_stream_and_host(model: SeenModel, words: str) -> None:
    reason = not_watched_because(model, {"model-1": True, "model-2": False})
    assert words in reason
    assert bool(reason) == bool(words)


def test_an_explanation_says_what_moved_where_and_what_to_look_at() -> None:
    told = "\n".join(explained(known()))
    for words in (
        "what moved   feature:amount location",
        "where        channel=ecom",
        "psi 0.5; from 0.02 on it matters",
        "evidence 10^6.0; 10^5.5 is enough",
        "about 2024-05-01 11:50:00 UTC",
        "100, in the reference 1000",
        "score location",
        "look at      what fills this field upstream",
    ):
        assert words in told
    assert "in words" not in told


def unknown(share: float) -> KnownAlert:
    """An alert of a feature, raised when this share of payments had a merchant without a profile."""
    return KnownAlert(record_of(ALERT, flags={"unknown_merchant": share, "mirror_stale": 0.125}))


@pytest.mark.parametrize(
    ("subject", "signal", "share", "sentence"),
    [
        ("flag:unknown_merchant", "share", 1.0, "every merchant is unknown"),
        ("flag:unknown_merchant", "share", 0.5, "payments whose merchant is unknown: 50 %, expected 2 %"),
        ("flag:mirror_stale", "share", 1.0, "every payment has the flag mirror_stale"),
        ("feature:amount", "missing", 1.0, "amount is missing in every payment"),
        ("feature:amount", "missing", 0.5, "payments without amount: 50 %, expected 2 %"),
        ("action", "decline", 1.0, "every payment is declined"),
    ],
)
def test_a_share_is_explained_in_words(subject: str, signal: str, share: float, sentence: str) -> None:
    alert = replace(ALERT, subject=subject, statistic=signal, value=share, expected=0.02, effect=24.0, effect_min=0.2)
    told = explained(KnownAlert(record_of(alert, flags={"unknown_merchant": share})))
    assert f"in words     {sentence}" in told
    assert "by how much  +2400 %; from 20 % on it matters" in told


def test_json_has_no_infinities() -> None:
    text = json.dumps(_as_json(known()), allow_nan=False)
    assert json.loads(text)["reference_histogram"]["edges"] == [None, 10.0, 20.0, None]


def test_printed_text_cannot_move_the_cursor() -> None:
    alert = known(replace(ALERT, segment="channel=\x1b[2J", model_version="\x1b[1m"))
    assert "\x1b" not in "".join(row_of(alert, NOW_MS))
    assert "\x1b" not in "".join(explained(alert))


def test_an_acknowledgement_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _Reader(journal_of(ALERT))
    shown, error = run(reader, monkeypatch, "note", "00ff", "a release", "--ack", "--by", "ana")
    assert (shown, error) == ("alert 00ffee acknowledged by ana\n", None)
    assert reader.said == [Acknowledgement("00ffee", NOW_MS, "ana", 0, "a release")]


def test_a_snooze_is_an_event_that_says_until_when(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _Reader(journal_of(ALERT))
    shown, _ = run(reader, monkeypatch, "note", "00ffee", "--snooze", "4h", "--by", "ana")
    assert shown == "alert 00ffee snoozed until 2024-05-01 16:00:00 UTC by ana\n"
    assert reader.said == [Acknowledgement("00ffee", NOW_MS, "ana", NOW_MS + 14_400_000)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("note", "beef", "--ack"), "there is no alert 'beef'"),
        (("note", "00ffee", "--ack"), "alert 00ffee cleared at 2024-05-01 12:00:00 UTC"),
        (("note", "00ffee", "--ack", "--by", "\x1b[2J"), "--by: wanted at most 200 bytes of printable text"),
        (("note", "00ffee", "x" * 201, "--ack", "--by", "ana"), "TEXT: wanted at most 200 bytes"),
        (("note", "00ffee", "--snooze", "0h"), "--snooze: wanted a time such as 30m, 4h or 2d, got '0h'"),
    ],
)
def test_a_wrong_acknowledgement_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _Reader(journal_of(replace(ALERT, state=State.CLEARED)))
    assert words in str(run(reader, monkeypatch, *arguments)[1])
    assert reader.said == []


def test_the_value_of_a_category_that_grew_is_named() -> None:
    watched = Watched(
        changed(kind=lambda day: {"gift": 0.94 - ramp(day, 0, 0.68, 40), "voucher": ramp(day, 0, 0.68, 40)})
    )
    told = watched.run(range(30))
    (sentence,) = most_moved_bin(record_of(told[-1], histograms=watched.watch.histograms(told[-1])))
    # The place behind the last value of the list that training saw.
    assert sentence.startswith("most in [2, inf): ")
    assert sentence.endswith(" of the payments, in training 0 %")
