"""What is measured beside a proof: throughput against its bound, memory against its prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.formats.model import ModelFile, Tensor
from modelfleet.core.inference.ledger import KEPT, LEDGER, entered, read_ledger, summary, write_ledger
from modelfleet.core.inference.throughput import (
    CARD_BANDWIDTH,
    bytes_per_token,
    card_bandwidth,
    judge,
    measure_main_memory,
)
from modelfleet.core.units import MIB


class TestThroughput:
    @pytest.mark.parametrize(
        ("name", "gigabytes"),
        [
            ("NVIDIA GeForce RTX 4090", 1008),
            ("NVIDIA GeForce RTX 3060 Ti", 448),
            ("NVIDIA H100 80GB HBM3", 3350),
            ("NVIDIA A100-SXM4-80GB", 2039),
            ("NVIDIA RTX 6000 Ada Generation", 960),
            ("Tesla V100-SXM2-16GB", 900),
            ("Apple M4 Pro", 273),
        ],
    )
    def test_known_cards(self, name: str, gigabytes: int) -> None:
        assert card_bandwidth(name) == gigabytes * 1e9

    @pytest.mark.parametrize(
        "name",
        [
            None,
            "",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA A10G",
            "NVIDIA GeForce RTX 3080",
            "Apple M4 Max",
            "RTX",
        ],
    )
    def test_a_card_that_is_not_exactly_known_has_none(self, name: str | None) -> None:
        assert card_bandwidth(name) is None

    def test_every_card_of_the_table_is_found_as_itself(self) -> None:
        for name, gigabytes in CARD_BANDWIDTH.items():
            assert card_bandwidth(name) == pytest.approx(gigabytes * 1e9), name

    def model(self, *tensors: tuple[str, int], **metadata: int) -> ModelFile:
        listed = [Tensor(name, "Q4_0", (1,), 0, size) for name, size in tensors]
        told = {f"llama.{key}": value for key, value in metadata.items()}
        return ModelFile("gguf", 0, architecture="llama", tensors=listed, metadata=told)

    def test_each_weight_is_read_once_for_a_token(self) -> None:
        assert bytes_per_token(self.model(("token_embd.weight", 100), ("blk.0.ffn_up.weight", 50))) == 150, "tied"
        untied = self.model(("token_embd.weight", 100), ("blk.0.ffn_up.weight", 50), ("output.weight", 90))
        assert bytes_per_token(untied) == 140, "one row of the embedding"
        assert bytes_per_token(self.model()) is None

    def test_of_a_mixture_the_experts_in_use(self) -> None:
        mixture = self.model(
            ("blk.0.ffn_up_exps.weight", 800), ("output.weight", 10), expert_count=8, expert_used_count=2
        )
        assert bytes_per_token(mixture) == 210

    def test_the_share_of_the_bound(self) -> None:
        found = judge(50.0, 1e12, 4_000_000_000)
        assert (found["bound_tokens_per_second"], found["share"]) == (250.0, 0.2)
        for missing in ((None, 1e12, 4), (5.0, None, 4), (5.0, 1e12, None)):
            assert judge(*missing)["share"] is None

    def test_the_main_memory_is_measured(self) -> None:
        # Any machine that runs these tests reads over 100 MB/s and under 100 TB/s.
        assert 1e8 < measure_main_memory(1, 0.01) < 1e14


def record(model: str, predicted: Any, measured: Any, device: str = "CPU") -> dict[str, Any]:
    """Return what a proof's record says of memory."""
    devices = [{"name": device, "predicted_bytes": predicted, "measured_bytes": measured}]
    return {"model": model, "memory": {"devices": devices}, "verified_at": "2026-01-01T00:00:00Z"}


class TestLedger:
    def test_it_is_kept_by_device_and_model(self, store: Path) -> None:
        book = entered({}, [record("a", 10, 11), record("b", 10, 10, "CUDA0"), record("a", 20, 22)])
        write_ledger(str(store), book)
        assert read_ledger(str(store)) == book
        assert [entry["measured_bytes"] for entry in book["CPU"]] == [22]
        assert list(book) == ["CPU", "CUDA0"]

    def test_it_stays_small(self) -> None:
        book = entered({}, [record(f"m{number}", 10, 11) for number in range(KEPT + 5)])
        assert len(book["CPU"]) == KEPT and book["CPU"][0]["model"] == "m5"

    @pytest.mark.parametrize(("predicted", "measured"), [(None, 5), (5, None), (0, 5), (-1, 5), (5, "6"), (True, 5)])
    def test_what_was_not_both_predicted_and_measured_is_left_out(self, predicted: Any, measured: Any) -> None:
        assert entered({}, [record("a", predicted, measured)]) in ({}, {"CPU": []})

    def test_the_headroom_covers_the_largest_excess(self) -> None:
        book = entered({}, [record("a", 100 * MIB, 165 * MIB), record("b", 100 * MIB, 90 * MIB)])
        (told,) = summary(book)
        assert (told["largest_excess_bytes"], told["headroom_mebibytes"]) == (65 * MIB, 128)
        (under,) = summary(entered({}, [record("b", 100 * MIB, 90 * MIB)]))
        assert (under["largest_excess_bytes"], under["headroom_mebibytes"]) == (-10 * MIB, 0)

    @given(st.lists(st.tuples(st.integers(1, 2**40), st.integers(1, 2**40)), min_size=1, max_size=20))
    def test_no_measured_model_exceeds_prediction_and_headroom(self, sizes: list[tuple[int, int]]) -> None:
        (told,) = summary(entered({}, [record(f"m{number}", *pair) for number, pair in enumerate(sizes)]))
        assert all(measured <= predicted + told["headroom_mebibytes"] * MIB for predicted, measured in sizes)

    @pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"devices": []}', '{"devices": {"CPU": 5}}', "\0"])
    def test_one_that_cannot_be_read_is_none(self, store: Path, content: str | None) -> None:
        if content is not None:
            (store / LEDGER).write_text(content)
        assert read_ledger(str(store)) == {}
