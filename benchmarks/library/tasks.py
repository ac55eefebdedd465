"""What the jobs of the library benchmarks do: nothing, on the loop, in a thread, in a process."""

from __future__ import annotations

from spool import Spool

app = Spool("sqlite://:memory:")


@app.task
async def on_loop(data: str, number: int) -> dict[str, bool]:
    return {"processed": True}


@app.task
def in_thread(data: str, number: int) -> dict[str, bool]:
    return {"processed": True}


@app.task(process=True)
def in_process(data: str, number: int) -> dict[str, bool]:
    return {"processed": True}
