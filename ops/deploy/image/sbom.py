"""Completes the list of an image's parts: `python3 sbom.py PYTHON.json OUT.json`.

PYTHON.json is cyclonedx-py's list of the Python packages (CycloneDX, JSON). OUT.json also has Debian's packages, by
name, version and package URL. It holds no time and no random number: the same image gives the same bytes.

It runs in the last stage of the image, since the stage that builds has other packages (a compiler), and lacks some. It
needs nothing but Python and dpkg.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

_FORMAT = "${Package}\t${Version}\t${Architecture}\n"


def debian_components(listing: str, release: str) -> list[dict[str, Any]]:
    """Returns a component for each line of `dpkg-query`: name, version and architecture, with tabs between.

    `release` is Debian's, such as "debian-12": scanners look for the vulnerabilities of that release.
    """
    components = []
    for line in sorted(listing.splitlines()):
        name, version, architecture = line.split("\t")
        url = f"pkg:deb/debian/{name}@{quote(version, safe='.-_')}?arch={architecture}&distro={release}"
        components.append({"type": "library", "name": name, "version": version, "purl": url, "bom-ref": url})
    return components


def main() -> None:
    """Read the first file, write the second."""
    source, target = map(Path, sys.argv[1:])
    parts = json.loads(source.read_text(encoding="utf-8"))
    listing = subprocess.run(["dpkg-query", "--show", f"--showformat={_FORMAT}"], check=True, capture_output=True)
    system = platform.freedesktop_os_release()
    release = f"{system['ID']}-{system['VERSION_ID']}"
    parts["components"] += debian_components(listing.stdout.decode(), release)
    target.write_text(json.dumps(parts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
