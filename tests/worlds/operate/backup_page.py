"""The steps of docs/operate/backup.md that copy folders, run as the page has them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.checkout import CHECKOUT

_LIVE, _COPY = "/var/lib/paywarden", "/backup"


def run_copies(name: str, live: Path, copy: Path, *, back: bool) -> None:
    """Run the page's step that copies the folder `name` away, or back."""
    page = (CHECKOUT / "docs" / "operate" / "backup.md").read_text(encoding="utf-8")
    away, returned = f"$ cp -a {_LIVE}/{name} ", f"$ cp -a {_COPY}/{name} "
    (line,) = (line for line in page.splitlines() if line.startswith(returned if back else away))
    words = line.removeprefix("$ ").split()
    command = [word.replace(_LIVE, str(live)).replace(_COPY, str(copy)) for word in words]
    subprocess.run(command, check=True, timeout=60)
