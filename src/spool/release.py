"""Which release this is; apart from the public names, so that any module may ask."""

__version__ = "0.1.0"
