"""Faults of the stream: Kafka, the store, and records that cannot be used."""

from __future__ import annotations

import random
import re
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from paywarden.features.stores.aerospike.sets import AerospikeSets
from paywarden.features.stores.aerospike.store import AerospikeSettings
from perf.parts.alert_site import Fault, Site, SiteOptions
from tests.services.servers.kafka import KafkaServer
from tests.standin.aerospike_cluster import StandInCluster
from tests.standin.aerospike_records import FORBIDDEN
from tests.standin.aerospike_server import Fault as StoreFault
from tests.worlds.rollout.registry import people_file

_ALWAYS = 10**7
# A broker that comes back waits until its old session has expired.
_SESSION = {"broker.session.timeout.ms": "10000"}


class Stranger:
    """A producer that leaves a transaction open on a topic."""

    def __init__(self, site: Site, topic: str) -> None:
        self._site, self._topic = site, site.kafka.topic(topic)
        self._producer: Producer | None = None

    def begin(self) -> None:
        settings = {
            "bootstrap.servers": self._site.kafka.bootstrap,
            "transactional.id": f"{self._topic}-stranger",
            "transaction.timeout.ms": 900_000,
        }
        self._producer = Producer(settings)
        self._producer.init_transactions(60)
        self._producer.begin_transaction()
        for partition in range(4):
            self._producer.produce(self._topic, b"never committed", partition=partition)
        self._producer.flush(60)

    def end(self) -> None:
        assert self._producer is not None
        self._producer.abort_transaction(60)


def broker(options: SiteOptions, stack: ExitStack) -> None:
    """A transaction that hangs, records that expire, a broker that is away."""
    kafka = stack.enter_context(KafkaServer(options.folder / "broker-kafka", settings=_SESSION))
    people = people_file(options.folder, {"anna": ("propose",)})
    site = Site(
        replace(
            options,
            bootstrap=kafka.bootstrap,
            settings={"models": f'folder = "{options.folder / "models"}"\npeople = "{people}"\ntopic = true\n'},
        ),
        stack,
    )
    site.start("stream", "companion", "serve")
    stranger = Stranger(site, "payments")

    def hang() -> None:
        stranger.begin()
        for _ in range(60_000):
            site.payments.pay(site.payments.request())
        site.payments.flush()

    def expire() -> None:
        """The stream is away while records come and are deleted, as by a retention that is too short."""
        site.stop("stream")
        for _ in range(2000):
            site.payments.pay(site.payments.request())
        site.payments.flush()
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        ends = [TopicPartition(site.kafka.topic("payments"), partition, -1) for partition in range(4)]
        for done in admin.delete_records(ends).values():
            done.result()
        site.run("stream")

    site.suffer(
        Fault(
            ("PaywardenTransactionOpen", "PaywardenStreamLags"),
            "a producer hangs in its transaction, with 60,000 payments behind it",
            hang,
            stranger.end,
            follow=("PaywardenMirrorStale", "PaywardenStreamLate", "PaywardenMirrorLate"),
        )
    )
    site.suffer(
        Fault(
            ("PaywardenStreamDown", "PaywardenProcessDown"),
            "the only stream worker is killed",
            lambda: site.kill("stream"),
            lambda: site.run("stream"),
        )
    )
    site.suffer(Fault(("PaywardenRecordsExpired",), "payments are deleted unread", expire, lambda: None, clears=False))
    site.suffer(
        Fault(
            (
                "PaywardenKafkaDown",
                "PaywardenMirrorStale",
                "PaywardenCompanionNotReady",
                "PaywardenRegistryBehind",
                "PaywardenRegistryFails",
            ),
            "the only broker is killed",
            kafka.kill,
            kafka.restart,
        )
    )


def outbox(options: SiteOptions, stack: ExitStack) -> None:
    """A broker that is away while many payments come."""
    kafka = stack.enter_context(KafkaServer(options.folder / "outbox-kafka", settings=_SESSION))
    site = Site(replace(options, bootstrap=kafka.bootstrap), stack)
    site.start("stream", "companion", "serve")

    def broker_away() -> float:
        """Kill the broker. Payments come until the outbox is half full and has grown for long enough."""
        site.payments.rate, site.payments.batch = 3000.0, 200
        began = time.time()
        kafka.kill()
        threading.Thread(target=less_load, daemon=True).start()
        return began

    def less_load() -> None:
        deadline = time.monotonic() + 600
        while not site.fired() >= {"PaywardenOutboxGrows", "PaywardenOutboxFills"} and time.monotonic() < deadline:
            time.sleep(1.0)
        site.payments.rate, site.payments.batch = 10.0, 0
        site.say("as few payments as before")

    site.suffer(
        Fault(
            ("PaywardenKafkaDown", "PaywardenOutboxFills", "PaywardenOutboxGrows"),
            "the only broker is killed, at 3,000 payments a second",
            broker_away,
            kafka.restart,
            # A decision is 0.6 kB: half of a gigabyte takes five minutes.
            later_s=400.0,
        )
    )


