"""The people of the registry, and the rights of each: a file of names, roles and public keys.

    [[person]]
    name = "anna"
    roles = ["propose", "promote"]
    keys = ["MCowBQYDK2VwAyEA3yXQ2kq0m1r0X1Jm8W8n0oX3bO2kq7mS1l5v0YwGkXg="]

A key is the line between BEGIN and END of the PEM file of an Ed25519 public key. Each reader of the log has a copy of
this file and decides by it. Nobody but root and the user of the process may be able to change it.

Take nobody out of the file: the person's entries would count no longer, and the champion might be another. Set
`until` to the last day instead. A person who changes keys gets a second one; the first stays.

A private key is a PEM file that only its owner can read.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paywarden.models.bundle.signature import fingerprint, private_key_of
from paywarden.models.registry.entries import is_name
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import open_regular
from paywarden.schemas.private_files import require_unwritable
from paywarden.schemas.toml_file import toml_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PROPOSE: Final = "propose"
APPROVE: Final = "approve"
PROMOTE: Final = "promote"
ROLL_BACK: Final = "roll_back"
ROLLOUT: Final = "rollout"
LEAD: Final = "lead"
ADMIN: Final = "admin"
ROLES: Final = (PROPOSE, APPROVE, PROMOTE, ROLL_BACK, ROLLOUT, LEAD, ADMIN)
"""The rights that a person may have. The program that leads rollouts has a key of its own, with the role `lead`."""

_SETTINGS = {"name", "roles", "keys", "until"}
# A key in PEM has some hundred.
_KEY_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class RegistryPerson:
    """One person. `until_ms`: the end of their last day, epoch milliseconds; None while they are with us."""

    name: str
    roles: frozenset[str]
    until_ms: int | None = None


@dataclass(frozen=True)
class RegistryPeople:
    """The known people by the fingerprints of their keys."""

    people: Mapping[str, RegistryPerson]
    keys: Mapping[str, Ed25519PublicKey]

    @classmethod
    def read(cls, path: Path) -> RegistryPeople:
        """Returns the people of a file. Raises Misconfigured naming the file, the person and the setting."""
        require_unwritable(path)
        content = toml_file(path, "the people")
        entries = content.pop("person", [])
        if content or not isinstance(entries, list) or not entries:
            raise Misconfigured(f"{path}: wanted tables [[person]] and nothing else")
        return cls._of(path, entries)

    @classmethod
    def _of(cls, path: Path, entries: list[Any]) -> RegistryPeople:
        people: dict[str, RegistryPerson] = {}
        keys: dict[str, Ed25519PublicKey] = {}
        names: set[str] = set()
        for number, entry in enumerate(entries, 1):
            where = f"{path}, person {number}"
            person = _person(where, entry)
            where = f"{where} ({person.name})"
            if person.name in names:
                raise Misconfigured(f"{where}: there are two with this name")
            names.add(person.name)
            texts = entry.get("keys")
            if not isinstance(texts, list) or not texts:
                raise Misconfigured(f"{where}: keys: wanted a list of public keys")
            for text in texts:
                key = _public_key(where, text)
                owner = people.setdefault(fingerprint(key), person)
                if owner is not person:
                    raise Misconfigured(f"{where}: keys: {owner.name} has the same key")
                keys[fingerprint(key)] = key
        return cls(people, keys)

    def owner(self, key: str) -> RegistryPerson | None:
        """Returns whose key a fingerprint is; None for an unknown key."""
        return self.people.get(key)

    def names(self) -> list[str]:
        """Returns the names of all, sorted."""
        return sorted({person.name for person in self.people.values()})


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Returns the private key of a PEM file. Raises Misconfigured, also if others may read the file."""
    try:
        with open_regular(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_KEY_BYTES_MAX)
    except OSError as error:
        raise Misconfigured(f"cannot read the key {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Misconfigured(
            f"the key {path} can be read by others (mode {mode:o}); wanted 600: chmod 600, or a new key"
        )
    return private_key_of(content, path)


def make_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make a private key in a new file of mode 600, and return it. Raises Misconfigured if the file exists."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except OSError as error:
        raise Misconfigured(f"cannot make the key {path}: {error.strerror}") from error
    return key


def public_text(key: Ed25519PublicKey) -> str:
    """Returns a public key as the file of people has it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def _person(where: str, entry: Any) -> RegistryPerson:
    if not isinstance(entry, dict):
        raise Misconfigured(f"{where}: wanted a table")
    if odd := sorted(entry.keys() - _SETTINGS):
        raise Misconfigured(f"{where}: there is no setting {odd[0]!r}; there are {', '.join(sorted(_SETTINGS))}")
    name, roles, until = entry.get("name"), entry.get("roles"), entry.get("until")
    if not isinstance(name, str) or not is_name(name):
        raise Misconfigured(f"{where}: name: wanted letters, digits and . _ @ -, at most 64, got {name!r}")
    if not isinstance(roles, list) or not set(map(str, roles)) <= set(ROLES):
        raise Misconfigured(f"{where} ({name}): roles: wanted a list of {', '.join(ROLES)}, got {roles!r}")
    if until is None:
        return RegistryPerson(name, frozenset(roles))
    if type(until) is not date:
        raise Misconfigured(f"{where} ({name}): until: wanted a day such as 2026-10-01, got {until!r}")
    end = datetime(until.year, until.month, until.day, tzinfo=UTC) + timedelta(days=1)
    return RegistryPerson(name, frozenset(roles), round(end.timestamp() * 1000))


def _public_key(where: str, text: Any) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        key = load_der_public_key(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as error:
        raise Misconfigured(f"{where}: keys: wanted the line between BEGIN and END of a PEM file") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Misconfigured(f"{where}: keys: wanted an Ed25519 key, got another kind")
    return key
