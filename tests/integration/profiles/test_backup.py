"""Disaster drill on a real Kafka: the store of a killed stream is gone, and comes back from a backup."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from confluent_kafka import OFFSET_END, TopicPartition

from paywarden.streams.kafka.admin import make_admin
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.maintenance.backup import MANIFEST
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_until
from tests.worlds.stream.topics import (
    Topics,
    assert_profiles_equal,
    batch_profiles,
    read_changelog,
    read_store,
    small_world,
    wait_until_left,
    wait_until_worked_in,
)


def test_a_store_restored_from_yesterdays_backup_is_the_same_bits_as_if_nothing_had_failed(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    payments, outcomes = small_world()
    third, group, backup = len(payments) // 3, f"{settings.topic_prefix}stream", tmp_path / "backup"
    topics = Topics(settings)
    topics.send_payments(payments.slice(0, third).to_pylist())
    stream = deployment.start("stream")
    wait_until_left(settings, group, third - 1, "the stream has begun")
    # The stream goes on meanwhile.
    done = deployment.run("admin", "store", "backup", str(backup))
    assert done.returncode == 0, done.stderr
    assert "goes on from payments " in done.stdout
    refused = deployment.run("admin", "store", "backup", str(backup))
    assert f"{backup}: wanted an empty folder" in refused.stderr
    topics.send_payments(payments.slice(third, third).to_pylist())
    wait_until_worked_in(settings, group)

    # A store that is there, and workers that run, are left alone.
    refused = deployment.run("admin", "store", "restore", str(backup))
    assert refused.returncode == 1
    assert "is not empty: move it away first" in refused.stderr
    stream.kill()
    shutil.rmtree(deployment.store)
    shutil.rmtree(f"{deployment.store}.sets", ignore_errors=True)
    topics.send_payments(payments.slice(2 * third).to_pylist())
    topics.send_outcomes(outcomes.to_pylist())
    # The broker still counts the killed worker as a member, until its session ends.
    wait_until(
        lambda: deployment.run("admin", "store", "restore", str(backup)).returncode == 0, "the backup is restored"
    )
    assert len(read_store(deployment.store)) > 0
    assert {path.stat().st_mode & 0o077 for path in deployment.store.iterdir()} == {0}

    stream = deployment.start("stream")
    wait_until_worked_in(settings, group)
    assert stream.stop() == 0
    stored = read_store(deployment.store)
    assert_profiles_equal(stored, batch_profiles(payments, outcomes))
    assert read_changelog(settings).items() <= stored.items()

    # An interrupted backup has no manifest.
    (backup / MANIFEST).unlink()
    refused = deployment.run("admin", "store", "restore", str(backup))
    assert f"{backup} is not a complete backup" in refused.stderr


def test_a_backup_whose_records_have_expired_is_refused(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    payments, _ = small_world()
    group, backup = f"{settings.topic_prefix}stream", tmp_path / "backup"
    topics = Topics(settings)
    topics.send_payments(payments.slice(0, 100).to_pylist())
    stream = deployment.start("stream")
    wait_until_worked_in(settings, group)
    assert stream.stop() == 0
    assert deployment.run("admin", "store", "backup", str(backup)).returncode == 0
    topics.send_payments(payments.slice(100, 100).to_pylist())
    shutil.rmtree(deployment.store)
    shutil.rmtree(f"{deployment.store}.sets", ignore_errors=True)
    numbers = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))["offsets"]["payments"]
    # All records, up to the end.
    gone = [TopicPartition(settings.topic("payments"), int(number), OFFSET_END) for number in numbers]
    admin = make_admin(settings)
    for deleted in admin.delete_records(gone).values():
        deleted.result(60)
    refused = deployment.run("admin", "store", "restore", str(backup))
    assert refused.returncode == 1
    assert re.search(
        r"payments, partition \d: the backup needs records from offset \d+ on, and Kafka has", refused.stderr
    )
    assert not deployment.store.exists()
