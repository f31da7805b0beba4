"""A server that speaks S3, in memory: moto, a process in an environment of its own."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.patience import PATIENCE_S
from tests.services.fetch import s3_dir
from tests.services.ports import free_port
from tests.services.product.processes import wait_for_listener

_BYTES = {"Content-Type": "application/octet-stream"}


@contextmanager
def running_s3() -> Iterator[str]:
    """Run the server, which asks nobody for a password; yields its URL."""
    address = f"127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    command = [str(s3_dir() / "bin" / "python"), "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_listener(address)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def put(url: str, content: bytes = b"") -> None:
    """Make a bucket, or put an object into one."""
    with urllib.request.urlopen(urllib.request.Request(url, content, _BYTES, method="PUT"), timeout=PATIENCE_S):
        pass


def read(url: str) -> bytes:
    """Returns an object, or the list of a bucket."""
    # What others have written is not for everybody; the server believes any name.
    asked = urllib.request.Request(url, headers={"Authorization": "AWS any:any"})
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        content: bytes = answer.read()
    return content
