"""How figures are written for people, on a terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedlog.telemetry.status import Metrics, TestSetName

TEST_SETS: dict[TestSetName, str] = {"HeldOut": "held out", "Clients": "clients' data"}
"""Test sets in words, the more telling one first."""
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_BARS = "▁▂▃▄▅▆▇█"


def size(count: float) -> str:
    """Bytes in decimal units, as disks and networks have them: 1.2 MB."""
    unit = 0
    while count >= 999.5 and unit < len(_SIZES) - 1:
        count /= 1000
        unit += 1
    digits = 0 if unit == 0 or count >= 99.5 else 1
    return f"{count:.{digits}f} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """Seconds as 0.03 s, 2.1 s, 15 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 0.0995:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def figure(value: float) -> str:
    """A metric: three digits where it is near one, else as short as it can be."""
    if value == 0 or 0.0995 <= abs(value) < 9.995:
        return f"{value:.3f}"
    return f"{value:.3g}" if abs(value) < 999.5 or abs(value) >= 1e6 else f"{value:,.0f}"


def decisive(metrics: Mapping[TestSetName, object]) -> TestSetName | None:
    """The test set whose figures are shown where there is room for one."""
    return next((name for name in TEST_SETS if name in metrics), None)


def ordered(names: Sequence[str]) -> list[str]:
    """Names of metrics: accuracy and loss first, then as the alphabet has them."""
    first = [name for name in ("accuracy", "loss") if name in names]
    return first + sorted(set(names) - set(first))


def described(metrics: Metrics, test_set: TestSetName, *, most: int = 2) -> str:
    """`accuracy 0.931 (held out)  loss 0.23`: the first `most` figures."""
    names = ordered(list(metrics))[:most]
    parts = [f"{name} {figure(metrics[name])}" for name in names]
    if parts:
        parts[0] += f" ({TEST_SETS[test_set]})"
    return "  ".join(parts)


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in `width` characters or fewer; the last value is the last one."""
    if not values or width < 1:
        return ""
    if len(values) > width:
        last = len(values) - 1
        picked = [round(i * last / max(1, width - 1)) for i in range(width)]
        picked[-1] = last
        values = [values[i] for i in picked]
    low, high = min(values), max(values)
    if high == low:
        return _BARS[len(_BARS) // 2] * len(values)
    scale = (len(_BARS) - 1) / (high - low)
    return "".join(_BARS[round((value - low) * scale)] for value in values)
