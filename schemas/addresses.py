"""Addresses of the form host:port, as settings have them."""

from __future__ import annotations

_PORT_MAX = 65_535


def host_and_port(text: str, *, port_min: int = 1) -> tuple[str, int] | None:
    """Returns the parts of `10.0.0.7:9102`, `host:9102` or `[::1]:9102`, without brackets; None for another form."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not port_min <= int(port) <= _PORT_MAX:
        return None
    return host, int(port)
