"""The driver of the Python client: `python ops/clients/python/driver.py threads|asyncio`.

ops/clients/SPECIFICATION.md describes its input and output.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from paywarden_client import (
    AsyncClient,
    Client,
    ClientSettings,
    Decision,
    Hooks,
    Payment,
    StandInPolicy,
    WrongRequest,
    WrongSettings,
)
from paywarden_client.payments import body_of

_LATE_S = 0.005
# Calls at a time. A call that finds no thread begins late, and is counted so.
_THREADS = 64


class Printer:
    """Writes lines. While a load runs, events are dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_loading = False

    def say(self, **line: Any) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    def event(self, name: str, **line: Any) -> None:
        if not self.is_loading:
            self.say(event=name, **line)


def settings_of(given: Mapping[str, Any]) -> ClientSettings:
    """Raises WrongSettings."""
    values = {name: value for name, value in given.items() if name not in ("events", "route_key_hex", "policy")}
    if "route_key_hex" in given:
        values["route_key"] = bytes.fromhex(given["route_key_hex"])
    if "policy" in given:
        values["policy"] = StandInPolicy.of(given["policy"])
    return ClientSettings(**values)


def hooks_of(printer: Printer, events: list[str]) -> Hooks:
    def on_reconciled(stand_in: Decision, decision: Decision | None, end: str) -> None:
        action = None if decision is None else decision.action
        printer.event("reconciled", payment_id=stand_in.payment_id, end=end, action=action)

    def on_shadow(own: Any, decision: Decision | None, cause: str) -> None:
        payment_id, action = own
        found = None if decision is None else decision.action
        printer.event("shadow", payment_id=payment_id, own=action, action=found, cause=cause)

    def on_call(operation: str, outcome: str, seconds: float, attempts: int) -> None:
        del seconds
        printer.event("call", operation=operation, outcome=outcome, attempts=attempts)

    return Hooks(on_call if "call" in events else None, on_reconciled, on_shadow)


def payment_of_load(load: Mapping[str, Any], number: int) -> Payment:
    return Payment(
        payment_id=f"{load['id']}-{number}",
        event_time_ms=time.time_ns() // 1_000_000,
        card_id=f"card-{number % load['cards']:06d}",
        merchant_id=f"merchant-{number % 100:04d}",
        amount_minor=1000 + number % 5000,
        currency="EUR",
    )


class LoadCounts:
    """Counts and latencies of the calls of a load."""

    def __init__(self, deadline_ms: float) -> None:
        self._deadline_ms = deadline_ms
        self._took_ms: list[float] = []
        self._counts: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()
        self._cpu_s = time.process_time()

    def add(self, decision: Decision | None, began_s: float, due_s: float) -> None:
        self._took_ms.append((time.monotonic() - began_s) * 1000.0)
        if began_s - due_s > _LATE_S:
            self._counts["late_calls"] += 1
        if decision is None:
            self._counts["failed"] += 1
        elif decision.stand_in:
            self._causes[decision.reasons[0].partition(":")[2]] += 1
        else:
            self._counts["answered"] += 1

    def report(self) -> dict[str, Any]:
        took = sorted(self._took_ms)

        def at(share: float) -> float:
            return took[min(int(share * len(took)), len(took) - 1)] if took else 0.0

        return {
            "calls": len(took),
            "answered": self._counts["answered"],
            "stand_ins": dict(self._causes),
            "failed": self._counts["failed"],
            "cpu_us": (time.process_time() - self._cpu_s) / max(len(took), 1) * 1e6,
            "late_calls": self._counts["late_calls"],
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "over_p99_9_ms": at(0.999) - self._deadline_ms,
            "over_max_ms": at(1.0) - self._deadline_ms,
        }


def times_of(load: Mapping[str, Any]) -> list[float]:
    return [number / load["rate"] for number in range(int(load["rate"] * load["seconds"]))]


def run_threads(load: Mapping[str, Any], call: Callable[[Payment], Decision | None], deadline_ms: float) -> Any:
    """Run a load with a pool of threads. `call` returns None for a failure."""
    counts = LoadCounts(deadline_ms)

    def one(number: int, due_s: float) -> None:
        payment = payment_of_load(load, number)
        began_s = time.monotonic()
        counts.add(call(payment), began_s, due_s)

    begin_s = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as threads:
        for number, after_s in enumerate(times_of(load)):
            wait_s = begin_s + after_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            threads.submit(one, number, begin_s + after_s)
    return counts.report()


