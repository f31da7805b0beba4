"""A Python for pytest's workers that has imported the product and the tests: a fork of a template (template.py).

To import the product, its libraries and their compiled code takes each worker 6 seconds of a core, and the tests take
ten more. xdist starts this program in place of Python, as `forked_python.py -u -c PROGRAM`:

1. It gives the program and its own stdin, stdout and stderr to the template, which forks.
2. It waits for the end of the fork and ends with its status. If it is killed, the template kills the fork.

It imports nothing but the standard library, and no other module of ours.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys

_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_AS)


def main() -> int:
    """Returns the exit status of the fork."""
    ours, theirs = socket.socketpair()
    mask = os.umask(0)
    os.umask(mask)
    wanted = {
        "arguments": [],
        "program": sys.argv[sys.argv.index("-c") + 1],
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "limits": [resource.getrlimit(kind) for kind in _LIMITS],
        "umask": mask,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        control.connect(os.path.join(os.environ["PAYWARDEN_TEST_SHARED"], "workers"))
        socket.send_fds(control, [json.dumps(wanted).encode()], [theirs.fileno(), 1, 2, 0])
        theirs.close()
        # The controller sees the end of a worker's pipes when the worker closes them, and not when this process does.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        told = b""
        while part := ours.recv(64):
            told += part
    # Its pid in ten characters, then its status. Without a status, the template has ended.
    status = int(told[10:] or b"1")
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
