"""A registry in a folder, and people who have sealed keys to it: what a console of models needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from paywarden.models.registry.people import public_text


@dataclass(frozen=True)
class PeopleWithKeys:
    """`models`: the settings [models]. `folder`: NAME.pem of each person. `keys`: the same, open."""

    models: dict[str, object]
    folder: Path
    keys: dict[str, Ed25519PrivateKey]


def people_with_keys(folder: Path, names: Sequence[str], passphrase: str) -> PeopleWithKeys:
    """Make people with all roles, whose keys this passphrase opens; `lead` is the program that leads rollouts.

    One approval is needed.
    """
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    sealed = folder / "keys"
    sealed.mkdir()
    lines = []
    for name, key in keys.items():
        encryption = BestAvailableEncryption(passphrase.encode())
        (sealed / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        roles = '["lead"]' if name == "lead" else '["propose", "approve", "promote", "roll_back", "rollout"]'
        lines.append(f'[[person]]\nname = "{name}"\nroles = {roles}\nkeys = ["{public_text(key.public_key())}"]\n')
    people = folder / "registry-people.toml"
    people.write_text("".join(lines))
    people.chmod(0o600)
    return PeopleWithKeys({"people": str(people), "folder": str(folder / "registry"), "approvals": 1}, sealed, keys)
