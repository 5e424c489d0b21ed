"""The verbs audit and prune: what they run, what they say of what came back, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from click.testing import CliRunner, Result
from modelfleet.cli import main, session
from modelfleet.runner import EXIT_FAILED, Event, Recap, RunResult, TaskResult

EVIL = "\x1b]0;owned\x07\u202e"


def finding(kind: str, path: str, state: str = "found") -> dict[str, Any]:
    return {"kind": kind, "path": path, "model": "m", "detail": f"is bad{EVIL}", "state": state}


def audited(host: str, *findings: dict[str, Any]) -> TaskResult:
    said = {"findings": list(findings), "store_path": "/s", "files": 3, "hashed_bytes": 98362432, "seconds": 0.31}
    return TaskResult(host, "Hash", "models", "modelfleet_audit", "ok", False, False, {**said, "touched": []})


def pruned(host: str, *files: dict[str, Any], in_flight: Sequence[str] = ()) -> TaskResult:
    size = sum(one["freed_bytes"] for one in files)
    said = {"files": list(files), "in_flight": list(in_flight), "freed_bytes": size, "store_path": "/s"}
    return TaskResult(host, "Prune", "models", "modelfleet_prune", "ok", bool(files), False, said)


def failed(host: str) -> TaskResult:
    return TaskResult(host, "Report", "models", "fail", "failed", False, False, {"msg": "1 finding"})


def fetched(host: str) -> TaskResult:
    return TaskResult(host, "Fetch", "models", "modelfleet_models", "ok", True, False, {"published": ["x"]})


class Ansible:
    """Stands in for a run of ansible-playbook."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.answer = RunResult()

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], on_event: Callable[[Event], None], _: Any = None
    ) -> RunResult:
        self.arguments = list(arguments)
        return self.answer


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> Ansible:
    """Put a stand-in in the place of ansible-playbook."""
    ansible = Ansible()
    monkeypatch.setattr(session, "run_playbook", ansible.run)
    return ansible


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def answer(ansible: Ansible, *results: TaskResult, exit_code: int = 0) -> None:
    hosts = {result.host: Recap(ok=1) for result in results}
    ansible.answer = RunResult(recap=hosts, results=list(results), exit_code=exit_code)


@pytest.mark.parametrize(
    ("arguments", "playbook", "variable"),
    [
        (("audit",), "audit.yml", None),
        (("audit", "--repair"), "audit.yml", "models_audit_repair=true"),
        (("prune",), "prune.yml", None),
        (("prune", "--yes"), "prune.yml", "models_prune_confirmed=true"),
    ],
)
def test_what_is_run(ansible: Ansible, arguments: tuple[str, ...], playbook: str, variable: str | None) -> None:
    assert call(*arguments, "-e", "a=1", "-l", "h").exit_code == 0
    assert ansible.arguments[-1].endswith(f"/playbooks/{playbook}") and "a=1" in ansible.arguments
    variables = {one for one in ansible.arguments if one.startswith(("models_audit", "models_prune"))}
    assert variables == ({variable} if variable else set())
    shown = call(*arguments, "--show-command").stdout
    assert f"/playbooks/{playbook}" in shown and (variable or "") in shown


def test_audit_tells_what_is_wrong_and_where(ansible: Ansible) -> None:
    bad = (finding("changed", "chat/7b/x.gguf"), finding("mode", "chat/7b/y.gguf", "repaired"))
    answer(ansible, audited("good"), audited("bad", *bad), failed("bad"), failed("lost"), exit_code=EXIT_FAILED)
    said = call("audit")
    assert said.exit_code == 2
    assert said.stdout.splitlines() == [
        "good: as published; 3 files, 93.8 MiB hashed in 0.3 s",
        "bad: 2 findings; 3 files, 93.8 MiB hashed in 0.3 s",
        r"  found     changed  chat/7b/x.gguf  is bad\x1b]0;owned\x07\u202e",
        r"  repaired  mode     chat/7b/y.gguf  is bad\x1b]0;owned\x07\u202e",
        "lost: not audited",
    ]


