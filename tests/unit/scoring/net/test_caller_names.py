from __future__ import annotations

from typing import Any

import pytest

from paywarden.scoring.net.caller_names import NAME_BYTES_MAX, is_name, name_of_certificate


def certificate(common_name: str = "", *alternatives: tuple[str, str]) -> dict[str, Any]:
    """Returns a certificate in the form of `getpeercert`."""
    subject = ((("organizationName", "Bank"),), (("commonName", common_name),)) if common_name else ()
    return {"subject": subject, "subjectAltName": alternatives, "serialNumber": "0AF3"}


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        (None, b""),
        ({}, b""),
        (certificate("checkout"), b"checkout"),
        (certificate("checkout", ("DNS", "other.bank")), b"checkout"),
        (certificate("", ("URI", "spiffe://bank/wallet"), ("DNS", "wallet.bank")), b"wallet.bank"),
        (certificate("", ("URI", "spiffe://bank/wallet")), b"spiffe://bank/wallet"),
        (certificate(), b"certificate-0AF3"),
        (certificate("Z\u00fcrich"), "Z\u00fcrich".encode()),
        (certificate("two\nlines\x1b[31m\0"), b"two?lines?[31m?"),
    ],
)
def test_a_certificate_is_named_after_its_subject(shown: dict[str, Any] | None, name: bytes) -> None:
    assert name_of_certificate(shown) == name


def test_names_too_long_to_keep_stay_different() -> None:
    one, another = (name_of_certificate(certificate("\u00fc" * 200 + end)) for end in "ab")
    assert one != another
    assert max(len(one), len(another)) <= NAME_BYTES_MAX
    assert is_name(one.decode())
