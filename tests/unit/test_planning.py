"""The plan of a host: which variant, where, what is missing and why; and the same plan once it was carried out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.catalog import PinnedFile, WheelPin
from modelfleet.core.errors import ConfigurationError
from modelfleet.core.planning.document import HostPlan, first_difference, plan_from_dict
from modelfleet.core.planning.host import plan_host
from modelfleet.core.planning.needs import Needs
from modelfleet.core.planning.settings import PlanSettings, read_settings
from modelfleet.core.planning.state import StoreState, empty_state, read_state, why_missing
from modelfleet.core.store.manifest import FileRecord, Manifest, write_manifest
from modelfleet.core.units import GIB, MIB
from modelfleet.core.wishes import read_wishes
from support.planning import ENTRIES, LADDER, SHAPE_8B, STORE, card, catalog, entry, pretend, profile, store

CATALOG = catalog()
NEEDS = Needs()
HASH, OTHER_HASH = "a" * 64, "b" * 64


def plan(
    wanted: list[dict[str, Any]], host: dict[str, Any], state: StoreState | None = None, **changes: Any
) -> HostPlan:
    wishes = read_wishes(wanted, CATALOG)
    return plan_host(wishes, CATALOG, host, state or store(), PlanSettings(**changes), NEEDS)


def files_of(model: str, *quantizations: str) -> tuple[PinnedFile, ...]:
    return tuple(file for name in quantizations for file in CATALOG.entries[model].variants[name].files)


def chosen(made: HostPlan, place: int = 0) -> tuple[str, str | None]:
    """Return a model's quantization and device."""
    model = made.models[place]
    return model.quantization, model.placement.device if model.placement else None


