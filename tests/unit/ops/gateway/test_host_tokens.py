"""The tokens by which hosts know the gateway's clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.ops.gateway.host_tokens import host_token, read_secrets, tokens_file
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.net.tokens import Tokens

OLD, NEW = b"o" * 32, b"n" * 32


def secret_file(folder: Path, *lines: bytes, mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_bytes(b"\n".join(lines) + b"\n")
    path.chmod(mode)
    return str(path)


def test_hosts_know_each_client_by_the_tokens_of_both_secrets(tmp_path: Path) -> None:
    secrets = read_secrets(secret_file(tmp_path, NEW, OLD))
    (tmp_path / "tokens").write_text(tokens_file(secrets, ("checkout", "app")), encoding="ascii")
    (tmp_path / "tokens").chmod(0o600)
    tokens = Tokens(str(tmp_path / "tokens"))
    for secret in (NEW, OLD):
        for client in ("checkout", "app"):
            authorization = b"Bearer " + host_token(secret, client).encode()
            assert tokens.caller_of(authorization) == client.encode()
    assert tokens.caller_of(b"Bearer " + host_token(b"x" * 32, "app").encode()) is None


@pytest.mark.parametrize(
    ("lines", "mode", "message"),
    [
        ((), 0o600, "wanted 1 or 2 lines, got 0"),
        ((NEW, OLD, NEW), 0o600, "wanted 1 or 2 lines, got 3"),
        ((NEW, b"short"), 0o600, "line 2: wanted at least 32 characters, got 5"),
        ((NEW,), 0o644, "must not be open to everyone"),
    ],
)
def test_a_secret_that_is_no_secret_is_refused(
    tmp_path: Path, lines: tuple[bytes, ...], mode: int, message: str
) -> None:
    with pytest.raises(Misconfigured, match=r"\[to_hosts\] secret_file: .*" + message) as caught:
        read_secrets(secret_file(tmp_path, *lines, mode=mode))
    assert "short" not in str(caught.value)
