"""The tokens by which scoring hosts know the gateway's clients.

    key, certificate or JWT ──► gateway: who is it? ──► Authorization: Bearer <the client's token> ──► host

1. The gateway replaces the Authorization header of each call by the token of the client that it has recognised. A
   client can neither choose nor learn that token.
2. A token is HMAC-SHA-256 of the client's name under a secret, so nobody stores tokens: `paywarden gateway render
   --target hosts` prints the hosts' `[auth] tokens_file`, and for another target the same tokens in its configuration.
3. A new secret becomes the first line of the file. Hosts get the tokens of both lines, then the gateway those of the
   first line; then the second line goes. No call fails meanwhile.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import open_regular

# Nobody can guess 32 random characters.
_SECRET_CHARACTERS_MIN = 32
_SECRETS_MAX = 2
_FILE_BYTES_MAX = 4096


def read_secrets(path: str) -> tuple[bytes, ...]:
    """Returns the secret in use and, if there is one, that before it. Raises Misconfigured naming the file."""
    setting = "[to_hosts] secret_file"
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise Misconfigured(f"{setting}: cannot read {path}: {error.strerror}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise Misconfigured(f"{setting}: {path} must not be open to everyone (chmod o-rw)")
    secrets = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not 1 <= len(secrets) <= _SECRETS_MAX:
        raise Misconfigured(f"{setting}: {path}: wanted 1 or {_SECRETS_MAX} lines, got {len(secrets)}")
    for number, secret in enumerate(secrets, start=1):
        if len(secret) < _SECRET_CHARACTERS_MIN:
            raise Misconfigured(
                f"{setting}: {path}, line {number}: wanted at least {_SECRET_CHARACTERS_MIN} characters, "
                f"got {len(secret)} (openssl rand -hex 32)"
            )
    return secrets


def host_token(secret: bytes, client: str) -> str:
    """Returns the token with which the gateway calls hosts for a client: 64 hexadecimal digits."""
    return hmac.new(secret, b"paywarden gateway client " + client.encode(), hashlib.sha256).hexdigest()


def tokens_file(secrets: Iterable[bytes], clients: Iterable[str]) -> str:
    """Returns the text of `[auth] tokens_file` for the hosts: the token of each client under each secret."""
    secrets = tuple(secrets)
    lines = [f"{client}:{host_token(secret, client)}" for client in clients for secret in secrets]
    return "# made by `paywarden gateway render --target hosts`\n" + "".join(f"{line}\n" for line in lines)
