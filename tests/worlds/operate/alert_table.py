"""How long each alert takes to fire and to clear.

`python -m tests.worlds.operate.alert_table` writes docs/operate/alerts.md.

promtool evaluates ops/alerts.yml on the series of a quiet day with one fault in it, in simulated time, and each alert's
own `for` counts in full. It only compares, so this module asks for what cannot be and reads what promtool got instead.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.checkout import CHECKOUT
from tests.worlds.operate.alert_faults import DAY_S, FAULTS, QUIET, Count, Fault, Series

PAGE = CHECKOUT / "docs" / "operate" / "alerts.md"
ALERTS = CHECKOUT / "ops" / "alerts.yml"
# A scrape a minute, and an evaluation every five: little changes within a quiet day.
_QUIET_STEP, _QUIET_LOOK = 60, 300
# No payment comes in these six hours of the day: an empty night between busy hours.
NIGHT = range(9 * 3600, 15 * 3600)
# A sample that no query gives.
_IMPOSSIBLE = [{"labels": "impossible", "value": 0}]


@dataclass(frozen=True)
class Rule:
    """An alert of the file: the group it stands in, and its severity."""

    group: str
    severity: str


@dataclass(frozen=True)
class Measured:
    """Seconds from the fault until the alert fires, and from its end until the alert is gone."""

    fires_s: int
    clears_s: int


def rules() -> dict[str, Rule]:
    """Returns every alert of ops/alerts.yml, in order."""
    found, group = {}, ""
    for block in re.split(r"\n(?=  - name: |      - alert: )", ALERTS.read_text(encoding="utf-8")):
        if heading := re.search(r"^ {2}- name: (\S+)", block, re.M):
            group = heading[1]
        if alert := re.search(r"- alert: (\w+)", block):
            severity = re.search(r"severity: (\w+)", block)
            assert severity is not None, block
            found[alert[1]] = Rule(group, severity[1])
    return found


def measured(alerts: Iterable[str]) -> dict[str, Measured]:
    """Returns how long these alerts take. An alert that does not fire, or does not clear, is missing."""
    by_step = defaultdict[int, list[str]](list)
    for alert in alerts:
        by_step[FAULTS[alert].step].append(alert)
    found: dict[str, Measured] = {}
    for step, names in by_step.items():
        got = _got(_output({name: _test_of(name, FAULTS[name]) for name in names}, step, _single))
        for name in names:
            fault, values = FAULTS[name], got.get(name, [])
            if len(values) == 2:
                first, last = values
                end = fault.before + fault.seconds
                if last < end + fault.after:
                    found[name] = Measured(int(first) - fault.before, int(last) + step - end)
    return found


def firing_on_a_quiet_day() -> set[str]:
    """Returns the alerts that fire within a day without a fault: at the usual rates, but for six hours of no payment.

    At night what counts payments stands still, and what says when work was done goes on: an idle stream is caught up.
    """
    times = range(0, DAY_S, _QUIET_STEP)
    test = {
        "interval": f"{_QUIET_STEP}s",
        "input_series": [
            _input(replace(series, fault=0.0), times, NIGHT)
            if isinstance(series, Count)
            else _input(series, times, range(0))
            for series in QUIET
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1d]))',
                "eval_time": f"{times[-1]}s",
                "exp_samples": [],
            }
        ],
    }
    output = _output({"quiet": test}, _QUIET_LOOK, lambda _: ALERTS.read_text(encoding="utf-8"))
    return set(re.findall(r'\{alertname="(\w+)"\}', output))


def table() -> list[str]:
    """Returns the lines of the list."""
    times, lines = measured(FAULTS), []
    for alert in rules():
        if alert in FAULTS:
            cells = times.get(alert)
            fires, clears = (str(cells.fires_s), str(cells.clears_s)) if cells else ("never", "never")
            name = f"[{alert.removeprefix('Paywarden')}](runbook/{alert}.md)"
            lines.append(f"- {name} {fires}, {clears}: {FAULTS[alert].text}")
    return lines


def table_of(text: str) -> list[str]:
    """Returns the lines of the list in the page's text."""
    return [line for line in text.splitlines() if line.startswith("- [")]


