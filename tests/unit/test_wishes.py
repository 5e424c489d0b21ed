"""Wishes: what each means in the catalog, in which order variants are tried, and one line for what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.catalog import Catalog, read_catalog
from modelfleet.core.errors import CatalogError, ConfigurationError
from modelfleet.core.fetch.sources import HubSource, UrlSource, parse_source
from modelfleet.core.wishes import USE_CASES, Wish, candidates, read_wishes

LOCK: dict[str, Any] = {"schema_version": 1, "models": {}}


def entry(
    name: str, *quantizations: str, category: str = "chat/7b", suffix: str = "gguf", **more: Any
) -> dict[str, Any]:
    """Return a catalog entry with one file a quantization."""
    variants = {
        one: {"files": [{"name": f"{name}.{one}.{suffix}", "source": f"file:///{name}.{one}.{suffix}"}]}
        for one in quantizations
    }
    return {"id": name, "category": category, "variants": variants, **more}


SIX = ("q3_k_m", "fp16", "q4_0", "q8_0", "q4_k_m", "q6_k")
ENTRIES = [
    entry("talker", *SIX, tasks=["general"], default_quantization="q4_k_m", context_length=4096),
    entry("coder", "q4_k_m", "q3_k_m", tasks=["coding", "general"]),
    entry("better-coder", "q8_0", "q5_k_m", tasks=["coding"], preferred_for=["coding"]),
    entry("small", "q4_1"),
    entry("hearing", "large", "medium", "base", category="voice/stt", suffix="bin", default_quantization="medium"),
]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return read_catalog(ENTRIES, LOCK)


def order(catalog: Catalog, **wish: Any) -> tuple[str, list[str], str]:
    """Return the model, the quantizations in the order in which they are tried, and why."""
    (read,) = read_wishes([wish], catalog)
    found, variants, reason = candidates(read, catalog)
    return found.id, [variant.quantization for variant in variants], reason


class TestCandidates:
    @pytest.mark.parametrize(
        ("wish", "expected"),
        [
            ({}, ["q4_k_m", "q4_0", "q3_k_m"]),
            ({"best": True}, ["fp16", "q8_0", "q6_k", "q4_k_m", "q4_0", "q3_k_m"]),
            ({"best": False}, ["q4_k_m", "q4_0", "q3_k_m"]),
            ({"quantization": "q6_k"}, ["q6_k"]),
            ({"use_case": "development"}, ["q4_k_m", "q4_0", "q3_k_m"]),
            ({"use_case": "production"}, ["q8_0", "q6_k", "q4_k_m", "q4_0", "q3_k_m"]),
            ({"use_case": "mobile"}, ["q4_0", "q3_k_m"]),
            ({"use_case": "research"}, ["fp16", "q8_0", "q6_k", "q4_k_m", "q4_0", "q3_k_m"]),
            ({"use_case": "batch_processing"}, ["q3_k_m"]),
        ],
    )
    def test_the_preferred_first_and_then_down(self, catalog: Catalog, wish: Any, expected: list[str]) -> None:
        assert order(catalog, model="talker", **wish)[1] == expected

    @pytest.mark.parametrize(
        ("model", "use_case", "expected"),
        [
            ("coder", "production", ["q4_k_m", "q3_k_m"]),
            ("coder", "mobile", ["q3_k_m"]),
            ("better-coder", "research", ["q8_0", "q5_k_m"]),
            ("better-coder", "batch_processing", ["q5_k_m"]),
            ("small", "production", ["q4_1"]),
            ("small", "mobile", ["q4_1"]),
            ("hearing", "production", ["medium", "base"]),
        ],
    )
    def test_a_use_case_whose_quantization_is_not_offered(
        self, catalog: Catalog, model: str, use_case: str, expected: list[str]
    ) -> None:
        _, found, reason = order(catalog, model=model, use_case=use_case)
        assert found == expected and use_case in reason and found[0] in reason

    def test_sizes_that_are_no_quantizations_keep_the_catalogs_order(self, catalog: Catalog) -> None:
        assert order(catalog, model="hearing", best=True)[1] == ["large", "medium", "base"]

    def test_the_tutorials_use_cases(self) -> None:
        assert USE_CASES == {
            "development": "q4_k_m",
            "production": "q8_0",
            "mobile": "q4_0",
            "research": "fp16",
            "batch_processing": "q3_k_m",
        }


class TestTasks:
    def test_the_preferred_model_and_why(self, catalog: Catalog) -> None:
        model, quantizations, reason = order(catalog, task="coding")
        assert model == "better-coder" and quantizations == ["q8_0", "q5_k_m"]
        assert reason == "better-coder for the task coding (preferred over coder); q8_0 is the default"

    def test_the_first_where_none_is_preferred(self, catalog: Catalog) -> None:
        assert order(catalog, task="general")[0] == "talker"

    def test_a_users_own_entry_wins(self) -> None:
        mine = entry("mine", "q4_0", tasks=["coding"], preferred_for=["coding", "chess"])
        known = read_catalog([*ENTRIES, mine], LOCK)
        assert order(known, task="coding")[0] == "mine"
        assert order(known, task="chess")[2] == "mine for the task chess (the only one); q4_0 is the default"


class TestWishes:
    def test_what_is_read(self, catalog: Catalog) -> None:
        wish = {"task": "coding", "use_case": "research", "context": 8192, "device": "accelerator"}
        assert read_wishes([wish], catalog) == [Wish(None, "coding", "research", None, False, 8192, "accelerator")]
        assert read_wishes([{"model": "small"}], catalog) == [Wish("small", None, None, None, False, None, None)]
        assert read_wishes([], catalog) == []

    def test_wishes_for_the_same_are_one(self, catalog: Catalog) -> None:
        wishes = [{"model": "talker"}, {"task": "general"}, {"model": "talker", "use_case": "development"}]
        assert len(read_wishes(wishes, catalog)) == 1

    @pytest.mark.parametrize(
        ("wishes", "expected", "path"),
        [
            ({"model": "talker"}, "models_wanted is not a list; write each wish as '- model: …' or '- task: …'", ()),
            (["talker"], "models_wanted entry 1 is not a mapping; write it as 'key: value' lines with at least", (0,)),
            ([{}], "models_wanted entry 1: 'model' is missing; write 'model: …'", (0,)),
            ([{"modle": "talker"}], "has the unknown key 'modle' (did you mean model?)", (0, "modle")),
            ([{"model": "talkr"}], "the catalog has no model 'talkr' (did you mean talker?)", (0, "model")),
            (
                [{"task": "codin"}],
                "no model of the catalog is for the task 'codin' (did you mean coding?); use one of general, coding",
                (0, "task"),
            ),
            ([{"model": "talker", "task": "coding"}], "names both a model and a task; name one of them", (0, "task")),
            (
                [{"model": "talker", "quantization": "q4_0", "use_case": "mobile"}],
                "has both use_case and quantization; keep one: each chooses the quantization in its own way",
                (0, "quantization"),
            ),
            ([{"model": "talker", "use_case": "mobile", "best": True}], "has both use_case and best", (0, "best")),
            ([{"model": "talker", "quantization": "q4_0", "best": True}], "both quantization and best", (0, "best")),
            (
                [{"model": "talker", "use_case": "produktion"}],
                "there is no use case 'produktion' (did you mean production?); use one of development, production",
                (0, "use_case"),
            ),
            (
                [{"model": "talker", "quantization": "q4"}],
                "talker has no quantization 'q4' (did you mean q4_0 or q4_k_m?)",
                (0, "quantization"),
            ),
            (
                [{"model": "talker", "context": 8192}],
                "a context of 8192 tokens is beyond the 4096 that talker was made for; write at most 4096",
                (0, "context"),
            ),
            (
                [{"model": "talker", "context": "8k"}],
                "'context' is '8k'; write a whole number of tokens",
                (0, "context"),
            ),
            ([{"model": "talker", "context": 0}], "'context' is 0; write a whole number", (0, "context")),
            ([{"model": "talker", "context": True}], "'context' is True; write a whole number", (0, "context")),
            ([{"model": "talker", "device": "gpu"}], "there is no device 'gpu'", (0, "device")),
            ([{"model": "talker", "best": "yes"}], "'best' is 'yes'; write true or false", (0, "best")),
            (
                [{"model": "talker"}, {"model": "talker", "context": 1024}],
                "models_wanted entry 2 wishes talker in q4_k_m with another context than entry 1; keep one of them",
                (1, "context"),
            ),
            (
                [{"model": "talker", "device": "cpu"}, {"task": "general"}],
                "models_wanted entry 2 wishes talker in q4_k_m with another device than entry 1",
                (1,),
            ),
        ],
    )
    def test_what_cannot_be_meant(self, catalog: Catalog, wishes: Any, expected: str, path: tuple[Any, ...]) -> None:
        with pytest.raises(CatalogError) as caught:
            read_wishes(wishes, catalog)
        assert expected in str(caught.value) and "\n" not in str(caught.value) and caught.value.cure
        assert (caught.value.variable, caught.value.path) == ("wanted", path)

    @given(
        st.dictionaries(
            st.sampled_from(["model", "task", "use_case", "quantization", "best", "context", "device", "x"]),
            st.sampled_from(["talker", "coding", "q4_0", "mobile", "cpu", True, False, None, 1, 9999, [], {}, "a\nb"]),
        )
    )
    def test_no_wish_ends_in_a_traceback(self, wish: Any) -> None:
        known = read_catalog(ENTRIES, LOCK)
        try:
            for read in read_wishes([wish, {"model": "talker"}], known):
                assert candidates(read, known)[1]
        except CatalogError as error:
            assert "\n" not in str(error)


class TestEntries:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"parameters": "7B"}, "'parameters' is '7B'; write a whole number of weights"),
            ({"context_length": 0}, "'context_length' is 0; write a whole number of tokens"),
            ({"allow_pickle": "no"}, "'allow_pickle' is 'no'; write true or false"),
            ({"tasks": "general coding"}, "'tasks' is not a list of plain names; write 'tasks: [general, coding]'"),
            ({"shape": {"layers": 3}}, "x, shape: 'architecture' is missing; take it from the model's config.json"),
            ({"shape": []}, "catalog entry x, shape is not a mapping"),
            ({"licence": 5}, "'licence' is not a text"),
            ({"lisence": "mit"}, "has the unknown key 'lisence' (did you mean licence?)"),
            ({"variants": {4: {"files": []}}}, "the quantization 4 is no name"),
            ({"id": "a b"}, "the id 'a b' is no name"),
        ],
    )
    def test_wrong(self, change: Any, expected: str) -> None:
        with pytest.raises(CatalogError) as caught:
            read_catalog([{**entry("x", "q4_0"), **change}], LOCK)
        assert expected in str(caught.value) and caught.value.path[0] == 0

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            (
                [{"name": "a.gguf"}, {"name": "b.gguf"}],
                "several files that are not in one folder; name them FOLDER/NAME",
            ),
            ([{"name": "m/a.gguf"}, {"name": "n/b.gguf"}], "several files that are not in one folder"),
            ([{"name": "m/a.gguf"}, {"name": "b.json"}], "several files that are not in one folder"),
            ([{"name": "m/a.gguf"}, {"name": "m/A.gguf"}], "chat/7b/m/A.gguf is listed twice"),
            ([{"name": "m/a.gguf"}, {"name": "m/b.safetensors"}], "a variant of gguf and safetensors"),
            ([{"name": "config.json"}], "a variant without weights; list weights of one format"),
            ([{"name": "a.py"}], "'a.py' is no kind of file that is published"),
            ([{"name": "a.gguf", "size": -1}], "'size' is -1; write a whole number of bytes"),
            ([{"name": "a.gguf", "sha256": "x"}], "'sha256' is 'x'; write 64 hexadecimal digits"),
            ([{"name": "a.gguf", "source": []}], "'source' is no list of texts"),
            ([{"name": "a.gguf", "source": ["file:///a", 5]}], "'source' is no list of texts"),
        ],
    )
    def test_wrong_files(self, files: list[dict[str, Any]], expected: str) -> None:
        listed = [{"source": "file:///x", **file} for file in files]
        with pytest.raises(CatalogError) as caught:
            read_catalog([{**entry("x", "q4_0"), "variants": {"q4_0": {"files": listed}}}], LOCK)
        assert expected in str(caught.value)

    def test_a_folder_is_one_unit(self) -> None:
        files = [{"name": name, "source": "file:///x"} for name in ("m/a.safetensors", "m/config.json", "m/1/c.json")]
        (variant,) = (
            read_catalog(
                [{**entry("x", "fp16"), "category": "embeddings", "variants": {"fp16": {"files": files}}}], LOCK
            )
            .entries["x"]
            .variants.values()
        )
        assert variant.unit == "embeddings/m" and variant.format == "safetensors"

    def test_a_pickle_by_another_name_has_to_be_said(self) -> None:
        listing = {"files": [{"name": "pytorch_model.bin", "source": "file:///x"}]}
        about = {**entry("x", "fp32"), "category": "voice/tts"}
        for said, expected in (({}, "ggml"), ({"format": "pickle"}, "pickle")):
            known = read_catalog([{**about, "variants": {"fp32": {**listing, **said}}}], LOCK)
            assert known.entries["x"].variants["fp32"].format == expected
        with pytest.raises(CatalogError, match="the files are no 'gguf'"):
            read_catalog([{**about, "variants": {"fp32": {**listing, "format": "gguf"}}}], LOCK)

    def test_the_lock_contradicts_what_the_catalog_states(self) -> None:
        stated = {"name": "x.gguf", "source": "file:///x", "size": 5, "sha256": "a" * 64}
        pin = {"name": "x.gguf", "source": "file:///x", "size": 6, "sha256": "a" * 64}
        lock = {"schema_version": 1, "models": {"x": {"q4_0": {"files": [pin]}}}}
        with pytest.raises(
            CatalogError, match="size is 5, the lock pins 6; correct one of them, or run modelfleet lock"
        ):
            read_catalog([{**entry("x", "q4_0"), "variants": {"q4_0": {"files": [stated]}}}], lock)

    def test_what_is_stated_is_known_but_not_locked(self) -> None:
        stated = {"name": "x.gguf", "source": "file:///x", "size": 5, "sha256": "a" * 64}
        known = read_catalog([{**entry("x", "q4_0"), "variants": {"q4_0": {"files": [stated]}}}], LOCK)
        (file,) = known.entries["x"].variants["q4_0"].files
        assert (file.size, file.sha256, file.locked) == (5, "a" * 64, False)

    def test_a_wheel_that_is_not_pinned_is_no_source(self) -> None:
        sources = ["wheel://tiny==1.0/x.gguf", "hf://o/m/x.gguf"]
        pin = {"name": "x.gguf", "source": sources[1], "commit": "c" * 40, "size": 6, "sha256": "a" * 64}
        lock = {"schema_version": 1, "models": {"x": {"q4_0": {"files": [pin]}}}}
        listed = [{"name": "x.gguf", "source": sources}]
        known = read_catalog([{**entry("x", "q4_0"), "variants": {"q4_0": {"files": listed}}}], lock)
        (file,) = known.entries["x"].variants["q4_0"].files
        assert file.locked and (file.source, file.alternatives) == (f"hf://o/m@{'c' * 40}/x.gguf", ())


class TestSources:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("hf://owner/name@main/a/b.gguf", HubSource("owner/name", "main", "a/b.gguf")),
            ("hf://owner/na.me/b.gguf", HubSource("owner/na.me", None, "b.gguf")),
            ("hf://owner/name@refs/pr/1/b.gguf", HubSource("owner/name", "refs", "pr/1/b.gguf")),
            ("https://host/a?b=c", UrlSource("https://host/a?b=c")),
            ("http://[::1]:8000/a", UrlSource("http://[::1]:8000/a")),
        ],
    )
    def test_forms(self, text: str, expected: Any) -> None:
        assert parse_source(text) == expected

    def test_at_a_commit(self) -> None:
        source = parse_source("hf://owner/name/a.gguf")
        assert isinstance(source, HubSource) and source.at("c" * 40) == f"hf://owner/name@{'c' * 40}/a.gguf"

    @pytest.mark.parametrize(
        "text",
        [
            *("hf://name/b.gguf", "hf://owner/name", "hf://owner/name@/x", "hf://../name/x", "hf://owner/na..me/x"),
            *("hf://owner/name/../x", "hf://owner/name//x", "hf://owner/name/a\\b", "hf://owner/name/a\nb"),
            *("hf://own--er/name/x", "hf://owner/name@../x/y", "https://", "https:///x", "https://host:port/x"),
            *("http://host/a b", "http://hóst/x", "https://user:password@host/x", "http://host/x\x1b[2J"),
        ],
    )
    def test_what_is_refused_in_one_line_without_a_secret(self, text: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            parse_source(text)
        assert str(caught.value).isprintable() and "password" not in str(caught.value)
