"""An app that cannot be imported."""

raise RuntimeError("the configuration is missing")
