"""Wishes, catalog and lock: what is selected, and one line that helps for everything that can be wrong in them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.catalog import Variant, WheelPin, read_catalog, refuse_collisions
from modelfleet.core.errors import ConfigurationError
from modelfleet.core.fetch.sources import FileSource, WheelSource, parse_source
from modelfleet.core.wishes import candidates, read_wishes

HASH, OTHER_HASH = "a" * 64, "b" * 64
WHEEL_SOURCE = "wheel://tiny-models==1.0/tiny/small.gguf"
CATALOG = [
    {
        "id": "small",
        "category": "chat/7b",
        "task": "chat",
        "licence": "apache-2.0",
        "default_quantization": "q4_0",
        "variants": {
            "q8_0": {"files": [{"name": "small.q8_0.gguf", "source": "file:///models/small.q8_0.gguf"}]},
            "q4_0": {"files": [{"name": "small.q4_0.gguf", "source": WHEEL_SOURCE}]},
        },
        "check": {"prompt": "One and one is", "expected": " two"},
    },
    {
        "id": "bare",
        "category": "embeddings",
        "variants": {"fp16": {"files": [{"name": "bare.onnx", "source": "file:///models/bare.onnx"}]}},
    },
]
LOCK = {
    "schema_version": 1,
    "models": {
        "small": {
            "q8_0": {
                "files": [
                    {"name": "small.q8_0.gguf", "source": "file:///models/small.q8_0.gguf", "size": 8, "sha256": HASH}
                ]
            },
            "q4_0": {
                "files": [
                    {
                        "name": "small.q4_0.gguf",
                        "source": WHEEL_SOURCE,
                        "size": 4,
                        "sha256": HASH,
                        "wheel": {"filename": "tiny_models-1.0-py3-none-any.whl", "size": 9, "sha256": OTHER_HASH},
                    }
                ]
            },
        },
        "bare": {
            "fp16": {
                "files": [{"name": "bare.onnx", "source": "file:///models/bare.onnx", "size": 1, "sha256": OTHER_HASH}]
            }
        },
    },
}
SMALL: list[Any] = ["models", "small", "q4_0", "files", 0]


def select(wanted: Any, catalog: Any, lock: Any) -> list[Variant]:
    """Return the preferred variant of each wish."""
    known = read_catalog(catalog, lock)
    variants = [candidates(wish, known)[1][0] for wish in read_wishes(wanted, known)]
    refuse_collisions(variants)
    return variants


def changed(document: Any, path: list[Any], value: Any) -> Any:
    """Return a copy of a document with the value at ``path`` replaced, or removed where it is ``...``."""
    document = copy.deepcopy(document)
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


def message(wanted: Any = ({"model": "small"},), catalog: Any = CATALOG, lock: Any = LOCK) -> str:
    """Return what is said about something wrong, which is one line with a cure."""
    with pytest.raises(ConfigurationError) as caught:
        select(wanted, catalog, lock)
    text = str(caught.value)
    assert "\n" not in text and caught.value.cure
    return text


class TestSelect:
    def test_the_default_quantization(self) -> None:
        (variant,) = select([{"model": "small"}], CATALOG, LOCK)
        assert (variant.model, variant.quantization, variant.category) == ("small", "q4_0", "chat/7b")
        assert variant.licence == "apache-2.0" and variant.check == {"prompt": "One and one is", "expected": " two"}
        (file,) = variant.files
        assert (file.path, file.source, file.size, file.sha256) == ("chat/7b/small.q4_0.gguf", WHEEL_SOURCE, 4, HASH)
        assert file.wheel == WheelPin("tiny_models-1.0-py3-none-any.whl", 9, OTHER_HASH)

    def test_a_quantization_of_ones_own_and_the_first_where_none_is_the_default(self) -> None:
        first, second = select([{"model": "small", "quantization": "q8_0"}, {"model": "bare"}], CATALOG, LOCK)
        assert first.quantization == "q8_0" and first.files[0].wheel is None
        assert second.quantization == "fp16" and second.check is None and second.licence is None

    def test_the_order_of_the_wishes_and_each_once(self) -> None:
        wishes: Any = [
            *({"model": "bare"}, {"model": "small"}, {"model": "bare"}),
            {"model": "small", "quantization": "q4_0"},
        ]
        assert [variant.model for variant in select(wishes, CATALOG, LOCK)] == ["bare", "small"]
        assert select([], CATALOG, LOCK) == []

    def test_a_users_own_entry_wins(self) -> None:
        own = {**CATALOG[0], "category": "chat/specialized"}
        (variant,) = select([{"model": "small"}], [*CATALOG, own], LOCK)
        assert variant.files[0].path == "chat/specialized/small.q4_0.gguf"

    def test_the_lock_is_held_against_the_entry_that_wins(self) -> None:
        stated = changed(CATALOG, [0, "variants", "q4_0", "files", 0, "sha256"], "f" * 64)
        assert "sha256" in message([{"model": "small"}], stated)
        (variant,) = select([{"model": "small"}], [*stated, CATALOG[0]], LOCK)
        assert variant.locked

    def test_everything_is_judged_whoever_wants_it(self) -> None:
        text = message([{"model": "bare"}], changed(CATALOG, [0, "category"], "nonsense"))
        assert "catalog entry small: category 'nonsense' is no directory of the store" in text

    def test_two_quantizations_of_a_model(self) -> None:
        wishes = [{"model": "small"}, {"model": "small", "quantization": "q8_0"}]
        assert [variant.quantization for variant in select(wishes, CATALOG, LOCK)] == ["q4_0", "q8_0"]


class TestWishes:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (["small"], "models_wanted entry 1 is not a mapping; write it as 'key: value' lines with at least 'model'"),
            ([None], "models_wanted entry 1 is not a mapping"),
            ([{"model": "bare"}, {}], "models_wanted entry 2: 'model' is missing; write 'model: …'"),
            ([{"model": 7}], "models_wanted entry 1: 'model' is not a text"),
            ([{"model": ""}], "models_wanted entry 1: 'model' is not a text"),
            ([{"model": "small", "quantisation": "q4_0"}], "models_wanted entry 1 has the unknown key 'quantisation'"),
            (
                [{"model": "small", 1: 2, "x": 3}],
                "models_wanted entry 1 has the unknown key 1; allowed are model, task, use",
            ),
            ([{"model": "smal"}], "the catalog has no model 'smal' (did you mean small?); correct the name, or add"),
            ([{"model": "zzz"}], "the catalog has no model 'zzz'; correct the name, or add the model to models_cat"),
            ([{"model": "a\nb"}], r"the catalog has no model 'a\nb'"),
            (
                [{"model": "small", "quantization": "q4_k"}],
                "models_wanted entry 1: small has no quantization 'q4_k' (did you mean q4_0",
            ),
            ([{"model": "small", "quantization": 4}], "has no quantization '4'; use one of q8_0, q4_0"),
        ],
    )
    def test_wrong(self, wanted: Any, expected: str) -> None:
        assert expected in message(wanted)


class TestCatalog:
    @pytest.mark.parametrize(
        ("path", "value", "expected"),
        [
            ([0], "small", "catalog entry 1 is not a mapping"),
            ([0, "id"], ..., "catalog entry 1: 'id' is missing"),
            ([1, "id"], ["bare"], "catalog entry 2: 'id' is not a text"),
            ([1, "id"], "two\nlines", r"catalog entry 2: the id 'two\nlines' is no name"),
            ([0, "category"], ..., "catalog entry small: 'category' is missing"),
            (
                [0, "category"],
                "chat/8b",
                "category 'chat/8b' is no directory of the store (did you mean chat/7b or chat/13b",
            ),
            ([0, "category"], "../../etc", "category '../../etc' is no directory of the store"),
            ([0, "category"], "cache/temp", "category 'cache/temp' is no directory of the store"),
            ([0, "variants"], ..., "catalog entry small: variants is missing or empty; list at least one"),
            ([0, "variants"], {}, "variants is missing or empty"),
            ([0, "variants"], ["q4_0"], "variants is missing or empty"),
            ([0, "default_quantization"], "q5_0", "catalog entry small has no quantization 'q5_0'"),
            (
                [0, "variants", "q4_0"],
                None,
                "catalog entry small, q4_0 is not a mapping; write it as 'key: value' lines",
            ),
            ([0, "variants", "q4_0"], {}, "small, q4_0 lists no files; list each with its name and source"),
            ([0, "variants", "q4_0", "files"], None, "q4_0 lists no files"),
            ([0, "variants", "q4_0", "files"], [], "q4_0 lists no files"),
            ([0, "variants", "q4_0", "files"], {"name": "x"}, "q4_0 lists no files"),
            ([0, "variants", "q4_0", "files", 0], "small.gguf", "catalog entry small, q4_0, file 1 is not a mapping"),
            ([0, "variants", "q4_0", "files", 0, "name"], ..., "small, q4_0, file 1: 'name' is missing"),
            ([0, "variants", "q4_0", "files", 0, "source"], ..., "small, q4_0, file 1: 'source' is missing"),
            ([0, "check"], "prompt", "catalog entry small, check is not a mapping"),
            ([0, "check", "expected"], "", "catalog entry small, check: 'expected' is not a text"),
            ([0, "check", "prompt"], ..., "catalog entry small, check: 'prompt' is missing"),
        ],
    )
    def test_wrong(self, path: list[Any], value: Any, expected: str) -> None:
        assert expected in message(catalog=changed(CATALOG, path, value))

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "../x.gguf",
                "a/../b.gguf",
                "a//b.gguf",
                "a/",
                "/etc/passwd",
                "..",
                ".",
                ".hidden",
                "-rf",
                "C:x.gguf",
                "C:\\x",
                "a\\b",
                "a b",
            ),
            *("x.gguf\n", "x\x00", "é.gguf", "x" * 201, "~", "$(id)"),
        ],
    )
    def test_a_file_name_that_is_no_plain_name(self, name: str) -> None:
        path = [0, "variants", "q4_0", "files", 0, "name"]
        text = message(catalog=changed(CATALOG, path, name))
        assert f"the file name {name!r} is not a plain name; use letters, digits" in text

    @pytest.mark.parametrize(
        "source",
        [
            *("ftp://host/x.gguf", "s3://bucket/x", "file://x", "file:/x", "x.gguf", "wheel://tiny/small.gguf"),
            *("wheel://tiny==1.0/", "wheel://tiny==1.0", "wheel://../x==1/y", "wheel://-r==1/y", "file:///a\x00b"),
        ],
    )
    def test_a_source_of_no_known_form_is_told_while_planning(self, source: str) -> None:
        path = [0, "variants", "q4_0", "files", 0, "source"]
        text = message(catalog=changed(CATALOG, path, source))
        assert f"source {source!r} is of no form that this release reads; use hf://OWNER/NAME@REVISION/FILE" in text

    @pytest.mark.parametrize("member", ["../x", "a/../../x", "/etc/passwd", "a/..", "a\nb"])
    def test_a_member_that_leaves_its_wheel(self, member: str) -> None:
        path = [0, "variants", "q4_0", "files", 0, "source"]
        text = message(catalog=changed(CATALOG, path, f"wheel://tiny==1.0/{member}"))
        assert "the member leaves the wheel" in text or "is of no form" in text

    @pytest.mark.parametrize("name", ["bare.onnx", "BARE.onnx"])
    def test_two_models_with_one_file(self, name: str) -> None:
        """They would replace each other in every run; names that differ in case only do so on some systems."""
        source = "file:///models/other.onnx"
        entry = {"id": "x", "category": "embeddings", "variants": {"q": {"files": [{"name": name, "source": source}]}}}
        pin = {"name": name, "source": source, "size": 2, "sha256": HASH}
        lock = changed(LOCK, ["models", "x"], {"q": {"files": [pin]}})
        text = message([{"model": "bare"}, {"model": "x"}], [*CATALOG, entry], lock)
        assert text == (
            f"bare (fp16) and x (q) both publish embeddings/{name}; give one of the files another name in the catalog"
        )

    def test_one_file_twice_in_a_variant(self) -> None:
        files = CATALOG[0]["variants"]["q4_0"]["files"]  # type: ignore[index]
        text = message(catalog=changed(CATALOG, [0, "variants", "q4_0", "files"], [files[0], files[0]]))
        assert "small, q4_0, file 2: chat/7b/small.q4_0.gguf is listed twice; leave one out" in text

    def test_two_models_may_share_the_same_bytes(self) -> None:
        entry = {**CATALOG[1], "id": "twin"}
        lock = changed(LOCK, ["models", "twin"], LOCK["models"]["bare"])  # type: ignore[index]
        assert len(select([{"model": "bare"}, {"model": "twin"}], [*CATALOG, entry], lock)) == 2


class TestLock:
    @pytest.mark.parametrize(
        ("path", "value", "expected"),
        [
            (["schema_version"], 2, "the lock has schema_version 2, this release reads 1; point models_lock_file at"),
            (["schema_version"], ..., "the lock has schema_version None"),
            (
                ["models"],
                ...,
                "the lock's models are no mapping; they must be one of ids: restore models.lock.json, or run",
            ),
            (["models"], [], "the lock's models are no mapping"),
            (["models", "small"], "x", "is malformed"),
            (["models", "small", "q4_0"], None, "is malformed"),
            ([*SMALL[:-1]], None, "is malformed"),
            ([*SMALL[:-1]], 5, "is malformed"),
            (SMALL, "x", "is malformed"),
            ([*SMALL, "name"], ..., "is malformed"),
            ([*SMALL, "name"], ["x"], "is malformed"),
            ([*SMALL, "size"], ..., "the lock's size of chat/7b/small.q4_0.gguf is None; it must be the number of"),
            ([*SMALL, "size"], "4", "is '4'; it must be the number of bytes"),
            ([*SMALL, "size"], 0, "is 0; it must be"),
            ([*SMALL, "size"], -4, "is -4; it must be"),
            ([*SMALL, "size"], 4.0, "is 4.0; it must be"),
            ([*SMALL, "size"], True, "is True; it must be"),
            (
                [*SMALL, "sha256"],
                ...,
                "the lock's sha256 of chat/7b/small.q4_0.gguf is None; it must be 64 hexadecimal",
            ),
            ([*SMALL, "sha256"], HASH.upper(), "it must be 64 hexadecimal digits in lower case"),
            ([*SMALL, "sha256"], HASH[1:], "it must be 64 hexadecimal digits"),
            ([*SMALL, "sha256"], f"{HASH}\n", "it must be 64 hexadecimal digits"),
            (
                [*SMALL, "wheel"],
                ...,
                "the lock's entry for chat/7b/small.q4_0.gguf pins no wheel; it must give its filename",
            ),
            ([*SMALL, "wheel"], "x.whl", "the lock's entry for chat/7b/small.q4_0.gguf pins no wheel"),
            ([*SMALL, "wheel", "sha256"], "x", "the lock's sha256 of the wheel of chat/7b/small.q4_0.gguf is 'x'"),
            ([*SMALL, "wheel", "size"], None, "the lock's size of chat/7b/small.q4_0.gguf is None"),
            ([*SMALL, "wheel", "filename"], ..., "the lock's wheel of chat/7b/small.q4_0.gguf has no file name"),
            ([*SMALL, "wheel", "filename"], "x.tar.gz", "has no file name; it must end in .whl"),
            ([*SMALL, "wheel", "filename"], "../x.whl", "has no file name; it must end in .whl"),
        ],
    )
    def test_wrong(self, path: list[Any], value: Any, expected: str) -> None:
        assert expected in message(lock=changed(LOCK, path, value))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["models", "small"], ...),
            (["models", "small", "q4_0"], {}),
            ([*SMALL, "name"], "other"),
            ([*SMALL, "source"], "file:///x"),
        ],
    )
    def test_what_it_does_not_pin_is_not_locked(self, path: list[Any], value: Any) -> None:
        (variant,) = select([{"model": "small"}], CATALOG, changed(LOCK, path, value))
        assert not variant.locked and variant.files[0].sha256 is None and variant.files[0].size is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([HASH, WHEEL_SOURCE, "chat/13b"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a document."""
    steps = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else []
    inner = [found for step in steps for found in places(document[step], (*path, step))]
    return [path, *inner] if path else inner


