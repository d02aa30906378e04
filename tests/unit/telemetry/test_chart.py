from __future__ import annotations

import re

import pytest

from fedlog.telemetry.chart import HEIGHT, WIDTH, Scale, Series, bar_chart, line_chart, nice_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (0.62, 0.97, (0.7, 0.8, 0.9)),
        (-3.0, 3.0, (-2.0, 0.0, 2.0)),
        (0.0, 1e-6, (0.0, 2.5e-7, 5e-7, 7.5e-7, 1e-6)),
        (1e9, 3e9, (1e9, 1.5e9, 2e9, 2.5e9, 3e9)),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert nice_ticks(low, high, 5) == pytest.approx(ticks)


@pytest.mark.parametrize(("first", "last"), [(1, 2), (1, 10), (3, 40), (1, 1000), (0, 99_999)])
def test_ticks_of_rounds_are_whole_and_few(first: int, last: int) -> None:
    ticks = nice_ticks(first, last, 8, whole=True)
    assert all(tick == int(tick) and first <= tick <= last for tick in ticks)
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ((0.0, 0.25, 0.5), ["0.00", "0.25", "0.50"]),
        ((0.0, 2.5, 5.0), ["0.0", "2.5", "5.0"]),
        ((0.0, 20.0, 40.0), ["0", "20", "40"]),
        ((0.0, 1e-7, 2e-7), ["0", "1e-07", "2e-07"]),
        ((0.0, 1e6, 2e6), ["0", "1e+06", "2e+06"]),
        ((1e6, 1e6 + 1, 1e6 + 2), ["1000000", "1000001", "1000002"]),
    ],
)
def test_labels_tell_the_ticks_apart(ticks: tuple[float, ...], labels: list[str]) -> None:
    scale = Scale(ticks[0], ticks[-1], 0, 100, ticks)
    assert [text for _, text in scale.labels()] == labels


def coordinates(svg: str) -> list[tuple[float, float]]:
    (points,) = re.findall(r'<polyline [^>]*points="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def test_better_is_higher_and_later_is_further_right() -> None:
    svg = line_chart([Series("a", "c0", [(1, 0.1), (2, 0.5), (4, 0.3)])], unit="accuracy")
    (x1, y1), (x2, y2), (x4, y4) = coordinates(svg)
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y2 < y4 < y1  # pixels count downwards


@pytest.mark.parametrize(
    "points",
    [
        [(1, 0.5)],
        [(7, 0.0)],
        [(1, 0.5), (2, 0.5)],
        [(1, -1e12), (2, 1e12)],
        [(1, 1e-300), (2, 0.0)],
        [(1, 1.0), (2, 1.0 + 1e-15)],
        [(n, (n % 7) / 7) for n in range(1, 1001)],
    ],
    ids=["one", "one zero", "level", "huge", "tiny", "almost level", "thousand"],
)
def test_every_point_is_inside(points: list[tuple[int, float]]) -> None:
    places = coordinates(line_chart([Series("a", "c0", points)], unit="x"))
    assert len(places) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_bars_are_stacked() -> None:
    layers = [Series("on time", "c0", [(1, 3), (2, 4)]), Series("late", "c1", [(1, 1), (2, 0)])]
    svg = bar_chart(layers, unit="clients")
    first, second = re.findall(r'<path class="bar c\d" d="([^"]*)"', svg)
    bars = re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", first)
    assert len(bars) == 2
    ((bottom, top),) = re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", second)
    assert bottom == bars[0][1]  # late stands on on-time
    assert float(bottom) - float(top) == pytest.approx(
        (float(bars[0][0]) - float(bars[0][1])) / 3, abs=0.2
    )


@pytest.mark.parametrize("rounds", [1, 120, 121, 1000])
def test_all_rounds_have_their_bar(rounds: int) -> None:
    points = [(n, n % 5 + 1) for n in range(1, rounds + 1)]
    svg = bar_chart([Series("a", "c0", points)], unit="clients", outline=Series("b", "c1", points))
    (path,) = re.findall(r'<path class="bar c0" d="([^"]*)"', svg)
    assert path.count("V") == 2 * rounds


def test_names_are_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    svg = line_chart([Series(hostile, "c0", [(1, 0.5)])], unit=hostile)
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg
