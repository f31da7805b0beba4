"""The settings of [kafka] in aiokafka's terms; what Faust cannot use is named before anything starts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from faust import SASLCredentials, SSLCredentials

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.faust.credentials import credentials
from paywarden.streams.kafka.client import KafkaSettings, broker_urls


def test_every_bootstrap_server_is_one_broker() -> None:
    assert broker_urls(KafkaSettings(bootstrap="a.example:9092, b:1,[::1]:9093")) == [
        "kafka://a.example:9092",
        "kafka://b:1",
        "kafka://[::1]:9093",
    ]


def test_plaintext_needs_no_credentials() -> None:
    assert credentials(KafkaSettings()) is None


def test_ssl_checks_the_brokers_certificate_and_its_name() -> None:
    found = credentials(KafkaSettings(security_protocol="ssl"))
    assert isinstance(found, SSLCredentials)
    assert found.context.verify_mode == ssl.CERT_REQUIRED
    assert found.context.check_hostname


@pytest.mark.parametrize("mechanism", ["PLAIN", "scram-sha-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("protocol", ["sasl_plaintext", "SASL_SSL"])
def test_sasl_logs_in_by_name_and_password(mechanism: str, protocol: str) -> None:
    settings = KafkaSettings(
        security_protocol=protocol, sasl_mechanism=mechanism, sasl_username="u", sasl_password="hush"
    )
    found = credentials(settings)
    assert isinstance(found, SASLCredentials)
    assert found.mechanism.value == mechanism.upper()
    assert found.protocol.value == protocol.upper()
    assert (found.username, found.password) == ("u", "hush")
    assert (found.ssl_context is not None) == (protocol == "SASL_SSL")
    assert "hush" not in repr(found)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (KafkaSettings(security_protocol="tls"), "security_protocol"),
        (KafkaSettings(security_protocol="sasl_ssl"), "sasl_mechanism"),
        (KafkaSettings(security_protocol="sasl_ssl", sasl_mechanism="GSSAPI"), "sasl_mechanism"),
        (KafkaSettings(security_protocol="sasl_plaintext", sasl_mechanism="PLAIN"), "sasl_username"),
        (
            KafkaSettings(security_protocol="sasl_plaintext", sasl_mechanism="PLAIN", sasl_username="u"),
            "sasl_password",
        ),
        (KafkaSettings(security_protocol="ssl", ssl_ca_location="/nowhere/ca.pem"), "ssl_ca_location"),
        (KafkaSettings(security_protocol="ssl", ssl_certificate_location="/nowhere/c.pem"), "ssl_certificate_location"),
    ],
)
def test_an_unusable_setting_is_named(settings: KafkaSettings, named: str) -> None:
    with pytest.raises(Misconfigured, match=rf"\[kafka\] .*{named}"):
        credentials(settings)


def test_a_file_that_is_no_certificate_is_named_without_its_content(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("topsecret", encoding="utf-8")
    with pytest.raises(Misconfigured, match="ssl_ca_location") as raised:
        credentials(KafkaSettings(security_protocol="ssl", ssl_ca_location=str(file)))
    assert "topsecret" not in str(raised.value)
    with pytest.raises(Misconfigured, match="ssl_certificate_location") as raised:
        credentials(KafkaSettings(security_protocol="ssl", ssl_certificate_location=str(file), ssl_key_password="hush"))
    assert "hush" not in str(raised.value)
