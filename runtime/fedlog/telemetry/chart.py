"""Charts as inline SVG: lines, and stacked bars, over the rounds of a run.

Colours are classes (`c0` … `c6`) that the page's style defines, so that a chart follows the page
into the dark. Sizes suit a phone's width; on a wide screen two charts stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fedlog.telemetry.figures import figure

WIDTH, HEIGHT = 460, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 18, 24, 34
MAX_MARKERS = 60
"""Lines of more points have no dots."""
MAX_BARS = 120
"""Bars of more rounds have no gaps."""
THIN = 200
"""Lines of more points are thin."""
MAX_HINTS = 400
"""Charts of more rounds do not tell their values on hovering; the table does."""


@dataclass(frozen=True)
class Series:
    """One line or one layer of bars: a name, a colour class, and (round, value) points by round."""

    name: str
    colour: str
    points: Sequence[tuple[int, float]]
    dashed: bool = False

    @property
    def last(self) -> str:
        """The last value, for the legend."""
        return _written(self.points[-1][1])


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels; `ticks` are the round numbers within."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def labels(self) -> list[tuple[float, str]]:
        """Pixel and text of each tick, with as many digits as tell the ticks apart."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        largest = max(abs(tick) for tick in self.ticks)
        digits = 0  # as many as the step has: 0.25 needs two, 2.5 one
        while digits < 5 and abs(step * 10**digits - round(step * 10**digits)) > 1e-6 * step:
            digits += 1
        if largest >= 1e5 or digits > 4:
            significant = max(3, math.ceil(math.log10(largest / step)) + 1)
            return [(self(tick), f"{tick:.{significant}g}") for tick in self.ticks]
        return [(self(tick), f"{tick:.{digits}f}") for tick in self.ticks]


