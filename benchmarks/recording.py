"""What recording metrics in band costs a worker: its drain against that of a build that records nothing, in turns.

```sh
python -m benchmarks.recording redis://127.0.0.1:6379/15
python -m benchmarks.recording none  # on SQLite
```

The builds are copies of the installed package, in environments of their own; in one of them a settle carries no metrics
and none are made. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.ab_truth import LOAD, environment, longer_by, rates
from spool.bench.ab import interleave
from spool.bench.sides import side

RECORDS = "metrics, meters = metrics_of(batch)"
RECORDS_NOTHING = 'metrics, meters = b"", ()'


def without_recording(path: Path) -> Path:
    """Make an environment whose workers record nothing."""
    (life,) = environment(path).glob("lib/python*/site-packages/spool/worker/life.py")
    source = life.read_text()
    if source.count(RECORDS) != 1:
        raise SystemExit(f"{life} does not have {RECORDS!r} once: what is to be left out?")
    life.write_text(source.replace(RECORDS, RECORDS_NOTHING))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a Redis, or none")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each side in a pair")
    arguments = parser.parse_args()
    url = None if arguments.url == "none" else arguments.url
    with tempfile.TemporaryDirectory(prefix="spool-recording-") as directory:
        none = side("base", str(without_recording(Path(directory, "none"))), url)
        records = side("this", str(environment(Path(directory, "records"))), url)
        pairs = arguments.pairs
        found = interleave(none, records, LOAD, seconds=arguments.seconds, pairs=pairs, most=pairs)
    longer, error = longer_by(*rates(found), found.turns)
    result = {"pairs": found.pairs, "turns": found.turns, "base": found.headline.before, "this": found.headline.after}
    print(json.dumps(result | {"jobs_take_longer_by": round(longer, 4), "standard_error": round(error, 4)}, indent=2))


if __name__ == "__main__":
    main()
