from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from paywarden.models.bundle.bundle import load_bundle, native_library
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.signature import TrustedKeys, fingerprint, sign_bundle
from paywarden.ops.libraries import build_missing
from tests.services.missing_tools import COMPILER
from tests.services.product.processes import run_paywarden
from tests.worlds.small import small_world

needs_compiler = pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A bundle as it comes from another kind of machine."""
    bundle = small_world.copied_bundle(tmp_path)
    shutil.rmtree(bundle / "native")
    return bundle


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the command that builds as a fork. A process of its own imports LightGBM first, which takes two seconds."""

    def run(command: list[str], timeout: float, **_: bool) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-P", "-m", "paywarden"]
        return run_paywarden(*command[4:], timeout_s=timeout)

    # The compiler is a process of its own, and stays one.
    only_here = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("paywarden.ops.libraries.subprocess", only_here)


@needs_compiler
def test_another_process_builds_a_missing_library_that_passes_parity(foreign: Path) -> None:
    build_missing(foreign)
    loaded = load_bundle(foreign, catalogue_digest=small_world.engine().plan.digest)
    assert loaded.predictor.native
    vectors = small_world.table().vectors
    assert (loaded.score(vectors) == small_world.loaded_bundle().score(vectors)).all()


@needs_compiler
@pytest.mark.usefixtures("forked")
def test_a_library_that_no_signature_covers_is_built_again(foreign: Path, tmp_path: Path) -> None:
    """A person who can put files into the bundle could have put it there."""
    key = Ed25519PrivateKey.generate()
    secret = tmp_path / "release.pem"
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    trusted = TrustedKeys({fingerprint(key.public_key()): key.public_key()})
    sign_bundle(foreign, secret)
    assert build_missing(foreign, trusted)
    native_library(foreign).write_bytes(b"planted")
    assert build_missing(foreign, trusted)
    loaded = load_bundle(foreign, catalogue_digest=small_world.engine().plan.digest, trusted=trusted, built_here=True)
    assert loaded.predictor.native
    sign_bundle(foreign, secret)
    assert not build_missing(foreign, trusted)


def test_without_a_compiler_a_warning_comes_and_the_bundle_stays(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    build_missing(foreign)
    assert not native_library(foreign).exists()
    assert "no C compiler" in caplog.text


@needs_compiler
@pytest.mark.usefixtures("forked")
def test_a_bundle_that_cannot_be_compiled_is_one_line_with_the_reason(
    foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (foreign / "model.txt").write_text("no model", encoding="utf-8")
    build_missing(foreign)
    (record,) = caplog.records
    assert "wrong checksum" in record.getMessage()
    assert "\n" not in record.getMessage()
