"""What a server is told: where it listens, whom it lets in, and how much of everything it takes."""

from __future__ import annotations

import ipaddress
from typing import Final

import msgspec

from spool.errors import ConfigError

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")


class Limits(msgspec.Struct, frozen=True):
    """How much a server takes before it says no. Times in seconds, sizes in bytes.

    ``body`` is for JSON; an `Operation` that takes more says so itself; ``bodies`` is for those of all requests
    together. ``headers`` counts names and values together. ``begin`` is how long the head of a request may take,
    ``receive`` its body, ``idle`` a connection between two requests, ``write`` a client that does not read.
    ``connections`` open ones at most (of more, those that have been idle the longest are closed), ``requests``
    under way at once, without those that only wait, ``waits`` that wait for results. ``rate`` is requests a second
    of one token, ``enqueue_rate`` the same for those that enqueue or work; 0 is no limit. ``failures`` a minute, of
    one address, to log in.
    """

    body: int = 1024 * 1024
    bodies: int = 512 * 1024 * 1024
    headers: int = 32 * 1024
    header_count: int = 100
    batch: int = 1000
    page: int = 1000
    begin: float = 10.0
    receive: float = 60.0
    idle: float = 15.0
    write: float = 30.0
    connections: int = 16_000
    requests: int = 2000
    waits: int = 1000
    rate: float = 2000.0
    enqueue_rate: float = 0.0
    failures: int = 10


class ServerSettings(msgspec.Struct, frozen=True):
    """Settings of one server. Raises `ConfigError` for an open door that nobody asked for.

    ``allowed_hosts`` are the names, without ports, under which it may be asked, besides those of loopback and
    ``host``; ``"*"`` allows any. ``origins`` are those of pages that may act with a session, besides its own, as
    ``https://spool.example.org``: for a proxy that ends TLS. ``trusted_proxy`` is the address of such a proxy, whose
    word on the client's address and scheme is taken. ``insecure`` allows to listen beyond this machine without
    authentication or TLS. ``session`` is how long a login lasts, ``audit_days`` how long the audit log is kept.

    >>> ServerSettings(host="0.0.0.0")
    Traceback (most recent call last):
    spool.errors.ConfigError: 0.0.0.0 can be reached from other machines, and there is no TLS: give certificate and \
key, or listen on 127.0.0.1; behind a proxy that ends TLS, or on a network that you trust, say --insecure
    """

    host: str = "127.0.0.1"
    port: int = 8080
    read_only: bool = False
    auth: bool = True
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    trusted_proxy: str = ""
    certificate: str = ""
    key: str = ""
    insecure: bool = False
    session: float = 12 * 3600.0
    audit_days: float = 30.0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("TLS needs both a certificate and a key")
        if self.insecure or self.local:
            return
        if not self.auth:
            raise ConfigError(
                f"{self.host} can be reached from other machines, and nobody would have to log in: leave out --no-auth,"
                " or listen on 127.0.0.1; if that is what you want, say --insecure"
            )
        if not self.certificate:
            raise ConfigError(
                f"{self.host} can be reached from other machines, and there is no TLS: give certificate and key, or "
                "listen on 127.0.0.1; behind a proxy that ends TLS, or on a network that you trust, say --insecure"
            )

    @property
    def local(self) -> bool:
        """Whether nobody but this machine can reach it."""
        return is_loopback(self.host)

    @property
    def hosts(self) -> frozenset[str]:
        """The names under which it may be asked, in lower case."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset(name.lower() for name in (*LOCAL_NAMES, own, *self.allowed_hosts))


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, and nobody else's.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("::1")
    (True, True, False, True)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
