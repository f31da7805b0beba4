"""The page Health: when somebody looks, asks each process of `[console] processes` for /readyz and /metrics.

    page, or an open page each second ──► asked less than a second ago?  ──yes──► the last answer
                                          └─no─► each process is asked in a thread of its own; the page waits a moment

1. An answer counts for a second, so that many viewers cause no load.
2. A process that is slow to answer holds up neither the page nor the others: its last state is shown, with its time.
3. A process that does not answer is shown as silent since a time, beside its last numbers and their age.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from paywarden.ops.console.background import Kept
from paywarden.ops.console.page_rows import Missing, Page, Section, Shown, Visit
from paywarden.ops.console.rendering import as_json, second_text
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured

_KEPT_S, _TIMEOUT_S = 1.0, 2.0
# An open page asks each second and has to be right within two.
_WAIT_S = 0.6
# The first look has nothing to show: it waits for every process, ready and metrics.
_FIRST_WAIT_S = 2 * _TIMEOUT_S + 1.0
# Numbers older than this are shown as old.
_OLD_MS = 3_000
_BODY_BYTES_MAX = 4 * 1024 * 1024
_PURPOSES = {
    "paywarden_stream_consumer_lag": "It works payments and outcomes into the profiles, and watches for drift.",
    "paywarden_companion_changelog_lag": "It copies profiles to a scoring host, and sends its decisions to Kafka.",
    "paywarden_request_seconds_bucket": "It decides about payments while customers wait.",
    "paywarden_shadow_lag_seconds": "It lets challengers decide about the same payments, without effect.",
}
"""The purpose of a process, by a metric that it alone has."""

_ERRORS = {
    "paywarden_requests_total": "requests answered with an error of ours",
    "paywarden_model_errors_total": "payments that a model failed on",
    "paywarden_outbox_refused_total": "decisions that the outbox refused",
    "paywarden_swap_failures_total": "failed swaps of bundle or policy",
    "paywarden_stream_dead_letters_total": "records set aside as dead letters",
    "paywarden_store_failures_total": "failed calls of the store",
}
# The largest value, the sum, or the 99th percentile of a metric, and the most that is usual.
_AGES = {
    "paywarden_mirror_age_seconds": ("mirror is behind the payments by", 1.0),
    "paywarden_companion_mirror_age_seconds": ("mirror is behind the changelog by", 1.0),
    "paywarden_drift_partition_behind_seconds": ("counts of decisions are behind by", 600.0),
    "paywarden_shadow_lag_seconds": ("challenger is behind by", 60.0),
}
_SUMS = {
    "paywarden_stream_consumer_lag": ("payments and outcomes that wait", 100_000),
    "paywarden_companion_changelog_lag": ("records that the mirror lacks", 100_000),
    # The bytes of ten seconds at a thousand decisions a second.
    "paywarden_outbox_unshipped_bytes": ("bytes of decisions that wait for Kafka", 10_000_000),
}
_PERCENTILES = {
    "paywarden_request_seconds_bucket": ("99th percentile of answers since its start", 0.042),
    "paywarden_stream_event_to_store_seconds_bucket": ("99th percentile from payment to profile", 1.0),
    "paywarden_companion_event_to_mirror_seconds_bucket": ("99th percentile from payment to mirror", 1.0),
}


@dataclass(frozen=True)
class Reading:
    """One number, in words: `mirror age 0.4 s`. `is_bad`: it is beyond its usual range, `usual`."""

    name: str
    text: str
    is_bad: bool = False
    usual: str = ""


@dataclass(frozen=True)
class ProcessView:
    """A process. `since_ms`: since when it has this state, as far as this console has seen.

    `asked_ms`: when it was asked for this. `read_ms`: when it gave its readings; 0 for never. `errors`: how many of
    each kind it has counted since its start. `purpose`: in a sentence; empty if its metrics do not give one.
    """

    name: str
    address: str
    is_ready: bool
    why: str
    since_ms: int
    readings: tuple[Reading, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    purpose: str = ""
    asked_ms: int = 0
    read_ms: int = 0


Fetch = Callable[[str], tuple[int, str]]
"""Returns status and text of an address. Raises OSError."""


class Health:
    """The section `Health`."""

    def __init__(
        self,
        processes: Sequence[str],
        fetch: Fetch | None = None,
        clock: Callable[[], int] = now_ms,
        *,
        kept_s: float = _KEPT_S,
        wait_s: float = _WAIT_S,
        missing: Callable[[], Sequence[Missing]] = list,
    ) -> None:
        """`kept_s`: how long an answer counts; `wait_s`: how long a page waits for one that is newer.

        `missing`: the services that the console itself cannot reach. Raises Misconfigured for an address that is none.
        """
        self._fetch, self._clock, self._missing, self._wait_s = fetch or _fetched, clock, missing, wait_s
        self._processes: list[Kept[ProcessView]] = []
        for name, address in map(_named, processes):
            empty = ProcessView(name, address, False, "it was asked, and has not answered yet", 0)
            find = partial(self._look, len(self._processes))
            self._processes.append(Kept(find, empty=empty, old_ms=round(1000 * kept_s)))

    def section(self, background: tuple[Callable[[threading.Event], None], ...] = ()) -> Section:
        """Return the section. `background`: further work, such as `HealthWatch.run`."""
        pages = (
            Page("/health", self.show, "How the processes are"),
            Page("/health/version", self.show_version, "A text that changes with the health"),
        )
        return Section("health", "Health", "/health", pages, background=background)

    def show(self, _: Visit) -> Shown:
        """Show how the processes are."""
        return Shown("health/health.html", self._view(), "Health")

    def show_version(self, _: Visit) -> Shown:
        """Say whether anything has changed, and how live an open page is."""
        view = self._view()
        as_of = "" if view["as_of_ms"] is None else f", as of {second_text(view['as_of_ms'])} UTC"
        old = f". Older than that: {', '.join(view['old'])}" if view["old"] else ""
        return Shown("", {"version": view["version"], "said": f"Live{as_of}{old}."}, "Version")

    def _view(self) -> dict[str, Any]:
        """Return all processes, and the names of those whose readings are older than they should be.

        `version` changes with the shown values. `as_of_ms`: when the processes were asked; of several times the oldest.
        """
        processes, now = self.read(), self._clock()
        old = [one.name for one in processes if now - (one.read_ms or one.asked_ms) > _OLD_MS]
        shown = [replace(one, asked_ms=0, read_ms=one.read_ms if one.name in old else 0) for one in processes]
        content = json.dumps([as_json(shown), old, [(one.what, one.why) for one in self._missing()]])
        as_of = min((one.asked_ms for one in processes if one.name not in old), default=None)
        version = hashlib.sha256(content.encode()).hexdigest()[:16]
        return {"processes": processes, "old": old, "version": version, "as_of_ms": as_of}

    def read(self) -> list[ProcessView]:
        """Return how the processes are: as they said within about a second, or as each said last."""
        now, began = self._clock(), time.monotonic()
        for one in self._processes:
            one.wake(now)
        limit_s = self._wait_s if all(one.found_ms for one in self._processes) else _FIRST_WAIT_S
        for one in self._processes:
            one.wait(max(0.0, began + limit_s - time.monotonic()))
        return [one.value if one.found_ms else replace(one.value, since_ms=now) for one in self._processes]

    def _look(self, number: int, now: int) -> ProcessView:
        """Ask a process how it is. One that does not answer has its last numbers."""
        before, is_first = self._processes[number].value, not self._processes[number].found_ms
        view = ProcessView(before.name, before.address, False, "it does not answer", now, asked_ms=now)
        try:
            status, text = self._fetch(f"{before.address}/readyz")
            _, metrics = self._fetch(f"{before.address}/metrics")
        except OSError:
            view = replace(view, readings=before.readings, errors=before.errors, read_ms=before.read_ms)
            view = replace(view, purpose=before.purpose)
        else:
            samples = samples_of(metrics)
            view = replace(
                view,
                is_ready=status == 200,
                why="" if status == 200 else _reason(text),
                read_ms=now,
                readings=(Reading("metrics", "cannot be read", True),) if samples is None else readings_of(samples),
                errors={} if samples is None else errors_of(samples),
                purpose=next((words for name, words in _PURPOSES.items() if name in (samples or ())), before.purpose),
            )
        return view if is_first or view.is_ready != before.is_ready else replace(view, since_ms=before.since_ms)


Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]


def samples_of(metrics: str) -> Samples | None:
    """Return labels and values of a page of metrics, by name; None for a page that cannot be read."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    except ValueError:
        return None
    return samples


