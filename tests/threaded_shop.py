"""An app whose import starts a thread, as some libraries do: its processes must not be forked."""

import threading

from tests.shop import add, app, where

__all__ = ["add", "app", "where"]

threading.Thread(target=threading.Event().wait, daemon=True).start()
