"""The key of identities: where it comes from, and that nothing tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey, read_key
from paywarden.features.profiles.plan import compile_plan
from paywarden.schemas.errors import Misconfigured

SECRET = "00112233445566778899aabbccddeeff"


def test_a_key_is_read_from_a_file_of_hex_digits(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET.upper() + "\n", encoding="ascii")
    assert read_key(str(tmp_path / "key")) == IdentityKey.of_bytes(bytes.fromhex(SECRET))


@pytest.mark.parametrize("content", [b"", SECRET[:-2].encode(), SECRET.encode() + b"00", b"no hex " * 5, b"\xff" * 32])
def test_a_file_that_holds_no_key_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(Misconfigured, match=r"identity_key_file: .* must hold 32 hex digits") as error:
        read_key(str(tmp_path / "key"))
    assert not content or content[:8].decode("latin-1") not in str(error.value)
    assert error.value.__cause__ is None
    with pytest.raises(Misconfigured, match="identity_key_file: cannot read"):
        read_key(str(tmp_path / "another"))


def test_no_key_is_shown_by_what_holds_it() -> None:
    key = IdentityKey.of_bytes(bytes.fromhex(SECRET))
    shown = repr(key) + str(key) + repr(compile_plan(CATALOGUE, key)) + key.digest
    assert not any(str(half) in shown or f"{half:x}" in shown for half in (key.low, key.high))
    assert SECRET not in shown


def test_the_digest_tells_keys_apart_and_the_catalogue_does_not_depend_on_it() -> None:
    key = IdentityKey.of_bytes(bytes.fromhex(SECRET))
    assert key.digest != LAPTOP_KEY.digest
    assert key.digest == IdentityKey.of_bytes(bytes.fromhex(SECRET)).digest
    # Bundles and stored shapes of any deployment stay readable.
    one, other = compile_plan(CATALOGUE, key), compile_plan(CATALOGUE)
    assert (one.digest, one.words.tolist()) == (other.digest, other.words.tolist())
