"""The classes of a starting broker as Java keeps them: a broker that maps them starts with half of the CPU time.

When a program ends, Java can write the classes that it has loaded to a file, parsed and verified (class data sharing).
One broker is started and stopped for it, as soon as Kafka's jars are there. A run starts some 17 brokers, and each
takes 1.4 seconds of a core less.

The file belongs to one build of Java and to the folder of the jars. Java ignores a file that does not fit.

This module needs nothing but the standard library: CI runs it (`python -m tests.services.kafka_classes`) while it makes
the environment.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.patience import PATIENCE_S
from tests.services.fetch import KAFKA, ServiceMissing, fetched, kafka_dir, tool

# Serial collection and only the first compiler: a small process that starts soon on a shared machine.
QUICK_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
SMALL_JVM = ("-Xmx512m", *QUICK_JVM, "-Djava.awt.headless=true")
_FILE = "classes.jsa"
_CLUSTER = "A" * 22
_STARTED = b"Kafka Server started"


def small_jvm() -> Sequence[str]:
    """Returns the options of a JVM for a small broker. Makes the file of classes if it is absent."""
    jars = kafka_dir()
    folder = fetched(f"{KAFKA}-classes", lambda target: _make(jars, target))
    return (*SMALL_JVM, f"-XX:SharedArchiveFile={folder / _FILE}")


def _make(jars: Path, target: Path) -> None:
    scratch = target.parent
    config, log = scratch / "server.properties", scratch / "kafka.log"
    port, controller_port = _free_ports()
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(scratch / "data"),
        "offsets.topic.replication.factor": "1",
        "log.cleaner.dedupe.buffer.size": "16777216",
    }
    config.write_text("".join(f"{name}={value}\n" for name, value in properties.items()), encoding="utf-8")
    java = [tool("java"), *SMALL_JVM, "-Dlog4j2.level=INFO"]
    classes = ["-cp", f"{jars}/*"]
    target.mkdir()
    with log.open("wb") as output:
        # Java says of hundreds of classes why it does not keep them.
        kept = [f"-XX:ArchiveClassesAtExit={target / _FILE}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        formatted = ["kafka.tools.StorageTool", "format", f"--cluster-id={_CLUSTER}", "--config", str(config)]
        subprocess.run([*java, *classes, *formatted], stdout=output, stderr=output, timeout=PATIENCE_S, check=False)
        broker = subprocess.Popen([*java, *kept, *classes, "kafka.Kafka", str(config)], stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while _STARTED not in log.read_bytes() and broker.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            broker.terminate()
            broker.wait(PATIENCE_S)
        finally:
            broker.kill()
            broker.wait()
    if not (target / _FILE).is_file():
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise ServiceMissing(f"Java wrote no file of Kafka's classes: {said}")


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


if __name__ == "__main__":
    try:
        small_jvm()
    except ServiceMissing as error:
        sys.exit(str(error))
