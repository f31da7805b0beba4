"""Runs one history: a plan in a world, then heals everything, then checks every promise.

1. Start the deployment. Operations and faults of the plan happen at their moments, for DURATION_S.
2. Heal: no fault is left, frozen processes go on, clocks are right. Nothing is restarted that is alive: what broke has
   to heal by itself. What must not happen is checked all the time (callers.py).
3. Send probes: one more payment for each worker, one more for the stream.
4. Wait until everything has settled, at most SETTLE_S of virtual time. "It never settles" is a failure.
5. Check (checks.py).
"""

from __future__ import annotations

import importlib
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from paywarden.schemas.avro import Encoder
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.server.deployment.releases import ReleaseOrders, orders_path
from paywarden.scoring.state.mirror_file import MirrorView
from paywarden.streams.profiles.progress.watermarks import PREFIX
from tests.simulation import patches
from tests.simulation.callers import Callers, Exchange, Request, request_of
from tests.simulation.checks import check_all, check_watermark
from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.consumer import GroupConsumer
from tests.simulation.cluster.logs import Entry, Log, Transaction
from tests.simulation.files import FileFault
from tests.simulation.plan import DURATION_S, PROCESSES, Item, Plan
from tests.simulation.processes import (
    INDEX,
    SALT,
    SESSION_S,
    SUPERVISOR,
    WORKERS,
    Deployment,
    More,
    group_lag,
    index_lag,
    parts,
)
from tests.simulation.world import START_S, Died, Failed, Life, World

SETTLE_S = 150.0
_PROBE_EVERY_S = 1.0
_FOR_EVER_S = 1e6
_ROOT = "/dev/shm" if os.path.isdir("/dev/shm") else None
# Then the number of the process, so that another one knows when the folder is left over.
_PREFIX = "paywarden-simulation-"


@dataclass
class Outcome:
    """The result of one history. `failure` is None when every promise was kept."""

    seed: int
    digest: str
    steps: int
    faults: Counter[str]
    failure: Failed | None = None
    notes: Sequence[str] = field(default_factory=tuple)


