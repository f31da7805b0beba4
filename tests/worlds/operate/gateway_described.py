"""A gateway's description for tests: a file that a test changes before it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from paywarden.ops.gateway.description import GatewayDescription, read_description
from tests.services.certificates import Authority

SECRET = "a secret of the gateway and the hosts"
KEY = "the-key-of-checkout"

TEXT = """
[listen]
http = "127.0.0.1:18443"
grpc = "127.0.0.1:18444"

[tls]
certificate = "server.pem"
key = "server.key"
client_ca = "clients.pem"
client_certificates = "optional"

[to_hosts]
secret_file = "secret"

[limits]
body_bytes_max = 4096

[[hosts]]
name = "scoring-1"
address = "10.0.0.1"
health = 8082

[[hosts]]
name = "scoring-2"
address = "10.0.0.2"
versions = ["v1", "v2"]

[[clients]]
name = "checkout"
keys = ["HASH"]
certificates = ["CN=checkout,O=Shop"]
calls_per_second = 500
""".replace("HASH", hashlib.sha256(KEY.encode()).hexdigest())

ISSUER = """
[[issuers]]
issuer = "https://id.shop.example"
audiences = ["paywarden"]
jwks = "keys.json"

[[clients]]
name = "app"
jwt_issuer = "https://id.shop.example"
jwt_subject = "app-1"
"""


def write_description(folder: Path, text: str = TEXT) -> Path:
    """Write the description, its secret and empty files in place of certificates; returns its path."""
    for name in ("server.pem", "server.key", "clients.pem", "keys.json"):
        (folder / name).touch()
    (folder / "secret").write_text(SECRET + "\n", encoding="utf-8")
    (folder / "secret").chmod(0o600)
    path = folder / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return path


def write_credentials(folder: Path, *, days: int = 1) -> None:
    """Write real certificates and keys in place of the empty files; `days` as in Authority."""
    authority = Authority(folder, "clients", days=days)
    authority.sign("server")
    (folder / "keys.json").write_text('{"keys": [{"kty": "EC"}]}', encoding="utf-8")


def described(folder: Path, text: str = TEXT) -> GatewayDescription:
    """Returns a description from its text."""
    return read_description(write_description(folder, text))