def line_chart(series: Sequence[Series], *, unit: str, from_zero: bool = False) -> Markup:
    """Lines over rounds. `unit` names the vertical axis. Needs at least one point."""
    values = [value for line in series for _, value in line.points]
    rounds = sorted({number for line in series for number, _ in line.points})
    x = _round_scale(rounds, padding=0.0)
    y = _value_scale(min([0.0, *values] if from_zero else values), max(values))
    marks = []
    for line in series:
        places = [(x(number), y(value)) for number, value in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        style = (" dashed" if line.dashed else "") + (" thin" if len(places) > THIN else "")
        marks.append(f'<polyline class="line {line.colour}{style}" points="{path}"/>')
        if len(places) <= MAX_MARKERS:
            radius = 4.0 if len(places) < 4 else 2.6  # few points must be seen without a line
            marks += [
                f'<circle class="dot {line.colour}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>'
                for px, py in places
            ]
    return _frame(x, y, marks, _hints(x, rounds, series), unit=unit, described=series)


def bar_chart(layers: Sequence[Series], *, unit: str, outline: Series | None = None) -> Markup:
    """Bars over rounds, the layers stacked in their order; `outline` is drawn as a line of steps.

    Every layer has a point for every round.
    """
    rounds = [number for number, _ in layers[0].points]
    tops = [sum(layer.points[i][1] for layer in layers) for i in range(len(rounds))]
    over = [] if outline is None else [value for _, value in outline.points]
    x = _round_scale(rounds, padding=0.5)
    y = _value_scale(0.0, max([1.0, *tops, *over]))
    marks = []
    below = [0.0] * len(rounds)
    for layer in layers:
        above = [low + value for low, (_, value) in zip(below, layer.points, strict=True)]
        shape = _bars if len(rounds) <= MAX_BARS else _area
        marks.append(f'<path class="bar {layer.colour}" d="{shape(x, y, rounds, below, above)}"/>')
        below = above
    everything = list(layers)
    if outline is not None:
        steps = "".join(
            f"{'M' if i == 0 else 'L'}{x(number - 0.5):.1f} {y(value):.1f}H{x(number + 0.5):.1f}"
            for i, (number, value) in enumerate(outline.points)
        )
        marks.append(f'<path class="line {outline.colour} dashed" d="{steps}"/>')
        everything.insert(0, outline)
    return _frame(x, y, marks, _hints(x, rounds, everything), unit=unit, described=everything)


def _bars(
    x: Scale, y: Scale, rounds: Sequence[int], below: Sequence[float], above: Sequence[float]
) -> str:
    width = min((x(rounds[0] + 1) - x(rounds[0])) * 0.72, 34.0)
    return "".join(
        f"M{x(number) - width / 2:.1f} {y(low):.1f}V{y(high):.1f}h{width:.2f}V{y(low):.1f}z"
        for number, low, high in zip(rounds, below, above, strict=True)
        if high > low
    )


def _area(
    x: Scale, y: Scale, rounds: Sequence[int], below: Sequence[float], above: Sequence[float]
) -> str:
    """The outline of bars without gaps: bars of less than a pixel would shimmer."""
    there = [f"V{y(high):.1f}H{x(n + 0.5):.1f}" for n, high in zip(rounds, above, strict=True)]
    back = [f"V{y(low):.1f}H{x(n - 0.5):.1f}" for n, low in zip(rounds, below, strict=True)]
    start = f"M{x(rounds[0] - 0.5):.1f} {y(below[0]):.1f}"
    return start + "".join(there) + "".join(reversed(back)) + "z"


def nice_ticks(low: float, high: float, most: int, *, whole: bool = False) -> tuple[float, ...]:
    """Round numbers within [low, high], at most `most`, at steps of 1, 2, 2.5 or 5 times 10^k."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1.0, 2.0, 5.0, 10.0) if whole else (1.0, 2.0, 2.5, 5.0, 10.0)
    step = next(f * power for f in factors if f * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(n * step for n in range(first, last + 1))


def _round_scale(rounds: Sequence[int], *, padding: float) -> Scale:
    first, last = rounds[0], rounds[-1]
    if first == last:
        padding = 0.5
    low, high = first - padding, last + padding
    whole = last - first
    ticks = nice_ticks(first, last, 8, whole=True) if whole else (float(first),)
    return Scale(low, high, _LEFT + 4, WIDTH - _RIGHT - 4, ticks)


def _value_scale(low: float, high: float) -> Scale:
    """From a round number below to one above; a level line gets room on both sides."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) * 0.1 or 1.0
        low, high = (0.0, high + room) if low == 0 else (low - room, high + room)
    ticks = nice_ticks(low, high, 5)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    low = math.floor(low / step + 1e-9) * step
    high = math.ceil(high / step - 1e-9) * step
    return Scale(low, high, HEIGHT - _BOTTOM, _TOP, nice_ticks(low, high, 7))


def _hints(x: Scale, rounds: Sequence[int], series: Sequence[Series]) -> list[str]:
    """One invisible column per round, whose title the browser shows on hovering."""
    if len(rounds) > MAX_HINTS:
        return []
    known = [(line.name, dict(line.points)) for line in series]
    hints = []
    for i, number in enumerate(rounds):
        before = rounds[i - 1] if i else number - 1
        after = rounds[i + 1] if i + 1 < len(rounds) else number + 1
        left = max(x.start, x((before + number) / 2))
        right = min(x.end, x((number + after) / 2))
        values = [f"{name} {_written(by[number])}" for name, by in known if number in by]
        title = escape("\n".join([f"round {number}", *values]))
        hints.append(
            f'<rect class="hint" x="{left:.1f}" y="{_TOP}" width="{max(0.5, right - left):.1f}" '
            f'height="{HEIGHT - _TOP - _BOTTOM}"><title>{title}</title></rect>'
        )
    return hints


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else figure(value)


def _frame(
    x: Scale,
    y: Scale,
    marks: list[str],
    hints: list[str],
    *,
    unit: str,
    described: Sequence[Series],
) -> Markup:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    spoken = escape(", ".join(f"{line.name}: last {line.last}" for line in described))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(unit)} by round; {spoken}">'
    ]
    for place, text in y.labels():
        parts.append(f'<path class="grid" d="M{_LEFT} {place:.1f}H{right}"/>')
        parts.append(f'<text class="tick y" x="{_LEFT - 6}" y="{place + 4:.1f}">{text}</text>')
    for place, text in x.labels():
        parts.append(f'<path class="axis" d="M{place:.1f} {bottom}v4"/>')
        parts.append(f'<text class="tick x" x="{place:.1f}" y="{bottom + 16}">{text}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    parts += marks
    parts.append(f'<text class="unit" x="2" y="12">{escape(unit)}</text>')
    parts.append(f'<text class="unit end" x="{right}" y="{HEIGHT - 3}">round</text>')
    parts += hints
    parts.append("</svg>")
    return Markup("".join(parts))  # noqa: S704 - every text in it was escaped above