class TestLadder:
    """Preferred, then smaller, all on accelerators; then in part; then on the processor; then refused."""

    @pytest.mark.parametrize(
        ("wish", "cards", "expected"),
        [
            ({"use_case": "production"}, [24], ("q8_0", "GPU0")),
            ({"use_case": "production"}, [10], ("q6_k", "GPU0")),
            ({"use_case": "production"}, [7.4], ("q4_k_m", "GPU0")),
            ({"use_case": "research"}, [12, 12], ("fp16", "GPU0+GPU1")),
            ({}, [12], ("q4_k_m", "GPU0")),
            ({"best": True}, [12], ("q8_0", "GPU0")),
            ({"quantization": "q3_k_m"}, [80], ("q3_k_m", "GPU0")),
            # Nothing of the ladder fits whole: the preferred one in part.
            ({"use_case": "production"}, [5], ("q8_0", "GPU0")),
            ({}, [], ("q4_k_m", "CPU")),
            ({"device": "cpu"}, [24], ("q4_k_m", "CPU")),
        ],
    )
    def test_what_is_chosen(self, wish: dict[str, Any], cards: list[float], expected: tuple[str, str]) -> None:
        made = plan([{"model": "small", **wish}], profile(*(card(size) for size in cards)))
        assert chosen(made) == expected
        model = made.models[0]
        assert model.need_bytes is not None and model.budget_bytes is not None
        assert model.need_bytes <= model.budget_bytes and model.action == "fetch"

    def test_a_partial_placement_is_the_largest_that_fits(self) -> None:
        (model,) = plan([{"model": "large", "use_case": "production"}], profile(card(8))).models
        assert model.placement is not None and model.placement.partial
        assert 1 < model.placement.gpu_layers < 40 and model.memory is not None
        gpu, main = (device["total"] for device in model.memory["devices"])
        assert gpu == model.need_bytes and gpu <= 7 * GIB and main <= 28 * GIB
        one_layer = gpu // model.placement.gpu_layers
        assert gpu + 2 * one_layer > 7 * GIB, "one more would have fitted"

    def test_a_split_gives_each_card_what_it_holds(self) -> None:
        (model,) = plan([{"model": "large", "use_case": "research"}], profile(card(24), card(10))).models
        assert model.placement is not None and model.memory is not None
        assert model.placement.device == "GPU0+GPU1" and sum(model.placement.split) == 41
        first, second, _ = (device["total"] for device in model.memory["devices"])
        assert first <= 23 * GIB and second <= 9 * GIB and model.placement.split[0] > model.placement.split[1]

    def test_main_memory_that_is_not_known_takes_no_rest_of_a_model(self) -> None:
        host = {**profile(card(12)), "memory": {}}
        assert chosen(plan([{"model": "small"}], host)) == ("q4_k_m", "GPU0")
        (model,) = plan([{"model": "large", "quantization": "fp16"}], host).models
        assert model.action == "refuse" and "the budget of GPU0 is 11.0 GiB" in model.reason

    def test_slices_are_never_put_together(self) -> None:
        slices = [
            {"index": number, "profile": "1g.10gb", "memory_total_bytes": 9728 * MIB, "gpu_instance_id": number}
            for number in range(7)
        ]
        cut = card(80, mig={"enabled": True, "slices": slices})
        (model,) = plan([{"model": "large", "use_case": "production"}], profile(cut, memory=64)).models
        assert model.placement is not None
        assert model.placement.device == "GPU0/MIG0" and model.placement.split == ()

    def test_what_is_not_allowed_is_not_done(self) -> None:
        wish = [{"model": "large", "use_case": "production"}]
        assert chosen(plan(wish, profile(card(5)), allow_partial_offload=False)) == ("q8_0", "CPU")
        refused = plan(wish, profile(card(5)), allow_partial_offload=False, allow_cpu=False)
        assert refused.models[0].action == "refuse"
        assert plan([{**wish[0], "device": "accelerator"}], profile()).models[0].action == "refuse"

    def test_a_long_context_takes_a_smaller_quantization(self) -> None:
        made = [plan([{"model": "small", "context": context}], profile(card(7.4))) for context in (2048, 16384, 65536)]
        assert [chosen(one) for one in made] == [("q4_k_m", "GPU0"), ("q3_k_m", "GPU0"), ("q4_k_m", "GPU0")]
        assert [one.models[0].placement.partial for one in made if one.models[0].placement] == [False, False, True]

    def test_models_that_are_loaded_together_share_the_machine(self) -> None:
        wishes = [{"model": "small"}, {"model": "large"}]
        alone = plan(wishes, profile(card(12)))
        together = plan(wishes, profile(card(12)), loaded_together=True)
        assert [chosen(alone, place) for place in (0, 1)] == [("q4_k_m", "GPU0")] * 2
        assert chosen(together) == ("q4_k_m", "GPU0")
        second = together.models[1].placement
        assert second is not None and not second.on_accelerator
        two = plan(wishes, profile(card(12), card(12)), loaded_together=True)
        assert [chosen(two, place) for place in (0, 1)] == [("q4_k_m", "GPU0"), ("q4_k_m", "GPU1")]

    def test_every_candidate_says_why_not(self) -> None:
        (model,) = plan([{"model": "small", "use_case": "research"}], profile(card(12))).models
        assert [one.quantization for one in model.candidates] == list(LADDER)
        first, second, third = model.candidates[:3]
        assert (
            not first.fits and first.reason.startswith("needs 15.") and "the budget of GPU0 is 11.0 GiB" in first.reason
        )
        assert second.fits and second.reason == "chosen: all of it on the accelerator"
        assert third.fits and third.reason == "fits; q8_0 comes first"
        assert model.reason.startswith("fp16 is for research; q8_0 is the first that fits; chat/7b/small.q8_0.gguf (")

    def test_a_task_is_told_with_its_model(self) -> None:
        (model,) = plan([{"task": "coding"}], profile(card(24))).models
        assert model.model == "large" and model.reason.startswith("large for the task coding (the only one); ")

    @pytest.mark.parametrize(
        ("about", "cards", "device", "tier"),
        [
            ({"category": "image/stable-diffusion", "file": "a.safetensors"}, [12], "GPU0", "catalog"),
            ({"category": "image/stable-diffusion", "file": "a.safetensors"}, [6], "CPU", "catalog"),
            ({"category": "voice/stt", "file": "a.bin"}, [], "CPU", "catalog"),
            ({"category": "chat/7b", "file": "a.gguf", "parameters": 8 * 10**9}, [24], "GPU0", "catalog"),
            ({"category": "chat/7b", "file": "a.gguf", "parameters": 8 * 10**9}, [4], "CPU", "catalog"),
        ],
    )
    def test_models_that_are_placed_whole(
        self, about: dict[str, Any], cards: list[int], device: str, tier: str
    ) -> None:
        file = {"name": about["file"], "source": "file:///x/a", "size": 6 * GIB, "sha256": HASH}
        one = {"id": "whole", "category": about["category"], "variants": {"fp16": {"files": [file]}}}
        one.update({key: about[key] for key in ("parameters",) if key in about})
        known = catalog([one])
        host = profile(*(card(size) for size in cards), memory=64)
        (model,) = plan_host(read_wishes([{"model": "whole"}], known), known, host, store(), PlanSettings()).models
        assert model.placement is not None and (model.placement.device, model.tier) == (device, tier)
        assert not model.placement.partial and model.memory is not None and model.need_bytes is not None
        assert model.need_bytes > 6 * GIB and model.memory["warnings"]

    def test_memory_that_nothing_tells_is_not_guessed(self) -> None:
        made = plan([{"model": "dark"}], profile(card(24)))
        (model,) = made.models
        assert (model.action, model.placement, model.need_bytes, model.tier) == ("fetch", None, None, None)
        assert made.warnings == (
            "dark: nothing tells how much memory it needs; modelfleet lock dark reads it from the file",
        )


