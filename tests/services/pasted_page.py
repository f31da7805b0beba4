"""Pastes a page into a shell: `python -m tests.services.pasted_page PAGE "HEADING"`.

Runs the blocks marked `bash` below a heading of the second level, one after the other in one shell, as a reader who
follows the page does. The first command that fails ends it. Every process that was started is ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, heading: str) -> list[str]:
    """Returns the blocks below a heading, up to the next one."""
    _, found, rest = page.partition(f"\n## {heading}\n")
    if not found:
        raise SystemExit(f"pasted_page: there is no heading {heading!r}")
    found_blocks: list[str] = _BLOCK.findall(rest.partition("\n## ")[0])
    return found_blocks


def main() -> None:
    """Paste, and end with the shell's status."""
    page, heading = sys.argv[1:]
    pasted = enumerate(blocks(Path(page).read_text("utf-8"), heading), 1)
    script = "\n".join(["set -euo pipefail", *(f"{block}\necho '--- block {number} done'" for number, block in pasted)])
    # The shell and its children are a group of their own.
    shell = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    try:
        status = shell.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
    sys.exit(status)


if __name__ == "__main__":
    main()
