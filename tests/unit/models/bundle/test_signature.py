from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from paywarden.models.bundle.bundle import load_bundle, native_library
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.signature import SIGNATURE, BundleSettings, TrustedKeys, sign_bundle
from paywarden.schemas.errors import BundleRefused, Misconfigured
from tests.services.missing_tools import COMPILER
from tests.worlds.small import small_world

needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)
DIGEST = small_world.engine().plan.digest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_world.copied_bundle(tmp_path)


def key_pair(folder: Path, name: str = "release") -> tuple[Path, TrustedKeys]:
    key = Ed25519PrivateKey.generate()
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    trusted = TrustedKeys.read(BundleSettings((str(public),)))
    assert trusted is not None
    return secret, trusted


def refusal(bundle: Path, trusted: TrustedKeys) -> str:
    with pytest.raises(BundleRefused) as caught:
        load_bundle(bundle, catalogue_digest=DIGEST, trusted=trusted)
    line = str(caught.value)
    assert "\n" not in line
    return line


def edit_signature(bundle: Path, edit: Callable[[dict[str, object]], object]) -> None:
    content = json.loads((bundle / SIGNATURE).read_text(encoding="utf-8"))
    edit(content)
    (bundle / SIGNATURE).write_text(json.dumps(content), encoding="utf-8")


def test_a_signed_bundle_is_loaded_where_its_key_is_trusted(bundle: Path, tmp_path: Path) -> None:
    secret, trusted = key_pair(tmp_path)
    covered = sign_bundle(bundle, secret)
    assert covered[0] == "manifest.json"
    loaded = load_bundle(bundle, catalogue_digest=DIGEST, trusted=trusted)
    assert loaded.predictor.native == (compiler_name() is not None)
    # Where no key is trusted, a signature changes nothing.
    load_bundle(bundle, catalogue_digest=DIGEST)


def test_without_a_signature_of_a_trusted_key_a_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    _, trusted = key_pair(tmp_path)
    other, _ = key_pair(tmp_path, "other")
    assert "it is not signed" in refusal(bundle, trusted)
    sign_bundle(bundle, other)
    assert "which is not trusted" in refusal(bundle, trusted)
    # The right name on another key's signature.
    edit_signature(bundle, lambda content: content.update(key=next(iter(trusted.keys))))
    assert "is wrong" in refusal(bundle, trusted)


def test_a_manifest_that_was_changed_after_signing_is_refused(bundle: Path, tmp_path: Path) -> None:
    secret, trusted = key_pair(tmp_path)
    sign_bundle(bundle, secret)
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"review_at": 0', '"review_at": 1'), "utf-8")
    manifest.write_text(manifest.read_text(encoding="utf-8") + " ", "utf-8")
    assert "manifest.json was changed after the bundle was signed" in refusal(bundle, trusted)


@needs_compiler
def test_a_library_that_the_signature_does_not_cover_is_not_loaded(bundle: Path, tmp_path: Path) -> None:
    secret, trusted = key_pair(tmp_path)
    built = tmp_path / "native"
    shutil.move(bundle / "native", built)
    sign_bundle(bundle, secret)
    shutil.copytree(built, bundle / "native")
    assert "was built after the bundle was signed" in refusal(bundle, trusted)
    assert load_bundle(bundle, catalogue_digest=DIGEST, trusted=trusted, built_here=True).predictor.native
    sign_bundle(bundle, secret)
    assert load_bundle(bundle, catalogue_digest=DIGEST, trusted=trusted).predictor.native


@needs_compiler
def test_a_library_that_others_may_write_is_not_loaded(bundle: Path) -> None:
    folder = native_library(bundle).parent
    folder.chmod(0o777)
    with pytest.raises(BundleRefused, match=r"the native library is not loaded: .* can be written by others"):
        load_bundle(bundle, catalogue_digest=DIGEST)
    folder.chmod(0o755)
    assert load_bundle(bundle, catalogue_digest=DIGEST).predictor.native


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 50_000,
        '{"format": 1, "files": {}, "key": "k", "signature": ""}',
        '{"format": 2, "files": {"manifest.json": ""}, "key": "k", "signature": ""}',
        '{"format": 1, "files": {"manifest.json": 1}, "key": "k", "signature": ""}',
        '{"format": 1, "files": {"manifest.json": "", "../x": ""}, "key": "k", "signature": ""}',
        '{"format": 1, "files": {"manifest.json": ""}, "key": "k", "signature": "%%%"}',
        '{"format": 1, "files": {"manifest.json": ""}, "key": "k", "signature": 7}',
        '{"format": 1, "files": {"manifest.json": ""}, "key": [], "signature": ""}',
        "x" * 1_000_000,
    ],
)
def test_a_signature_file_of_anything_else_is_refused(bundle: Path, tmp_path: Path, content: str) -> None:
    _, trusted = key_pair(tmp_path)
    (bundle / SIGNATURE).write_text(content, encoding="utf-8")
    assert "signature.json cannot be read" in refusal(bundle, trusted)


def test_keys_that_cannot_be_used_are_named(bundle: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    encrypted, curve, text = tmp_path / "encrypted.pem", tmp_path / "curve.pem", tmp_path / "text.pem"
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    other = generate_private_key(SECP256R1())
    curve.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text.write_text("no key", encoding="utf-8")
    for path, message in (
        (encrypted, "is encrypted"),
        (curve, "another kind of key"),
        (text, "holds no private key"),
        (tmp_path / "none.pem", "cannot read the key"),
    ):
        with pytest.raises(Misconfigured, match=message):
            sign_bundle(bundle, path)
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    curve.write_bytes(public)
    for path, message in (
        (curve, "another kind of key"),
        (text, "no public key"),
        (tmp_path / "none.pem", "cannot read"),
    ):
        with pytest.raises(Misconfigured, match=rf"trusted_keys: .*{message}"):
            TrustedKeys.read(BundleSettings((str(path),)))
    assert TrustedKeys.read(BundleSettings()) is None
