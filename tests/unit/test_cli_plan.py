"""``modelfleet plan`` of hosts and of machines that are not there, and ``apply`` of a plan that was kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from modelfleet.cli import fleet_view, main, session, simulate
from modelfleet.cli.known_gpus import KNOWN_GPUS, find_gpu, find_slice
from modelfleet.core.errors import ConfigurationError
from modelfleet.core.units import GIB, MIB
from modelfleet.runner import Recap, RunResult, TaskResult

EVIL = "\x1b]0;owned\x07\x1b[2J"
FLEET = ("RTX 3060 12 GB", "2x RTX 3090", "RTX 4090", "A100 MIG 1g.10gb", "M1 16 GB", "CPU 32 GB 16 cores")


def call(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, list(arguments))


def model(name: str = "small", **said: Any) -> dict[str, Any]:
    placement = {"device": "GPU0", "backend": "cuda", "gpu_layers": 33, "layers": 32, "split": []}
    plain = {"model": name, "quantization": "q4_k_m", "action": "fetch", "reason": "it is not there"}
    sizes = {"need_bytes": 6 * GIB, "budget_bytes": 11 * GIB, "bytes_to_fetch": 4 * GIB}
    return {**plain, **sizes, "placement": placement, "candidates": [], **said}


def plan_of(*models: dict[str, Any], **said: Any) -> dict[str, Any]:
    total = sum(one["bytes_to_fetch"] for one in models)
    return {"schema_version": 2, "models": list(models), "bytes_to_fetch": total, "warnings": [], **said}


def run_of(hosts: dict[str, dict[str, Any]], changed: bool = True, diff: str = "a.gguf\n") -> RunResult:
    """Return a run in which each host planned, and would publish a file."""
    results = []
    for host, plan in hosts.items():
        facts = {"ansible_facts": {"modelfleet_plan": plan}}
        results.append(TaskResult(host, "Plan the models", "models", "modelfleet_plan", "ok", False, False, facts))
        said = {"diff": {"before": "", "after": diff}}
        results.append(TaskResult(host, "Publish", "models", "modelfleet_models", "ok", changed, False, said))
    return RunResult(results=results, recap={host: Recap(ok=2, changed=int(changed)) for host in hosts})


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Return a function that puts answers in the place of runs of ansible-playbook, and returns what was asked."""
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)

    def answer(*results: RunResult) -> list[list[str]]:
        waiting, asked = list(results), []

        def run(arguments: Any, environment: Any, on_event: Any, password: Any = None) -> RunResult:
            asked.append(list(arguments))
            return waiting.pop(0)

        monkeypatch.setattr(session, "run_playbook", run)
        return asked

    return answer


def test_the_matrix_of_a_fleet(ansible: Any) -> None:
    partial = {"device": "GPU0", "backend": "cuda", "gpu_layers": 18, "layers": 40, "split": []}
    split = {"device": "GPU0+GPU1", "backend": "cuda", "gpu_layers": 33, "layers": 32, "split": [17, 16]}
    first = plan_of(model(), model("big", placement=partial))
    refused = model("big", action="refuse", placement=None, reason="needs 7.9 GiB" + EVIL, bytes_to_fetch=0)
    ansible(
        run_of({"a": first, "b": first, "c": plan_of(model(action="keep", bytes_to_fetch=0, placement=split), refused)})
    )
    answer = call("plan")
    assert answer.exit_code == 0 and "\x1b" not in answer.output
    lines = answer.stdout.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("HOST")))
    assert lines[start].split("  ") and lines[start].split() == ["HOST", "small", "big", "TO", "FETCH"]
    assert lines[start + 1].split("  ")[0] == "a and 1 more"
    for said in ("q4_k_m GPU", "6.0 GiB of 11.0 GiB", "fetch 4.0 GiB", "q4_k_m GPU 18/41 layers", "8.0 GiB"):
        assert any(said in line for line in lines[start : start + 4]), said
    for said in ("q4_k_m 2 GPUs", "kept", "refused"):
        assert any(said in line for line in lines[start + 4 :]), said
    assert "c: big is refused: needs 7.9 GiB\\x1b]0;owned\\x07\\x1b[2J" in lines
    assert lines[-1].startswith("3 hosts, 6 models: 3 whole on accelerators, 2 in part, 1 refused; 16.0 GiB to fetch")


