"""The HTTP face of a broker: JSON API, authentication, and what is built on them.

`create_app` makes the ASGI application, `spool.server.serve` runs it. `spool.server.routes` says how a route is
written; every route is one entry of a table, from which the routing, the checks and the OpenAPI document are made.

Needs the extra ``server``: ``pip install 'spool-queue[server]'``.
"""

from __future__ import annotations

try:
    from spool.server.app import App, create_app
except ModuleNotFoundError as error:
    if error.name != "starlette":
        raise
    raise ModuleNotFoundError(
        "spool.server needs the extra 'server': pip install 'spool-queue[server]'", name=error.name
    ) from error
from spool.server.settings import Limits, ServerSettings

__all__ = ["App", "Limits", "ServerSettings", "create_app"]
