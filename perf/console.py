"""The console with 10,000 alerts: how long the server takes for each page.

Measured: requests to the application in this process, as a browser makes them, with a session and its checks, the
database and the templates: the inbox in each order and with filters, a page deep in it, an alert's page, and its number
of changes, which every open inbox asks for each second. Also how long the database takes to be rebuilt from the topics.
`…_cpu_…` is the CPU time of a page, which says something on a busy machine, too.
Stubbed: the topics, which are lists in memory, and the socket. Used for: pages p99 under 300 ms. The run checks that a
page has the alerts that it should.

Then searches of the index of decisions (perf/decisions_index.py, `search_…_ms`) and decisions that are decided again
(perf/decided_again.py, `recomputed_equal_share`, which has to be 1).

`--browser` opens each page in Chromium, of a console with a socket: when it first paints (`first_paint_…_ms`), and
after how long an act of one person is in the browser of another (`live_…_ms`).

    python -m perf.console [--browser] [--rounds N] [--alerts N] [--requests N] [--rows N] [--searches N]
                           [--decisions N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from paywarden.ops.console.assembly import all_tables
from paywarden.ops.console.inbox.alert import AlertPage
from paywarden.ops.console.inbox.pages import PAGE_SIZE, Inbox
from paywarden.ops.console.inbox.reader import AlertReader
from paywarden.ops.console.inbox.store import AlertStore
from paywarden.streams.alerts.feed import FeedBatch, FeedPosition, FeedRecord
from paywarden.streams.alerts.records import ALERTS_TOPIC
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.index import DecisionIndex
from perf import decided_again, decisions_index
from tests.services.product.console import console_under_test, csrf_of
from tests.services.product.console_browser import served_console
from tests.worlds.drift.alerts_on_topics import TopicsInMemory, alert_record

_BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rows", type=int, default=2_000_000, help="decisions of the index; 0: no searches")
    parser.add_argument("--searches", type=int, default=360)
    parser.add_argument("--decisions", type=int, default=10_000, help="to decide again; 0: none")
    parser.add_argument("--index-folder", help="an index that perf.decisions_index keeps, with the same --rows")
    parser.add_argument("--browser", action="store_true", help="measure in Chromium, too")
    parser.add_argument("--rounds", type=int, default=20, help="how often Chromium opens each page")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paywarden-perf-") as folder:
        result = measure(Path(folder), arguments.alerts, arguments.requests)
        if arguments.rows:
            kept = Path(arguments.index_folder or folder) / "decisions.duckdb"
            result |= measure_searches(kept, arguments.rows, arguments.searches)
    if arguments.browser:
        with tempfile.TemporaryDirectory(prefix="paywarden-perf-") as folder:
            result |= measure_browser(Path(folder), arguments.rounds)
    if arguments.decisions:
        again = decided_again.measured(arguments.decisions)
        result |= {name: again[name] for name in ("recomputed_equal_share", "recomputed_per_second")}
    print("\n".join(f"{name:<28}{value:>12,.2f}" for name, value in result.items()))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure_browser(folder: Path, rounds: int) -> dict[str, float]:
    """Returns when pages first paint in Chromium, and how live another browser is. Raises if there is no Chromium."""
    from playwright.sync_api import sync_playwright

    paints, lives = list[float](), list[float]()
    with served_console(folder) as console, sync_playwright() as playwright:
        path = shutil.which("chromium")
        assert path is not None, "there is no Chromium"
        with closing(playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])) as browser:
            pages = []
            for person in ("demo-analyst", "demo-lead"):
                page = browser.new_context(base_url=console.url).new_page()
                page.goto("/login")
                page.get_by_role("button", name=person).click()
                page.wait_for_url("**/inbox")
                pages.append(page)
            watching, acting = pages
            for _ in range(rounds):
                for address in _PAINTED:
                    acting.goto(address)
                    paints.append(float(acting.evaluate(_FIRST_PAINT)))
            for number in range(rounds):
                watching.goto("/inbox?state=all")
                acting.goto("/inbox/alert-00004")
                acting.get_by_label("Assign to", exact=True).fill(f"person-{number}")
                acting.get_by_role("button", name="Assign", exact=True).click()
                began = time.perf_counter()
                watching.get_by_text(f"person-{number}", exact=True).first.wait_for(timeout=60_000)
                lives.append((time.perf_counter() - began) * 1000)
    return {
        f"{name}_{words}_ms": float(np.quantile(values, share))
        for name, values in (("first_paint", paints), ("live", lives))
        for words, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


_PAINTED = ("/inbox", "/inbox/alert-00002", "/decisions", "/decisions/pay-001", "/review", "/cases", "/policy")
# A page that nobody sees paints nothing: headless Chromium paints all the same.
_FIRST_PAINT = """async () => {
  for (let tries = 0; tries < 500; tries++) {
    const [entry] = performance.getEntriesByName("first-contentful-paint");
    if (entry) return entry.startTime;
    await new Promise(resolve => setTimeout(resolve, 10));
  }
  return NaN;
}"""


def measure_searches(path: Path, rows: int, searches: int) -> dict[str, float]:
    """Returns the figures of searches, in an index of `rows` decisions that is made where it is not there yet."""
    with closing(DuckDbDatabase(path, memory_mb=4096)) as database:
        index = DecisionIndex(database)
        decisions_index.fill(index, rows)
        found = decisions_index.measure(index, rows, searches)
    return {"index_rows": float(rows)} | {name: value for name, value in found.items() if name.startswith("search_")}


def measure(folder: Path, alerts: int, requests: int) -> dict[str, float]:
    """Returns the figures by name."""
    console = console_under_test(folder, requests_per_minute=10_000_000)
    with console.database.write() as connection:
        for table in all_tables():
            connection.execute(table)
    store = AlertStore(console.database)
    records = [FeedRecord(ALERTS_TOPIC, number, alert_record(number)) for number in range(alerts)]
    began = time.perf_counter()
    for start in range(0, alerts, _BATCH):
        position = {ALERTS_TOPIC: FeedPosition("perf", min(alerts, start + _BATCH))}
        store.take(FeedBatch(tuple(records[start : start + _BATCH]), position))
    rebuild_s = time.perf_counter() - began
    topics = TopicsInMemory()
    reader = AlertReader(store, lambda: topics, lambda: topics)
    # One read of nothing: the pages know that the topics can be reached.
    stop = threading.Event()
    topics.put()
    threading.Timer(0.2, stop.set).start()
    store_positions = {topic: FeedPosition(topics.identity, 0) for topic in topics.topics}
    store.take(FeedBatch((), store_positions))
    reader.run(stop)
    browser = console.browser([Inbox(store, reader, AlertPage(store, lambda: "")).section()], "demo-analyst")
    orders = [f"/inbox?sort={sort}" for sort in ("worst", "newest", "oldest", "affected", "money", "evidence")]
    form = {"csrf": csrf_of(browser.get("/inbox").text), "q": "country"}
    by_text = browser.post("/inbox", data=form).headers["location"]
    filters = ["/inbox?severity=critical", by_text, "/inbox?state=all&cause=traffic", "/inbox?page=150"]
    times: dict[str, list[float]] = {"alerts": [], "alert_page": [], "version": []}
    # The cost of a page whatever else runs on the machine: all threads of this process, the test client's included.
    cpu_times: dict[str, list[float]] = {name: [] for name in times}
    random = np.random.default_rng(7)
    for number in range(requests):
        alert_id = f"alert-{int(random.integers(alerts)):05d}"
        choices = orders + filters
        for name, address in (
            ("alerts", choices[number % len(choices)]),
            ("alert_page", f"/inbox/{alert_id}"),
            ("version", "/inbox/version"),
        ):
            began, cpu_began = time.perf_counter(), time.process_time()
            answer = browser.get(address)
            times[name].append((time.perf_counter() - began) * 1000)
            cpu_times[name].append((time.process_time() - cpu_began) * 1000)
            assert answer.status_code == 200, address
            if address in orders:
                assert answer.text.count('type="checkbox"') == min(PAGE_SIZE, alerts)
    console.database.close()
    result = {"alerts": float(alerts), "rebuild_seconds": rebuild_s}
    for name, values in times.items():
        for words, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            result[f"{name}_{words}_ms"] = float(np.quantile(values, share))
        result[f"{name}_cpu_p50_ms"] = float(np.median(cpu_times[name]))
        result[f"{name}_cpu_p99_ms"] = float(np.quantile(cpu_times[name], 0.99))
    return result


if __name__ == "__main__":
    main()
