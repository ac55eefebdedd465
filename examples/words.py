"""Count words with many processes: one job per chunk of text, in the worker's process pool, and one sum.

```sh
spool worker examples.words:app &
python -m examples.words README.md
```
"""

import asyncio
import sys
from collections import Counter
from pathlib import Path

from spool import Spool

app = Spool()


@app.task(queue="words", process=True)
def count(lines: list[str]) -> dict[str, int]:
    return Counter(word.strip(".,:;!?()`").lower() for line in lines for word in line.split())


async def main(lines: list[str]) -> None:
    handles = [await count.aenqueue(lines[start : start + 50]) for start in range(0, len(lines), 50)]
    total: Counter[str] = Counter()
    for each in await asyncio.gather(*(handle.aresult(timeout=60) for handle in handles)):
        total.update(each)
    for word, times in total.most_common(5):
        print(f"{times:5} {word}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_text().splitlines()))
