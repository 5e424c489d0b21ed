"""What the role accelerator would install, by platform and card: its variables evaluated on staged machines.

Each host of one play is a machine staged as a tree of files: its platform, its card and no driver yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

RTX_3080, P400, RTX_5090 = "2206", "1cb3", "2b85"
KERNEL = "6.8.0-40-generic"
PLATFORMS = sorted((Path(__file__).resolve().parents[2] / "roles/accelerator/vars/platforms").glob("*.yml"))

# Name: platform and version, card, the host's variables; then branch, modules and the packages but for headers.
MACHINES: dict[str, tuple[tuple[str, str, str, dict[str, Any]], tuple[str, str, set[str]]]] = {
    "debian-12": (
        ("debian", "12", RTX_3080, {}),
        ("535", "proprietary",
         {"nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "libnvidia-ml1", "nvidia-persistenced", "dkms"}),
    ),
    "debian-13": (
        ("debian", "13", RTX_3080, {"accelerator_nvidia_modules": "open"}),
        ("550", "open",
         {"nvidia-open-kernel-dkms", "nvidia-smi", "libcuda1", "libnvidia-ml1", "nvidia-persistenced", "dkms"}),
    ),
    "debian-13 from NVIDIA, Blackwell": (
        ("debian", "13", RTX_5090, {"accelerator_nvidia_source": "nvidia", "accelerator_nvidia_branch": "590"}),
        ("590", "open", {"nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced", "dkms"}),
    ),
    "ubuntu-22.04": (
        ("ubuntu", "22.04", RTX_3080, {}),
        ("580", "open",
         {"linux-modules-nvidia-580-open-generic", "nvidia-headless-no-dkms-580-open", "nvidia-utils-580",
          "nvidia-compute-utils-580"}),
    ),
    "ubuntu-24.04, Pascal": (
        ("ubuntu", "24.04", P400, {}),
        ("580", "proprietary",
         {"linux-modules-nvidia-580-generic", "nvidia-headless-no-dkms-580", "nvidia-utils-580",
          "nvidia-compute-utils-580"}),
    ),
    "ubuntu-26.04, with displays": (
        ("ubuntu", "26.04", RTX_5090,
         {"accelerator_nvidia_display": True, "accelerator_nvidia_persistence_daemon": False}),
        ("580", "open",
         {"linux-modules-nvidia-580-open-generic", "nvidia-headless-no-dkms-580-open", "nvidia-utils-580",
          "nvidia-driver-580-open"}),
    ),
    "redhat-9": (
        ("rocky", "9.6", RTX_3080, {}),
        ("580", "open",
         {"kmod-nvidia-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced", "kernel-devel-matched",
          "kernel-headers", "dkms"}),
    ),
    "redhat-10, Pascal": (
        ("rhel", "10.1", P400, {}),
        ("580", "proprietary",
         {"kmod-nvidia-latest-dkms", "nvidia-driver-cuda", "nvidia-persistenced", "kernel-devel-matched",
          "kernel-headers", "dkms"}),
    ),
    "fedora": (
        ("fedora", "44", RTX_3080, {}),
        ("580", "open",
         {"kmod-nvidia-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced", "kernel-devel-matched",
          "kernel-headers", "dkms"}),
    ),
}  # fmt: skip
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - modelfleet_hardware_info:
        root: "{{ tree }}"
        model_root: /srv/models
    - modelfleet_readiness:
        hardware: "{{ ansible_facts['modelfleet_hardware'] }}"
    - ansible.builtin.include_role:
        name: accelerator
        tasks_from: platform
        public: true
    - ansible.builtin.copy:
        dest: "{{ tree }}/answer.json"
        content: "{{ answer | to_json }}"
        mode: "0600"
      vars:
        answer:
          branch: "{{ __accelerator_nvidia_branch }}"
          modules: "{{ __accelerator_nvidia_modules }}"
          packages: "{{ __accelerator_nvidia_wanted }}"
          due: "{{ __accelerator_nvidia_due and __accelerator_nvidia_install_due }}"
          control_node: "{{ __accelerator_is_control_node }}"
          provider: "{{ __accelerator_effective_provider }}"
"""


def stage(tree: Path, distribution: str, version: str, device: str) -> None:
    """Write what the probe reads of a machine without a driver."""
    card = "sys/bus/pci/devices/0000:01:00.0"
    files = {
        "etc/os-release": f'ID={distribution}\nVERSION_ID="{version}"\n',
        "proc/cpuinfo": "processor : 0\nmodel name : Staged\nflags : lm avx2\n",
        "proc/sys/kernel/osrelease": KERNEL,
        f"lib/modules/{KERNEL}/vmlinuz": "",
        "var/lib/dpkg/status": "",
        f"{card}/class": "0x030000\n",
        f"{card}/vendor": "0x10de\n",
        f"{card}/device": f"0x{device}\n",
    }
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the role answers for each machine, from one play."""
    checkout = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("platforms")
    hosts: dict[str, Any] = {}
    trees = {name: folder / f"machine{number}" for number, name in enumerate(MACHINES)}
    for name, ((distribution, version, device, variables), _) in MACHINES.items():
        stage(trees[name], distribution, version, device)
        hosts[trees[name].name] = {"tree": str(trees[name]), **variables}
    connection = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": connection, "hosts": hosts}}))
    (folder / "play.yml").write_text(PLAY)
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            str(folder / "hosts.yml"),
            str(folder / "play.yml"),
        ],
        cwd=checkout,
        env={**os.environ, "ANSIBLE_CONFIG": str(checkout / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((tree / "answer.json").read_text()) for name, tree in trees.items()}


@pytest.mark.parametrize("machine", MACHINES)
def test_driver_by_platform_and_card(machine: str, answers: dict[str, Any]) -> None:
    answer = answers[machine]
    (distribution, *_), (branch, modules, packages) = MACHINES[machine]
    assert (answer["provider"], answer["branch"], answer["modules"]) == ("nvidia", branch, modules)
    headers = ("linux-headers-", "kernel-devel-6")
    assert {name for name in answer["packages"] if not name.startswith(headers)} - packages == set()
    assert packages <= set(answer["packages"])
    # Only Debian's and the RHEL family's modules are built on the host, and need the running kernel's own headers.
    exact = f"linux-headers-{KERNEL}" if distribution in ("debian", "ubuntu") else f"kernel-devel-{KERNEL}"
    assert (exact in answer["packages"]) == (distribution != "ubuntu")
    assert answer["due"] is True
    assert answer["control_node"] is True


def test_every_platform_has_a_machine_here() -> None:
    assert {path.stem for path in PLATFORMS} == {name.split(",")[0].split(" ")[0] for name in MACHINES}