@given(st.sampled_from(places(CATALOG)), anything)
def test_no_value_in_the_catalog_ends_in_a_traceback(path: tuple[Any, ...], value: Any) -> None:
    for wish in ({"model": "small"}, {"model": "bare"}):
        try:
            select([wish], changed(CATALOG, list(path), value), LOCK)
        except ConfigurationError as error:
            assert "\n" not in str(error)


@given(st.sampled_from(places(LOCK)), anything)
def test_no_value_in_the_lock_ends_in_a_traceback(path: tuple[Any, ...], value: Any) -> None:
    for wish in ({"model": "small"}, {"model": "bare"}):
        try:
            select([wish], CATALOG, changed(LOCK, list(path), value))
        except ConfigurationError as error:
            assert "\n" not in str(error)


class TestSources:
    def test_a_member_of_a_wheel(self) -> None:
        assert parse_source("wheel://llm-x==0.1+cpu/a/b c==d.gguf") == WheelSource("llm-x", "0.1+cpu", "a/b c==d.gguf")

    @pytest.mark.parametrize(
        ("text", "path"),
        [
            ("file:///srv/a.gguf", "/srv/a.gguf"),
            ("file:///srv/a%20b.gguf", "/srv/a b.gguf"),
            ("file:///srv/a#1?2.gguf", "/srv/a#1?2.gguf"),
            ("file:///srv/é.gguf", "/srv/é.gguf"),
        ],
    )
    def test_a_file_of_the_host(self, text: str, path: str) -> None:
        assert parse_source(text) == FileSource(path)
