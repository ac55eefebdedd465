"""TLS as the options of a URL ask for it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

#: What a URL's query may say of it.
OPTIONS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
    }
)


def context_of(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the settings of a client. Raises `OSError` for files that cannot be read."""
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    required = str(options.get("ssl_cert_reqs", "required")).lower()
    context.check_hostname = required != "none" and str(options.get("ssl_check_hostname", True)).lower() != "false"
    context.verify_mode = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL}.get(required, ssl.CERT_REQUIRED)
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
    return context