class History:
    """One run of a plan."""

    def __init__(self, plan: Plan, world: World, deployment: Deployment) -> None:
        self.plan, self.world, self.deployment = plan, world, deployment
        self.broker, self.files = deployment.broker, deployment.files
        self.callers = Callers(deployment)
        ids = parts().ids
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        # Payments on the topic, and where the first record of each is.
        self.paid: set[str] = set()
        self.first_records: dict[str, tuple[tuple[str, int], int]] = {}
        self.on_topic: dict[str, dict[str, Any]] = {}
        self.poisoned: list[tuple[str, bytes | None]] = []
        # Records that a heavy fault has destroyed: payments whose decision is damaged, keys of damaged profiles.
        self.damaged_decisions = self.callers.spoilt
        self.damaged_profiles: set[bytes] = set()
        self.left_alone: set[str] = set()
        # The partitions of payments that were deleted, when all of them was worked in.
        self.deleted_logs: list[Log] = []
        self.pending = 0
        # Whether the time of faults is over. A fault that waits for its moment must not come any more.
        self.is_healed = False
        # The last watermark of the mirror that was checked.
        self.watermark_ms = 0
        self._idle: list[Exchange] = []
        # By worker.
        self.connections_most: Counter[str] = Counter()
        # Workers that will never go on.
        self.hung: list[Life] = []

    def run(self) -> None:
        world = self.world
        world.note(f"seed {self.plan.seed}")
        self.deployment.start()
        for item in self.plan.operations:
            world.at(item.at, partial(self._operate, item))
        for item in self.plan.faults:
            world.at(item.at, partial(self._inject, item))
        world.after(_PROBE_EVERY_S, self._probe)
        world.run_until(lambda: False, DURATION_S)
        self._heal()
        if self.deleted_logs:
            world.run_until(lambda: False, 20.0)
            self._accept_source()
        # Everything that is restarted has a chance to come up, and a full outbox to be shipped.
        was_shipped = not self._unshipped()
        world.run_until(lambda: not (self.callers.open or self.pending or self._unshipped()), 30.0)
        if not was_shipped:
            # The companion stores its position beside the outbox five times a second.
            world.run_until(lambda: False, 1.0)
        if self.plan.is_supervised:
            # A worker that could not be started many times is tried again after at most ten seconds.
            world.run_until(lambda: len(self.deployment.listening) == WORKERS, 15.0)
        if any(item.kind == "swap" for item in self.plan.faults):
            # Workers look for orders twice a second.
            world.run_until(lambda: False, 3.0)
        self._send_probes()
        world.run_until(lambda: not self.unsettled(), SETTLE_S)
        if reasons := self.unsettled():
            raise Failed("stuck", f"{SETTLE_S:g} s after everything was healed: " + "; ".join(reasons))
        check_all(self)

    # Operations

    def _operate(self, item: Item) -> None:
        arguments = item.arguments
        self.world.note(f"operation {item.number} {item.kind}")
        if item.kind == "score":
            self.callers.send(request_of(arguments["payments"], arguments["worker"], as_json=arguments["json"]))
        elif item.kind == "pay":
            self.pay(arguments["payment"])
        elif item.kind == "report":
            self._report(arguments["payment_id"], arguments["label"])
        elif item.kind in ("poisoned_record", "header_name"):
            self.world.faults[item.kind] += 1
            self._poison(item)
        else:
            self.world.faults[item.kind] += 1
            self._be_hostile(item)

    def pay(self, payment: dict[str, Any]) -> None:
        """Put a payment on its topic, as soon as the broker is there."""
        row = {name: payment.get(name) for name in ("payment_id", "event_time_ms", "card_id", "merchant_id")}
        row |= {name: payment.get(name) for name in ("device_id", "amount_minor", "currency", "mcc", "country")}
        row["channel"] = payment.get("channel")
        self.on_topic[payment["payment_id"]] = payment
        self._append("payments", payment["card_id"].encode(), self._payments.encode(row), payment["payment_id"])

    def _report(self, payment_id: str, label: str) -> None:
        if payment_id not in self.paid:
            if not self.callers.is_healed:
                self.world.after(0.3, lambda: self._report(payment_id, label))
            return
        value = self._outcomes.encode({"payment_id": payment_id, "label": label, "outcome_time_ms": self._now_ms()})
        self._append("outcomes", payment_id.encode(), value)

    def _append(self, topic: str, key: bytes, value: bytes | None, paid: str = "", poison: Any = None) -> None:
        if self.broker.is_away:
            self.pending += 1

            def again() -> None:
                self.pending -= 1
                self._append(topic, key, value, paid, poison)

            self.world.at(self.broker.away_until + 0.05, again)
            return
        place = (topic, self.broker.partition_of(topic, key))
        offset = self.broker.append(place, Entry(key, value, self._now_ms(), poison=poison))
        if paid and paid not in self.paid:
            self.paid.add(paid)
            self.first_records[paid] = place, offset

    def _now_ms(self) -> int:
        return int((START_S + self.world.now) * 1000)

    def _poison(self, item: Item) -> None:
        form, topic = item.arguments["form"], item.arguments["topic"]
        payment = item.arguments["payments"][0]
        chance = random.Random(item.arguments["chance"])
        poison = None
        value: bytes | None = b"\x00" + chance.randbytes(20)
        if form == "null":
            value = None
        elif form == "bytes" and chance.random() < 0.5:
            topic, value = "repartition-card", bytes([chance.randrange(4)]) + chance.randbytes(40)
        elif form == "schema_id":
            value = b"\x00\x7f\xff\xff\x01" + chance.randbytes(10)
        elif form == "currency":
            topic = "payments"
            value = self._payments.encode(
                {n: payment.get(n) for n in ("payment_id", "event_time_ms", "card_id", "merchant_id", "amount_minor")}
                | {"currency": "QQQ"}
            )
        elif form == "header_name":
            poison = SystemError("<method 'headers'> returned NULL without setting an exception")
        self.poisoned.append((topic, value))
        self._append(topic, payment["card_id"].encode(), value, poison=poison)

    def _be_hostile(self, item: Item) -> None:
        form, payments, worker = (item.arguments[name] for name in ("form", "payments", "worker"))
        first = payments[0]
        chance = random.Random(item.arguments["chance"])
        if form in ("groups", "varint"):
            request = request_of([first], worker, as_json=False, is_hostile=True)
            request.body = _with_groups(request.body, chance) if form == "groups" else _with_long_length(request.body)
            self.callers.send(request)
        elif form == "garbage":
            body = chance.randbytes(chance.randrange(1, 200))
            self.callers.send(Request([first], body, "application/x-protobuf", False, worker, is_hostile=True))
        elif form == "half":
            head = b"POST /v1/score HTTP/1.1\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n"
            self._idle.append(Exchange(self.deployment, f"worker-{worker}", head + b"x", lambda _: None))
        elif form == "reused":
            self._reuse([{**first, "amount_minor": first["amount_minor"] + 1}], first, worker)
        elif form == "reused_in_batch":
            other = {**first, "amount_minor": first["amount_minor"] + 1}
            self._reuse([payments[1], other, payments[2]], first, worker)
        elif form == "big_batch":
            many = [{**first, "payment_id": f"{first['payment_id']}.{n}"} for n in range(100)]
            self.callers.send(request_of(many, worker, as_json=False))

    def _reuse(self, payments: list[dict[str, Any]], first: dict[str, Any], worker: int) -> None:
        """Have a payment decided, then use its id for another payment."""
        self.callers.send(request_of([first], worker, as_json=False))
        hostile = request_of(payments, worker, as_json=False, is_hostile=True)

        def later() -> None:
            if first["payment_id"] in self.callers.told:
                self.callers.send(hostile)

        self.world.after(4.0, later)

    # Faults

    def _inject(self, item: Item) -> None:
        arguments, world = item.arguments, self.world
        chance = random.Random(arguments["chance"])
        kind = item.kind
        world.note(f"inject {item}")
        if kind in ("emfile", "enospc", "torn", "slow", "eio", "torn_file"):
            until = world.now + arguments.get("seconds", 5.0)
            fault = FileFault(kind, until, arguments.get("count", 1), chance)
            self.files.add(arguments["process"], fault)
            self.callers.forget_refusals(arguments["process"])
            return
        getattr(self, f"_{kind}")(arguments, chance)
        world.faults[kind] += 1

    def _actor(self, name: str) -> Any:
        process = self.deployment.processes[name]
        return process.actor if process.is_alive else None

    def _death(self, arguments: dict[str, Any], _: random.Random) -> None:
        if (actor := self._actor(arguments["process"])) is not None:
            actor.life.fuse = arguments["after"]

    def _death_in_look_up(self, arguments: dict[str, Any], _: random.Random) -> None:
        self.files.dies_reading.add(arguments["process"])

    def _freeze(self, arguments: dict[str, Any], _: random.Random) -> None:
        if (actor := self._actor(arguments["process"])) is not None:
            if arguments["process"].startswith("stream-") and arguments["seconds"] > SESSION_S:
                self.left_alone.add("changelog order")
            self.world.freeze(actor.life, arguments["seconds"])

    def _clock_jump(self, arguments: dict[str, Any], _: random.Random) -> None:
        self.left_alone.add("clocks")
        self.world.clock_offset_s[arguments["machine"]] = arguments["seconds"]
        self.callers.are_clocks_wrong = True

    _clock_leap = _clock_jump

    def _offset_regress(self, _: dict[str, Any], chance: random.Random) -> None:
        group = self.broker.group("paywarden-stream")
        if places := sorted(group.committed):
            # Only who reads a partition again sees its committed offset.
            place = chance.choice(places)
            if group.move(place):
                group.committed[place] = chance.randrange(group.committed[place] + 1)

    def _partition_stall(self, arguments: dict[str, Any], chance: random.Random) -> None:
        actor = self._actor(arguments["process"])
        consumers = [one for one in self.broker.consumers if isinstance(one, GroupConsumer)]
        readers = [consumer for consumer in consumers if consumer.actor is actor]
        if readers and (places := sorted(readers[0]._position)):
            readers[0].stalled.add(chance.choice(places))
            self.left_alone.add("stalled")

    def _broker_away(self, arguments: dict[str, Any], _: random.Random) -> None:
        self.broker.away_until = max(self.broker.away_until, self.world.now + arguments["seconds"])

    def _commit_doubt(self, arguments: dict[str, Any], _: random.Random) -> None:
        self.broker.doubt_share = arguments["share"]
        self.world.after(arguments["seconds"], lambda: setattr(self.broker, "doubt_share", 0.0))

    def _transaction_abort(self, arguments: dict[str, Any], _: random.Random) -> None:
        self.broker.abort_share = arguments["share"]
        self.world.after(arguments["seconds"], lambda: setattr(self.broker, "abort_share", 0.0))

    def _open_transaction(self, arguments: dict[str, Any], chance: random.Random) -> None:
        """A stranger begins a transaction and does not end it: the broker gives it up."""
        topic = arguments["topic"]
        place = (topic, chance.randrange(len(self.broker.topics[topic].logs)))
        transaction = Transaction("stranger", places={place})
        self.broker.append(place, Entry(b"stranger", b"\x00", self._now_ms(), (), transaction))
        self.world.after(arguments["seconds"], lambda: self.broker.end_transaction(transaction, "aborted"))
        if topic == "outbox-cursors":
            # Only a companion that starts reads it.
            self.world.after(arguments["seconds"] / 2, lambda: self._kill("companion"))

    def _poisoned_cursor(self, arguments: dict[str, Any], _: random.Random) -> None:
        """A stranger writes a record that is no cursor of a worker's outbox, and the companion starts again."""
        host = Path(self.deployment.outbox.directory) / "host"
        if host.exists():
            key = f"{host.read_text(encoding='ascii').strip()}/{arguments['process']}".encode()
            self.broker.append(("outbox-cursors", 0), Entry(key, b"no cursor", self._now_ms(), ()))
            self._kill("companion")

    def _damaged_cursor(self, arguments: dict[str, Any], chance: random.Random) -> None:
        """A digit of a cursor's file is another one when the processes of the host start again."""
        path = Path(self.deployment.outbox.directory) / arguments["process"] / "cursor"
        if path.exists():
            digits, comma, checksum = path.read_text(encoding="ascii").partition(",")
            at = chance.randrange(len(digits))
            digits = f"{digits[:at]}{(int(digits[at]) + chance.randint(1, 9)) % 10}{digits[at + 1 :]}"
            self._kill("companion")
            self._kill(arguments["process"])
            path.write_text(f"{digits}{comma}{checksum}", encoding="ascii")

    def _damaged_counts(self, arguments: dict[str, Any], chance: random.Random) -> None:
        """A worker that starts again finds something else in the place of its counts."""
        path = self.deployment.root / "metrics" / f"{arguments['process']}.metrics"
        if path.exists():
            self._kill(arguments["process"])
            # Another file: the one before may be mapped.
            path.unlink()
            path.write_bytes(chance.randbytes(chance.choice((0, 7, 500))))

    def _supervisor_death(self, arguments: dict[str, Any], _: random.Random) -> None:
        """Kill the supervisor: its workers end by themselves, and the next one starts others."""
        if (actor := self._actor(SUPERVISOR)) is not None:
            actor.life.fuse = arguments["after"]

    def _index_death(self, arguments: dict[str, Any], _: random.Random) -> None:
        if (actor := self._actor(INDEX)) is not None:
            actor.life.fuse = arguments["after"]

    def _failed_fork(self, arguments: dict[str, Any], _: random.Random) -> None:
        """No process can be forked for a while, and a worker is killed."""
        self.deployment.fork_fails_until = self.world.now + arguments["seconds"]
        self._kill(arguments["process"])

    def _hung_worker(self, arguments: dict[str, Any], _: random.Random) -> None:
        """A worker stands still and never goes on: the supervisor has to replace it."""
        if (actor := self._actor(arguments["process"])) is not None:
            self.hung.append(actor.life)
            self.world.freeze(actor.life, _FOR_EVER_S)

    def _crash_loop(self, arguments: dict[str, Any], _: random.Random) -> None:
        """A worker dies at each start for a while. A moment later the other one is killed once."""
        name = arguments["process"]
        self.deployment.crashes_until[name] = self.world.now + arguments["seconds"]
        self._kill(name)
        other = next(one for one in PROCESSES[:2] if one != name)
        self.world.after(arguments["seconds"] / 2, lambda: self._kill(other))

    def _swap(self, arguments: dict[str, Any], _: random.Random) -> None:
        """Order the workers to decide by another release, for all cards or half of them; or damage the orders."""
        own, other = parts().releases
        to = arguments["to"]
        if to == "damaged":
            path = orders_path(self.deployment.root / "serve", 1)
            if path.exists():
                path.write_bytes(path.read_bytes()[:40])
            return
        wanted = {
            "other": ReleaseOrders(other, previous=own),
            "back": ReleaseOrders(own, previous=other),
            "canary": ReleaseOrders(own, candidate=other, rollout="r-1", share=5000, salt=SALT),
        }
        self.deployment.order(wanted[to])

    def _kill(self, name: str) -> None:
        if (actor := self._actor(name)) is not None:
            self.world.kill(actor.life)

    def _store_away(self, arguments: dict[str, Any], _: random.Random) -> None:
        self.deployment.store_state.away_until = self.world.now + arguments["seconds"]

    def _hung_broker(self, arguments: dict[str, Any], _: random.Random) -> None:
        """A broker that takes every question and answers none: its clients wait for their whole limits."""
        until = self.world.now + arguments["seconds"]
        self.broker.away_until = max(self.broker.away_until, until)
        self.broker.hangs_until = max(self.broker.hangs_until, until)

    def _hung_store(self, arguments: dict[str, Any], _: random.Random) -> None:
        self.deployment.store_state.hangs_until = self.world.now + arguments["seconds"]

    def _slow_callers(self, arguments: dict[str, Any], _: random.Random) -> None:
        """Callers that send a right request byte by byte, and never to its end."""
        worker, ends = f"worker-{arguments['worker']}", self.world.now + arguments["seconds"]
        for _index in range(arguments["count"]):
            slow = Exchange(self.deployment, worker, b"POST /v1/score HTTP/1.1\r\nHost: sim\r\n", lambda _: None)
            self._idle.append(slow)

            def more(slow: Exchange = slow) -> None:
                if slow.send(b"x") and self.world.now < ends and not self.is_healed:
                    self.world.after(1.0, more)

            self.world.after(1.0, more)

    def _store_flaky(self, arguments: dict[str, Any], _: random.Random) -> None:
        state = self.deployment.store_state
        state.flaky_until, state.flaky_share = self.world.now + arguments["seconds"], arguments["share"]

    def _rebalance(self, _: dict[str, Any], __: random.Random) -> None:
        self.broker.group("paywarden-stream").rebalance(shuffle=True)

    def _connections(self, arguments: dict[str, Any], _: random.Random) -> None:
        worker = f"worker-{arguments['worker']}"
        for _index in range(arguments["count"]):
            self._idle.append(Exchange(self.deployment, worker, b"", lambda _: None))

    def _damaged_outbox(self, _: dict[str, Any], chance: random.Random) -> None:
        """Flip a bit of a record that is not shipped yet, as soon as there is one."""

        def when_one_waits() -> None:
            if self.is_healed:
                return
            waiting = [
                (path, start)
                for path in sorted(Path(self.deployment.outbox.directory).glob("worker-*/*.log"))
                for start in _record_starts(path.read_bytes())
                if int(path.stem) + start >= self._cursors().get(path.parent.name, 0)
            ]
            if not waiting:
                self.world.after(0.01, when_one_waits)
                return
            path, start = chance.choice(waiting)
            data = bytearray(path.read_bytes())
            size = int.from_bytes(data[start : start + 4], "little")
            entry = OutboxEntry.FromString(bytes(data[start + 8 : start + 8 + size]))
            self.damaged_decisions.add(entry.request.payment_id)
            data[start + 8 + chance.randrange(size)] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            self.world.note(f"a record of {path.parent.name} is damaged")

        when_one_waits()

    def _damaged_profile(self, _: dict[str, Any], chance: random.Random) -> None:
        records = self.deployment.store._records
        # The register of sources has no second copy: a worker stops when it is damaged, and says what to do.
        keys = sorted(key for key in records if not key.startswith((b"payment:", b"progress:")))
        if keys:
            key = chance.choice(keys)
            value, expires, version = records[key]
            # The first byte is the layout's version: no reader takes it for a profile.
            records[key] = (b"\xff" + value[1:], expires, version)
            self.damaged_profiles.add(key)

    def _topic_recreated(self, arguments: dict[str, Any], _: random.Random) -> None:
        """Delete a topic and create it again as soon as all of it is worked in: then nobody has lost anything."""
        name = arguments["topic"]

        def when_worked_in() -> None:
            if self.is_healed:
                return
            if self.pending or any(group_lag(self.broker)[topic] for topic in (name, "outcomes")):
                self.world.after(0.02, when_worked_in)
                return
            if self._frames_behind() or not self.paid:
                self.world.after(0.02, when_worked_in)
                return
            self.deleted_logs = self.broker.recreate(name).logs
            self.world.note("the topic is another one")
            self.first_records.clear()

        self.left_alone.add("topic recreated")
        when_worked_in()

    def _accept_source(self) -> None:
        """Do what an operator does when stream workers say that a topic is another one."""
        streams = [p for name, p in self.deployment.processes.items() if name.startswith("stream-")]
        if not any(outcome.startswith("SourceChanged") for process in streams for outcome in process.outcomes):
            return
        self.world.note("the operator accepts the topic")
        register = importlib.import_module("paywarden.streams.kafka.source_register")
        for process in streams:
            process.is_given_up = True
            if process.actor is not None:
                self.world.kill(process.actor.life)
        group = self.broker.group("paywarden-stream")
        self.world.run_until(lambda: not group.members, 30.0)
        topic = self.broker.topics["payments"]
        sources = register.SourceRegister(self.deployment.store, register.SOURCES_KEY, {"payments": "payments"})
        sources.accept({"payments": topic.name_of_id})
        group.forget("payments")
        for process in streams:
            process.is_given_up = False
            self.deployment.begin(process)

    def _label_changes(self, _: dict[str, Any], __: random.Random) -> None:
        """Report one payment as fraud and genuine in turns, far more often than anyone means it."""
        if not self.paid:
            return
        payment_id = min(self.paid)
        for number in range(80):
            self._report(payment_id, ("fraud", "genuine")[number % 2])
        self.left_alone.add("labels")

    def _foreign_directory(self, _: dict[str, Any], __: random.Random) -> None:
        folder = Path(self.deployment.outbox.directory) / "backup"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "notes.log").write_text("not an outbox")

    # The end

    def _probe(self) -> None:
        for number in range(WORKERS):
            self.callers.probe(f"worker-{number}")
        check_watermark(self)
        for name, listening in self.deployment.listening.items():
            self.connections_most[name] = max(self.connections_most[name], listening.connection_count)
        self.world.after(_PROBE_EVERY_S, self._probe)

    def _heal(self) -> None:
        world, broker = self.world, self.broker
        world.note("everything is healed")
        self.is_healed = True
        broker.away_until = min(broker.away_until, world.now)
        broker.hangs_until = min(broker.hangs_until, world.now)
        broker.doubt_share = broker.abort_share = 0.0
        self.deployment.store_state.heal()
        self.files.heal()
        world.clock_offset_s.clear()
        for process in self.deployment.processes.values():
            if process.is_alive and process.actor is not None:
                process.actor.life.fuse = None
                if process.actor.is_frozen and process.actor.life not in self.hung:
                    world.thaw(process.actor.life)
        self._idle.clear()
        self.deployment.fork_fails_until = 0.0
        self.deployment.crashes_until.clear()
        # The deployer writes damaged orders again.
        self.deployment.order(self.deployment.orders)
        self.callers.are_clocks_wrong = False

    def _send_probes(self) -> None:
        self.callers.is_healed = True
        for number in range(WORKERS):
            payment = {
                "payment_id": f"probe-{number}",
                "event_time_ms": self._now_ms(),
                "card_id": f"c{number}",
                "merchant_id": "m0",
                "device_id": None,
                "amount_minor": 100,
                "currency": "EUR",
            }
            self.callers.send(request_of([payment], number, as_json=False))
            self.pay(payment)

    def unsettled(self) -> list[str]:
        """Returns what is not yet as it should be, one line each."""
        reasons = []
        if self.callers.open or self.pending:
            reasons.append(f"{self.callers.open} requests are not answered")
        for number in range(WORKERS):
            if f"probe-{number}" not in self.callers.told:
                reasons.append(f"worker-{number} has not answered the probe")
            if (seen := self.callers.last_seen(f"worker-{number}")) not in ("ready", "decided"):
                reasons.append(f"worker-{number} is {seen or 'silent'}")
        for topic, count in group_lag(self.broker).items():
            if count and not topic.startswith("repartition-"):
                reasons.append(f"the stream is {count} records of {topic} behind")
        if self._frames_behind():
            reasons.append("events wait for their profiles")
        for name, process in self.deployment.processes.items():
            if not process.is_alive:
                reasons.append(f"{name} is down, {process.outcomes[-1:]}")
        companion = self.deployment.companion
        if companion is not None:
            reasons += [f"the companion is not ready: {problem}" for problem in companion.health.problems()]
            if self._is_mirror_behind():
                reasons.append("the mirror lacks states of the changelog")
            if waiting := self._unshipped():
                reasons.append(f"{waiting} bytes of decisions are not shipped")
        if index_lag(self.deployment):
            reasons.append("the index of decisions is behind its topics")
        for name, pipeline in self.deployment.pipelines.items():
            reasons += [f"{name} is not ready: {problem}" for problem in pipeline.problems()]
        return reasons

    def _frames_behind(self) -> bool:
        """Whether events wait on the way to their profiles. Frames that only tell progress never stop."""
        committed = self.broker.group("paywarden-stream").committed
        for name, topic in self.broker.topics.items():
            if not name.startswith("repartition-"):
                continue
            for number, log in enumerate(topic.logs):
                for entry in log.entries[committed.get((name, number), 0) :]:
                    if entry.value is not None and int.from_bytes(entry.value[4:8], "little"):
                        return True
        return False

    def _is_mirror_behind(self) -> bool:
        """Whether states wait on the changelog. Records that only tell progress never stop."""
        with closing(MirrorView(self.deployment.mirror)) as mirror:
            read_to = mirror.positions()
        return any(
            entry.is_visible and entry.key is not None and not entry.key.startswith(PREFIX)
            for number, log in enumerate(self.broker.topics["profiles"].logs)
            for entry in log.entries[read_to.get(number, 0) :]
        )

    def _cursors(self) -> dict[str, int]:
        """Returns by worker up to where its outbox is shipped, as Kafka knows it."""
        cursors: dict[str, int] = {}
        for _, _, entry in self.broker.records("outbox-cursors"):
            worker, told = (entry.key or b"").decode().partition("/")[2], (entry.value or b"0").split(b" ")[0]
            if told.isdigit():
                cursors[worker] = int(told)
        return cursors

    def _unshipped(self) -> int:
        """Returns how many bytes of the outboxes lie behind the cursors on Kafka."""
        root = Path(self.deployment.outbox.directory)
        cursors = self._cursors()
        waiting = 0
        for folder in sorted(root.glob("worker-*")):
            segments = sorted(folder.glob("*.log"))
            if segments:
                end = int(segments[-1].stem) + segments[-1].stat().st_size
                waiting += max(0, end - cursors.get(folder.name, 0))
        return waiting


