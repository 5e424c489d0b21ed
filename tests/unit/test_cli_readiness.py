"""What doctor makes of a host's readiness."""

from __future__ import annotations

from typing import Any

import pytest
from modelfleet.cli.doctor import readiness_checks


def told(**changed: Any) -> dict[str, Any]:
    """Return one check as the readiness carries it."""
    return {
        "id": "MF-MEM-001",
        "title": "main memory",
        "status": "fail",
        "measured": "8 GiB",
        "required": "16 GB",
        "cure": "add memory",
        **changed,
    }


def test_hardware_below_a_profile_warns() -> None:
    (check,) = readiness_checks({"checks": [told()]}, "ws01")
    assert (check.id, check.host, check.status, check.cure) == ("MF-MEM-001", "ws01", "warn", "add memory")
    assert check.title == "MF-MEM-001 main memory"
    assert check.measured == "8 GiB (wanted: 16 GB)"


def test_a_fault_of_the_driver_fails() -> None:
    (check,) = readiness_checks({"checks": [told(id="MF-DRV-003", required="")]}, "ws01")
    assert (check.status, check.measured) == ("fail", "8 GiB")


def test_what_passes_is_left_out() -> None:
    assert list(readiness_checks({"checks": [told(status="pass")]}, "ws01")) == []


@pytest.mark.parametrize("readiness", [None, "text", {}, {"checks": None}, {"checks": ["text", {}]}])
def test_what_is_no_readiness_gives_no_rows(readiness: Any) -> None:
    assert list(readiness_checks(readiness, "ws01")) == []