def test_a_plan_that_a_host_made_up_steers_no_terminal(ansible: Any) -> None:
    evil = {
        "models": [{"model": EVIL, "placement": {"device": EVIL, "layers": EVIL}, "need_bytes": -1}, 7, EVIL],
        "warnings": [EVIL, 3],
        "bytes_to_fetch": 1e400,
        "budgets": [EVIL, {"device": EVIL}],
    }
    for arguments in (("plan",), ("plan", "--explain", "a")):
        ansible(run_of({"a": evil, "b": {"models": EVIL}}))
        answer = call(*arguments)
        assert answer.exit_code == 0, answer.output
        assert "\x1b" not in answer.output


def test_a_narrow_terminal_gets_the_matrix_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    plan = plan_of(*(model(f"model-{number}") for number in range(6)))
    lines = list(fleet_view.matrix({"host": plan}))
    heads = [line for line in lines if "HOST" in line]
    assert len(heads) > 1
    assert sum(line.count("model-") for line in heads) == 6


def test_exit_code_tells_of_change(ansible: Any) -> None:
    plan = plan_of(model())
    ansible(run_of({"a": plan}), run_of({"a": plan}), run_of({"a": plan}, changed=False))
    assert [call("plan").exit_code, call("plan", "--exit-code").exit_code] == [0, 3]
    assert call("plan", "--exit-code").exit_code == 0


def test_explain_shows_every_candidate(ansible: Any) -> None:
    candidates = [
        {"quantization": "q8_0", "placement": model()["placement"], "need_bytes": 9 * GIB, "budget_bytes": 7 * GIB},
        {"quantization": "q4_k_m", "placement": None, "need_bytes": None, "fits": True, "reason": "chosen"},
    ]
    candidates[0]["reason"] = "needs 9.0 GiB"
    budgets = [
        {"device": "GPU0", "name": "RTX", "budget_bytes": 7 * GIB, "capacity_bytes": 8 * GIB, "headroom_bytes": GIB}
    ]
    ansible(run_of({"a": plan_of(model(candidates=candidates, context=8192), budgets=budgets)}))
    text = call("plan", "--explain", "a").stdout
    for said in ("GPU0 RTX: 7.0 GiB of 8.0 GiB for models", "context 8192", "q8_0", "9.0 GiB of 7.0 GiB", "chosen"):
        assert said in text, said
    ansible(run_of({"a": plan_of(model())}))
    answer = call("plan", "--explain", "other")
    assert answer.exit_code == 1 and "no plan was made for other; planned were: a" in answer.stderr


