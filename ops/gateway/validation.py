"""Let the target itself check a configuration before anybody uses it, and DNS the names of its hosts."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from paywarden.ops.gateway.description import Host
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import is_address

_TIMEOUT_S = 60


def require_addresses(hosts: Iterable[Host]) -> None:
    """Raise Misconfigured for a host whose name cannot be resolved.

    Envoy starts with it, and the host gets no call: a wrong letter is half of the hosts, and no error says so.
    """
    for host in hosts:
        if is_address(host.address):
            continue
        try:
            socket.getaddrinfo(host.address, host.http)
        except (OSError, UnicodeError) as error:
            raise Misconfigured(
                f'[[hosts]] "{host.name}" address: wanted a name that this machine knows, got {host.address!r} '
                f"({getattr(error, 'strerror', None) or error}): correct it, or DNS"
            ) from error


def validate(target: str, configuration: str) -> None:
    """Run Envoy or nginx of this machine over a configuration.

    Raises Misconfigured with its message, or if it is not installed.
    """
    if shutil.which(target) is None:
        raise Misconfigured(f"--validate: {target} is not on PATH; wanted it, to check the configuration")
    # Only this user may read it: the configuration holds tokens.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("envoy.json" if target == "envoy" else "nginx.conf")
        file.write_text(configuration, encoding="utf-8")
        mode = ["--mode", "validate", "-l", "error", "-c"] if target == "envoy" else ["-t", "-q", "-c"]
        try:
            done = subprocess.run(
                [target, *mode, str(file)], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Misconfigured(f"--validate: cannot run {target}: {error}") from error
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Misconfigured(f"{target} refuses the configuration: {said[0] if said else 'without a word'}")