class TestRefusals:
    """Each says why, and what would help; what is advised does help."""

    @pytest.mark.parametrize(
        ("wish", "host", "changes", "said"),
        [
            (
                {"quantization": "q8_0"},
                profile(card(6), memory=16),
                {"allow_partial_offload": False, "allow_cpu": False},
                ["the budget of GPU0 is 5.0 GiB", "allow partial offload (models_allow_partial_offload)"],
            ),
            (
                {"quantization": "fp16"},
                profile(card(8)),
                {"allow_cpu": False, "allow_partial_offload": False},
                ["wish q"],
            ),
            ({"quantization": "q8_0"}, profile(memory=8), {}, ["the budget of main memory is 4.0 GiB"]),
            ({"context": 131072}, profile(memory=16), {}, ["even q3_k_m needs", "shorten the context to"]),
            (
                {"device": "accelerator"},
                profile(memory=32),
                {},
                ["an accelerator is wished for", "leave the device out"],
            ),
            ({}, profile(), {"allow_cpu": False}, ["models_allow_cpu is false", "allow the processor"]),
            ({}, profile(memory=4), {}, ["it takes a machine with more memory, or a smaller model"]),
            ({}, {"accelerators": [], "memory": {}}, {}, ["how much main memory there is is not known"]),
        ],
    )
    def test_why_and_what_would_help(
        self, wish: dict[str, Any], host: dict[str, Any], changes: dict[str, Any], said: list[str]
    ) -> None:
        (model,) = plan([{"model": "small", **wish}], host, **changes).models
        assert model.action == "refuse" and "\n" not in model.reason
        for text in said:
            assert text in model.reason

    def test_the_advice_helps(self) -> None:
        host, strict = profile(card(7), memory=24), {"allow_partial_offload": False, "allow_cpu": False}
        wish = {"model": "small", "quantization": "q8_0"}
        (model,) = plan([wish], host, **strict).models
        assert "allow partial offload" in model.reason and "allow the processor" in model.reason
        smaller = model.reason.rpartition("wish ")[2].split(",")[0]
        assert plan([wish], host, allow_cpu=False).models[0].action == "fetch"
        assert plan([wish], host, allow_partial_offload=False).models[0].action == "fetch"
        assert plan([{**wish, "quantization": smaller}], host, **strict).models[0].action == "fetch"

    def test_what_the_lock_does_not_pin(self) -> None:
        known = catalog(locked=False)
        wishes = read_wishes([{"model": "small"}], known)
        for allowed, action in ((False, "refuse"), (True, "fetch")):
            made = plan_host(wishes, known, profile(card(12)), store(), PlanSettings(allow_unlocked=allowed))
            (model,) = made.models
            assert model.action == action and model.placement is not None
        (model,) = plan_host(wishes, known, profile(card(12)), store(), PlanSettings()).models
        assert (
            model.needs_lock
            and model.reason.endswith("run modelfleet lock small:q4_k_m")
            and "small.q4_k_m.gguf" in model.reason
        )

    def test_two_models_that_claim_one_file(self) -> None:
        other = entry("other", SHAPE_8B)
        other["variants"]["q4_k_m"]["files"][0]["name"] = "small.q4_k_m.gguf"
        known = catalog([*ENTRIES, other])
        wishes = read_wishes([{"model": "small"}, {"model": "other"}], known)
        with pytest.raises(ConfigurationError, match=r"both publish chat/7b/small\.q4_k_m\.gguf"):
            plan_host(wishes, known, profile(), store(), PlanSettings())


