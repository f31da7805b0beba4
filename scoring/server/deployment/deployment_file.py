"""The deployment file: the releases that a host serves, and those that it keeps ready for a switch.

    {"version": 1,
     "active":    {"bundle": "/models/b-41", "policy": ""},
     "previous":  {"bundle": "/models/b-40", "policy": "", "bundle_digest": "9f2c…"},
     "candidate": {"bundle": "/models/b-42", "policy": "/policies/strict.toml"},
     "rollout": "r-7", "share": 500, "salt": "000102030405060708090a0b0c0d0e0f"}

1. `active` decides. `previous` and `candidate` are loaded and stay in the supervisor's memory, so that a change to one
   of them takes a moment: write the file again with the two exchanged.
2. `bundle` is a folder, `policy` a file with a section `[policy]`; an empty policy is that of the configuration. A
   symbolic link is followed when the file is read. Where a digest is given, anything else is refused.
3. `candidate` decides about `share` of the cards, in basis points (500 are 5 %). `salt` chooses the cards
   (scoring/engine/arms.py). With the share 0 it only stays in memory.
4. `catalogue` is the digest of the feature catalogue that all of them are for. A host of another one leaves the file
   alone, and takes no ports over (scoring/server/takeover.py).
5. The file is replaced as a whole (`write_deployment`), so a reader finds the old one or the new one.

Without the file, `[serve] bundle` and `[policy]` are served.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paywarden.models.bundle.version import Version
from paywarden.models.rollout.shares import BASIS_POINTS, SALT_BYTES
from paywarden.schemas.durability import sync_folder
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import open_regular

VERSION = 1
DEPLOYMENT = "deployment.json"
READY = "ready"
"""The folder of releases that were checked, beside the deployment file."""
# A deployment is a few hundred bytes.
_BYTES_MAX = 65_536
_SALT = re.compile(f"[0-9a-f]{{{2 * SALT_BYTES}}}")
_KEY_DIGITS = 32
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_ROLES = ("active", "previous", "candidate")
_TEXTS = ("bundle", "policy", "bundle_digest", "policy_digest")


@dataclass(frozen=True)
class ReleasePaths:
    """Paths of a bundle and a policy, and the digests that they must have; empty digests accept any."""

    bundle: str
    # Empty: the policy of the configuration.
    policy: str = ""
    bundle_digest: str = ""
    policy_digest: str = ""

    @property
    def version(self) -> Version:
        """The version that must be there; empty digests accept any."""
        return Version(self.bundle_digest, self.policy_digest)


@dataclass(frozen=True)
class Deployment:
    """The releases that a host serves. `share`: the candidate's share of the cards in `rollout`, in basis points.

    `catalogue`: the digest of the feature catalogue of all releases; empty if nobody has said so.
    """

    active: ReleasePaths
    previous: ReleasePaths | None = None
    candidate: ReleasePaths | None = None
    rollout: str = ""
    share: int = 0
    salt: str = ""
    catalogue: str = ""

    @property
    def releases(self) -> dict[str, ReleasePaths]:
        """The releases by role: "active", "previous", "candidate"."""
        found = {role: getattr(self, role) for role in _ROLES}
        return {role: paths for role, paths in found.items() if paths is not None}


def release_key(version: Version) -> str:
    """Returns the key of a release, which is a file name as well. Equal keys mean equal decisions."""
    return f"{version.bundle[:_KEY_DIGITS]}-{version.policy[:_KEY_DIGITS]}"


def unfinished_prefix(pid: int) -> str:
    """Returns how the names of the folders in READY begin in which a process prepares releases."""
    return f".{pid}-"


def read_deployment(path: Path) -> Deployment | None:
    """Returns the deployment; None if there is no file. Raises Misconfigured naming the file and the field."""
    try:
        with open_regular(path) as file:
            content: Any = json.loads(file.read(_BYTES_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Misconfigured(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"{path} is not JSON: {error}") from error
    return deployment_of(content, path)


def deployment_of(content: Any, path: Path) -> Deployment:
    """Returns the deployment of a file's content. Raises Misconfigured naming the file and the field."""
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise Misconfigured(f"{path}: wanted a deployment of version {VERSION}")
    if odd := content.keys() - {"version", "rollout", "share", "salt", "catalogue", *_ROLES}:
        raise Misconfigured(f"{path}: there is no field {min(odd)!r}")
    releases = {role: _paths(path, role, content[role]) for role in _ROLES if content.get(role) is not None}
    if "active" not in releases:
        raise Misconfigured(f"{path}: active is missing")
    rollout, share, salt = content.get("rollout", ""), content.get("share", 0), content.get("salt", "")
    catalogue = content.get("catalogue", "")
    if not isinstance(catalogue, str):
        raise Misconfigured(f"{path}: catalogue: wanted a text, got {type(catalogue).__name__}")
    if not isinstance(rollout, str):
        raise Misconfigured(f"{path}: rollout: wanted a text, got {type(rollout).__name__}")
    if type(share) is not int or not 0 <= share <= BASIS_POINTS:
        raise Misconfigured(f"{path}: share: wanted a whole number of basis points, 0 to 10000, got {share!r}")
    if not isinstance(salt, str) or (share and not _SALT.fullmatch(salt)):
        raise Misconfigured(f"{path}: salt: wanted {2 * SALT_BYTES} hex digits")
    if share and not ("candidate" in releases and rollout):
        raise Misconfigured(f"{path}: share: there is no candidate or no name of a rollout")
    return Deployment(**releases, rollout=rollout, share=share, salt=salt, catalogue=catalogue)


def content_of(deployment: Deployment) -> dict[str, Any]:
    """Returns the content of a deployment's file."""
    content = {name: value for name, value in asdict(deployment).items() if value is not None}
    if not deployment.catalogue:
        del content["catalogue"]
    return {"version": VERSION, **content}


def write_deployment(path: Path, deployment: Deployment) -> None:
    """Replace the file in one step. Raises Misconfigured if it cannot be written."""
    content = content_of(deployment)
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        unfinished.unlink(missing_ok=True)
        with open(os.open(unfinished, _NEW, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise Misconfigured(f"cannot write {path}: {error.strerror}") from error


def _paths(path: Path, role: str, value: Any) -> ReleasePaths:
    if not isinstance(value, dict):
        raise Misconfigured(f"{path}: {role}: wanted an object, got {type(value).__name__}")
    if odd := value.keys() - set(_TEXTS):
        raise Misconfigured(f"{path}: {role} has no field {min(odd)!r}")
    for name in _TEXTS:
        if not isinstance(text := value.get(name, ""), str):
            raise Misconfigured(f"{path}: {role} {name}: wanted a text, got {type(text).__name__}")
        if not _can_be_a_path(text):
            raise Misconfigured(f"{path}: {role} {name}: no file can have this name: {text[:100]!r}")
    if not value.get("bundle"):
        raise Misconfigured(f"{path}: {role} bundle is missing")
    return ReleasePaths(**value)


def _can_be_a_path(text: str) -> bool:
    """Whether the system takes this for a path: no zero byte, and nothing that has no bytes."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
