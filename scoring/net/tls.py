"""TLS for the fronts: certificate, key and optional client certificates, loaded again when the files change.

1. `refresh` makes new SSL contexts when the files have changed. A context that files are loaded into again would go on
   trusting authorities that are gone from `client_ca`, and taking up sessions of callers that they have vouched for.
2. Each new connection takes the newest context. Open connections keep theirs: their callers are trusted until the end.
3. Files that cannot be used change nothing, and neither does a certificate that every caller would refuse because of
   its dates. The contexts are made at once, so that a worker that starts while the files are unusable has some.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import file_state, open_regular
from paywarden.schemas.settings import internal

_log = logging.getLogger(__name__)

HTTP_1_1 = "http/1.1"
HTTP_2 = "h2"
# OpenSSL would read a larger file to its end while payments wait. All public authorities together have 200 kB.
_FILE_BYTES_MAX = 1 << 20
# Of X509_verify_cert (OpenSSL): the certificate is not valid yet, and not any more.
_NOT_YET_VALID, _EXPIRED = 9, 10


@dataclass(frozen=True)
class TlsSettings:
    """PEM files. Without `certificate` there is no TLS. With `client_ca` callers must show one, too (mTLS)."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    # From the connection to the end of the handshake.
    handshake_timeout_ms: int = internal(5_000)
    # On each port of a worker. Beyond that, a new handshake ends the oldest one.
    handshakes_max: int = internal(256)


def check_settings(settings: TlsSettings) -> None:
    """Raise Misconfigured when settings that ask for TLS are incomplete. Reads no file."""
    if not settings.certificate or not settings.key:
        raise Misconfigured(f"[tls] {'key' if settings.certificate else 'certificate'}: wanted a file")


class Tls:
    """The SSL contexts of a worker's fronts."""

    def __init__(self, settings: TlsSettings) -> None:
        """Raises Misconfigured naming the file that cannot be used."""
        check_settings(settings)
        self.settings = settings
        # Why the files as they are now are not in use, and whether the same files may be usable later.
        self._problem, self._is_tried_again = "", False
        self._state = self._used = [file_state(path) for path in self._files]
        self._contexts = self._made()

    @property
    def _files(self) -> Sequence[str]:
        settings = self.settings
        return [path for path in (settings.certificate, settings.key, settings.client_ca) if path]

    def context(self, protocol: str) -> ssl.SSLContext:
        """Returns the server context for the next connection. It offers `HTTP_1_1` or `HTTP_2` by ALPN."""
        return self._contexts[protocol]

    def _made(self) -> dict[str, ssl.SSLContext]:
        contexts = {}
        for protocol in (HTTP_1_1, HTTP_2):
            contexts[protocol] = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols([protocol])
            if self.settings.client_ca:
                context.verify_mode = ssl.CERT_REQUIRED
            _load(self.settings, context)
        return contexts

    def refresh(self) -> bool:
        """Load files that have changed. If they cannot be used, log one line and keep the old ones.

        Files that could not be read, for want of a file descriptor say, or whose time is to come, are tried again at
        each call. Returns whether the certificate in use is that of the files.
        """
        state = [file_state(path) for path in self._files]
        is_new = state != self._state
        if not (is_new or self._is_tried_again):
            return not self._problem
        # Noted even if the content cannot be used, so that the log has one line per change.
        self._state = state
        try:
            contexts = self._made()
            if state[:2] != self._used[:2]:
                _require_in_time(self.settings.certificate, contexts[HTTP_1_1])
        except Misconfigured as error:
            self._is_tried_again = _may_pass(error.__cause__)
            if is_new or str(error) != self._problem:
                _log.error("%s; the previous certificate stays in use", error)
            self._problem = str(error)
            return False
        self._contexts, self._used = contexts, state
        self._problem, self._is_tried_again = "", False
        _log.info("the certificate in %s has changed", self.settings.certificate)
        return True


def _may_pass(cause: BaseException | None) -> bool:
    """Whether a problem may pass without a change of the files."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_code == _NOT_YET_VALID
    return isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError)


def _require_in_time(certificate: str, context: ssl.SSLContext) -> None:
    """Raise Misconfigured if a caller that trusts the certificate of a context would refuse it because of its dates."""
    caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    caller.check_hostname = False
    caller.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    caller.load_verify_locations(certificate)
    to_us, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = context.wrap_bio(to_us, to_caller, server_side=True), caller.wrap_bio(to_caller, to_us)
    try:
        for side in (theirs, ours, theirs):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
            raise Misconfigured(f"[tls] certificate: {certificate}: {error.verify_message}") from error


def _load(settings: TlsSettings, context: ssl.SSLContext) -> None:
    for name, path in (("certificate", settings.certificate), ("key", settings.key), ("client_ca", settings.client_ca)):
        _require_readable(name, path)
    try:
        # Without this, OpenSSL would ask on the terminal for the password of an encrypted key.
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except (ssl.SSLError, OSError) as error:
        raise Misconfigured(
            f"[tls] certificate: {settings.certificate} and {settings.key} are no certificate with its key: "
            f"{_reason(error)}"
        ) from error
    if settings.client_ca:
        try:
            context.load_verify_locations(settings.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise Misconfigured(
                f"[tls] client_ca: {settings.client_ca} has no certificate: {_reason(error)}"
            ) from error


def _require_readable(name: str, path: str) -> None:
    if not path:
        return
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Misconfigured(f"[tls] {name}: cannot read {path}: {error.strerror}") from error
    if size > _FILE_BYTES_MAX:
        raise Misconfigured(f"[tls] {name}: {path} is larger than {_FILE_BYTES_MAX} bytes")


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
