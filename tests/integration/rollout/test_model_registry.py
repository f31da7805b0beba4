"""The log of the model registry on a real Kafka: two hosts with a copy each, and what the commands say."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from paywarden.models.registry import entries as kinds
from paywarden.models.registry.model_log import LogFile
from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.settings import read_source
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.registry.follower import LogFollower
from paywarden.streams.registry.shared_log import SharedLog
from paywarden.streams.registry.topic import REGISTRY_TOPIC, KafkaRegistryTopic
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.worlds.rollout.registry import Writer, people_file, people_of


def test_two_hosts_share_a_log_and_the_commands_say_what_is_wrong(
    settings: KafkaSettings, deployment: Deployment
) -> None:
    assert partitions_of(settings, REGISTRY_TOPIC) == [0]
    folder = deployment.folder
    people = people_file(folder, {"anna": ("propose", "admin"), "ben": ("approve", "admin")})
    deployment.configure(
        "models", f'topic = true\nfolder = "{folder / "registry"}"\npeople = "{people}"\nkey_file = "{folder}/anna.pem"'
    )

    def run(*arguments: str) -> Any:
        asked = ["--config", str(deployment.config), "models", *arguments, "--json"]
        result = CliRunner().invoke(cli, asked, standalone_mode=False)
        assert result.exception is None, result.exception
        return json.loads(result.stdout)

    first = run("sync", "--set-clock", "--why", "größer als zuvor")["head"]
    own, other = folder / "registry" / "log.jsonl", LogFile(folder / "other.jsonl")
    with closing(KafkaRegistryTopic(lambda: (settings, LocalSchemaIds()))) as topic:
        log = SharedLog(other, topic, people_of(), print)
        assert [entry.digest for entry in log.sync().received] == [first]
        entry = log.append(lambda past: [Writer(past).entry(kinds.CLOCK_SET, "ben")])[0]
        # A person who may write to the topic, but is not in the file of people.
        sender = Sender(settings, linger_ms=0)
        sender.send(settings.topic(REGISTRY_TOPIC), b"no record", key=b"00", partition=0)
        sender.flush(PATIENCE_S)
        done = run("sync")
        assert (done["sent"], done["received"], done["head"]) == (0, 1, entry.digest)
        assert done["refused"] == ["it is no entry in JSON"]
        head = run("sync", "--set-clock", "--why", "again")["head"]
        assert log.sync().received[0].digest == head
    assert own.read_bytes() == other.path.read_bytes()
    assert run("verify", "--topic")["problems"] == []
    cut_off(own)
    result = CliRunner().invoke(
        cli, ["--config", str(deployment.config), "models", "verify", "--topic"], standalone_mode=False
    )
    assert (result.exit_code, "lacks 1 entries of the other copy" in result.stderr) == (1, True)
    # The companion follows the topic by itself.
    follower = wiring.following_registry(read_source(str(deployment.config), {}), CollectorRegistry())
    assert isinstance(follower, LogFollower)
    follower.step()
    follower.close()
    assert own.read_bytes() == other.path.read_bytes()


def cut_off(path: Path) -> None:
    """Remove the last line, as a person with something to hide would."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
