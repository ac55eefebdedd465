"""The chaos harness."""
