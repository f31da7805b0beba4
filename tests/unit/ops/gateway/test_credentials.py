"""Certificates, keys and key sets that no gateway could use are refused by the setting that names them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from paywarden.ops.gateway.credentials import check_credentials
from paywarden.schemas.errors import Misconfigured
from tests.services.certificates import Authority
from tests.worlds.operate.gateway_described import ISSUER, TEXT, described, write_credentials

TO_HOSTS = 'secret_file = "secret"\nca = "clients.pem"\ncertificate = "server.pem"\nkey = "server.key"'
NOW = datetime.datetime.now(datetime.UTC)
_YEAR = datetime.timedelta(days=365)


def refusal(folder: Path, *, now: datetime.datetime = NOW, spoil: Callable[[Path], object] = lambda _: None) -> str:
    """Returns what is wrong, "" if nothing is. `spoil` changes the files first."""
    read = described(folder, (TEXT + ISSUER).replace('secret_file = "secret"', TO_HOSTS))
    write_credentials(folder)
    spoil(folder)
    try:
        check_credentials(read, now)
    except Misconfigured as error:
        return str(error).replace(f"{folder}/", "")
    return ""


def test_right_files_are_taken_and_so_are_a_chain_and_an_old_authority(tmp_path: Path) -> None:
    def add(folder: Path) -> None:
        for name, days in (("server", 2), ("clients", -1)):
            (folder / "more").mkdir(exist_ok=True)
            more = Path(Authority(folder / "more", name, days=days).path).read_bytes()
            (folder / f"{name}.pem").write_bytes((folder / f"{name}.pem").read_bytes() + more)

    assert refusal(tmp_path) == ""
    assert refusal(tmp_path, spoil=add) == ""


@pytest.mark.parametrize(
    ("years", "message"),
    [
        (1, "[tls] certificate: server.pem has expired on 20"),
        (-1, "[tls] certificate: server.pem is not valid before 20"),
    ],
)
def test_a_certificate_that_is_not_valid_now_is_refused_with_its_day(tmp_path: Path, years: int, message: str) -> None:
    assert refusal(tmp_path, now=NOW + years * _YEAR).startswith(message)


def _of_another(folder: Path) -> None:
    (folder / "other").mkdir()
    _, key = Authority(folder / "other").sign("server")
    (folder / "server.key").write_bytes(Path(key).read_bytes())


def _expired_authority(folder: Path) -> None:
    (folder / "old").mkdir()
    (folder / "clients.pem").write_bytes(Path(Authority(folder / "old", days=-1).path).read_bytes())


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_text("server.pem", ""), "[tls] certificate: wanted a certificate in PEM, got other text in server.pem"),
        (_text("server.pem", "no PEM"), "[tls] certificate: wanted a certificate in PEM, got other text in server.pem"),
        (_text("server.key", "no PEM"), "[tls] key: wanted the certificate's key in PEM, got other text, or an"),
        (_of_another, "[tls] key: wanted the certificate's key in PEM, got that of another one than server.pem in"),
        (_text("clients.pem", ""), "[tls] client_ca: wanted a certificate in PEM, got other text in clients.pem"),
        (_expired_authority, "[tls] client_ca: clients.pem has expired on "),
        (_text("keys.json", "no JSON"), '[[issuers]] "https://id.shop.example" jwks: wanted a JSON Web Key Set, '),
        (_text("keys.json", '{"keys": []}'), '[[issuers]] "https://id.shop.example" jwks: wanted a JSON Web Key Set, '),
        (_text("keys.json", '{"keys": [{}]}'), '[[issuers]] "https://id.shop.example" jwks: wanted a JSON Web Key '),
        (lambda folder: (folder / "server.key").unlink(), "[tls] key: cannot read server.key: No such file"),
    ],
)
def test_one_line_names_the_setting_of_a_file_that_cannot_be_used(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    told = refusal(tmp_path, spoil=spoil)
    assert told.startswith(message)
    assert "\n" not in told