def test_audit_for_a_monitor(ansible: Ansible) -> None:
    answer(
        ansible,
        audited("good"),
        audited("bad", finding("missing", "x")),
        failed("bad"),
        audited("healed", finding("changed", "x", "to fetch")),
        fetched("healed"),
        audited("worse", finding("changed", "x", "to fetch")),
        failed("lost"),
        exit_code=EXIT_FAILED,
    )
    said = call("audit", "--json")
    document = json.loads(said.stdout)
    assert (said.exit_code, document["exit_code"], document["verb"]) == (2, 2, "audit")
    assert document["damaged"] == ["bad", "worse"], "where the fetch failed, the finding stays"
    audits = {name: host["audit"] for name, host in document["hosts"].items()}
    assert {name: audit and audit["clean"] for name, audit in audits.items()} == {
        "good": True,
        "bad": False,
        "healed": True,
        "worse": False,
        "lost": None,
    }
    assert audits["healed"]["findings"][0]["state"] == "repaired" and audits["bad"]["hashed_bytes"] == 98362432


def test_a_host_that_answers_nonsense(ansible: Ansible) -> None:
    nonsense: list[dict[str, Any]] = [{"findings": 7}, {"findings": [7, {"state": 3}], "files": "many"}, {}]
    for verb, module in (("audit", "modelfleet_audit"), ("prune", "modelfleet_prune")):
        for said in nonsense:
            said = {**said, "files": said.get("files", [7, {"path": EVIL, "freed_bytes": "all"}])}
            answer(ansible, TaskResult("h", "t", "models", module, "ok", False, False, said))
            shown = call(verb)
            assert shown.exit_code == 0 and "\x1b" not in shown.stdout, shown.exception
            assert json.loads(call(verb, "--json").stdout)["verb"] == verb


UNWISHED = (
    {"path": "chat/7b/x.gguf", "model": "x", "state": "removed", "freed_bytes": 98362432},
    {"path": f"chat/7b/{EVIL}", "model": "y", "state": "left", "freed_bytes": 0},
    {"path": "chat/7b/z.gguf", "model": "z", "state": "gone", "freed_bytes": 0},
)


@pytest.mark.parametrize("options", [(), ("--yes", "--check")])
def test_prune_shows_first(ansible: Ansible, options: tuple[str, ...]) -> None:
    answer(ansible, pruned("a", *UNWISHED, in_flight=["modelfleet-x"]), pruned("b"), failed("c"))
    said = call("prune", *options)
    assert said.exit_code == 0
    assert said.stdout.splitlines() == [
        "a: 3 files and 1 leftover in flight, 93.8 MiB to be freed",
        "  would remove  chat/7b/x.gguf                  x  93.8 MiB",
        r"  would leave   chat/7b/\x1b]0;owned\x07\u202e  y",
        "  would forget  chat/7b/z.gguf                  z",
        "  would remove  cache/temp/modelfleet-x",
        "b: every published file is kept by a wish",
        "c: not looked at",
    ]
    assert "nothing was removed; with --yes it is" in said.stderr
    assert call("prune", "--exit-code", *options).exit_code == 3


def test_prune_removes(ansible: Ansible) -> None:
    answer(ansible, pruned("a", UNWISHED[0], in_flight=["x"]))
    said = call("prune", "--yes", "--exit-code")
    assert said.exit_code == 0 and "with --yes" not in said.stderr
    assert said.stdout.splitlines()[0] == "a: 1 file and 1 leftover in flight, 93.8 MiB freed"
    document = json.loads(call("prune", "--yes", "--json").stdout)
    assert document["removed"] is True and document["hosts"]["a"]["prune"]["files"] == [UNWISHED[0]]
    assert json.loads(call("prune", "--json").stdout)["removed"] is False


def test_prune_of_nothing(ansible: Ansible) -> None:
    answer(ansible, pruned("a"))
    said = call("prune", "--exit-code")
    assert said.exit_code == 0 and "--yes" not in said.stderr


def test_a_failed_run_keeps_its_exit_code(ansible: Ansible) -> None:
    answer(ansible, pruned("a", UNWISHED[0]), failed("b"), exit_code=EXIT_FAILED)
    assert call("prune", "--exit-code").exit_code == 2