def store(options: SiteOptions, stack: ExitStack) -> None:
    """A cluster of two nodes (a stand-in that speaks Aerospike's protocol) with each of its faults, and bad records."""
    cluster = stack.enter_context(StandInCluster(node_count=2))
    settings = {"aerospike": 'cluster_check = "off"\n'}
    site = Site(replace(options, aerospike=cluster.hosts[0], settings=settings), stack)
    site.start("stream", "companion", "serve")
    nodes = cluster.nodes

    def forbid() -> None:
        for node in nodes:
            node.faults.add(StoreFault.refuse_records(FORBIDDEN), times=_ALWAYS)

    def allow() -> None:
        for node in nodes:
            node.faults.clear()

    def look(level: str) -> None:
        """Start the stream with another `cluster_check`: the stand-in has no login, which is a finding."""
        site.stop("stream")
        text = site.deployment.config.read_text(encoding="utf-8")
        text = re.sub(r'cluster_check = "\w+"', f'cluster_check = "{level}"', text)
        site.deployment.config.write_text(text, encoding="utf-8")
        site.run("stream")

    def stop_store() -> None:
        for node in nodes:
            node.stop()

    def start_store() -> None:
        for node in nodes:
            node.start()

    def lose() -> None:
        cluster.lose(1)

    def back() -> None:
        cluster.bring_back(1)

    def payments_without_currency() -> None:
        for _ in range(5):
            site.payments.send("payments", b"nonsense", "k")
        site.payments.flush()

    def ids_twice() -> None:
        for _ in range(5):
            request = site.payments.request()
            site.payments.pay(request)
            site.payments.pay(request, amount_minor=99_999)
        site.payments.flush()

    def unreadable_changelog() -> None:
        for number in range(3):
            site.payments.send("profiles", b"\x00nonsense", f"card:c-{number}")
        site.payments.flush()

    def damage(entity: str, count: int, prefix: bytes = b"") -> None:
        """Overwrite records of the store while the stream is away."""
        site.stop("stream")
        found = AerospikeSettings(hosts=(cluster.hosts[0],), namespace=nodes[0].namespace)
        sets = AerospikeSets(found, (entity,))
        with closing(sets.open_beside() if entity == "drift" else sets.open("")) as opened:
            keys = [key for key, _ in opened.scan(entity) if key.startswith(prefix)]
            random.Random(1).shuffle(keys)
            for key in keys[:count]:
                (whole,) = opened.read([key])
                assert whole is not None
                opened.write({key: b"\x63" + whole[1:]}, ttl_s=0)
        site.run("stream")

    records = [
        Fault(
            ("PaywardenDeadLetters",), "a producer sends records that are no payments", payments_without_currency,
            lambda: None,
        ),
    ]  # fmt: skip
    changed = [Fault(("PaywardenPaymentsChanged",), "a producer uses ids twice", ids_twice, lambda: None, clears=False)]
    changelog = [
        Fault(
            ("PaywardenChangelogUnreadable",), "records of topic profiles cannot be read", unreadable_changelog,
            lambda: None,
        )
    ]  # fmt: skip
    faults = [
        Fault(
            ("PaywardenStoreUnsafe",),
            "a stream starts on a cluster without a login",
            lambda: look("warn"),
            lambda: look("off"),
        ),
        Fault(("PaywardenStoreForbidsWrites", "PaywardenStoreDown"), "Aerospike refuses writes", forbid, allow),
        Fault(("PaywardenStoreNodeFails",), "a node of Aerospike is gone, and its partitions with it", lose, back),
        Fault(
            ("PaywardenStoreDown", "PaywardenMirrorStale", "PaywardenDriftStoreDown", "PaywardenOutcomesStoreDown"),
            "all nodes of Aerospike are stopped",
            stop_store,
            start_store,
        ),
        Fault(
            ("PaywardenProfilesSetAside",),
            "profiles in the store are damaged",
            lambda: damage("card", 20),
            lambda: site.say(site.deployment.run("set-aside", "retry").stdout.strip()[:300]),
        ),
        Fault(
            ("PaywardenStateSetAside",),
            "the heads of drift counts are damaged",
            # Not the register of sources: without it the stream refuses to start.
            lambda: damage("drift", 1000, b"drift:head"),
            lambda: None,
            clears=False,
        ),
    ]
    site.together(records, changed, changelog, faults)
