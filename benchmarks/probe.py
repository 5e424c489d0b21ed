"""What the probe costs, beside what gathering facts costs: time on a host, and bytes that travel to it.

Three modules take turns on this machine: an empty one, ``modelfleet_hardware_info``
and ``ansible.builtin.setup``, each as the very file that Ansible sends to a host.
An empty module's cost is Ansible's own; what is compared is what each of the
other two adds to it, in wall time and in processor time, which a busy machine
spoils less. ``--ansible`` measures whole runs of ``ansible-playbook`` instead, a
few minutes. Also printed: the size of each file, and the time of the probe
itself.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
RUNS = 15
ANSIBLE_RUNS = 7
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


def payload(module: str, environment: dict[str, str], place: Path) -> Path:
    """Return the file that Ansible sends to run ``module``."""
    folder = place / module
    kept = {"ANSIBLE_KEEP_REMOTE_FILES": "1", "ANSIBLE_PIPELINING": "0", "ANSIBLE_REMOTE_TMP": str(folder)}
    measure([str(TOOLS / "ansible"), "localhost", "-c", "local", "-m", module], {**environment, **kept})
    return next(folder.rglob("AnsiballZ_*"))


def processor_time() -> float:
    """Return the seconds that all ended children of this process have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(name: str, times: dict[str, list[float]], sizes: dict[str, int]) -> None:
    """Print a table of ``times`` in seconds, and the ratio of what the two add to the empty module."""
    medians = {module: statistics.median(seconds) for module, seconds in times.items()}
    empty = medians[MODULES[0]]
    print(f"{name:28} median     min     max   added   payload    added")  # noqa: T201
    for module, seconds in times.items():
        spread = f"{medians[module] * 1000:4.0f} ms   {min(seconds) * 1000:5.0f}   {max(seconds) * 1000:5.0f}"
        size = f"{sizes[module] / 1000:5.0f} kB   {(sizes[module] - sizes[MODULES[0]]) / 1000:4.0f} kB"
        print(f"{module:28}{spread}   {(medians[module] - empty) * 1000:5.0f}   {size}")  # noqa: T201
    ratio = (medians[MODULES[1]] - empty) / (medians[MODULES[2]] - empty)
    print(f"(probe - empty) / (setup - empty) = {ratio:.2f}\n")  # noqa: T201


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
        files = {module: payload(module, environment, root) for module in MODULES}
        sizes = {module: path.stat().st_size for module, path in files.items()}
        commands = {module: [sys.executable, str(path)] for module, path in files.items()}
        runs, tasks = RUNS, 1
        if "--ansible" in sys.argv[1:]:
            runs, tasks = ANSIBLE_RUNS, TASKS
            for module in MODULES:
                path = root / f"{module}.yml"
                path.write_text(playbook(module), encoding="utf-8")
                commands[module] = [str(TOOLS / "ansible-playbook"), "-i", "localhost,", str(path)]
        wall: dict[str, list[float]] = {module: [] for module in MODULES}
        processor: dict[str, list[float]] = {module: [] for module in MODULES}
        for command in commands.values():
            measure(command, environment)
        for _ in range(runs):
            for module, command in commands.items():
                before = processor_time()
                wall[module].append(measure(command, environment) / tasks)
                processor[module].append((processor_time() - before) / tasks)
    compare("wall time", wall, sizes)
    compare("processor time", processor, sizes)
    command = [sys.executable, "-c", PROBE.format(runs=RUNS)]
    with_package = {**os.environ, "PYTHONPATH": str(CHECKOUT / "python")}
    first, median = subprocess.run(command, env=with_package, capture_output=True, text=True, check=True).stdout.split()
    print(f"the probe itself: first {float(first) * 1000:.1f} ms, median {float(median) * 1000:.1f} ms")  # noqa: T201


if __name__ == "__main__":
    main()
