"""The gateway's description: what is wrong is one line with the setting, before anything is rendered."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.ops.cli import cli
from paywarden.ops.gateway.description import read_description
from paywarden.schemas.errors import Misconfigured
from tests.worlds.operate.gateway_described import ISSUER, KEY, TEXT, described, write_credentials, write_description

WHOLE = TEXT + ISSUER


def refusal(folder: Path, text: str) -> str:
    """Returns the error text, without the file's name."""
    path = write_description(folder, text)
    with pytest.raises(Misconfigured) as caught:
        read_description(path)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_description_has_absolute_paths_and_the_hosts_of_each_version(tmp_path: Path) -> None:
    read = described(tmp_path, WHOLE)
    assert read.tls.certificate == str(tmp_path / "server.pem")
    assert read.issuers[0].jwks == str(tmp_path / "keys.json")
    assert read.versions == ("v1", "v2")
    assert [host.name for host in read.hosts_of("v2")] == ["scoring-2"]
    assert [client.name for client in read.clients] == ["checkout", "app"]
    assert read.clients[0].burst_calls == 50


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("[limits]", "[limit]", "sections: wanted only [listen], [tls], "),
        ('"127.0.0.1:18443"', '"gateway:18443"', "[listen] http: wanted an IP address and a port, such as"),
        (
            '"127.0.0.1:18443"',
            '"127.0.0.1:18444"',
            "[listen] http, grpc, admin: wanted each once, got '127.0.0.1:18444'",
        ),
        ('http = "127', 'htp = "127', "[listen] has no setting 'htp'"),
        ('"optional"', '"perhaps"', "[tls] client_certificates: wanted none or optional or required, got 'perhaps'"),
        ('key = "server.key"', "", "[tls] key: wanted a file, got none"),
        ('client_ca = "clients.pem"', "", "[tls] client_ca: wanted a file for client_certificates, got none"),
        ('"clients.pem"', '"away.pem"', "[tls] client_ca: cannot read "),
        ('"keys.json"', '"away.json"', '[[issuers]] "https://id.shop.example" jwks: cannot read '),
        ('secret_file = "secret"', "", "[to_hosts]: secret_file is missing"),
        ("body_bytes_max = 4096", "body_bytes_max = 0", "[limits] body_bytes_max: wanted at least 1, got 0"),
        (
            "calls_per_second = 500",
            "calls_per_second = 1_000_000_000_000",
            '[[clients]] "checkout" calls_per_second: wanted 0 to 1000000, got 1000000000000',
        ),
        ("body_bytes_max = 4096", 'body_bytes_max = "4k"', "[limits] body_bytes_max: wanted a whole number, got str"),
        ('"scoring-2"', '"scoring-1"', "[[hosts]] name: wanted each once, got 'scoring-1' twice"),
        ('"10.0.0.2"', '"10.0.0.1"', "[[hosts]] http: wanted each once, got '10.0.0.1:8080' twice"),
        (
            '"10.0.0.1"',
            '"10.0.0.1;"',
            "[[hosts]] \"scoring-1\" address: wanted an IP address or a name, got '10.0.0.1;'",
        ),
        ("health = 8082", "health = 80820", '[[hosts]] "scoring-1" health: wanted a port, got 80820'),
        ('["v1", "v2"]', '["v3"]', "[[hosts]] \"scoring-2\" versions: wanted one or more of v1, v2, got ['v3']"),
        ('"checkout"', '"check out"', '[[clients]] "check out" name: wanted 1 to 128 letters, digits, . _ -'),
        (
            "health = 8082",
            "health = 8082\nhttp = 8081",
            '[[hosts]] "scoring-1" http, grpc: wanted two ports, got 8081 twice',
        ),
        ('"app"', '"checkout"', "[[clients]] name: wanted each once, got 'checkout' twice"),
        ('"CN=checkout,O=Shop"', "'CN=\"'", '[[clients]] "checkout" certificates: wanted a subject such as CN='),
        (
            "calls_per_second = 500",
            "calls_per_second = -1",
            '[[clients]] "checkout" calls_per_second: wanted 0 to 1000000, got -1',
        ),
        ("calls_per_second = 500", "burst = 5", '[[clients]] "checkout" burst: wanted calls_per_second with it'),
        ('jwt_subject = "app-1"', "", '[[clients]] "app" jwt_subject: is missing; wanted both'),
        ('jwt_issuer = "https://id', 'jwt_issuer = "https://other', '[[clients]] "app" jwt_issuer: wanted one of'),
        ('audiences = ["paywarden"]', "audiences = []", '[[issuers]] "https://id.shop.example" audiences: wanted at'),
        ("[[clients]]", "[[clients]]\nage = 3", "[[clients]] \"checkout\" has no setting 'age'"),
    ],
)
def test_one_line_names_the_setting_that_is_wrong(tmp_path: Path, was: str, becomes: str, message: str) -> None:
    assert was in WHOLE
    assert refusal(tmp_path, WHOLE.replace(was, becomes, 1)).startswith(message)


def test_a_description_without_hosts_or_clients_is_refused(tmp_path: Path) -> None:
    hosts, clients = TEXT.index("[[hosts]]"), TEXT.index("[[clients]]")
    assert refusal(tmp_path, TEXT[:clients]) == "[[clients]]: is missing; wanted at least one"
    assert refusal(tmp_path, TEXT[:hosts] + TEXT[clients:]) == "[[hosts]]: is missing; wanted at least one"
    nobody = '[[clients]]\nname = "x"\n'
    assert refusal(tmp_path, TEXT + nobody) == (
        '[[clients]] "x": wanted keys, certificates or jwt_issuer, got none: nobody could be this client'
    )


def test_a_key_in_place_of_its_hash_is_refused_and_not_repeated(tmp_path: Path) -> None:
    start = TEXT.index('keys = ["') + len('keys = ["')
    found = TEXT[start : start + 64]
    message = refusal(tmp_path, TEXT.replace(found, KEY))
    assert "wanted SHA-256 as 64 hexadecimal digits" in message
    assert KEY not in message
    other = f'[[clients]]\nname = "other"\nkeys = ["{found}"]\n'
    message = refusal(tmp_path, TEXT + other)
    assert message == '[[clients]] "checkout" keys: wanted each key once, got one twice'
    three = ", ".join(f'"{digit * 64}"' for digit in "abc")
    assert (
        refusal(tmp_path, TEXT.replace(f'"{found}"', three)) == '[[clients]] "checkout" keys: wanted at most 2, got 3'
    )


@pytest.mark.parametrize("name", ["no-such-host.invalid", "x" * 64 + ".invalid"])
def test_validation_refuses_a_host_that_nobody_knows(tmp_path: Path, name: str) -> None:
    """Envoy starts with it: a wrong letter was half of the hosts, and nothing said so."""
    path = write_description(tmp_path, TEXT.replace('"10.0.0.2"', f'"{name}"', 1))
    write_credentials(tmp_path)
    done = CliRunner().invoke(cli, ["gateway", "render", "--target", "envoy", "--description", str(path), "--validate"])
    assert str(done.exception).startswith(
        f'{path}: [[hosts]] "scoring-2" address: wanted a name that this machine knows'
    )
    assert repr(name) in str(done.exception)
