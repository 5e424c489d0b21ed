"""What the probe costs, beside what gathering facts costs: time on a host, and bytes that travel to it.

Three modules take turns on this machine, each as Ansible runs it, over a local
connection: an empty one, ``modelfleet_hardware_info``, and
``ansible.builtin.setup``. An empty module's cost is Ansible's own; what is
compared is what each of the other two adds to it. Also printed: the time of the
probe itself, without Ansible, and the size of each payload.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
RUNS = 7
TASKS = 4
EMPTY = """#!/usr/bin/python
from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
"""
MODULES = ("modelfleet_empty", "modelfleet_hardware_info", "ansible.builtin.setup")
PROBE = """
import statistics, time
from modelfleet.core.hardware.probe import probe
times = []
for _ in range({runs}):
    started = time.perf_counter()
    probe("/opt/ashley-ai/models")
    times.append(time.perf_counter() - started)
print(times[0], statistics.median(times))
"""


def playbook(module: str) -> str:
    """Return a playbook that runs ``module`` TASKS times."""
    tasks = "".join(f"    - {{name: Run {number}, {module}: {{}}}}\n" for number in range(TASKS))
    return f"- name: Measure\n  hosts: localhost\n  connection: local\n  gather_facts: false\n  tasks:\n{tasks}"


def measure(command: list[str], environment: dict[str, str]) -> float:
    """Return the wall time of ``command`` in seconds."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return time.perf_counter() - started


def payload(module: str, environment: dict[str, str]) -> int:
    """Return the bytes of the file that Ansible sends to run ``module``."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {
            **environment,
            "ANSIBLE_KEEP_REMOTE_FILES": "1",
            "ANSIBLE_PIPELINING": "0",
            "ANSIBLE_REMOTE_TMP": folder,
        }
        measure([str(TOOLS / "ansible"), "localhost", "-c", "local", "-m", module], kept)
        return max(path.stat().st_size for path in Path(folder).rglob("AnsiballZ_*"))


def main() -> None:
    """Run all contestants in turn and print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "modelfleet_empty.py").write_text(EMPTY, encoding="utf-8")
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
            "ANSIBLE_LIBRARY": f"{root}:{CHECKOUT / 'library'}",
        }
        times: dict[str, list[float]] = {module: [] for module in MODULES}
        for module in MODULES:
            (root / f"{module}.yml").write_text(playbook(module), encoding="utf-8")
            measure([str(TOOLS / "ansible-playbook"), "-i", "localhost,", str(root / f"{module}.yml")], environment)
        for _ in range(RUNS):
            for module in MODULES:
                command = [str(TOOLS / "ansible-playbook"), "-i", "localhost,", str(root / f"{module}.yml")]
                times[module].append(measure(command, environment) / TASKS)
        sizes = {module: payload(module, environment) for module in MODULES}
    empty, empty_size = statistics.median(times[MODULES[0]]), sizes[MODULES[0]]
    print(f"{'':28}  median     min     max    added   payload    added")  # noqa: T201
    for module, seconds in times.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds) * 1000:5.0f}   {max(seconds) * 1000:5.0f}"
        size = f"{sizes[module] / 1000:5.0f} kB   {(sizes[module] - empty_size) / 1000:4.0f} kB"
        print(f"{module:28}{median * 1000:5.0f} ms   {spread}   {(median - empty) * 1000:6.0f}   {size}")  # noqa: T201
    probe, setup = (statistics.median(times[module]) - empty for module in MODULES[1:])
    print(f"(probe - empty) / (setup - empty) = {probe / setup:.2f}")  # noqa: T201
    command = [sys.executable, "-c", PROBE.format(runs=RUNS)]
    path = {**os.environ, "PYTHONPATH": str(CHECKOUT / "python")}
    first, median = subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout.split()
    print(f"the probe itself: first {float(first) * 1000:.1f} ms, median {float(median) * 1000:.1f} ms")  # noqa: T201


if __name__ == "__main__":
    main()
