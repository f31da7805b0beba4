"""A bundle on its way to other machines: its files, and on arrival the same checks as at home.

    ShippedBundle.of(folder)  ─ pickled, with the work that scores ─►  .open() ─► Bundle, loaded once a process

A worker's processor may be another than the one at home. If the bundle has native libraries, it must have one for the
worker, since another way of scoring would be many times slower.
"""

from __future__ import annotations

import hashlib
import platform
import socket
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from paywarden.models.bundle.bundle import Bundle, load_bundle, read_manifest
from paywarden.schemas.errors import BundleRefused
from paywarden.schemas.file_state import read_regular

# A champion and a challenger.
_LOADED_MAX = 2


@dataclass(frozen=True)
class ShippedBundle:
    """A bundle's files by their paths below its folder. `load_bundle` must have checked the bundle at home."""

    name: str
    files: tuple[tuple[str, bytes], ...]
    digest: str

    @classmethod
    def of(cls, folder: Path) -> ShippedBundle:
        """Read a bundle's files."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = tuple((path.relative_to(folder).as_posix(), read_regular(path, None)) for path in paths)
        return cls(folder.name, files, _digest_of(files))

    def open(self, catalogue_digest: str) -> Bundle:
        """Returns the bundle on this machine. Raises BundleRefused that names the host."""
        return _opened(self, catalogue_digest)

    def __hash__(self) -> int:
        return hash(self.digest)


@lru_cache(_LOADED_MAX)
def _opened(bundle: ShippedBundle, catalogue_digest: str) -> Bundle:
    host, machine = socket.gethostname(), platform.machine()
    if _digest_of(bundle.files) != bundle.digest:
        raise BundleRefused(f"bundle {bundle.name}: it arrived damaged at {host}")
    machines = {name.split("/")[1] for name, _ in bundle.files if name.startswith("native/") and name.endswith(".so")}
    if machines and machine not in machines:
        raise BundleRefused(
            f"bundle {bundle.name}: {host} is a machine of {machine}, the bundle has libraries for "
            f"{', '.join(sorted(machines))}: run paywarden compile on such a machine"
        )
    with tempfile.TemporaryDirectory(prefix="paywarden-bundle-") as folder:
        for name, content in bundle.files:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(content)
        # A library stays mapped after its file is gone.
        return load_bundle(
            Path(folder),
            catalogue_digest=catalogue_digest,
            identity_digest=read_manifest(Path(folder)).identity_digest,
        )


def _digest_of(files: tuple[tuple[str, bytes], ...]) -> str:
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
