"""Bytes and durations as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.units import GIB, KIB, MIB, format_bytes, format_duration


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536.4, "1.5 KiB"),
        (98_362_432, "93.8 MiB"),
        (5 * GIB, "5.0 GiB"),
        (2048 * GIB, "2.0 TiB"),
        (5_000_000 * GIB, "4882.8 TiB"),
        (-2048, "-2.0 KiB"),
        (MIB - 1, "1.0 MiB"),
        (GIB - 1, "1.0 GiB"),
        (KIB * KIB * KIB * KIB - 1, "1.0 TiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(min_value=0, max_value=2**62))
def test_bytes_are_short(count: int) -> None:
    number, unit = format_bytes(count).split()
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB")
    assert float(number) < 1024 or unit == "TiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (42, "42s"),
        (59.4, "59s"),
        (59.5, "1m00s"),
        (190, "3m10s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (360_000, "100h00m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
