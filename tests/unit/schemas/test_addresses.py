"""One reader of addresses takes what people write, and nothing else."""

from __future__ import annotations

import pytest

from paywarden.schemas.addresses import host_and_port


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.0.0.7:9102", ("10.0.0.7", 9102)),
        ("host-1.bank.example:1", ("host-1.bank.example", 1)),
        ("[::1]:65535", ("::1", 65_535)),
        ("host:0", None),
        ("host:65536", None),
        ("host:", None),
        ("host", None),
        (":80", None),
        ("[]:80", None),
        ("host:-1", None),
        ("host:1_0", None),
        # Digits of another script are digits for int().
        ("host:\u0661\u0662", None),
    ],
)
def test_host_and_port_are_parted(text: str, parts: tuple[str, int] | None) -> None:
    assert host_and_port(text) == parts


def test_port_0_is_any_free_one_where_that_is_meant() -> None:
    assert host_and_port("127.0.0.1:0", port_min=0) == ("127.0.0.1", 0)
