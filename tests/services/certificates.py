"""Certificates for tests, from an authority that signs any request."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates for 127.0.0.1. `path` is its own certificate."""

    def __init__(self, folder: Path, name: str = "authority", *, days: int = 1, begins_in_days: int = -1) -> None:
        """`days`: how long certificates are valid from now; below 0 they have expired, after one day."""
        self._folder, self._days, self._begins_in_days = folder, days, begins_in_days
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.path = str(folder / f"{name}.pem")
        Path(self.path).write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def sign(self, name: str) -> tuple[str, str]:
        """Write a new certificate and its key. Returns both paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = self._builder(name, key).add_extension(addresses, critical=False).sign(self._key, hashes.SHA256())
        certificate, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(_pem(signed))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(certificate), str(key_file)

    def _builder(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + (min(0, self._days) + self._begins_in_days) * _DAY)
            .not_valid_after(now + self._days * _DAY)
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
