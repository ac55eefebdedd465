"""One suite for every broker: each test takes a sentence of the contract in `spool.broker` at its word."""
