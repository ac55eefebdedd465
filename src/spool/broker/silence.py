"""What an error says of the leases that a store keeps."""

from __future__ import annotations

import errno
from typing import Final

from spool.errors import BrokerUnavailable

_UNREACHABLE: Final = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}


def is_silence(error: BaseException) -> bool:
    """Tell silence from an answer: a store that refuses us, or is loading, has not given our jobs to others.

    Silence is a time-out or a host that cannot be reached, since there may be a healthy store beyond a broken network;
    and a server in front of the store that cannot be reached, in whatever way (`BrokerUnavailable.silent`).
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, TimeoutError) or (isinstance(link, OSError) and link.errno in _UNREACHABLE):
            return True
        if isinstance(link, BrokerUnavailable) and link.silent:
            return True
        link = link.__cause__ or link.__context__
    return False
