"""``modelfleet probe`` of recorded machines and of captures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from modelfleet.cli import probe
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.hardware.capture import capture
from modelfleet.runner import Recap, RunResult, TaskResult

LIST = "GPU 0: NVIDIA L4 (UUID: GPU-1)\nGPU 1: NVIDIA L4 (UUID: GPU-2)\n"


def run(*arguments: str) -> Any:
    """Run the verb and return what click made of it."""
    return CliRunner().invoke(probe.command, list(arguments), standalone_mode=False)


@pytest.fixture
def pasted(tmp_path: Path) -> Path:
    """Return a directory of pasted outputs."""
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "nvidia-smi-L.txt").write_text(LIST)
    return folder


def test_a_replay_is_a_line_of_the_table(pasted: Path) -> None:
    result = run("--replay", str(pasted))
    assert result.return_value == 0
    header, line = result.output.splitlines()
    assert header.split()[:3] == ["HOST", "ACCELERATORS", "DRIVER"]
    assert line.startswith("box ") and "2 x NVIDIA L4" in line


def test_a_replay_s_detail_says_why_fields_are_unknown(pasted: Path) -> None:
    output = run("--replay", str(pasted), "--detail").output
    assert "name: NVIDIA L4" in output and "cpu.model: /proc/cpuinfo cannot be read" in output


def test_a_replay_s_detail_says_what_is_not_ready_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 2097152 kB\n")
    lines = run("--root", str(tmp_path), "--detail").output.splitlines()
    [verdict] = [line for line in lines if line.startswith("  readiness ")]
    assert "fail, " in verdict and "checks unknown" in verdict
    [memory] = [line for line in lines if "MF-MEM-001" in line]
    assert "fail MF-MEM-001 main memory: 2.0 GiB (wanted: 16 GB, recommended 32 GB); " in memory


def test_a_driver_that_answered_is_not_said_to_be_missing(pasted: Path) -> None:
    bare = json.loads(run("--replay", str(pasted), "--json").output)["hosts"]["box"]["readiness"]["checks"]
    assert {one["status"] for one in bare if one["id"] in ("MF-GPU-003", "MF-DRV-001")} == {"warn"}
    (pasted / "nvidia-smi-query-gpu.csv").write_text("name, driver_version\n" + "NVIDIA L4, 580.95.05\n" * 2)
    told = json.loads(run("--replay", str(pasted), "--json").output)["hosts"]["box"]["readiness"]["checks"]
    status = {one["id"]: one["status"] for one in told}
    assert status["MF-GPU-003"] == status["MF-DRV-001"] == "pass"


def test_a_replay_is_json_as_of_a_live_host(pasted: Path) -> None:
    document = json.loads(run("--replay", str(pasted), "--json").output)
    assert [gpu["name"] for gpu in document["hosts"]["box"]["profile"]["accelerators"]] == ["NVIDIA L4"] * 2
    assert document["verb"] == "probe" and document["exit_code"] == 0
    checks = document["hosts"]["box"]["readiness"]["checks"]
    assert {"MF-GPU-001": "pass", "MF-CPU-001": "warn"}.items() <= {one["id"]: one["status"] for one in checks}.items()


def test_a_replay_needs_no_ansible(pasted: Path, checkout: Path) -> None:
    block = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0].startswith('ansible'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.argv = ['modelfleet', 'probe', '--replay', {str(pasted)!r}]\n"
        "from modelfleet.cli import main\nmain()\n"
    )
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=checkout / "python", capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 x NVIDIA L4" in done.stdout, done.stderr


def test_a_tree_is_read_in_place_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 2097152 kB\n")
    line = run("--root", str(tmp_path)).output.splitlines()[1]
    # No bus and no tool: not known, which is not the same as none.
    assert "2.0 GiB" in line and " ?  " in line and "none" not in line


def test_terminal_codes_of_a_record_come_out_as_text(pasted: Path) -> None:
    (pasted / "nvidia-smi-L.txt").write_text("GPU 0: \x1b[31mred\x07 (UUID: GPU-1)\n")
    assert "\x1b" not in run("--replay", str(pasted), "--detail").output


@pytest.mark.parametrize("more", [("--capture", "file"), ("--unmasked",)])
def test_what_does_not_go_together_is_told(pasted: Path, more: tuple[str, ...]) -> None:
    assert isinstance(run("--replay", str(pasted), *more).exception, click.UsageError)


def test_a_file_that_is_no_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    error = run("--replay", str(tmp_path / "notes.txt")).exception
    assert isinstance(error, ModelfleetError) and "\n" not in str(error)


def hosts(*names: str, record: Any) -> RunResult:
    """Return a run in which each host returned a capture."""
    facts = {"ansible_facts": {"modelfleet_hardware": {"accelerators": [], "unknown": {}}}, "capture": record}
    results = [TaskResult(name, "Read", "", "modelfleet_hardware_info", "ok", False, False, facts) for name in names]
    return RunResult(exit_code=0, results=results, recap={name: Recap() for name in names}, error=None)


def test_a_capture_is_written_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run_verb(options: Any, playbook: str) -> RunResult:
        asked.append(options)
        return hosts("box", record=capture("/opt/models", "2026-01-31T12:00:00Z"))

    monkeypatch.setattr(probe, "run_verb", run_verb)
    path = tmp_path / "box.json"
    assert run("--capture", str(path)).return_value == 0
    assert json.loads(asked[0].extra_vars[-1]) == {"modelfleet_probe_capture": True, "modelfleet_probe_unmasked": False}
    assert "box.json" in run("--replay", str(path)).output


def test_a_capture_is_of_one_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "run_verb", lambda options, playbook: hosts("a", "b", record={}))
    error = run("--capture", str(tmp_path / "file")).exception
    assert isinstance(error, ModelfleetError) and "-l HOST" in str(error)
    assert not (tmp_path / "file").exists()


GPU = {"vendor": "nvidia", "name": "A100", "driver_version": "535.54.03", "runtime_version": "12.2"}
GIB = 1024**3


@pytest.mark.parametrize(
    ("profile", "accelerators", "driver"),
    [
        ({"accelerators": [{**GPU, "memory": {"total_bytes": 80 * GIB}}]}, "A100 80.0 GiB", "535.54.03, CUDA 12.2"),
        (
            {
                "accelerators": [
                    {
                        **GPU,
                        "memory": {"total_bytes": 80 * GIB},
                        "mig": {"enabled": True, "slices": [{"memory_total_bytes": 20 * GIB}] * 3},
                    }
                ]
            },
            "A100 80.0 GiB (MIG: 3 x 20.0 GiB)",
            "535.54.03, CUDA 12.2",
        ),
        (
            {"accelerators": [{**GPU, "memory": {"unified": True}}], "accelerator_driver": {"slow": True}},
            "A100 unified",
            "535.54.03, CUDA 12.2; slow",
        ),
        (
            {"accelerators": [{"vendor": "nvidia"}], "accelerator_driver": {"mismatch": True}},
            "nvidia",
            "module and libraries differ",
        ),
        ({"accelerators": [{"vendor": "amd"}]}, "amd", "?"),
        ({"accelerators": [], "unknown": {"accelerators": "no bus"}}, "?", "?"),
        ({"accelerators": [], "unknown": {}}, "none", "-"),
    ],
)
def test_accelerators_and_drivers_in_short(profile: dict[str, Any], accelerators: str, driver: str) -> None:
    assert (probe.accelerators(profile), probe.driver(profile)) == (accelerators, driver)
