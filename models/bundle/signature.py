"""Signed bundles: a host takes only bundles that somebody with a trusted key has released.

    signature.json    {"format": 1, "files": {"manifest.json": "<sha256>", "native/x86_64/build.json": "<sha256>"},
                       "key": "<fingerprint of the public key>", "signature": "<base64>"}

1. `sign_bundle` writes the checksums of the manifest and of each library's build.json, and their Ed25519 signature. The
   manifest has the checksums of the models, and build.json that of its library: so everything is covered.
2. `TrustedKeys.require` checks the signature with the public keys of `[bundles] trusted_keys`, and then the checksums.
3. A library that was built after the bundle was signed is not covered, and is not loaded: it is code.

Keys are PEM files, as OpenSSL makes them:

    openssl genpkey -algorithm ed25519 -out release.pem
    openssl pkey -in release.pem -pubout -out release.pub.pem
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paywarden.schemas.errors import BundleRefused, Misconfigured
from paywarden.schemas.file_state import open_regular, read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE, MANIFEST, BUILD = "signature.json", "manifest.json", "build.json"
_FORMAT = 1
# The signed bytes begin with this. A signature that was made for something else therefore never fits.
_PURPOSE = b"paywarden bundle\n"
# A bundle has one manifest and a library or two for each kind of machine: a few kilobytes.
_BYTES_MAX = 65_536


@dataclass(frozen=True)
class BundleSettings:
    """Whose bundles are taken. The settings `[bundles]`."""

    # PEM files of Ed25519 public keys. A bundle must be signed with one of them. Empty: unsigned bundles are taken.
    trusted_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose signatures count, by fingerprint."""

    keys: dict[str, Ed25519PublicKey]

    @classmethod
    def read(cls, settings: BundleSettings) -> TrustedKeys | None:
        """Returns the keys of the settings; None without any. Raises Misconfigured, naming the file."""
        if not settings.trusted_keys:
            return None
        keys = [_public_key(Path(path)) for path in settings.trusted_keys]
        return cls({fingerprint(key): key for key in keys})

    def require(self, bundle: Path) -> frozenset[str]:
        """Returns the files that a bundle's signature covers, as paths below the bundle.

        Raises BundleRefused if there is no signature of a trusted key, or a covered file has changed.
        """
        files, name, signature = _read(bundle)
        key = self.keys.get(name)
        if key is None:
            raise BundleRefused(f"bundle {bundle}: it is signed with the key {name}, which is not trusted")
        if not _verifies(key, signature, files):
            raise BundleRefused(f"bundle {bundle}: the signature of the key {name} is wrong")
        for file, checksum in files.items():
            if _checksum(bundle, file) != checksum:
                raise BundleRefused(f"bundle {bundle}: {file} was changed after the bundle was signed")
        return frozenset(files)


def sign_bundle(bundle: Path, key_file: Path) -> list[str]:
    """Sign a bundle and the libraries that it has now; returns the files covered.

    Raises BundleRefused if there is no manifest, Misconfigured if the key cannot be used or nothing can be written.
    """
    if not (bundle / MANIFEST).is_file():
        raise BundleRefused(f"bundle {bundle}: there is no {MANIFEST}")
    key = read_private_key(key_file)
    names = [MANIFEST, *sorted(path.relative_to(bundle).as_posix() for path in bundle.glob(f"native/**/{BUILD}"))]
    files = {name: _checksum(bundle, name) for name in names}
    record = {
        "format": _FORMAT,
        "files": files,
        "key": fingerprint(key.public_key()),
        "signature": base64.b64encode(key.sign(_signed(files))).decode(),
    }
    try:
        (bundle / SIGNATURE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"cannot write {bundle / SIGNATURE}: {error.strerror}") from error
    return names


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Returns the private key of a PEM file. Raises Misconfigured naming the file."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise Misconfigured(f"cannot read the key {path}: {error.strerror}") from error
    return private_key_of(content, path)


def private_key_of(content: bytes, path: Path) -> Ed25519PrivateKey:
    """Returns the private key in the content of a PEM file. Raises Misconfigured naming the file."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise Misconfigured(f"the key {path} is encrypted; wanted one without a passphrase") from error
    except ValueError as error:
        raise Misconfigured(f"{path} holds no private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Misconfigured(f"{path} holds another kind of key; wanted Ed25519")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Returns 16 hex digits that name a public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_regular(path))
    except OSError as error:
        raise Misconfigured(f"[bundles] trusted_keys: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Misconfigured(f"[bundles] trusted_keys: {path} holds no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Misconfigured(f"[bundles] trusted_keys: {path} holds another kind of key; wanted Ed25519")
    return key


def _read(bundle: Path) -> tuple[dict[str, str], str, bytes]:
    """Returns the files with their checksums, the key's name and the signature, none of them checked yet."""
    path = bundle / SIGNATURE
    try:
        with open_regular(path) as file:
            content: Any = json.loads(file.read(_BYTES_MAX))
        files, name = content["files"], content["key"]
        signature = base64.b64decode(content["signature"], validate=True)
    except FileNotFoundError as error:
        raise BundleRefused(f"bundle {bundle}: it is not signed, and [bundles] trusted_keys asks for it") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise BundleRefused(f"bundle {bundle}: {SIGNATURE} cannot be read") from error
    if content.get("format") != _FORMAT or not isinstance(name, str) or not _is_table(files):
        raise BundleRefused(f"bundle {bundle}: {SIGNATURE} cannot be read; wanted format {_FORMAT}")
    return files, name[:64], signature


def _is_table(files: Any) -> bool:
    return (
        isinstance(files, dict)
        and MANIFEST in files
        and all(isinstance(checksum, str) for checksum in files.values())
        and not any(name.startswith("/") or ".." in name.split("/") for name in files)
    )


def _verifies(key: Ed25519PublicKey, signature: bytes, files: dict[str, str]) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, _signed(files))
    except InvalidSignature:
        return False
    return True


def _signed(files: dict[str, str]) -> bytes:
    return _PURPOSE + json.dumps(files, sort_keys=True, separators=(",", ":")).encode()


def _checksum(bundle: Path, name: str) -> str:
    try:
        return hashlib.sha256(read_regular(bundle / name, None)).hexdigest()
    except OSError:
        return ""