def errors_of(samples: Samples) -> dict[str, float]:
    """Return the counts of errors that a process has, in words."""
    found = {
        words: sum(value for labels, value in samples[name] if name != "paywarden_requests_total" or _is_ours(labels))
        for name, words in _ERRORS.items()
        if name in samples
    }
    return {words: total for words, total in found.items() if math.isfinite(total)}


def _is_ours(labels: Mapping[str, str]) -> bool:
    # A process that is asked whether it is ready, and is not yet, makes no error.
    return labels.get("code", "").startswith("5") and labels.get("route") != "readyz"


def readings_of(samples: Samples) -> tuple[Reading, ...]:
    """Return the readings that people look at first, from a process's metrics."""
    readings: list[Reading] = []
    for name, (words, objective) in _AGES.items():
        if values := [value for _, value in samples.get(name, ())]:
            worst = math.inf if any(map(math.isnan, values)) else max(values)
            text = "not known" if math.isinf(worst) else _seconds(worst)
            readings.append(Reading(words, text, worst > objective, f"at most {_seconds(objective)}"))
    for name, (words, most) in _SUMS.items():
        if name in samples:
            total = sum(value for _, value in samples[name])
            readings.append(Reading(words, f"{total:,.0f}", total > most, f"at most {most:,}"))
    for name, (words, objective) in _PERCENTILES.items():
        found = quantile(samples.get(name, ()), 0.99)
        if found is not None:
            text = _at_most(samples[name], found)
            readings.append(Reading(words, text, found > objective, f"at most {_seconds(objective)}"))
    payments = sum(value for _, value in samples.get("paywarden_decisions_total", ()))
    if payments:
        flags = samples.get("paywarden_flags_total", ())
        unknown = sum(value for labels, value in flags if labels.get("flag") == "unknown_card")
        hits = 1 - min(unknown, payments) / payments
        readings.append(Reading("cards that the mirror knew", f"{100 * hits:.1f} %", hits < 0.5, "at least 50 %"))
    return tuple(readings)