class TestWhatIsThere:
    """What is published and still serves is kept."""

    def test_a_published_choice_is_kept_until_replan(self) -> None:
        host, wish = profile(card(24)), [{"model": "small", "use_case": "production"}]
        there = store(*files_of("small", "q4_0"))
        kept = plan(wish, host, there).models[0]
        assert (kept.quantization, kept.action, kept.bytes_to_fetch) == ("q4_0", "keep", 0)
        assert "q4_0 is published and still serves" in kept.reason
        assert kept.candidates[0].reason == "fits; q4_0 is published and still serves"
        moved = plan(wish, host, there, replan=True).models[0]
        assert (moved.quantization, moved.action) == ("q8_0", "fetch")

    def test_what_does_not_serve_any_more_is_chosen_anew(self) -> None:
        there = store(*files_of("small", "fp16"))
        host, changes = profile(card(12), memory=8), {"allow_cpu": False, "allow_partial_offload": False}
        assert chosen(plan([{"model": "small", "best": True}], host, there, **changes)) == ("q8_0", "GPU0")

    def test_a_variant_of_another_wish_is_that_wish_s(self) -> None:
        wishes = [{"model": "small", "use_case": "production"}, {"model": "small", "quantization": "q4_0"}]
        made = plan(wishes, profile(card(24)), store(*files_of("small", "q4_0")))
        assert [(model.quantization, model.action) for model in made.models] == [("q8_0", "fetch"), ("q4_0", "keep")]

    def test_two_wishes_that_come_to_the_same_are_one(self) -> None:
        wishes = [{"model": "small", "use_case": "production"}, {"model": "small", "use_case": "research"}]
        made = plan(wishes, profile(card(7.4)))
        assert [model.quantization for model in made.models] == ["q4_k_m"]
        assert made.warnings == ("two wishes for small come to q4_k_m; it is kept once",)

    def test_no_wish_no_removal_unless_asked(self) -> None:
        there = store(*files_of("small", "q4_k_m", "q8_0"))
        wish = [{"model": "small"}]
        assert [model.action for model in plan(wish, profile(card(24)), there).models] == ["keep"]
        made = plan(wish, profile(card(24)), there, remove_unwished=True)
        assert [model.action for model in made.models] == ["keep", "remove"]
        assert [file.path for file in made.models[1].files] == ["chat/7b/small.q8_0.gguf"]

    def test_free_memory_warns_and_decides_nothing(self) -> None:
        wish = [{"model": "small"}]
        idle, busy = plan(wish, profile(card(12, free=12))), plan(wish, profile(card(12, free=2)))
        assert idle.models == busy.models and idle.budgets == busy.budgets and idle.warnings == ()
        (warning,) = busy.warnings
        assert warning.startswith("small needs ") and warning.endswith("of GPU0, where 2.0 GiB are free just now")
        assert plan(wish, profile(available_bytes=GIB)).warnings[0].endswith("of CPU, where 1.0 GiB are free just now")