class TestReview:
    """A plan is kept, and done exactly so, or not."""

    def keep(self, ansible: Any, path: Path, **run: Any) -> None:
        ansible(run_of({"a": plan_of(model())}, **run))
        assert call("plan", "--out", str(path)).exit_code == 0

    def test_what_was_reviewed_is_done(self, ansible: Any, tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        self.keep(ansible, path)
        assert json.loads(path.read_text())["hosts"]["a"]["plan"] == plan_of(model())
        asked = ansible(run_of({"a": plan_of(model())}), run_of({"a": plan_of(model())}))
        assert call("apply", str(path)).exit_code == 0
        assert ["--check" in arguments for arguments in asked] == [True, False]
        for arguments in asked:
            given = json.loads(arguments[arguments.index("--extra-vars") + 1])
            assert given == {"models_plan_file": str(path)}

    def test_less_than_was_reviewed_is_done(self, ansible: Any, tmp_path: Path) -> None:
        self.keep(ansible, tmp_path / "plan.json")
        asked = ansible(run_of({"a": plan_of(model())}, changed=False), run_of({"a": plan_of(model())}))
        assert call("apply", str(tmp_path / "plan.json")).exit_code == 0 and len(asked) == 2

    @pytest.mark.parametrize(
        ("now", "message"),
        [
            (run_of({"a": plan_of(model())}, diff="b.gguf\n"), "a: models: Publish would make another change"),
            (run_of({"a": plan_of(), "b": plan_of()}), "b was not reviewed"),
            (run_of({}), "a was reviewed and is not in this run"),
        ],
    )
    def test_anything_else_is_refused(self, ansible: Any, tmp_path: Path, now: RunResult, message: str) -> None:
        self.keep(ansible, tmp_path / "plan.json")
        asked = ansible(now)
        answer = call("apply", str(tmp_path / "plan.json"))
        assert answer.exit_code == 1 and len(asked) == 1
        assert message in answer.stderr and answer.stderr.count("\n") == 1

    def test_a_task_that_was_not_reviewed_is_refused(self, ansible: Any, tmp_path: Path) -> None:
        self.keep(ansible, tmp_path / "plan.json", changed=False)
        ansible(run_of({"a": plan_of(model())}))
        assert "a: models: Publish was not reviewed" in call("apply", str(tmp_path / "plan.json")).stderr

    def test_a_look_that_fails_keeps_its_exit_code(self, ansible: Any, tmp_path: Path) -> None:
        self.keep(ansible, tmp_path / "plan.json")
        failed = run_of({"a": plan_of(model())})
        failed.exit_code = 4
        asked = ansible(failed)
        assert call("apply", str(tmp_path / "plan.json")).exit_code == 4 and len(asked) == 1

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("no json", "is not JSON"),
            ("[]", "is no plan of modelfleet"),
            ('{"verb": "apply", "hosts": {"a": {}}}', "is no plan of modelfleet"),
            ('{"verb": "plan", "hosts": {}}', "is no plan of modelfleet"),
            ('{"verb": "plan", "hosts": {"a": {"plan": null, "changes": []}}}', "the plan of a is incomplete"),
            ('{"verb": "plan", "hosts": {"a": {"plan": {}, "changes": [], "failures": [{}]}}}', "is incomplete"),
        ],
    )
    def test_a_file_that_is_no_whole_plan(self, ansible: Any, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "plan.json").write_text(content)
        asked = ansible()
        answer = call("apply", str(tmp_path / "plan.json"))
        assert answer.exit_code == 1 and asked == []
        assert message in answer.stderr and answer.stderr.count("\n") == 1

    def test_a_file_that_cannot_be_written(self, ansible: Any, tmp_path: Path) -> None:
        ansible(run_of({"a": plan_of(model())}))
        answer = call("plan", "--out", str(tmp_path / "none" / "plan.json"))
        assert answer.exit_code == 1 and "No such file" in answer.stderr


