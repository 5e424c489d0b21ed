"""The plan: what is missing, why, how much that is; and nothing once it was carried out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.catalog import Check, PinnedFile, Variant, WheelPin
from modelfleet.core.planning import disk_bytes, plan_host
from modelfleet.core.store.manifest import FileRecord, Manifest, now

HASH, OTHER_HASH = "a" * 64, "b" * 64
WHEEL = WheelPin("tiny-1.0-py3-none-any.whl", 1000, OTHER_HASH)


def pinned(name: str = "small.gguf", size: int = 4, wheel: WheelPin | None = None, sha256: str = HASH) -> PinnedFile:
    return PinnedFile(f"chat/7b/{name}", "file:///x", size, sha256, wheel)


def variant(*files: PinnedFile, model: str = "small") -> Variant:
    return Variant(model, "q4_0", "chat/7b", "mit", files or (pinned(),), Check("a", "b"))


def publish(root: Path, file: PinnedFile, manifest: Manifest) -> None:
    """Put a file into the store as publishing does."""
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(file.size))
    status = path.lstat()
    manifest[file.path] = FileRecord(
        "small",
        status.st_size,
        file.sha256,
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        file.source,
        None,
        now(),
        status.st_ctime_ns + 3 * 10**9,
    )


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("no store", "chat/7b/small.gguf (4 B) is not there"),
        ("not there", "chat/7b/small.gguf (4 B) is not there"),
        ("a file where its folder should be", "chat/7b/small.gguf (4 B) is not there"),
        ("no record", "chat/7b/small.gguf (4 B) is there, not proved yet"),
        ("removed", "chat/7b/small.gguf (4 B) is not there"),
        ("touched", "chat/7b/small.gguf (4 B) was changed since it was published"),
        ("a symlink", "chat/7b/small.gguf (4 B) was changed since it was published"),
        ("another version", "chat/7b/small.gguf (4 B) is another version than the lock pins"),
        ("kept", ""),
    ],
)
def test_the_reason_is_said(tmp_path: Path, state: str, reason: str) -> None:
    manifest: Manifest = {}
    file = pinned()
    path = tmp_path / file.path
    root = tmp_path
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
    (model,) = plan_host(str(root), [variant(file)], manifest).models
    if state == "kept":
        assert (model.action, model.missing, model.bytes_to_fetch) == ("keep", (), 0)
    else:
        assert (model.action, model.reason, model.missing) == ("fetch", reason, (file,))


def test_a_model_of_several_files_names_those_that_are_missing(tmp_path: Path) -> None:
    manifest: Manifest = {}
    first, second, third = (pinned(f"{number}.gguf") for number in range(3))
    publish(tmp_path, second, manifest)
    (model,) = plan_host(str(tmp_path), [variant(first, second, third)], manifest).models
    assert model.missing == (first, third)
    assert model.reason == "chat/7b/0.gguf (4 B) is not there; chat/7b/2.gguf (4 B) is not there"


def test_bytes_of_the_network_and_of_the_disk(tmp_path: Path) -> None:
    files = [pinned("a", 100), pinned("b", 10, WHEEL), pinned("c", 20, WHEEL._replace(size=500))]
    plan = plan_host(str(tmp_path), [variant(files[0], files[1]), variant(files[2], model="other")], {})
    assert [model.bytes_to_fetch for model in plan.models] == [100 + 1000, 500]
    assert plan.bytes_to_fetch == 1600
    assert disk_bytes(files) == 100 + 10 + 20 + 1000
    assert disk_bytes([]) == 0


def test_the_plan_as_json() -> None:
    document = plan_host(
        "/srv/models", [variant(), variant(pinned("x"), model="bare")._replace(check=None)], {}
    ).to_dict()
    assert document == {
        "schema_version": 1,
        "store_path": "/srv/models",
        "bytes_to_fetch": 8,
        "models": [
            {
                "model": "small",
                "quantization": "q4_0",
                "category": "chat/7b",
                "files": [{"path": "chat/7b/small.gguf", "size": 4, "sha256": HASH}],
                "check": {"prompt": "a", "expected": "b"},
                "action": "fetch",
                "reason": "chat/7b/small.gguf (4 B) is not there",
                "bytes_to_fetch": 4,
            },
            {
                "model": "bare",
                "quantization": "q4_0",
                "category": "chat/7b",
                "files": [{"path": "chat/7b/x", "size": 4, "sha256": HASH}],
                "check": None,
                "action": "fetch",
                "reason": "chat/7b/x (4 B) is not there",
                "bytes_to_fetch": 4,
            },
        ],
    }


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.builds(
            lambda number, size, sha, carried: pinned(f"{number}.gguf", size, WHEEL if carried else None, sha),
            st.integers(0, 5),
            st.integers(1, 50),
            st.sampled_from([HASH, OTHER_HASH]),
            st.booleans(),
        ),
        min_size=1,
        unique_by=lambda file: file.path,
    ),
    st.sets(st.integers(0, 5)),
)
def test_a_plan_that_was_carried_out_is_kept(
    tmp_path_factory: pytest.TempPathFactory, files: list[PinnedFile], there: set[int]
) -> None:
    root = tmp_path_factory.mktemp("store")
    manifest: Manifest = {}
    for number in there & set(range(len(files))):
        publish(root, files[number], manifest)
    variants = [variant(file, model=file.path) for file in files]
    plan = plan_host(str(root), variants, manifest)
    assert plan == plan_host(str(root), variants, manifest), "planning changes nothing"
    assert {model.action for model in plan.models} <= {"keep", "fetch"}
    for model in plan.models:
        for file in model.missing:
            publish(root, file, manifest)
    again = plan_host(str(root), variants, manifest)
    assert {model.action for model in again.models} == {"keep"} and again.bytes_to_fetch == 0
