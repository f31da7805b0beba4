from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.net.tls import HTTP_1_1, HTTP_2, Tls, TlsSettings
from tests.fakes.descriptors import no_descriptors
from tests.services.certificates import Authority
from tests.worlds.endpoint.http_world import PATIENT, WAIT_SECONDS, Client, Served, get, payment, post_json, serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def settings(authority: Authority) -> TlsSettings:
    certificate, key = authority.sign("server")
    return TlsSettings(certificate=certificate, key=key)


def trusting(authority: Authority, shown: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.path)
    if shown is not None:
        context.load_cert_chain(*shown)
    return context


@contextlib.contextmanager
def connected(served: Served, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Iterator[Client]:
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as wrapped,
    ):
        yield Client(wrapped)


def is_served(served: Served, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> bool:
    """Whether there is an answer. With TLS 1.3 a client learns only when reading that its certificate was refused."""
    try:
        with connected(served, context, session) as client:
            client.send(get("/livez"))
            return client.raw.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False


def common_name(client: Client) -> str:
    assert isinstance(client.raw, ssl.SSLSocket)
    shown = x509.load_der_x509_certificate(client.raw.getpeercert(binary_form=True) or b"")
    (name,) = shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def test_payments_are_scored_over_tls_and_the_protocol_is_agreed_on(
    settings: TlsSettings, authority: Authority
) -> None:
    context = trusting(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with serving(tls=Tls(settings)) as served, connected(served, context) as client:
        assert isinstance(client.raw, ssl.SSLSocket)
        assert client.raw.selected_alpn_protocol() == "http/1.1"
        client.send(post_json(payment()) * 100)
        assert [client.reply().status for _ in range(100)] == [200] * 100
        assert client.ask(get("/livez", headers="Connection: close\r\n")).headers["connection"] == "close"
        assert client.is_closed_by_server()


def test_the_protocols_are_those_asked_for(settings: TlsSettings, authority: Authority) -> None:
    server = Tls(settings).context(HTTP_2)
    client = trusting(authority)
    client.set_alpn_protocols([HTTP_1_1, HTTP_2])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    for side in (theirs, ours, theirs, ours):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert theirs.selected_alpn_protocol() == HTTP_2


def test_the_oldest_version_that_is_spoken_is_1_2(settings: TlsSettings) -> None:
    assert Tls(settings).context(HTTP_1_1).minimum_version == ssl.TLSVersion.TLSv1_2


def test_with_a_client_ca_only_callers_with_its_certificate_are_served(
    settings: TlsSettings, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "stranger").sign("stranger-client")
    with serving(tls=Tls(replace(settings, client_ca=authority.path))) as served:
        for shown in (None, stranger):
            assert not is_served(served, trusting(authority, shown))
        with connected(served, trusting(authority, authority.sign("client"))) as right:
            assert right.ask(post_json(payment())).status == 200
    assert served.scorer.callers == [b"client"]


@pytest.mark.parametrize(
    "garbage",
    [get("/livez"), b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + bytes(70_000), bytes(100), b"\x80"],
    ids=["plain-http", "tls-garbage", "large-record", "zeros", "a-byte"],
)
def test_a_connection_without_tls_is_closed_and_others_are_served(
    settings: TlsSettings, authority: Authority, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tls = Tls(replace(settings, handshake_timeout_ms=2_000))
    with serving(tls=tls) as served, connected(served, trusting(authority)) as beside, served.connected() as wrong:
        with contextlib.suppress(ConnectionError):
            wrong.send(garbage)
        assert beside.ask(post_json(payment())).status == 200
        with contextlib.suppress(ConnectionError):
            while wrong.raw.recv(4096):
                pass
        assert beside.ask(post_json(payment())).status == 200
    assert caplog.text == ""


def test_a_handshake_that_does_not_come_ends_and_others_are_served(settings: TlsSettings, authority: Authority) -> None:
    tls = Tls(replace(settings, handshake_timeout_ms=2_000))
    with serving(tls=tls) as served, served.connected() as silent, served.connected() as slow:
        began = time.monotonic()
        slow.send(b"\x16\x03\x01\x02\x00\x01")
        with connected(served, trusting(authority)) as other:
            assert other.ask(get("/livez")).status == 200
        assert silent.is_closed_by_server()
        assert slow.is_closed_by_server()
        assert time.monotonic() - began > 0.2


def test_a_caller_who_leaves_in_the_middle_harms_nobody(settings: TlsSettings, authority: Authority) -> None:
    with serving(tls=Tls(settings)) as served:
        for sent in (b"", post_json(payment())[:40], post_json(payment())):
            with connected(served, trusting(authority)) as client:
                client.send(sent)
        with connected(served, trusting(authority)) as other:
            assert other.ask(get("/livez")).status == 200


def test_a_stop_ends_connections_whose_callers_say_nothing(settings: TlsSettings, authority: Authority) -> None:
    with connected(served := Served(replace(PATIENT, linger_ms=200), tls=Tls(settings)), trusting(authority)) as idle:
        assert idle.ask(get("/livez")).status == 200
        served.begin_stop()
        served.join()


def test_a_replaced_certificate_is_for_new_callers_and_old_ones_stay(
    settings: TlsSettings, authority: Authority
) -> None:
    tls = Tls(settings)
    with serving(tls=tls) as served, connected(served, trusting(authority)) as before:
        assert common_name(before) == "server"
        for old, new in zip((settings.certificate, settings.key), authority.sign("renewed"), strict=True):
            shutil.copy(new, old)
        tls.refresh()
        with connected(served, trusting(authority)) as after:
            assert common_name(after) == "renewed"
        assert before.ask(get("/livez")).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_an_authority_that_is_gone_is_trusted_no_longer_not_even_by_a_session_of_before(
    settings: TlsSettings, authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """It was trusted until the worker was restarted: a context never forgets an authority."""
    (tmp_path / "gone").mkdir()
    gone = Authority(tmp_path / "gone", "gone")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(Path(gone.path).read_bytes() + Path(authority.path).read_bytes())
    tls = Tls(replace(settings, client_ca=str(trusted)))
    withdrawn, known = trusting(authority, gone.sign("withdrawn")), trusting(authority, authority.sign("client"))
    withdrawn.minimum_version = withdrawn.maximum_version = version
    with serving(tls=tls) as served:
        with connected(served, withdrawn) as before:
            assert before.ask(post_json(payment())).status == 200
            assert isinstance(before.raw, ssl.SSLSocket)
            session = before.raw.session
            assert session is not None
            shutil.copy(authority.path, trusted)
            assert tls.refresh()
            # This connection was made when its authority was trusted.
            assert before.ask(post_json(payment())).status == 200
        assert not is_served(served, withdrawn)
        assert not is_served(served, withdrawn, session)
        assert is_served(served, known)


def _of(folder: Path, name: str, *, days: int, begins_in_days: int) -> tuple[str, str]:
    (folder / name).mkdir()
    return Authority(folder / name, "authority", days=days, begins_in_days=begins_in_days).sign("server")


def _put(settings: TlsSettings, certificate: str, key: str) -> None:
    shutil.copy(certificate, settings.certificate)
    shutil.copy(key, settings.key)


UNUSABLE: dict[str, tuple[Callable[[TlsSettings, Authority, Path], object], str]] = {
    "half of a renewal": (
        lambda files, authority, _: shutil.copy(authority.sign("renewed")[0], files.certificate),
        "are no certificate with its key",
    ),
    "cut": (lambda files, *_: os.truncate(files.certificate, 300), "are no certificate with its key"),
    "empty": (lambda files, *_: os.truncate(files.key, 0), "are no certificate with its key"),
    "huge": (lambda files, *_: os.truncate(files.certificate, 1 << 40), "is larger than 1048576 bytes"),
    "expired": (
        lambda files, _, folder: _put(files, *_of(folder, "old", days=-1, begins_in_days=-1)),
        "server.pem: certificate has expired",
    ),
    "not valid yet": (
        lambda files, _, folder: _put(files, *_of(folder, "young", days=2, begins_in_days=1)),
        "server.pem: certificate is not yet valid",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_new_certificate_changes_nothing_and_is_one_line(
    settings: TlsSettings, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    tls = Tls(settings)
    caplog.set_level(logging.INFO)
    replace_files, why = UNUSABLE[what]
    with serving(tls=tls) as served:
        replace_files(settings, authority, tmp_path)
        assert [tls.refresh() for _ in range(3)] == [False] * 3
        assert len(caplog.records) == 1
        assert why in caplog.text
        assert "the previous certificate stays in use" in caplog.text
        with connected(served, trusting(authority)) as client:
            assert common_name(client) == "server"
        _put(settings, *authority.sign("repaired"))
        assert tls.refresh()
        with connected(served, trusting(authority)) as client:
            assert common_name(client) == "repaired"


def test_a_withdrawn_authority_is_gone_though_the_certificate_has_expired(authority: Authority, tmp_path: Path) -> None:
    certificate, key = _of(tmp_path, "old", days=-1, begins_in_days=-1)
    trusted = tmp_path / "clients.pem"
    shutil.copy(authority.path, trusted)
    tls = Tls(TlsSettings(certificate=certificate, key=key, client_ca=str(trusted)))
    before = tls.context(HTTP_1_1)
    shutil.copy(Authority(tmp_path, "another").path, trusted)
    assert tls.refresh()
    assert tls.context(HTTP_1_1) is not before


def test_a_certificate_that_could_not_be_opened_once_is_read_again(
    settings: TlsSettings, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls = Tls(settings)
    with serving(tls=tls) as served:
        for new, old in zip(authority.sign("renewed"), (settings.certificate, settings.key), strict=True):
            shutil.copy(new, old)
        with no_descriptors():
            assert [tls.refresh() for _ in range(3)] == [False] * 3
        assert len(caplog.records) == 1
        assert "Too many open files; the previous certificate stays in use" in caplog.text
        assert tls.refresh()
        with connected(served, trusting(authority)) as client:
            assert common_name(client) == "renewed"


def test_a_file_that_cannot_be_used_is_named(settings: TlsSettings, authority: Authority, tmp_path: Path) -> None:
    other_key = authority.sign("other")[1]
    garbage = tmp_path / "garbage"
    garbage.write_text("no certificate")
    for wrong, named in (
        (replace(settings, certificate=str(tmp_path / "none")), "certificate: cannot read .*none: No such file"),
        (replace(settings, key=str(tmp_path / "none")), "key: cannot read .*none"),
        (replace(settings, client_ca=str(tmp_path / "none")), "client_ca: cannot read .*none"),
        (replace(settings, key=other_key), "certificate: .*server.pem and .*other.key are no certificate with its key"),
        (replace(settings, certificate=str(garbage)), "certificate: .*garbage"),
        (replace(settings, client_ca=str(garbage)), "client_ca: .*garbage has no certificate"),
        (replace(settings, key=""), r"\[tls\] key: wanted a file"),
        (TlsSettings(client_ca=authority.path), r"\[tls\] certificate: wanted a file"),
    ):
        with pytest.raises(Misconfigured, match=named):
            Tls(wrong)
