"""The settings `[console]`: where the pages are, who may see them, and where their state is."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal


@dataclass(frozen=True)
class ConsoleSettings:
    """The analysts' pages. Without `people` and `oidc_issuer` they have demo people, on a loopback address only."""

    # The address that it listens on. A proxy in front of it ends TLS.
    host: str = "127.0.0.1"
    # The port; 0: any free one.
    port: int = 8090
    # The address in browsers, for links in messages and for cookies: https://console.bank.example. Empty: that of the
    # listener.
    url: str = ""
    # Reverse proxies on other machines, by address or network, such as 10.0.0.9. They name the client in
    # X-Forwarded-For: failed logins count by its address, and the audit log has it. A proxy on this machine always may.
    proxies: tuple[str, ...] = ()
    # The folder of the database, the audit log with its key, and the files of cases.
    folder: str = "console"
    # The file of names, roles, password hashes and tokens. Empty: demo people, or those of OpenID Connect.
    people: str = ""
    # The OpenID Connect provider, such as https://login.bank.example/realms/fraud. Empty: none.
    oidc_issuer: str = ""
    # The console's id at the provider.
    oidc_client_id: str = ""
    # The file of the secret that the provider gave the console.
    oidc_secret_file: str = ""
    # The claim of the provider's token that lists a person's roles.
    oidc_roles_claim: str = "roles"
    # A session ends after this long without a page.
    session_idle_minutes: int = 30
    # A session ends after this long in any case.
    session_hours: int = 12
    # Wrong passwords that a name may have from an address in five minutes, so that nobody locks another person out.
    # From all addresses that the person has not logged in from, a name may have ten times as many.
    failed_logins_max: int = internal(10)
    # The folder of people's registry keys, NAME.pem each, encrypted with the person's passphrase. Empty: acts on models
    # are for the command line, and for deployments without a registry.
    keys: str = ""
    # Health addresses of the processes that the page Health asks, such as http://10.0.0.7:9102. Their name may stand
    # before: stream=http://10.0.0.7:9102.
    processes: tuple[str, ...] = ()
    # Where signed messages about new and changed alerts and cases go. Empty: nowhere.
    webhooks: tuple[str, ...] = ()
    # The file of the key that signs webhooks, at least 32 bytes.
    webhook_key_file: str = ""
    # The archive that the page Evidence asks (`paywarden admin archive`). Empty: no such page.
    archive: str = ""
    # PEM file of the Ed25519 key that signs evidence, without a passphrase. Empty: it is not signed.
    evidence_key: str = ""
    # A case with this much money takes two people to close, in minor units of the reference currency.
    large_case_minor: int = 1_000_000

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting."""
        if not 0 <= self.port <= 65_535:
            raise Misconfigured(f"[console] port: wanted 0 to 65535, got {self.port}")
        for name in ("session_idle_minutes", "session_hours", "large_case_minor"):
            if getattr(self, name) < 1:
                raise Misconfigured(f"[console] {name}: wanted at least 1, got {getattr(self, name)}")
        for name, urls in (("url", (self.url,)), ("oidc_issuer", (self.oidc_issuer,)), ("webhooks", self.webhooks)):
            for url in urls:
                parts = urlsplit(url)
                if url and (parts.scheme not in ("http", "https") or not parts.netloc or parts.username):
                    raise Misconfigured(f"[console] {name}: wanted an address such as https://host, got {url!r}")
        for proxy in self.proxies:
            try:
                is_everybody = ip_network(proxy).prefixlen == 0
            except ValueError:
                is_everybody = True
            if is_everybody:
                raise Misconfigured(
                    f"[console] proxies: wanted addresses of reverse proxies such as 10.0.0.9, or small networks of "
                    f"them, got {proxy!r}"
                )
        if self.oidc_issuer and not (self.oidc_client_id and self.oidc_secret_file):
            raise Misconfigured("[console] oidc_issuer: wanted oidc_client_id and oidc_secret_file too")
        if self.webhooks and not self.webhook_key_file:
            raise Misconfigured("[console] webhooks: wanted webhook_key_file too")
        if self.is_demo and not _is_loopback(self.host):
            raise Misconfigured(
                f"[console] people: wanted a file of people, or oidc_issuer: demo people need no password and are for "
                f"a loopback host only, got the host {self.host!r}"
            )

        if not _is_loopback(self.host) and not self.url:
            raise Misconfigured(f"[console] url: wanted the address in browsers, because the host is {self.host!r}")
        parts = urlsplit(self.url)
        if self.url and parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
            raise Misconfigured(f"[console] url: wanted https, because passwords and cookies travel, got {self.url!r}")

    @property
    def is_demo(self) -> bool:
        """Whether anybody who reaches the console may be any of the demo people."""
        return not self.people and not self.oidc_issuer

    @property
    def database_path(self) -> Path:
        """The file of the database."""
        return Path(self.folder) / "console.sqlite"

    @property
    def audit_path(self) -> Path:
        """The file of the audit log."""
        return Path(self.folder) / "audit.jsonl"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
