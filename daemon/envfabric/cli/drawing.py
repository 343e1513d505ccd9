"""Pictures as plain SVG: columns over time, an area between two lines, bars of a ranking.

Colours come from the document's style, by class: light and dark are its business. Each picture has a title and a
description for those who don't see it. Knows nothing of what is drawn, and writes nothing.
"""

import html
import itertools
import math
from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 640, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 12, 12, 26
_ROW = 26
_LABEL = 170
"""Width of a ranking's names."""
_LABELS_MOST = 26

Series = Sequence[tuple[str, Sequence[float]]]
"""The class and the values of each series."""
Told = Callable[[float], str]

_numbers = itertools.count(1)


def columns(title: str, told: str, labels: Sequence[str], series: Series, unit: Told, base: int = 10) -> str:
    """A column for each label, a later series in front of an earlier one."""
    top = _top(max((max(values, default=0) for _, values in series), default=0), base)
    room = (WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    wide = max(2.0, min(40.0, room * 0.75))
    drawn = []
    for name, values in series:
        for n, value in enumerate(values):
            height = _scaled(value, top)
            if value > 0:
                x, y = _LEFT + (n + 0.5) * room - wide / 2, HEIGHT - _BOTTOM - height
                drawn.append(
                    f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{height:.1f}" rx="2">'
                    f"<title>{html.escape(f'{labels[n]}: {unit(value)}')}</title></rect>"
                )
    places = [_LEFT + (n + 0.5) * room for n in range(len(labels))]
    return _frame(title, told, HEIGHT, [*_scale(top, base, unit), *drawn, *_times(labels, places)])


def between(
    title: str, told: str, times: Sequence[float], labels: Sequence[str], series: Series, unit: Told
) -> str:
    """Two lines over time, and the area between them; `times` are seconds."""
    top = _top(max((max(values, default=0) for _, values in series), default=0), 1024)
    first, span = times[0], max(1e-9, times[-1] - times[0])
    places = [_LEFT + (WIDTH - _LEFT - _RIGHT) * (at - first) / span for at in times]
    if len(times) == 1:
        places = [_LEFT, float(WIDTH - _RIGHT)]
        series = [(name, [*values, *values]) for name, values in series]
        labels = [*labels, *labels]
    lines = [
        [
            (x, HEIGHT - _BOTTOM - _scaled(value, top))
            for x, value in zip(_steps(places), _steps_of(values), strict=True)
        ]
        for _, values in series
    ]
    around = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*lines[0], *reversed(lines[1])))
    drawn = [f'<polygon class="between" points="{around}"/>']
    for (name, _), line in zip(series, lines, strict=True):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        drawn.append(f'<polyline class="{name} line" points="{points}"/>')
    return _frame(title, told, HEIGHT, [*_scale(top, 1024, unit), *drawn, *_times(labels, places)])


def ranking(title: str, told: str, rows: Sequence[tuple[str, float]], name: str, unit: Told) -> str:
    """A bar for each row, in the order given."""
    top = max((value for _, value in rows), default=0) or 1
    drawn = []
    for n, (label, value) in enumerate(rows):
        y = n * _ROW + 4
        wide = max(2.0, (WIDTH - _LABEL - 90) * value / top)
        short = label if len(label) <= _LABELS_MOST else f"…{label[-_LABELS_MOST + 1 :]}"
        drawn += [
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{html.escape(short)}'
            f"<title>{html.escape(label)}</title></text>",
            f'<rect class="{name}" x="{_LABEL}" y="{y}" width="{wide:.1f}" height="{_ROW - 7}" rx="2"/>',
            f'<text x="{_LABEL + wide + 6:.1f}" y="{y + 14}">{html.escape(unit(value))}</text>',
        ]
    return _frame(title, told, len(rows) * _ROW + 6, drawn)


def _frame(title: str, told: str, height: int, drawn: Sequence[str]) -> str:
    number = next(_numbers)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t{number} d{number}">'
        f'<title id="t{number}">{html.escape(title)}</title><desc id="d{number}">{html.escape(told)}</desc>'
        f"{''.join(drawn)}</svg>"
    )


def _scaled(value: float, top: float) -> float:
    return (HEIGHT - _TOP - _BOTTOM) * value / top


def _steps(places: Sequence[float]) -> list[float]:
    """A store stays as it is until it changes: each value holds up to the next place."""
    return [places[0], *(x for place in places[1:] for x in (place, place))]


def _steps_of(values: Sequence[float]) -> list[float]:
    return [*(y for value in values[:-1] for y in (value, value)), values[-1]]


def _step(top: float, base: int) -> float:
    """A round step for about four lines up to `top`."""
    unit = 1024.0 ** int(math.log(top, 1024)) if base == 1024 and top >= 1024 else 1.0
    raw = top / unit / 4
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    return unit * power * next(one for one in (1, 2, 2.5, 5, 10) if one * power >= raw * 0.999)


def _top(highest: float, base: int) -> float:
    if highest <= 0:
        return 1.0
    step = _step(highest, base)
    return step * math.ceil(highest / step - 1e-9)


def _scale(top: float, base: int, unit: Told) -> list[str]:
    step = _step(top, base)
    drawn = []
    for n in range(round(top / step) + 1):
        y = HEIGHT - _BOTTOM - _scaled(n * step, top)
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        mark = html.escape(unit(n * step).replace(".0 ", " "))
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark}</text>')
    return drawn


def _times(labels: Sequence[str], places: Sequence[float]) -> list[str]:
    """As many labels as have room below the picture."""
    drawn, end = [], -math.inf
    for label, x in zip(labels, places, strict=True):
        half = 3.4 * len(label)
        middle = min(max(x, half), WIDTH - half)
        if middle - half >= end + 10:
            end = middle + half
            drawn.append(
                f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(label)}</text>'
            )
    return drawn