def bare_call(url: str, token: str | None) -> Callable[[Payment], Decision | None]:
    """Returns a call through http.client, with a connection for each thread."""
    parts, kept = urlsplit(url), threading.local()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})

    def call(payment: Payment) -> Decision | None:
        connection = getattr(kept, "connection", None)
        if connection is None:
            connection = kept.connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        connection.request("POST", f"{parts.path}/v1/score", body_of(payment), headers)
        with connection.getresponse() as answer:
            found = json.loads(answer.read())
            return Decision(found["payment_id"], found["action"]) if answer.status == 200 else None

    return call


class Threads:
    """The driver of `Client`."""

    name = "python"

    def __init__(self, settings: ClientSettings, hooks: Hooks) -> None:
        self._client, self._settings = Client(settings, hooks), settings

    def score(self, payment: Payment, **more: Any) -> Decision:
        return self._client.score(payment, **more)

    def shadow(self, payment: Payment, own: str) -> str:
        return self._client.shadow(payment, (payment.payment_id, own))[1]

    def load(self, load: Mapping[str, Any]) -> Any:
        def call(payment: Payment) -> Decision | None:
            try:
                return self._client.score(payment)
            except Exception:  # noqa: BLE001 - a failure is what is counted
                return None

        return run_threads(load, call, self._settings.deadline_ms)

    def close(self) -> None:
        self._client.close()


class Loop:
    """The driver of `AsyncClient`, whose loop runs in a thread."""

    name = "python-asyncio"

    def __init__(self, settings: ClientSettings, hooks: Hooks) -> None:
        self._client, self._settings = AsyncClient(settings, hooks), settings
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def score(self, payment: Payment, **more: Any) -> Decision:
        decision: Decision = self._run(self._client.score(payment, **more))
        return decision

    def shadow(self, payment: Payment, own: str) -> str:
        async def shadow() -> str:
            return self._client.shadow(payment, (payment.payment_id, own))[1]

        found: str = self._run(shadow())
        return found

    def load(self, load: Mapping[str, Any]) -> Any:
        return self._run(self._load(load))

    async def _load(self, load: Mapping[str, Any]) -> Any:
        counts = LoadCounts(self._settings.deadline_ms)

        async def one(number: int, due_s: float) -> None:
            payment = payment_of_load(load, number)
            began_s = time.monotonic()
            try:
                decision: Decision | None = await self._client.score(payment)
            except Exception:  # noqa: BLE001 - a failure is what is counted
                decision = None
            counts.add(decision, began_s, due_s)

        begin_s, tasks = time.monotonic(), set()
        for number, after_s in enumerate(times_of(load)):
            wait_s = begin_s + after_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            task = asyncio.create_task(one(number, begin_s + after_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
        return counts.report()

    def close(self) -> None:
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)


def main() -> None:
    kind = Loop if sys.argv[1:] == ["asyncio"] else Threads
    printer = Printer()
    driver: Threads | Loop | None = None
    settings: ClientSettings | None = None
    for text in sys.stdin:
        line = json.loads(text)
        if "settings" in line:
            if driver is not None:
                driver.close()
                driver = None
            try:
                settings = settings_of(line["settings"])
                driver = kind(settings, hooks_of(printer, line["settings"].get("events", [])))
            except WrongSettings as error:
                printer.say(wrong_settings=error.where)
            else:
                printer.say(ready=driver.name)
            continue
        assert driver is not None, "settings come first"
        assert settings is not None
        if "score" in line:
            more = {name: line[name] for name in ("deadline_ms", "traceparent") if name in line}
            try:
                decision = driver.score(Payment(**line["score"]), **more)
            except WrongRequest as error:
                printer.say(wrong_request={"code": error.code, "field": error.field, "message": error.message})
            else:
                printer.say(decision=dataclasses.asdict(decision))
        elif "shadow" in line:
            printer.say(own=driver.shadow(Payment(**line["shadow"]), line["own"]))
        elif "load" in line or "bare" in line:
            printer.is_loading = True
            if "load" in line:
                report = driver.load(line["load"])
            else:
                token = settings.token if isinstance(settings.token, str) else None
                report = run_threads(line["bare"], bare_call(settings.targets[0], token), settings.deadline_ms)
            printer.is_loading = False
            printer.say(load=report)
        elif "close" in line:
            driver.close()
            printer.say(closed=True)
            return


if __name__ == "__main__":
    main()