def _record_starts(data: bytes) -> list[int]:
    starts, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if not size or at + 8 + size > len(data):
            break
        starts.append(at)
        at += 8 + size
    return starts


def _with_groups(body: bytes, chance: random.Random) -> bytes:
    """Returns the request with unknown groups in it, nested as deep as a parser takes them, or nearly."""
    depth = chance.choice((50, 97, 98, 99, 100))
    return body + b"\xa3\x06" * depth + b"\xa4\x06" * depth


def _with_long_length(body: bytes) -> bytes:
    """Returns the request with the length of its first text written in seven bytes."""
    assert body[0] == 0x0A
    size = body[1]
    return body[:1] + bytes([size | 0x80]) + b"\x80" * 5 + b"\x00" + body[2:]


def remove_left_over() -> None:
    """Remove the folders of simulators that were killed."""
    for folder in Path(_ROOT or tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def run_plan(plan: Plan) -> Outcome:
    """Run a history. `patches.patched` must be in force."""
    root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_ROOT))
    world = World(plan.seed)
    broker = Broker(world)
    failure: Failed | None = None
    with patches.running(world, broker, root) as own:
        fsync = random.Random(plan.seed).choice(("never", "always"))
        deployment = Deployment(world, broker, own, root, fsync=fsync, more=More(plan.is_supervised, plan.has_index))
        history = History(plan, world, deployment)
        try:
            history.run()
        except Failed as error:
            failure = error
        except Died as error:
            raise AssertionError("the main thread does not die") from error
        finally:
            digest = world.digest()
            world.end()
            deployment.close()
    shutil.rmtree(root, ignore_errors=True)
    return Outcome(plan.seed, digest, world.steps, world.faults, failure, tuple(world.notes) if failure else ())
