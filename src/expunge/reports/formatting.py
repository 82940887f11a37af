"""Numbers as readers see them. A missing number is "n/a", never 0."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

__all__ = [
    "NA",
    "amount",
    "byte_size",
    "duration",
    "interval",
    "moment",
    "number",
    "operations",
    "printable",
    "setting",
    "shorten",
    "signed",
]

NA = "n/a"
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None) -> str:
    """Three decimals below 10, fewer above; tiny and huge numbers as powers of ten.

    >>> number(0.41234), number(-3.0), number(1234.5), number(2.5e-7), number(None)
    ('0.412', '−3.000', '1,234', '2.5e−7', 'n/a')
    """
    if value is None:
        return NA
    if math.isnan(value):
        return "NaN"
    size = abs(value)
    if math.isinf(value):
        text = "∞"
    elif size != 0 and (size < 5e-4 or size >= 1e7):
        mantissa, exponent = f"{size:.1e}".split("e")
        text = f"{mantissa}e{'−' if int(exponent) < 0 else ''}{abs(int(exponent))}"
    elif size < 10:
        text = f"{size:.3f}"
    elif size < 1000:
        text = f"{size:.1f}"
    else:
        text = f"{size:,.0f}"
    return f"−{text}" if value < 0 else text


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval in brackets, or nothing.

    >>> interval(0.1, 0.25), interval(None, 0.2)
    ('[0.100, 0.250]', '')
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low)}, {number(high)}]"


def signed(value: float | None) -> str:
    """A difference with its sign.

    >>> signed(0.25), signed(-0.1)
    ('+0.250', '−0.100')
    """
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def amount(value: int | None) -> str:
    return NA if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """Two units at most.

    >>> duration(0.042), duration(75), duration(7384)
    ('0.042 s', '1 min 15 s', '2 h 03 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return NA
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def byte_size(count: float | None) -> str:
    """
    >>> byte_size(1_500_000), byte_size(12)
    ('1.5 MB', '12 B')
    """
    return _scaled(count, "B")


def operations(count: float | None) -> str:
    """
    >>> operations(3.14e12)
    '3.1 TFLOP'
    """
    return _scaled(count, "FLOP")


def _scaled(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return NA
    for scale, prefix in _SCALES:
        if value >= scale:
            return f"{value / scale:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def moment(iso: str) -> str:
    """
    >>> moment("2025-11-03T14:22:10Z")
    '3 November 2025, 14:22 UTC'
    """
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}, {when:%H:%M} UTC"


def setting(value: Any) -> str:
    """One setting as text: `{"lr": 0.001, "steps": [5, 10]}` → `lr 0.001, steps 5/10`.

    >>> setting({"lr": 0.001, "steps": [5, 10], "bits": None})
    'lr 0.001, steps 5/10'
    """
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return "/".join(setting(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def printable(text: str) -> str:
    r"""Text that cannot steer a terminal: control characters become a mark.

    >>> printable("a\x1b[31mb\tc\n")
    'a�[31mb\tc\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def shorten(text: str, limit: int = 300) -> str:
    """
    >>> shorten("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"