class TestDisk:
    """Space and inodes, with what is there already."""

    def test_what_is_there_needs_no_space(self) -> None:
        wishes = [{"model": "small"}, {"model": "large"}]
        first = files_of("small", "q4_k_m")
        need = sum(file.size or 0 for file in files_of("large", "q4_k_m"))
        made = plan(wishes, profile(), store(*first, free=need))
        assert [model.action for model in made.models] == ["keep", "fetch"] and made.disk_bytes == need
        made = plan(wishes, profile(), store(*first, free=need - 1))
        assert [model.action for model in made.models] == ["keep", "refuse"] and made.disk_bytes == 0
        assert "4.9 KiB of disk are needed, 4.9 KiB are free at /srv/models; free some" in made.models[1].reason

    def test_a_replaced_file_that_is_larger_than_the_pinned_one(self) -> None:
        (file,) = files_of("small", "q4_k_m")
        state = store(file)
        state.found[file.path] = state.found[file.path]._replace(size=(file.size or 0) + 1, proved=False)
        made = plan([{"model": "small"}], profile(), state)
        assert made.models[0].action == "replace" and made.disk_bytes == 0
        assert plan_from_dict(made.to_dict()) == made

    def test_models_take_space_one_after_the_other(self) -> None:
        sizes = [files_of(model, "q4_k_m")[0].size or 0 for model in ("small", "large")]
        wishes = [{"model": "small"}, {"model": "large"}]
        assert [model.action for model in plan(wishes, profile(), store(free=sum(sizes))).models] == ["fetch"] * 2
        made = plan(wishes, profile(), store(free=sum(sizes) - 1))
        assert [model.action for model in made.models] == ["fetch", "refuse"]

    def test_inodes(self) -> None:
        assert plan([{"model": "small"}], profile(), store(inodes=17)).models[0].action == "fetch"
        (model,) = plan([{"model": "small"}], profile(), store(inodes=16)).models
        assert model.action == "refuse" and "16 inodes are free" in model.reason

    def test_a_wheel_crosses_the_network_whole_and_takes_space_for_a_while(self) -> None:
        wheel = WheelPin("tiny-1.0-py3-none-any.whl", 300, OTHER_HASH)
        source = "wheel://tiny==1.0/tiny/a.gguf"
        one = entry("carried", None)
        one["variants"] = {"q4_0": {"files": [{"name": "a.gguf", "source": source}]}}
        one["default_quantization"] = "q4_0"
        pin = {"name": "a.gguf", "source": source, "size": 1000, "sha256": HASH, "wheel": wheel._asdict()}
        from modelfleet.core.catalog import read_catalog

        known = read_catalog([one], {"schema_version": 1, "models": {"carried": {"q4_0": {"files": [pin]}}}})
        wishes = read_wishes([{"model": "carried"}], known)
        made = plan_host(wishes, known, profile(), store(free=1300), PlanSettings())
        assert (made.models[0].action, made.bytes_to_fetch, made.disk_bytes) == ("fetch", 300, 1000)
        refused = plan_host(wishes, known, profile(), store(free=1299), PlanSettings())
        assert refused.models[0].action == "refuse"

    def test_bytes_of_what_is_not_locked_are_those_of_the_weights(self) -> None:
        one = entry("open", SHAPE_8B)
        for variant in one["variants"].values():
            for file in variant["files"]:
                del file["size"], file["sha256"]
        from modelfleet.core.catalog import read_catalog

        known = read_catalog([one], {"schema_version": 1, "models": {}})
        wishes = read_wishes([{"model": "open"}], known)
        (model,) = plan_host(wishes, known, profile(card(24)), store(), PlanSettings()).models
        # Llama-3.1-8B Q4_K_M is 4,920,739,232 bytes with its metadata, which has the vocabulary.
        assert 0.99 < model.bytes_to_fetch / 4920739232 <= 1.0


def publish(root: Path, file: PinnedFile, manifest: Manifest) -> None:
    """Put a file into the store as publishing does."""
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(file.size or 0))
    status = path.lstat()
    stat = (status.st_size, file.sha256 or "", status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    late = status.st_ctime_ns + 3 * 10**9
    manifest[file.path] = FileRecord("small", *stat, file.source, None, "2026-01-31T12:00:00Z", late)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("no store", "is not there"),
        ("not there", "is not there"),
        ("a file where its folder should be", "is not there"),
        ("no record", "is there, not proved yet"),
        ("removed", "is not there"),
        ("touched", "was changed since it was published"),
        ("a symlink", "was changed since it was published"),
        ("another version", "is another version than the lock pins"),
        ("kept", ""),
    ],
)
def test_the_state_of_a_real_store(tmp_path: Path, state: str, reason: str) -> None:
    manifest: Manifest = {}
    (file,) = files_of("small", "q4_k_m")
    path, root = tmp_path / file.path, tmp_path
    (tmp_path / ".modelfleet").mkdir()
    if state == "no store":
        root = tmp_path / "missing"
    elif state == "a file where its folder should be":
        (tmp_path / "chat").touch()
    elif state != "not there":
        publish(tmp_path, file, manifest)
    if state == "no record":
        manifest.clear()
    elif state == "removed":
        path.unlink()
    elif state == "touched":
        os.utime(path, (1, 1))
    elif state == "a symlink":
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
    elif state == "another version":
        manifest[file.path] = manifest[file.path]._replace(sha256=OTHER_HASH)
    write_manifest(str(tmp_path), manifest)
    found = read_state(str(root), [file])
    assert why_missing(found, file) == reason
    assert found.free_bytes and found.free_bytes > 0
    (model,) = plan([{"model": "small"}], profile(), found).models
    replaced = state in ("touched", "a symlink", "another version")
    assert model.action == ("keep" if state == "kept" else "replace" if replaced else "fetch")
    assert model.bytes_to_fetch == (0 if state in ("no record", "touched", "kept") else file.size)