class TestMachinesThatAreNotThere:
    """--simulate, --replay and --want, from the shipped catalog."""

    def plans(self, *arguments: str) -> dict[str, Any]:
        answer = call("plan", "--json", *arguments)
        assert answer.exit_code == 0, answer.output
        return {name: said["plan"] for name, said in json.loads(answer.stdout)["hosts"].items()}

    def test_the_fleet_of_the_documentation(self) -> None:
        plans = self.plans(*(word for machine in FLEET for word in ("--simulate", machine)), "--want", "all-chat")
        assert list(plans) == list(FLEET)
        for plan in plans.values():
            assert len(plan["models"]) >= 8
            for one in plan["models"]:
                assert one["placement"] is None or one["need_bytes"] <= one["budget_bytes"], one
        fits = {
            machine: {one["model"]: fleet_view.fit(one) for one in plan["models"]} for machine, plan in plans.items()
        }
        assert set(fits["2x RTX 3090"].values()) == {"GPU", "2 GPUs"}
        assert fits["2x RTX 3090"]["mixtral-8x7b-instruct"] == "2 GPUs"
        assert set(fits["A100 MIG 1g.10gb"].values()) >= {"MIG"}
        assert set(fits["CPU 32 GB 16 cores"].values()) == {"CPU", "refused"}
        assert fits["M1 16 GB"]["mixtral-8x7b-instruct"] == "refused"

    def test_it_is_told_as_a_matrix_and_in_detail(self) -> None:
        answer = call("plan", "--simulate", "box=RTX 3060 12GB", "--want", "llama-3.1-8b-instruct:production")
        assert "q8_0 GPU" in answer.stdout and "of 11.0 GiB" in answer.stdout
        answer = call(
            "plan", "--simulate", "box=RTX 3060 12GB", "--want", "llama-3.1-8b-instruct:best", "--explain", "box"
        )
        assert "fp16" in answer.stdout and "needs 15." in answer.stdout and "chosen" in answer.stdout

    def test_the_wishes_are_those_of_the_inventory(self, tmp_path: Path) -> None:
        (tmp_path / "group_vars").mkdir()
        hosts = {"plain": {}, "slow": {"inference_runtime_backend": "cpu"}}
        inventory = {"all": {"hosts": hosts, "children": {"lab": {"hosts": {"box": {}}}}}}
        (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
        (tmp_path / "group_vars" / "all.yml").write_text("models_wanted: [{model: llama-3.1-8b-instruct}]\n")
        (tmp_path / "group_vars" / "lab.yml").write_text(
            "models_wanted: [{task: coding, context: 2048}]\nmodels_headroom_mebibytes: 2048\n"
        )
        machines = ("--simulate", "plain=RTX 4090", "--simulate", "box=RTX 4090", "--simulate", "lab=RTX 4090")
        machines += ("--simulate", "slow=RTX 4090")
        plans = self.plans("-i", str(tmp_path / "hosts.yml"), *machines, "--simulate", "RTX 4090")
        chosen = {
            name: (plan["models"][0]["model"], plan["budgets"][0]["headroom_bytes"]) for name, plan in plans.items()
        }
        llama = ("llama-3.1-8b-instruct", GIB)
        assert chosen["plain"] == chosen["RTX 4090"] == llama
        assert chosen["box"] == chosen["lab"] and chosen["box"] != llama and chosen["box"][1] == 2 * GIB
        assert plans["box"]["models"][0]["context"] == 2048
        backends = {name: plan["models"][0]["placement"]["backend"] for name, plan in plans.items()}
        assert (backends["plain"], backends["slow"]) == ("cuda", "cpu")
        plans = self.plans(
            "--simulate", "RTX 4090", "-e", "models_context=1024 models_kv_type=q8_0", "--want", "all-chat"
        )
        assert {one["context"] for one in plans["RTX 4090"]["models"]} == {1024}
        assert {one["kv_type"] for one in plans["RTX 4090"]["models"]} == {"q8_0"}

    def test_a_recorded_machine(self, tmp_path: Path) -> None:
        (tmp_path / "nvidia-smi-L.txt").write_text("GPU 0: NVIDIA L4 (UUID: GPU-1)\n")
        (tmp_path / "meminfo").write_text("MemTotal: 33554432 kB\n")
        plan = self.plans("--replay", str(tmp_path), "--want", "llama-3.1-8b-instruct")[tmp_path.name]
        # The listing names the card, and not its memory: nothing is guessed.
        assert plan["models"][0]["placement"]["backend"] == "cpu" and plan["provisional"] is True
        assert "its memory is not known" in plan["warnings"][0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--simulate", "RTX 3091"), "no GPU 'RTX 3091' is known (did you mean RTX 3090"),
            (("--simulate", "RTX 3060"), "the RTX 3060 has 8 GB or 12 GB; say which"),
            (("--simulate", "RTX 3060 16 GB"), "there is no RTX 3060 with 16 GB; it has 8 GB or 12 GB"),
            (("--simulate", "A100 MIG 1g.11gb"), "the A100 has no MIG profile '1g.11gb'; it has 1g.5gb"),
            (("--simulate", "RTX 4090 MIG 1g.5gb"), "of 'RTX 4090' no MIG profile is known"),
            (("--simulate", "900x RTX 4090"), "'900x RTX 4090' has 900 GPUs; use 1 to 64"),
            (("--simulate", ""), "'' tells no machine"),
            (
                ("--simulate", "RTX 4090", "--want", "lama-3.1-8b"),
                "the catalog has no model 'lama-3.1-8b' (did you mean",
            ),
            (("--simulate", "RTX 4090", "--want", "all-cat"), "the catalog has no 'cat' models; use one of all-chat"),
            (("--simulate", "RTX 4090", "-e", "models_context=many"), "models_context is 'many'; write a whole number"),
            (("--simulate", "RTX 4090", "-e", "models_wanted=x"), "models_wanted is no list"),
            (("--simulate", "RTX 4090", "-e", '{"models_context": "{{ x }}"}'), "models_context is a template"),
            (("--simulate", "RTX 4090", "-e", "models_lock_file=/none/such"), "/none/such: No such file"),
            (("--simulate", "RTX 4090", "-e", "@/none/such"), "-e @/none/such: No such file"),
            (("--simulate", "RTX 4090", "-i", "/none/such"), "the inventory cannot be read: "),
        ],
    )
    def test_what_cannot_be_meant_is_one_line(self, arguments: tuple[str, ...], message: str) -> None:
        answer = call("plan", *arguments)
        assert answer.exit_code == 1, answer.output
        assert message in answer.stderr and answer.stderr.count("\n") == 1

    @pytest.mark.parametrize("arguments", [("--want", "x"), ("--simulate", "RTX 4090", "--out", "file")])
    def test_what_does_not_go_together(self, arguments: tuple[str, ...]) -> None:
        assert call("plan", *arguments).exit_code == 64

    @pytest.mark.parametrize(
        ("text", "cards", "memory"),
        [
            ("2x RTX 3090, 64 GB RAM", [24 * GIB] * 2, 64),
            ("geforce rtx3080 10GB", [10 * GIB], 32),
            ("RTX 3090 + RTX 3060 12 GB + 16 cores", [24 * GIB, 12 * GIB], 32),
            ("4070 Ti Super", [16376 * MIB], 32),
            ("Apple M2 Max 64 GB", [None], 64),
            ("GB10", [None], 128),
            ("A100 80 GB MIG 3x 2g.20gb", [81920 * MIB], 32),
            ("RX 7900 XTX", [(24 * 1024 - 16) * MIB], 32),
            ("CPU 8 GB", [], 8),
            ("CPU 8 GB 4 cores", [], 8),
        ],
    )
    def test_machines_by_their_parts(self, text: str, cards: list[int | None], memory: int) -> None:
        name, profile = simulate.simulated(f"box={text}")
        assert name == "box"
        assert [card["memory"]["total_bytes"] for card in profile["accelerators"]] == cards
        assert profile["memory"]["total_bytes"] == memory * GIB

    def test_slices_of_a_card(self) -> None:
        _, profile = simulate.simulated("A100 80 GB MIG 3x 2g.20gb")
        slices = profile["accelerators"][0]["mig"]["slices"]
        # As nvidia-smi tells them on such a card.
        assert [one["memory_total_bytes"] for one in slices] == [19968 * MIB] * 3

    def test_every_known_card_is_found_by_its_name(self) -> None:
        for gpu in KNOWN_GPUS:
            assert find_gpu(f"{gpu.vendor.upper()} {gpu.name}", gpu.gigabytes) == gpu
            assert gpu.unified or 0.92 < gpu.mebibytes / 1024 / gpu.gigabytes <= 1.02, gpu
            for profile, size in gpu.slices:
                assert find_slice(gpu.name, gpu.gigabytes, profile) == (gpu, size)
        with pytest.raises(ConfigurationError, match="no GPU 'Voodoo 2' is known; correct the name"):
            find_gpu("Voodoo 2")
