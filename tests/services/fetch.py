"""Fetches the real services by their coordinates, through Maven and pip: `python -m tests.services.fetch`.

Each service lands in a folder named after its version under `.services/` (PAYWARDEN_SERVICES_DIR overrides
it). A folder appears whole or not at all, so an existing folder is complete and is not fetched again. Two
runs at the same time wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KAFKA = "kafka-4.3.1"
REGISTRY = "apicurio-registry-3.0.9"
S3A = "s3a-3.4.2"
S3 = f"moto-5.2.5-python{sys.version_info.major}.{sys.version_info.minor}"
_REGISTRY_COORDINATES = "io.apicurio:apicurio-registry-app:3.0.9:tar.gz:all"
_S3_PACKAGES = ("moto[s3]==5.2.5", "boto3==1.44.8", "flask==3.1.3", "flask-cors==6.0.5")
_HERE = Path(__file__).resolve().parent
# A first download on a slow line takes minutes. A hung one must not hang a test run for ever.
_MAVEN_TIMEOUT_S = 900.0


class ServiceMissing(RuntimeError):
    """A tool or an archive that the real services need is missing. The message names it and how to get it."""


def services_dir() -> Path:
    """Returns the folder that holds the services."""
    override = os.environ.get("PAYWARDEN_SERVICES_DIR", "")
    return Path(override) if override else _HERE.parent.parent / ".services"


def kafka_dir() -> Path:
    """Returns the folder of Kafka's jars. Fetches it if absent."""
    return fetched(KAFKA, _fetch_kafka)


def registry_dir() -> Path:
    """Returns the folder of the unpacked registry. Fetches it if absent."""
    return fetched(REGISTRY, _fetch_registry)


def s3a_dir() -> Path:
    """Returns the folder of the jars with which Spark reads and writes S3. Fetches it if absent."""
    return fetched(S3A, _fetch_s3a)


def s3_dir() -> Path:
    """Returns the virtual environment of a server that speaks S3. Fetches it if absent."""
    return fetched(S3, _fetch_s3)


def tool(name: str) -> str:
    """Returns the path of a program on PATH. Raises ServiceMissing with how to install it."""
    found = shutil.which(name)
    if found is None:
        package = {"java": "a Java 17 runtime", "javac": "a Java 17 JDK", "mvn": "Apache Maven"}.get(name, name)
        raise ServiceMissing(f"`{name}` is not on PATH: the integration tests need {package}")
    return found


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """Returns the folder `name` among the services. If it is absent, `fetch` fills it."""
    home = services_dir()
    target = home / name
    if target.is_dir():
        return target
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=home, prefix=f".{name}-") as scratch:
                fetch(Path(scratch) / "content")
                (Path(scratch) / "content").rename(target)
    return target


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_kafka(target: Path) -> None:
    pom = str(_HERE / "kafka-pom.xml")
    maven("-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={target}", cwd=target.parent)
    if not list(target.glob("kafka_*.jar")):
        raise ServiceMissing(f"Maven copied no Kafka jar for {pom}")


def _fetch_registry(target: Path) -> None:
    scratch = target.parent
    maven("dependency:copy", f"-Dartifact={_REGISTRY_COORDINATES}", f"-DoutputDirectory={scratch}", cwd=scratch)
    archives = list(scratch.glob("*.tar.gz"))
    if len(archives) != 1:
        raise ServiceMissing(f"Maven copied {len(archives)} archives for {_REGISTRY_COORDINATES}, wanted one")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(target, filter="data")


def _fetch_s3a(target: Path) -> None:
    pom = str(_HERE / "s3a-pom.xml")
    maven("-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={target}", cwd=target.parent)
    if not list(target.glob("hadoop-aws-*.jar")):
        raise ServiceMissing(f"Maven copied no connector for {pom}")


def _fetch_s3(target: Path) -> None:
    # Its own environment: a client that it needs wants an older package than the product has.
    install = [target / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile", *_S3_PACKAGES]
    for command in ([sys.executable, "-m", "venv", target], install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServiceMissing(f"pip failed: {(done.stdout + done.stderr).strip()[-2000:]}")


def maven(*arguments: str, cwd: Path) -> None:
    """Run Maven. Raises ServiceMissing with Maven's output."""
    # Run outside the project's folder, so that Maven reads only the given pom.xml.
    command = [tool("mvn"), "--batch-mode", "--no-transfer-progress", "--quiet", *arguments]
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_MAVEN_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ServiceMissing(f"Maven did not finish within {_MAVEN_TIMEOUT_S:.0f} s: {arguments}") from error
    if done.returncode != 0:
        raise ServiceMissing(f"Maven failed: {(done.stdout + done.stderr).strip()[-2000:]}")


def main() -> int:
    """Fetch every service. Prints the folder of each, or why it cannot be fetched."""
    try:
        tool("java")
        for folder in (kafka_dir(), registry_dir(), s3a_dir(), s3_dir()):
            sys.stdout.write(f"{folder}\n")
    except ServiceMissing as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
