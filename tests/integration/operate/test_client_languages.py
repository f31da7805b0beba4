"""The clients of other languages than Python: the vectors of all clients in their own test runners."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.services.clients.client_drivers import CLIENTS, java_classes
from tests.services.fetch import ServiceMissing, tool
from tests.services.missing_tools import GO


@pytest.mark.skipif(shutil.which("go") is None, reason=GO.reason)
def test_the_go_client_does_what_the_vectors_say() -> None:
    # Not -count=1: where neither code nor vectors have changed, the result of before holds.
    command = ["go", "test", "-buildvcs=false", "-vet=all", "./..."]
    done = subprocess.run(command, cwd=CLIENTS / "go", capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_the_java_client_does_what_the_vectors_say() -> None:
    try:
        command = [tool("java"), "-cp", str(java_classes()), "paywarden.client.Vectors", str(CLIENTS / "vectors")]
    except ServiceMissing as error:
        pytest.skip(str(error))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    passed = int(done.stdout.split(" passed, ")[0].splitlines()[-1])
    assert passed > 200
