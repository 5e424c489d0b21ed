"""Captures: what a live machine writes, what is masked in it, and every form that a replay reads."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import HardwareOutputError
from modelfleet.core.hardware import capture as capturing
from modelfleet.core.hardware.capture import Masker, capture, only_driver_packages, only_mounts_of, reduced
from modelfleet.core.hardware.probe import probe, probe_sources
from modelfleet.core.hardware.profile import profile_to_dict
from modelfleet.core.hardware.replay import RecordedSources, open_record
from modelfleet.core.hardware.sources import CommandResult

TIME = "2026-01-31T12:00:00Z"
LIVE_ONLY = ("probed_at", "python", "account", "unknown")


def replayed(document: Any) -> dict[str, Any]:
    """Return the profile of a capture that has been through JSON."""
    return profile_to_dict(probe_sources("/opt/models", RecordedSources(json.loads(json.dumps(document)))))


def test_a_file_system_that_hangs_does_not_hang_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    back = threading.Event()

    def hang(path: str) -> None:
        back.wait(60)
        raise OSError

    monkeypatch.setattr("os.statvfs", hang)
    monkeypatch.setattr("modelfleet.core.hardware.sources.VOLUME_TIMEOUT_SECONDS", 0.2)
    try:
        profile = profile_to_dict(probe("/opt/models"))
    finally:
        back.set()
    assert profile["storage"]["free_bytes"] is None
    assert profile["unknown"]["storage.free_bytes"] == "/opt/models: its file system does not answer within 0.2 s"


def test_a_capture_of_this_machine_replays_to_its_profile() -> None:
    live = profile_to_dict(probe("/opt/models"))
    again = replayed(capture("/opt/models", TIME))
    for name in ("memory", "storage"):
        # These change from one moment to the next.
        for field in ("available_bytes", "free_bytes", "inodes_free"):
            live[name].pop(field, None)
            again[name].pop(field, None)
    live["os"].pop("boot_id")
    again["os"].pop("boot_id")
    assert {key: again[key] for key in again if key not in LIVE_ONLY} == {
        key: live[key] for key in live if key not in LIVE_ONLY
    }


def test_a_machine_with_a_gpu_replays_with_what_its_tools_said(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "GPU 0: NVIDIA L4 (UUID: GPU-12345678-1234-1234-1234-123456789abc)\n"

    def runner(arguments: Any, timeout: float) -> CommandResult:
        if tuple(arguments) == ("nvidia-smi", "-L"):
            return CommandResult("ok", listed, "", 0)
        return CommandResult("absent")

    monkeypatch.setattr("modelfleet.core.hardware.sources.run_command", runner)
    monkeypatch.setattr("modelfleet.core.hardware.probe.has_signs", lambda reader: True)
    monkeypatch.setattr("modelfleet.core.hardware.accelerators.has_signs", lambda reader: True)
    (gpu,) = replayed(capture("/opt/models", TIME))["accelerators"]
    assert (gpu["name"], gpu["uuid"]) == ("NVIDIA L4", "GPU-00000000-0000-0000-0000-000000000001")
    (gpu,) = replayed(capture("/opt/models", TIME, unmasked=True))["accelerators"]
    assert gpu["uuid"] == "GPU-12345678-1234-1234-1234-123456789abc"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("GPU-12345678-1234-1234-1234-123456789ABC", "GPU-00000000-0000-0000-0000-000000000001"),
        ("link/ether 3c:ec:ef:12:34:56", "link/ether 02:00:00:00:00:01"),
        ("addr=10.20.30.40,clientaddr=10.20.30.41", "addr=192.0.2.1,clientaddr=192.0.2.2"),
        ("fe80::3eec:efff:fe12:3456", "2001:db8::1"),
        ("127.0.0.1 ::1", "127.0.0.1 ::1"),
        ("<serial>1650522003820</serial>", "<serial>0000000000001</serial>"),
        ("<serial>N/A</serial>", "<serial>N/A</serial>"),
        ("<pdi>0x123456789a0bcdef</pdi>", "<pdi>0x0000000000000001</pdi>"),
        ('"Serial Number": "692024000810"', '"Serial Number": "000000000001"'),
        ('"Unique ID": "0x2f048617326b1ea"', '"Unique ID": "0x000000000000001"'),
        ("    Serial Number              : 1322320055555", "    Serial Number              : 0000000000001"),
        ("Serial\t\t: 10000000abcdef01", "Serial\t\t: 0000000000000001"),
        ('"serial_number" : "C02XX"', '"serial_number" : "masked-1"'),
        ("/home/ada/models", "/home/user/models"),
        (
            "10 1 0:50 / /srv rw - nfs4 nas.corp:/export rw,addr=10.0.0.1",
            "10 1 0:50 / /srv rw - nfs4 server:/share rw,addr=192.0.2.1",
        ),
        ("//nas/share /srv cifs rw,username=ada", "server:/share /srv cifs rw,username=masked"),
        ("/dev/mapper/gpu--box--7-root on gpu-box-7.corp", "/dev/mapper/masked-root on masked.corp"),
        ("0::/machine.slice/" + "0123456789abcdef" * 4, "0::/machine.slice/" + "0" * 64),
        # What must stay as it is.
        ("00000000:01:00.0 0000:c4:00.0 Mon 12:30:45", "00000000:01:00.0 0000:c4:00.0 Mon 12:30:45"),
        ("NVRM version: 535.54.03 CUDA 12.2", "NVRM version: 535.54.03 CUDA 12.2"),
        ("MemTotal:       24684092 kB", "MemTotal:       24684092 kB"),
    ],
)
def test_what_identifies_is_masked(text: str, masked: str) -> None:
    assert Masker(["gpu-box-7", "root", "pc"]).text(text) == masked


def test_the_same_thing_is_masked_alike_wherever_it_occurs() -> None:
    masker = Masker([])
    document = {"a": "1111aaaa-0000-0000-0000-000000000000", "b": ["2222aaaa-0000-0000-0000-000000000000"]}
    document["c"] = document["a"].upper()
    masked = masker.value(document)
    assert masked["a"] == masked["c"] != masked["b"][0]


def test_masking_twice_changes_nothing() -> None:
    once = Masker(["box"]).text("GPU-12345678-1234-1234-1234-123456789abc 3c:ec:ef:12:34:56 box <serial>77</serial>")
    assert Masker(["box"]).text(once) == once


def test_accounts_secrets_and_packages_are_in_no_capture() -> None:
    assert reduced("/etc/passwd", "ada:x:1000:") == reduced("/etc/group", "video:x:44:ada") == ""
    assert reduced("/proc/1/environ", "TOKEN=x\0container=podman\0") == "container=podman"
    kept = reduced("/etc/environment", "http_proxy=http://ada:secret@proxy\nHSA_OVERRIDE_GFX_VERSION=10.3.0\n")
    assert kept == "HSA_OVERRIDE_GFX_VERSION=10.3.0\n"
    status = "Package: vim\nStatus: install ok installed\nMaintainer: x\n\n"
    status += "Package: nvidia-driver\nStatus: hold ok installed\nVersion: 535\n\n"
    status += "Package: broken\nStatus: install ok half-configured\n"
    assert only_driver_packages(status) == (
        "Package: nvidia-driver\nStatus: hold ok installed\nVersion: 535\n\n"
        "Package: broken\nStatus: install ok half-configured\n"
    )


def test_only_the_mounts_of_the_models_are_kept() -> None:
    text = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /srv rw - xfs /dev/sdb rw\n"
    text += "3 1 8:3 / /clients rw - xfs /dev/c rw\n"
    assert only_mounts_of(text, "/srv/models") == "".join(text.splitlines(keepends=True)[:2])


def test_nothing_of_this_machine_s_name_is_in_its_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "own_names", lambda: ["debian-gnu", "GNU"])
    assert "GNU" not in json.dumps(capture("/opt/models", TIME))


# Replay


def test_a_directory_as_people_paste_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : Test CPU\nflags : lm avx2\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1048576 kB\n")
    (tmp_path / "nvidia-smi-L.txt").write_text("GPU 0: NVIDIA L4 (UUID: GPU-1)\n")
    (tmp_path / "sys" / "devices" / "system" / "cpu").mkdir(parents=True)
    (tmp_path / "sys" / "devices" / "system" / "cpu" / "online").write_text("0-7\n")
    profile = profile_to_dict(probe_sources("/opt/models", open_record(str(tmp_path))))
    assert (profile["cpu"]["model"], profile["cpu"]["logical_cores"]) == ("Test CPU", 8)
    assert profile["memory"]["total_bytes"] == 1024**3
    assert profile["accelerators"][0]["name"] == "NVIDIA L4"
    assert profile["os"]["kernel"] is None and profile["accelerators"][0]["memory"]["total_bytes"] is None


def test_an_unpacked_archive_is_entered(tmp_path: Path) -> None:
    (tmp_path / "machine" / "proc").mkdir(parents=True)
    (tmp_path / "machine" / "proc" / "meminfo").write_text("MemTotal: 1024 kB\n")
    assert probe_sources("/opt", open_record(str(tmp_path))).memory.total_bytes == 1048576


def test_output_that_powershell_wrote(tmp_path: Path) -> None:
    text = "name, memory.total [MiB]\r\nNVIDIA GeForce RTX 3080, 10240 MiB\r\n"
    (tmp_path / "nvidia-smi-query-gpu.csv").write_bytes(text.encode("utf-16"))
    (gpu,) = probe_sources("/opt", open_record(str(tmp_path))).accelerators
    assert gpu.memory.total_bytes == 10240 * 1024**2


@pytest.mark.parametrize("text", ["", "hello", "{}", "[1]", '{"format": "modelfleet-capture", "format_version": 99}'])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(HardwareOutputError):
        open_record(str(tmp_path / "file"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareOutputError):
        open_record(str(tmp_path / "nothing"))


ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["arguments", "status", "output", "/proc/cpuinfo", "/sys/bus/pci/devices", "total_bytes"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["files", "links", "directories", "existing", "commands", "machine", "volume", "model_root", "format"]
        ),
        ANY_JSON,
    )
)
def test_no_damaged_capture_breaks_the_probe(record: dict[str, Any]) -> None:
    json.dumps(profile_to_dict(probe_sources("/opt/models", RecordedSources(record))))
