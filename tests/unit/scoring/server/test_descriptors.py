"""The limit of open files: raised at start, and too low a one is refused with the number needed."""

from __future__ import annotations

import subprocess
import sys

RUN = """
import resource, sys
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.server.descriptors import secure_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
try:
    secure_descriptors({"[http] connections_max": 100, "[grpc] connections_max": 60})
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except Misconfigured as error:
    print(error)
"""


def secured(soft: int, hard: int) -> str:
    """Returns the limit, or the error, of a process with these limits of open files."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(soft), str(hard)], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    assert secured(64, 400) == "400"
    assert secured(64, 256) == "256"


def test_too_low_a_limit_is_refused_with_the_number_needed() -> None:
    assert secured(64, 255) == (
        "a worker needs 256 open files ([http] connections_max 100 + [grpc] connections_max 60 + 96 for files), and "
        "the limit is 255: raise it (ulimit -Hn, LimitNOFILE=), or lower these settings"
    )
