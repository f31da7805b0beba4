"""People with keys, and logs of a model registry written by them, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from paywarden.models.bundle.signature import fingerprint
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import Entry, Value, signed_entry
from paywarden.models.registry.model_log import RegistryLog
from paywarden.models.registry.people import ROLES, RegistryPeople, RegistryPerson, public_text

What: TypeAlias = Mapping[str, Value]
NAMES = ("anna", "ben", "cleo", "dora")
START_MS = 1_760_000_000_000
CATALOGUE = "c0ffee00c0ffee00"


@cache
def key_of(name: str) -> Ed25519PrivateKey:
    """Returns a person's key: the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def people_of(roles: Mapping[str, frozenset[str]] | None = None) -> RegistryPeople:
    """Returns people with these roles; without them, the four names with every role."""
    given = roles or dict.fromkeys(NAMES, frozenset(ROLES))
    keys = {fingerprint(key_of(name).public_key()): key_of(name).public_key() for name in given}
    people = {fingerprint(key_of(name).public_key()): RegistryPerson(name, held) for name, held in given.items()}
    return RegistryPeople(people, keys)


def people_file(folder: Path, roles: Mapping[str, tuple[str, ...]]) -> Path:
    """Write the file of people, and a key file NAME.pem for each of them; returns the file."""
    lines = []
    for name, held in roles.items():
        key = key_of(name)
        secret = folder / f"{name}.pem"
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        lines += [
            "[[person]]",
            f'name = "{name}"',
            f"roles = {list(held)}",
            f'keys = ["{public_text(key.public_key())}"]',
        ]
    path = folder / "people.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def digest(name: str) -> str:
    """Returns the digest that a bundle or policy of this name has in a test."""
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass
class Writer:
    """Writes a log in memory, entry by entry, a minute apart."""

    log: RegistryLog = field(default_factory=RegistryLog)
    now_ms: int = START_MS

    def entry(
        self,
        kind: str,
        by: str,
        what: What | None = None,
        *,
        time_ms: int | None = None,
        previous: str = "",
        **more: Value,
    ) -> Entry:
        """Returns the next entry, without appending it."""
        if time_ms is None:
            self.now_ms += 60_000
        return signed_entry(
            key_of(by),
            registry="paywarden",
            previous=previous or self.log.head,
            time_ms=self.now_ms if time_ms is None else time_ms,
            kind=kind,
            by=by,
            why="a test",
            what={**(what or {}), **more},
        )

    def add(
        self,
        kind: str,
        by: str,
        what: What | None = None,
        *,
        time_ms: int | None = None,
        previous: str = "",
        **more: Value,
    ) -> Entry:
        """Append the next entry and return it."""
        entry = self.entry(kind, by, what, time_ms=time_ms, previous=previous, **more)
        longer = self.log.followed_by(entry)
        assert longer is not None
        self.log = longer
        return entry

    def proposal(self, name: str, by: str = "anna") -> Entry:
        """Register a bundle and a policy of this name, propose them, and return the proposal."""
        bundle, policy = digest(f"bundle {name}"), digest(f"policy {name}")
        files = {"manifest.json": digest(name)}
        self.add(kinds.REGISTERED_BUNDLE, by, bundle=bundle, catalogue=CATALOGUE, files=files)
        self.add(kinds.REGISTERED_POLICY, by, policy=policy, files=files)
        return self.add(kinds.PROPOSED, by, bundle=bundle, policy=policy, catalogue=CATALOGUE)

    @property
    def content(self) -> bytes:
        """The log as its file holds it."""
        return b"".join(entry.line + b"\n" for entry in self.log.entries)
