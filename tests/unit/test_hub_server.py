"""The tests' hub, proved with the real client: what huggingface_hub accepts from it is what it accepts from the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer, git_id, serve

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the controller's packages are not installed")

WEIGHTS = b"weights" * 1000
TOKEN = "hf_canaryofthistest"
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "1_Pooling/config.json": b'{"a": 1}',
    "a folder/one more.txt": b"text",
    **{f"data/{number:03}.txt": b"%d" % number for number in range(7)},
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve() as server:
        server.add("owner/model", FILES)
        yield server


@pytest.fixture
def api(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    from huggingface_hub.utils._http import default_client_factory

    # Its own, which gives a token to plain HTTP: ours does not, and other tests of this process may have set it.
    huggingface_hub.set_client_factory(default_client_factory)
    return huggingface_hub.HfApi(endpoint=hub.endpoint, token=False)


def test_model_info(hub: HubServer, api: Any) -> None:
    found = api.model_info("owner/model")
    commit = hub.repositories["owner/model"].names["main"]
    assert found.sha == commit and found.card_data.license == "apache-2.0"
    assert {one.rfilename for one in found.siblings} == set(FILES)
    assert api.model_info("owner/model", revision=commit).sha == commit
    with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
        api.model_info("owner/model", revision="other")
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info("owner/other")


@pytest.mark.parametrize("page_size", [2, 50])
def test_list_repo_tree_in_pages(hub: HubServer, api: Any, page_size: int) -> None:
    hub.page_size = page_size
    tree = {one.path: one for one in api.list_repo_tree("owner/model", recursive=True)}
    assert set(FILES) < set(tree) and isinstance(tree["data"], huggingface_hub.hf_api.RepoFolder)
    weights, config = tree["model.safetensors"], tree["config.json"]
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest() and weights.size == weights.lfs.size == len(
        WEIGHTS
    )
    assert config.lfs is None and config.blob_id == git_id(b"{}") and config.size == 2
    top = {one.path for one in api.list_repo_tree("owner/model")}
    assert top == {"config.json", "model.safetensors", "1_Pooling", "a folder", "data"}
    inside = {one.path for one in api.list_repo_tree("owner/model", "data")}
    assert inside == {f"data/{number:03}.txt" for number in range(7)}


def test_paths_info(api: Any) -> None:
    (found,) = api.get_paths_info("owner/model", ["model.safetensors", "not-there"])
    assert found.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


@pytest.mark.parametrize("name", sorted(FILES))
def test_hf_hub_download(hub: HubServer, api: Any, tmp_path: Path, name: str) -> None:
    path = api.hf_hub_download("owner/model", name, cache_dir=tmp_path)
    assert Path(path).read_bytes() == FILES[name]
    assert hub.repositories["owner/model"].names["main"] in path


def test_a_download_goes_on_where_it_stopped(hub: HubServer, api: Any, tmp_path: Path) -> None:
    """The client asks for the rest, which the server has to send by ranges."""
    (tmp_path / ".cache/huggingface/download").mkdir(parents=True)
    etag = hashlib.sha256(WEIGHTS).hexdigest()
    url = f"{hub.endpoint}/owner/model/resolve/main/model.safetensors"
    meta = huggingface_hub.get_hf_file_metadata(url)
    assert (meta.etag, meta.size) == (etag, len(WEIGHTS))
    with (tmp_path / "part").open("wb") as target:
        target.write(WEIGHTS[:100])
        target.flush()
        huggingface_hub.file_download.http_get(meta.location, target, resume_size=100, expected_size=len(WEIGHTS))
    assert (tmp_path / "part").read_bytes() == WEIGHTS
    assert any(headers.get("Range") == "bytes=100-" for _, path, headers in hub.requests if path.startswith("/cdn/"))


def test_a_gated_repository(hub: HubServer, api: Any, tmp_path: Path) -> None:
    """It shows what it has to everybody, gives bytes for a token, and the token stays with the hub."""
    hub.add("owner/gated", FILES, gated=True)
    hub.tokens.add(TOKEN)
    assert api.model_info("owner/gated").gated == "manual"
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(huggingface_hub.errors.GatedRepoError):
            api.hf_hub_download("owner/gated", name, cache_dir=tmp_path)
    hub.requests.clear()
    path = api.hf_hub_download("owner/gated", "model.safetensors", cache_dir=tmp_path, token=TOKEN)
    assert Path(path).read_bytes() == WEIGHTS
    sent = {path.split("/")[1] for _, path, headers in hub.requests if "Authorization" in headers}
    assert sent == {"owner"}


def test_a_private_repository(hub: HubServer, api: Any) -> None:
    hub.add("owner/private", FILES, private=True)
    hub.tokens.add(TOKEN)
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info("owner/private")
    assert api.model_info("owner/private", token=TOKEN).private


def test_a_renamed_repository(hub: HubServer, api: Any, tmp_path: Path) -> None:
    hub.renamed["old/model"] = "owner/model"
    assert api.model_info("old/model").id == "owner/model"
    assert Path(api.hf_hub_download("old/model", "config.json", cache_dir=tmp_path)).read_bytes() == b"{}"


def test_a_file_on_disk_is_served_as_one_in_memory(hub: HubServer, api: Any, tmp_path: Path) -> None:
    (tmp_path / "large.gguf").write_bytes(WEIGHTS)
    hub.add("owner/large", {"large.gguf": tmp_path / "large.gguf"})
    path = api.hf_hub_download("owner/large", "large.gguf", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == WEIGHTS
