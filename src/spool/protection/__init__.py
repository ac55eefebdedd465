"""Signing and encryption of jobs, for stores that others can write to or read.

Both are a broker around the broker (`Protected`): jobs are sealed on their way into the store, by whoever enqueues, and
opened on their way out, by workers; results and errors the other way round. Whatever broker it is, also one behind
http://, and the store itself know nothing of it.

A signature covers the whole record of a job (task, arguments, options, priority, headers) with its queue and id. The
record never changes, so a job that is retried or replayed keeps its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from spool.broker import Broker
from spool.errors import ConfigError
from spool.protection.encryption import AesGcm, Encryption
from spool.protection.keys import Keys, from_environment, switch
from spool.protection.signing import Signing

__all__ = ["AesGcm", "Encryption", "Protection", "Signing"]

T = TypeVar("T")

SIGNING_KEYS = "SPOOL_SIGNING_KEYS"
ACCEPT_UNSIGNED = "SPOOL_ACCEPT_UNSIGNED"
ENCRYPTION_KEYS = "SPOOL_ENCRYPTION_KEYS"


class Protection:
    """What an app signs and encrypts with; where it was given nothing, the environment decides when it connects.

    Raises `ConfigError` for what is neither.
    """

    def __init__(self, signing: object = None, encryption: object = None) -> None:
        if signing is not None and not isinstance(signing, Signing):
            raise ConfigError(f"signing takes a Signing, as Signing({{'2026-02': key}}), not {type(signing).__name__}")
        wanted: Any = encryption
        if wanted is not None and not (
            callable(getattr(wanted, "encrypt", None)) and callable(getattr(wanted, "decrypt", None))
        ):
            raise ConfigError(
                "encryption takes something with encrypt and decrypt, as AesGcm({'2026-02': key}), "
                f"not {type(encryption).__name__}"
            )
        self._signing = signing
        self._encryption: Encryption | None = wanted

    def around(self, broker: Broker) -> Broker:
        """Return the broker with what protects it; as it is if nothing does, or if it is protected already.

        Raises `ConfigError` for keys in the environment that cannot be used.
        """
        signing, encryption = self._signing or _signing(), self._encryption or _encryption()
        if signing is None and encryption is None:
            return broker
        from spool.protection.broker import Protected
        from spool.protection.envelope import Envelope

        return broker if isinstance(broker, Protected) else Protected(broker, Envelope(signing, encryption))


def _signing() -> Signing | None:
    accept_unsigned = switch(ACCEPT_UNSIGNED)
    signing = _made(SIGNING_KEYS, partial(Signing, accept_unsigned=accept_unsigned))
    if signing is None and accept_unsigned:
        raise ConfigError(f"{ACCEPT_UNSIGNED} says something only with {SIGNING_KEYS}")
    return signing


def _encryption() -> Encryption | None:
    return _made(ENCRYPTION_KEYS, AesGcm)


def _made(name: str, kind: Callable[[Keys], T]) -> T | None:
    keys = from_environment(name)
    try:
        return None if keys is None else kind(keys)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
