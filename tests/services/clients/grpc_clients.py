"""Builds the Go and Java clients of the gRPC front from `tests/clients`, once per version of their sources.

The clients are kept beside the services, in folders named after a digest of their sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.checkout import CHECKOUT
from tests.services.fetch import ServiceMissing, fetched, maven, tool

_SOURCES = CHECKOUT / "tests" / "clients"
# A first build downloads and compiles all of gRPC.
_BUILD_TIMEOUT_S = 600.0


def go_client() -> Path | None:
    """Returns the path of the program, or None if there is no Go to build it."""
    go = shutil.which("go")
    if go is None:
        return None

    def build(target: Path) -> None:
        # Ask no version control: the sources may lie in a checkout of another owner.
        _run([go, "build", "-buildvcs=false", "-o", str(target / "client"), "."], cwd=_SOURCES / "go")

    return fetched(f"grpc-client-go-{_digest(_SOURCES / 'go')}", build) / "client"


def java_client() -> Sequence[str]:
    """Returns the arguments for `java` that come before the client's own."""
    folder = _SOURCES / "java"

    def build(target: Path) -> None:
        pom = str(folder / "pom.xml")
        maven("-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={target}/lib", cwd=target.parent)
        classpath = f"{target}/lib/*"
        _run([tool("javac"), "-cp", classpath, "-d", f"{target}/classes", str(folder / "Client.java")], cwd=folder)

    built = fetched(f"grpc-client-java-{_digest(folder)}", build)
    return ("-cp", f"{built}/lib/*:{built}/classes", "Client")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _run(command: Sequence[str], *, cwd: Path) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False, env=dict(os.environ)
    )
    if done.returncode != 0:
        raise ServiceMissing(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