def test_a_store_that_is_not_there_has_the_space_of_the_profile() -> None:
    state = empty_state(STORE, {"storage": {"free_bytes": 7, "inodes_free": 9}})
    assert (state.free_bytes, state.free_inodes) == (7, 9)
    assert empty_state(STORE, {}).free_bytes is None


class TestDocument:
    """A plan as JSON, and what comes back of it."""

    def made(self) -> HostPlan:
        wishes = [{"model": "small", "use_case": "research"}, {"model": "large"}, {"model": "dark"}]
        return plan(wishes, profile(card(12), card(12), memory=16), store(*files_of("large", "q4_k_m")))

    def test_it_comes_back_as_it_was(self) -> None:
        import json

        made = self.made()
        assert plan_from_dict(json.loads(json.dumps(made.to_dict()))) == made
        assert {model.action for model in made.models} == {"keep", "fetch"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema_version": 1}, "the plan has schema_version 1, this release reads 2; make the plan anew"),
            ({"models": None}, "the plan: models is None"),
            ({"models": [7]}, "the plan, models entry 1 is not a mapping"),
            ({"store_path": 7}, "the plan: store_path is 7"),
            ({"action": "erase"}, "the plan, models entry 1: action is 'erase'"),
            ({"missing": ["chat/7b/other"]}, "models entry 1: missing is 'chat/7b/other'"),
            ({"path": "../../etc/passwd"}, "models entry 1: path is '../../etc/passwd'"),
            ({"path": "/etc/passwd"}, "models entry 1: path is '/etc/passwd'"),
            ({"path": "chat/7b/../../x"}, "models entry 1: path is 'chat/7b/../../x'"),
            ({"sha256": "x"}, "models entry 1: sha256 is 'x'"),
            ({"size": -1}, "models entry 1: size is -1"),
            ({"size": True}, "models entry 1: size is True"),
            ({"unit": "../x"}, "models entry 1: unit is '../x'"),
        ],
    )
    def test_what_is_no_plan_is_refused(self, change: dict[str, Any], message: str) -> None:
        document = self.made().to_dict()
        ((key, value),) = change.items()
        model = document["models"][0]
        target = document if key in document else model if key in model else model["files"][0]
        target[key] = value
        with pytest.raises(ConfigurationError) as caught:
            plan_from_dict(document)
        assert message in str(caught.value) and "\n" not in str(caught.value)

    def test_no_difference_to_itself_nor_to_what_was_done_of_it(self) -> None:
        made = self.made()
        assert first_difference(made, made) is None
        done = tuple(model._replace(action="keep", missing=(), reason="") for model in made.models)
        assert first_difference(made, made._replace(models=done, warnings=("busy",))) is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"quantization": "q3_k_m"}, "small: quantization is q3_k_m, reviewed was fp16"),
            ({"context": 4096}, "small: context is 4096, reviewed was 8192"),
            ({"placement": None}, "small: placement is None, reviewed was GPU0+GPU1 with 33 layers"),
            ({"action": "refuse", "reason": "no room"}, "small: action is refuse (no room), reviewed was fetch"),
            (
                {"files": ()},
                "small: chat/7b/small.fp16.gguf is not of the model, reviewed was file:///x/small.fp16.gguf",
            ),
            ({"model": "other"}, "small was reviewed and is not planned now"),
        ],
    )
    def test_the_first_difference_is_named(self, change: dict[str, Any], message: str) -> None:
        made = self.made()
        now = made._replace(models=(made.models[0]._replace(**change), *made.models[1:]))
        said = first_difference(made, now)
        assert said is not None and said.startswith(message)

    def test_more_than_was_reviewed_is_a_difference(self) -> None:
        made = self.made()
        less = made._replace(models=made.models[:2])
        assert first_difference(less, made) == "dark is planned now and was not reviewed"
        assert first_difference(made, made._replace(store_path="/x")) == "the store is /x, reviewed was /srv/models"
        kept = tuple(model._replace(missing=()) for model in made.models)
        said = first_difference(made._replace(models=kept), made)
        assert said == "small: chat/7b/small.fp16.gguf is to be fetched too"


