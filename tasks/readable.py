"""Numbers as people write them."""

from __future__ import annotations

import math


def compact(value: float | None) -> str:
    """Three significant digits and a unit: 752B, 1.26M, 483, 0.0312."""
    if value is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return trimmed(value / size) + unit
    return trimmed(value)


def trimmed(value: float) -> str:
    """Three significant digits, without zeros at the end."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(value: float | None) -> str:
    """A share from 0 to 1 (or more) as a percentage: three significant digits, two below one percent, `<0.01 %` for less."""
    if value is None:
        return "–"
    if 0 < value < 1e-4:
        return "<0.01 %"
    return f"{value * 100:.2g} %" if 0 < value < 0.01 else f"{trimmed(100 * value)} %"


def duration(seconds: float | None) -> str:
    """`4.2s`, `3m 05s`, `2h 05m`, `3d 4h`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.2g}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours < 48 else f"{hours // 24}d {hours % 24}h"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "–"
    for unit_bytes, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * unit_bytes:
            return f"{trimmed(value / unit_bytes)} {unit}"
    return f"{value:.0f} B"
