"""What a run with nothing to do costs, beside what gathering facts costs.

Needs a machine on which ``./modelfleet apply`` has been run. Interleaves the
contestants and prints the median, the spread and the ratio of each to
``ansible localhost -m ansible.builtin.setup``. Arguments go to ``apply``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
RUNS = 7


def measure(command: list[str]) -> float:
    """Return the wall time of ``command`` in seconds."""
    environment = {**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return time.perf_counter() - started


def main() -> None:
    """Run all contestants in turn and print the table."""
    inventory, playbook = str(CHECKOUT / "inventory" / "localhost.yml"), str(CHECKOUT / "playbooks" / "site.yml")
    arguments = sys.argv[1:]
    contestants = {
        "ansible -m setup": [
            *(str(TOOLS / "ansible"), "localhost", "-i", inventory, "-m", "ansible.builtin.setup"),
        ],
        "ansible-playbook site.yml": [str(TOOLS / "ansible-playbook"), "-i", inventory, playbook, *arguments],
        "modelfleet apply": [str(CHECKOUT / "modelfleet"), "apply", *arguments],
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for command in contestants.values():
        measure(command)
    for _ in range(RUNS):
        for name, command in contestants.items():
            times[name].append(measure(command))
    base = statistics.median(times["ansible -m setup"])
    print(f"{'':28}median   min    max    ratio")  # noqa: T201
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:28}{median:5.2f} s {min(seconds):5.2f}  {max(seconds):5.2f}  {median / base:5.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