def quantile(buckets: Iterable[tuple[Mapping[str, str], float]], share: float) -> float | None:
    """Return the upper edge of the bucket that holds a quantile, over all labels; None without observations."""
    counts: dict[float, float] = {}
    for labels, value in buckets:
        edge = float(labels["le"])
        counts[edge] = counts.get(edge, 0.0) + value
    total = counts.get(math.inf, 0.0)
    if not total:
        return None
    return next(edge for edge in sorted(counts) if counts[edge] >= share * total)


def _at_most(buckets: Iterable[tuple[Mapping[str, str], float]], value: float) -> str:
    """Return the upper edge of a bucket in words: `at most 25 ms`. The last one has none: `more than 1.0 s`."""
    if math.isfinite(value):
        return f"at most {_seconds(value)}"
    edges = [edge for labels, _ in buckets if math.isfinite(edge := float(labels["le"]))]
    return f"more than {_seconds(max(edges))}" if edges else "not known"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _reason(text: str) -> str:
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            missing = content.get("missing")
            if isinstance(missing, list) and missing:
                return "; ".join(map(str, missing))[:300]
            return ", ".join(f"{name}: {value}" for name, value in content.items())[:300]
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "it is not ready"


def _fetched(url: str) -> tuple[int, str]:
    try:
        with httpx2.Client(timeout=_TIMEOUT_S) as client, client.stream("GET", url) as answer:
            content = b""
            for part in answer.iter_bytes():
                content += part
                if len(content) > _BODY_BYTES_MAX:
                    raise OSError("too long")
            return answer.status_code, content.decode("utf-8", "replace")
    except httpx2.HTTPError as error:
        raise OSError(str(error)) from error


def _named(text: str) -> tuple[str, str]:
    name, sign, address = text.partition("=")
    if not sign or "/" in name:
        name, address = "", text
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Misconfigured(f"[console] processes: wanted addresses such as stream=http://10.0.0.7:9102, got {text!r}")
    return name or parts.netloc, address.rstrip("/")
