"""``modelfleet estimate``: files, models of the catalog, other machines, JSON, one line for what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from modelfleet.cli import main

CARD = ("--device", "CUDA0:12GiB", "--device", "CPU:32GiB")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the verb and return exit code, output and errors."""
    with pytest.raises(SystemExit) as caught:
        main.main(["estimate", *arguments])
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the JSON answer."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def test_a_model_of_the_catalog_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "llama-3.1-8b-instruct", *CARD)
    assert (told["schema_version"], told["tier"], told["quantization"]) == (1, "header", "q4_k_m")
    card, host = told["devices"]
    assert set(card) >= {"name", "weights", "repack", "kv_cache", "compute", "output", "overhead", "total"}
    assert card["name"] == "CUDA0"
    assert card["kv_cache"] == 1024 * 2**20
    assert card["capacity"] == 12 * 2**30
    assert card["total"] == sum(card[part] for part in list(card)[1:7])
    assert host["repack"] == 0


def test_offloaded_layers_and_split(capsys: pytest.CaptureFixture[str]) -> None:
    devices = ("--device", "CUDA0:24G", "--device", "CUDA1:24G")
    told = answer(capsys, "llama-3.1-8b-instruct", *devices, "--gpu-layers", "20", "--split", "3,1")
    first, second, host = told["devices"]
    assert first["kv_cache"] == 15 * 32 * 2**20
    assert second["kv_cache"] == 4 * 32 * 2**20
    assert host["kv_cache"] == 13 * 32 * 2**20


def test_options_reach_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--context", "32768", "--kv-type", "q8_0,f16", "--batch", "512", "--ubatch", "256", "--parallel", "2")
    told = answer(capsys, "llama-3.1-8b-instruct", *CARD, *more, "--unified", "--swa-full", "--flash-attention", "on")
    assert told["options"] == {
        "context": 32768,
        "batch": 512,
        "micro_batch": 256,
        "kv_type_k": "q8_0",
        "kv_type_v": "f16",
        "flash_attention": "on",
        "parallel": 2,
        "unified": True,
        "full_window": True,
        "repack": True,
    }


def test_this_machine_is_what_it_is_held_against(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "smollm2-135m-instruct")
    assert told["devices"][-1]["capacity"] > 2**28
    code, out, _ = run(capsys, "smollm2-135m-instruct")
    assert code == 0
    assert "CPU" in out and "fits" in out


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "mixtral-8x7b-instruct", *CARD)
    assert code == 0
    assert "does not fit" in out


def test_the_catalog_tier(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "llama-3.1-8b-instruct", "--tier", "catalog", *CARD)
    assert told["tier"] == "catalog"
    assert told["warnings"]


def test_compare_says_which_figures_are_whose(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--compare")
    assert code == 0
    assert "q4_k_m  95 %" in out and "+0.1754" in out and "30.6%" in out
    rows = answer(capsys, "--compare")["compare"]
    assert rows[0]["tutorial_memory_percent"] == 100
    assert rows[2]["tutorial_speed"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("llama-3.1-8b-instrukt",), 1, "did you mean llama-3.1-8b-instruct"),
        (("llama-3.1-8b-instruct", "-q", "q4_k_n"), 1, "q4_k_m"),
        (("llama-3.1-8b-instruct", "--device", "TPU:3GiB"), 64, "--device"),
        (("llama-3.1-8b-instruct", "--device", "CUDA0:much"), 64, "--device"),
        (("llama-3.1-8b-instruct", *CARD, "--split", "1,2,3"), 64, "--split"),
        (("llama-3.1-8b-instruct", *CARD, "--split", "a"), 64, "--split"),
        (("llama-3.1-8b-instruct", "--device", "CPU:9GiB", "--gpu-layers", "3"), 64, "no accelerator"),
        (("llama-3.1-8b-instruct", "--kv-type", "q3"), 64, "--kv-type"),
        (("llama-3.1-8b-instruct", "--kv-type", "q8_0", "--flash-attention", "off"), 1, "flash attention"),
        (("llama-3.1-8b-instruct", "--tier", "measured", *CARD), 1, "GGUF file"),
        (("llama-3.1-8b-instruct", "--context", "0"), 64, "--context"),
        (("/nowhere/x.gguf",), 1, "No such file"),
        ((), 64, "name a FILE"),
    ],
)
def test_what_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    got, out, err = run(capsys, *arguments)
    assert got == code
    assert not out
    assert said in err


def test_a_file_that_is_refused_is_refused_here_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    code, out, err = run(capsys, str(path))
    assert code == 1 and not out
    assert "version" in err
