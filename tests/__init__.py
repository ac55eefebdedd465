"""Tests. A regular package, so that no other `tests` on the path can shadow its helpers."""
