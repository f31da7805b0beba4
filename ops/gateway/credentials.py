"""Looks into the certificates, keys and key sets that a description names, before a gateway starts with them.

Envoy and nginx start with an expired certificate, and then every handshake fails. Their other messages name the file,
and not our setting.
"""

from __future__ import annotations

import datetime
import json
import ssl
from collections.abc import Sequence

from cryptography.x509 import Certificate, load_pem_x509_certificates

from paywarden.ops.gateway.description import GatewayDescription
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular


def check_credentials(description: GatewayDescription, now: datetime.datetime) -> None:
    """Raise Misconfigured for the first file that no gateway could use at the time `now`, which has a time zone."""
    for section, given, authorities in (
        ("[tls]", description.tls, ("client_ca", description.tls.client_ca)),
        ("[to_hosts]", description.to_hosts, ("ca", description.to_hosts.ca)),
    ):
        if given.certificate:
            for certificate in _certificates(f"{section} certificate", given.certificate):
                _require_in_time(f"{section} certificate", given.certificate, certificate, now)
            _check_pair(section, given.certificate, given.key)
        setting, file = authorities
        if file:
            _check_authorities(f"{section} {setting}", file, now)
    for issuer in description.issuers:
        _check_keys(f'[[issuers]] "{issuer.issuer}" jwks', issuer.jwks)


def _check_pair(section: str, certificate: str, key: str) -> None:
    try:
        # Without a password OpenSSL would ask for that of an encrypted key on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        is_other = error.reason == "KEY_VALUES_MISMATCH"
        got = f"that of another one than {certificate}" if is_other else "other text, or an encrypted key,"
        raise Misconfigured(f"{section} key: wanted the certificate's key in PEM, got {got} in {key}") from error
    except OSError as error:
        raise Misconfigured(f"{section} key: cannot read {key}: {error.strerror}") from error


def _certificates(setting: str, file: str) -> Sequence[Certificate]:
    try:
        found = load_pem_x509_certificates(read_regular(file))
    except OSError as error:
        raise Misconfigured(f"{setting}: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise Misconfigured(f"{setting}: wanted a certificate in PEM, got other text in {file}") from error
    return found


def _require_in_time(setting: str, file: str, certificate: Certificate, now: datetime.datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= ends:
        raise Misconfigured(f"{setting}: {file} has expired on {ends:%Y-%m-%d %H:%M} UTC: renew it")
    if now < begins:
        raise Misconfigured(f"{setting}: {file} is not valid before {begins:%Y-%m-%d %H:%M} UTC: is the clock right?")


def _check_authorities(setting: str, file: str, now: datetime.datetime) -> None:
    """Raise Misconfigured if not one authority of the file can be trusted now. Old ones may stand beside it."""
    last_error: Misconfigured | None = None
    for certificate in _certificates(setting, file):
        try:
            _require_in_time(setting, file, certificate, now)
        except Misconfigured as error:
            last_error = error
        else:
            return
    assert last_error is not None
    raise last_error


def _check_keys(setting: str, file: str) -> None:
    wanted = 'wanted a JSON Web Key Set, {"keys": [{"kty": …}, …]}'
    try:
        content = json.loads(read_regular(file))
    except OSError as error:
        raise Misconfigured(f"{setting}: cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"{setting}: {wanted}, got no JSON in {file}") from error
    keys = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(keys, list) or not keys:
        raise Misconfigured(f"{setting}: {wanted}, got no keys in {file}")
    if any(not isinstance(key, dict) or not isinstance(key.get("kty"), str) for key in keys):
        raise Misconfigured(f"{setting}: {wanted}, got a key without kty in {file}")
