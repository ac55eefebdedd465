"""Profiles: recorded in workers that run, kept as pprof files, shown as tables and in the browser.

```python
with CpuRecorder(pids) as recorder:
    ...
    write(Path("cpu.prof"), recorder.stop())
```
"""

from __future__ import annotations

from spool.profile.cpu import CpuRecorder
from spool.profile.files import read, write
from spool.profile.memory import MemoryRecorder, convert_memray
from spool.profile.model import CPU_TYPES, MEMORY_TYPES, Frame, Profile, Sample, merge

__all__ = [
    "CPU_TYPES",
    "MEMORY_TYPES",
    "CpuRecorder",
    "Frame",
    "MemoryRecorder",
    "Profile",
    "Sample",
    "convert_memray",
    "merge",
    "read",
    "write",
]