def page() -> str:
    """Returns the text of docs/operate/alerts.md, with the list in its place."""
    head = PAGE.read_text(encoding="utf-8").partition("\n- [")[0]
    return "\n".join([head, *table(), ""])


def _test_of(alert: str, fault: Fault) -> dict[str, Any]:
    times = range(0, fault.before + fault.seconds + fault.after, fault.step)
    during = range(fault.before, fault.before + fault.seconds)
    changed = {change.series for change in fault.changes}
    # The series of other metrics cannot matter: only those that the alert reads.
    expr = _expr_of(alert)
    read = [series for series in QUIET if series.series not in changed and re.search(rf"\b{_metric(series)}\b", expr)]
    series = [_input(change, times, during) for change in fault.changes]
    series += [_input(quiet, times, range(0)) for quiet in read]
    firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    return {
        "interval": f"{fault.step}s",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": f"{which}({which}_over_time(timestamp({firing})[{times[-1]}s:{fault.step}s]))",
                "eval_time": f"{times[-1]}s",
                "exp_samples": _IMPOSSIBLE,
            }
            for which in ("min", "max")
        ],
    }


def _metric(series: Series) -> str:
    return series.series.partition("{")[0]


def _expr_of(alert: str) -> str:
    return ALERTS.read_text(encoding="utf-8").split(f"- alert: {alert}\n")[1].split("- alert: ")[0].split("for:")[0]


def _input(series: Series, times: Sequence[int], fault: range) -> dict[str, str]:
    samples = series.samples(times, fault)
    return {"series": series.series, "values": " ".join(map(_runs, _equal_steps(samples)))}


def _equal_steps(samples: Sequence[float | None]) -> list[tuple[float | None, float, int]]:
    """Runs of samples that grow by the same: (first, growth, further samples), as promtool writes them."""
    runs: list[tuple[float | None, float, int]] = []
    place = 0
    while place < len(samples):
        first, end = samples[place], place + 1
        growth = 0.0
        if first is not None and end < len(samples) and (second := samples[end]) is not None:
            growth = second - first
        while end < len(samples) and _continues(samples[end - 1], samples[end], growth):
            end += 1
        runs.append((first, growth, end - place - 1))
        place = end
    return runs


def _continues(before: float | None, now: float | None, growth: float) -> bool:
    if before is None or now is None:
        return before is now
    return abs(now - before - growth) < 1e-9 * max(1.0, abs(now))


def _runs(run: tuple[float | None, float, int]) -> str:
    first, growth, more = run
    if first is None:
        # A target that is gone: Prometheus marks its series as stale at once.
        return f"stale _x{more}" if more else "stale"
    return f"{first:.10g}" if more == 0 else f"{first:.10g}+{growth:.10g}x{more}"


def _single(alert: str) -> str:
    """A file of rules with this alert alone: promtool evaluates every rule of a file at every step."""
    rule = ALERTS.read_text(encoding="utf-8").split(f"      - alert: {alert}\n")[1]
    rule = re.split(r"\n(?=  - name: |      - alert: )", rule)[0]
    return f"groups:\n  - name: {alert}\n    rules:\n      - alert: {alert}\n{rule}\n"


def _got(output: str) -> dict[str, list[float]]:
    """Returns promtool's results of the queries about each alert, in order."""
    got = defaultdict[str, list[float]](list)
    for block in output.split("expr: ")[1:]:
        alert = re.search(r'alertname=\\?"(\w+)', block)
        value = re.search(r"got: \{\} ([-+.\dE]+)", block)
        if alert and value:
            got[alert[1]].append(float(value[1]))
    return got


def _output(tests: Mapping[str, dict[str, Any]], step: int, rules_of: Callable[[str], str]) -> str:
    """Returns promtool's output about tests, by name; each has its own rules. JSON is YAML, which it reads."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, test in tests.items():
            rule_file, file = Path(folder) / f"{name}.rules.yml", Path(folder) / f"{name}.yml"
            rule_file.write_text(rules_of(name), encoding="utf-8")
            document = {"rule_files": [str(rule_file)], "evaluation_interval": f"{step}s", "tests": [test]}
            file.write_text(json.dumps(document), encoding="utf-8")
            files.append(str(file))
        done = subprocess.run(["promtool", "test", "rules", *files], capture_output=True, text=True, timeout=600)
    return done.stdout + done.stderr


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
