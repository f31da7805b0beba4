"""A damaged profile under a real stream worker: it is set aside, the rest goes on, and the command brings it back."""

from __future__ import annotations

from contextlib import closing

from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.streams.kafka.client import KafkaSettings
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, is_ready, samples, wait_until
from tests.worlds.stream.packed import without_sources
from tests.worlds.stream.topics import Topics, small_world


def started(deployment: Deployment) -> tuple[PaywardenProcess, str]:
    stream = deployment.start("stream")
    address = stream.first_line()
    wait_until(lambda: is_ready(address), "the stream is ready", every_s=0.1)
    return stream, address


def counted(address: str, name: str) -> float:
    return sum(value for key, value in samples(address).items() if key[0] == f"paywarden_stream_{name}_total")


def test_a_damaged_profile_heals_without_loss(deployment: Deployment, settings: KafkaSettings) -> None:
    payment, other = small_world()[0].to_pylist()[:2]
    other = {**other, "card_id": "another", "merchant_id": payment["merchant_id"], "device_id": None}
    key = f"card:{payment['card_id']}".encode()
    topics = Topics(settings)

    def pay(payment_id: str, row: dict[str, object]) -> None:
        topics.send_payment({**row, "payment_id": payment_id})
        topics.flush()

    stream, address = started(deployment)
    pay("p1", payment)
    wait_until(lambda: counted(address, "profile_events") >= 2, "the first payment is worked in", every_s=0.1)
    assert stream.stop() == 0
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(deployment.store)))) as store:
        (whole,) = store.read([key])
        assert whole is not None
        store.write({key: b"\x63" + whole[1:]}, ttl_s=0)

    stream, address = started(deployment)
    pay("p2", payment)
    pay("p3", other)
    wait_until(lambda: counted(address, "events_set_aside") >= 1, "an event waits for the profile", every_s=0.1)
    wait_until(lambda: counted(address, "profile_events") >= 4, "the others go on", every_s=0.1)
    listed = deployment.run("admin", "set-aside")
    assert "card             1 profiles set aside, 1 events wait" in listed.stdout, listed.stderr
    retried = deployment.run("admin", "set-aside", "--retry")
    assert "from changelog   1" in retried.stdout, retried.stderr
    wait_until(lambda: counted(address, "profiles_restored") == 1, "the profile is back", every_s=0.1)
    assert stream.stop() == 0
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(deployment.store)), readonly=True)) as store:
        healed, count = store.read([key])[0], len(list(store.scan("card")))
    assert (healed or b"")[:1] == whole[:1]
    assert without_sources(healed or b"") != without_sources(whole)
    assert count == 2
    assert deployment.run("admin", "set-aside").stdout.startswith("no profile is set aside")
