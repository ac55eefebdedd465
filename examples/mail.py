"""Send mail in the background: retries with backoff, a delay, an id that makes a call idempotent.

```sh
spool worker examples.mail:app &
python -m examples.mail ada@example.org grace@example.org
```
"""

import sys

from spool import Backoff, Spool, current_job

app = Spool()  # SPOOL_URL, else sqlite:///spool.db


@app.task(queue="mail", retries=5, backoff=Backoff(base=0.1), timeout=30)
async def send(to: str, body: str) -> int:
    if "@" not in to:
        raise ValueError(f"{to!r} is no address")
    if current_job().attempt == 1:
        raise ConnectionError("the mail server is busy")  # it always is, at first
    return len(body)


def main(addresses: list[str]) -> None:
    ids = [f"welcome:{address.replace('@', ':')}" for address in addresses]
    handles = [send.options(id=id).enqueue(to, "Welcome!") for id, to in zip(ids, addresses, strict=True)]
    send.options(delay=0.5, priority="low").enqueue(addresses[0], "Still there?").result(timeout=30)
    for address, handle in zip(addresses, handles, strict=True):
        print(f"{address}: {handle.result(timeout=30)} bytes sent, after {handle.job().attempts} attempts")


if __name__ == "__main__":
    main(sys.argv[1:])
