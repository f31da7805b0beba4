"""The Kafka of ops/deploy/compose as a broker for benchmarks, with the same settings.

KAFKA_NUM_IO_THREADS: "4"          → num.io.threads=4
KAFKA_OPTS: -XX:-UsePerfData       → an option of the JVM
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

_COMPOSE_FILE = Path(__file__).parents[2] / "ops/deploy/compose/compose.yaml"
# The benchmark's broker has addresses and a folder of its own.
_OF_THE_PLACE = ("advertised.", "controller.", "listener", "log.dirs", "node.id", "process.roles")
_OF_THE_JVM = ("KAFKA_HEAP_OPTS", "KAFKA_OPTS")


def shipped_broker() -> dict[str, str]:
    """Returns the settings of the broker in the Compose file, by their names in server.properties."""
    settings = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in _environment().items()
        if name not in _OF_THE_JVM
    }
    return {name: value for name, value in settings.items() if not name.startswith(_OF_THE_PLACE)}


def shipped_jvm() -> list[str]:
    """Returns the options of its JVM: heap and others."""
    return [option for name in _OF_THE_JVM for option in _environment().get(name, "").split()]


def _environment() -> Mapping[str, str]:
    services = yaml.safe_load(_COMPOSE_FILE.read_text(encoding="utf-8"))["services"]
    environment: Mapping[str, str] = services["kafka"]["environment"]
    return environment