class TestSettings:
    """The variables of the role."""

    def test_defaults_and_what_ansible_makes_of_them(self) -> None:
        assert read_settings({}) == PlanSettings()
        given = {"context": "4096", "flash_attention": False, "replan": "yes", "headroom_mebibytes": 0, "other": 1}
        assert read_settings(given) == PlanSettings(context=4096, flash_attention="off", replan=True, headroom_bytes=0)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"context": 0}, "models_context is 0; write a whole number from 1 to"),
            ({"context": True}, "models_context is True"),
            ({"kv_type": "q9"}, "models_kv_type is 'q9'; use one of f32, f16"),
            ({"flash_attention": "maybe"}, "models_flash_attention is 'maybe'; use one of auto, on, off"),
            ({"allow_cpu": "perhaps"}, "models_allow_cpu is 'perhaps'; write true or false"),
            ({"parallel_sequences": 1000}, "models_parallel_sequences is 1000"),
        ],
    )
    def test_what_is_wrong_is_named(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            read_settings(given)
        assert str(caught.value).startswith(message)


WISHES = st.fixed_dictionaries(
    {"model": st.sampled_from(["small", "large", "dark"])},
    optional={
        "context": st.sampled_from([512, 2048, 4096]),
        "device": st.sampled_from(["accelerator", "cpu"]),
    },
).flatmap(
    lambda wish: st.sampled_from(
        [
            {},
            {"best": True},
            *({"quantization": name} for name in LADDER),
            *({"use_case": name} for name in ("development", "production", "research", "mobile", "batch_processing")),
        ]
    ).map(lambda how: {**wish, **how})
)
SETTINGS = st.fixed_dictionaries(
    {
        "allow_partial_offload": st.booleans(),
        "allow_cpu": st.booleans(),
        "loaded_together": st.booleans(),
        "replan": st.booleans(),
        "headroom_bytes": st.sampled_from([0, GIB]),
        "remove_unwished": st.booleans(),
    }
).map(lambda values: PlanSettings(**values))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(WISHES, min_size=1, max_size=4, unique_by=lambda wish: str(sorted(wish.items()))),
    st.lists(st.sampled_from([4, 6, 8, 10, 12, 16, 24, 48]), max_size=4),
    st.sampled_from([2, 8, 16, 32, 128]),
    st.sets(st.tuples(st.sampled_from(["small", "large"]), st.sampled_from(LADDER))),
    SETTINGS,
    st.one_of(st.none(), st.integers(0, 12000)),
    st.integers(0, 64),
)
def test_a_plan_that_was_carried_out_comes_out_again(
    wanted: list[dict[str, Any]],
    cards: list[int],
    memory: int,
    there: set[tuple[str, str]],
    how: PlanSettings,
    free: int | None,
    in_use: int,
) -> None:
    try:
        wishes = read_wishes(wanted, CATALOG)
    except ConfigurationError:
        return
    host = profile(*(card(size) for size in cards), memory=memory)
    state = store(*(file for model, name in sorted(there) for file in files_of(model, name)), free=free)
    first = plan_host(wishes, CATALOG, host, state, how, NEEDS)
    assert first == plan_host(wishes, CATALOG, host, state, how), "nothing is remembered that matters"
    for model in first.models:
        if model.action in ("keep", "fetch") and model.placement is not None:
            assert model.need_bytes is not None and model.budget_bytes is not None
            assert model.need_bytes <= model.budget_bytes
            assert (
                model.placement.backend != "cpu" or how.allow_cpu or any(one.get("device") == "cpu" for one in wanted)
            )
            assert how.allow_partial_offload or not model.placement.partial
    after = pretend(first, state)
    assert after.free_bytes is None or after.free_bytes >= 0
    busy = profile(*(card(size, free=min(size, in_use)) for size in cards), memory=memory, available_bytes=in_use * GIB)
    again = plan_host(wishes, CATALOG, busy, after, how, NEEDS)
    expected = {"fetch": "keep", "replace": "keep"}
    lasting = [model for model in first.models if model.action != "remove"]
    assert [model.action for model in again.models] == [expected.get(one.action, one.action) for one in lasting]
    choices = [(one.model, one.quantization, one.placement, one.context, one.memory) for one in lasting]
    assert [(one.model, one.quantization, one.placement, one.context, one.memory) for one in again.models] == choices
    assert not again.pending and first_difference(first._replace(models=tuple(lasting)), again) is None
