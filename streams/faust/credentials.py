"""Tell Faust how to reach the cluster: librdkafka's settings (streams/kafka/client.py) in aiokafka's terms."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.client import KafkaSettings

if TYPE_CHECKING:
    from faust import SASLCredentials, SSLCredentials

_PROTOCOLS: Final = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
# Other mechanisms need more than a name and a password.
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def credentials(kafka: KafkaSettings) -> SASLCredentials | SSLCredentials | None:
    """Return the credentials we show to the brokers and the certificates we trust; None for plaintext.

    Reads the certificate files. Raises Misconfigured, which names the setting.
    """
    protocol = check_login(kafka)
    context = _ssl_context(kafka) if protocol.endswith("ssl") else None
    if not protocol.startswith("sasl"):
        from faust import SSLCredentials

        return None if context is None else SSLCredentials(context)
    from faust import SASLCredentials

    return SASLCredentials(
        mechanism=kafka.sasl_mechanism.upper(),
        username=kafka.sasl_username,
        password=kafka.sasl_password,
        ssl_context=context,
    )


def check_login(kafka: KafkaSettings) -> str:
    """Return the protocol in lower case. Raises Misconfigured for a login that Faust cannot use; reads no file.

    `paywarden policy check` calls it on hosts without Faust, so Faust is imported by `credentials` alone.
    """
    protocol = kafka.security_protocol.lower()
    if protocol not in _PROTOCOLS:
        raise Misconfigured(f"[kafka] security_protocol: wanted {', '.join(_PROTOCOLS)}, got {protocol!r}")
    if protocol.startswith("sasl"):
        if kafka.sasl_mechanism.upper() not in _MECHANISMS:
            raise Misconfigured(
                f"[kafka] sasl_mechanism: wanted one of {', '.join(_MECHANISMS)}, got {kafka.sasl_mechanism!r}"
            )
        for name in ("sasl_username", "sasl_password"):
            if not getattr(kafka, name):
                raise Misconfigured(f"[kafka] {name}: must be set for {kafka.security_protocol}")
    return protocol


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    """Return a context that checks the broker's certificate and name, by the system's authorities if none are set."""
    place = kafka.ssl_ca_location
    try:
        folder = Path(place).is_dir()
        context = ssl.create_default_context(
            cafile=place if place and not folder else None, capath=place if place and folder else None
        )
    except OSError as error:
        raise Misconfigured(f"[kafka] ssl_ca_location: cannot read {place}: {_reason(error)}") from error
    if kafka.ssl_certificate_location:
        try:
            # The password must not be None: OpenSSL would ask for it on the terminal.
            context.load_cert_chain(
                kafka.ssl_certificate_location, kafka.ssl_key_location or None, password=kafka.ssl_key_password
            )
        except (OSError, ValueError) as error:
            raise Misconfigured(
                f"[kafka] ssl_certificate_location, ssl_key_location: cannot be used: {_reason(error)}"
            ) from error
    return context


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
