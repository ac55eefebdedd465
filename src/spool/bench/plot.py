"""The throughput of a scaling as text, by plotext."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from spool.bench.charts import of_scaling
from spool.bench.scale import Scaling

_ROWS = 20
_MARKS = 4
_MOST_COLUMNS = 110


def plot(found: Scaling, columns: int) -> str:
    """Return jobs per second against what was varied, so many columns wide, with the law if there is one.

    Raises `ImportError` if plotext is not installed.
    """
    library: Any = import_module("plotext")  # which says nothing of its types
    chart, figure = of_scaling(found)[0], library.figure
    figure.clear()
    figure.theme("colorless")
    figure.canvas("default")
    figure.plot_size(min(columns, _MOST_COLUMNS), _ROWS)
    figure.title(f"{chart.title}, {chart.y_label}")
    figure.label(chart.x_label)
    place = math.log10 if chart.x_scale == "log" else float
    top = 0.0
    for line in reversed(chart.lines):  # so that what was measured lies above the law
        points = [(place(x), y) for x, y in zip(chart.x, line.values, strict=True) if y is not None]
        top = max(top, *(y for _, y in points))
        signal = figure.signal(*map(list, zip(*points, strict=True)), marker="braille" if line.style == "law" else "●")
        figure.draw(signal.label(line.label) if len(chart.lines) > 1 else signal)
    figure.ruler("x").ticks(list(map(place, chart.x_ticks)), [f"{value:,.0f}" for value in chart.x_ticks])
    marks = _marks(top)
    figure.ruler("y").lim(0, max(top, marks[-1])).ticks(marks, [f"{mark:,.0f}" for mark in marks])
    text: str = library.uncolorize(str(figure.build()))
    return "\n".join(row.rstrip() for row in text.splitlines())


def _marks(top: float) -> list[float]:
    """Return round numbers from 0 up to the first that is no less.

    >>> _marks(7300.0)
    [0.0, 2000.0, 4000.0, 6000.0, 8000.0]
    """
    power = 10.0 ** math.floor(math.log10(max(top, 1.0) / _MARKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * _MARKS >= top)
    return [step * mark for mark in range(math.ceil(top / step) + 1)]
