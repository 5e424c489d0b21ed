"""The environment file on disk: what is wanted, who may write it, and that it is whole at all times."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from modelfleet.core import env_file
from modelfleet.core.env_file import diff_lines, plan_env_file, wanted_variables, write_env_file
from modelfleet.core.errors import ConfigurationError, EnvFileError, ModelfleetError, UnsafePathError
from modelfleet.core.privilege import Account, current_account, find_account
from support.settled import stamp

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another account")


def write(path: Path, values: dict[str, str | None], owner: Account | None = None, mode: int = 0o640) -> bool:
    """Plan and write as the module does; return whether anything changed."""
    account = owner or current_account()
    plan = plan_env_file(str(path), values, account, account.gid, mode)
    if plan.changed:
        write_env_file(plan)
    again = plan_env_file(str(path), values, account, account.gid, mode)
    assert not again.changed
    return plan.changed


def test_the_variables_of_the_tutorial() -> None:
    models = [
        "embeddings/minilm/model.safetensors",
        "chat/13b/b.gguf",
        "chat/7b/a.gguf",
        "image/stable-diffusion/x/unet/m.bin",
    ]
    assert wanted_variables("/srv/models", models, True, {}) == {
        "LOCAL_MODELS_ENABLED": "true",
        "LOCAL_MODELS_PATH": "/srv/models",
        "MODEL_CACHE_PATH": "/srv/models/cache",
        "HF_HOME": "/srv/models/cache/tokenizers",
        "DEFAULT_CHAT_MODEL": "b.gguf",
        "DEFAULT_IMAGE_MODEL": "x",
        "ENABLE_GPU_INFERENCE": "true",
    }


def test_no_model_no_default_and_extras_win() -> None:
    values = wanted_variables("/m", [], False, {"PORT": 80, "DEBUG": False, "OLD": None, "DEFAULT_CHAT_MODEL": "mine"})
    assert values["DEFAULT_IMAGE_MODEL"] is None
    assert (values["DEFAULT_CHAT_MODEL"], values["PORT"], values["DEBUG"], values["OLD"]) == (
        "mine",
        "80",
        "false",
        None,
    )
    with pytest.raises(ConfigurationError, match="env_file_variables: LIST is a list"):
        wanted_variables("/m", [], False, {"LIST": []})


@pytest.mark.parametrize("text", ["416", "640", "0888", "0640 ", "u=rw", ""])
def test_a_mode_that_yaml_changed_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="env_file_mode"):
        env_file.parse_mode(text)
    assert env_file.parse_mode("0640") == 0o640


def test_a_new_file_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    fill = env_file._fill

    def look(descriptor: int, plan: env_file.EnvFilePlan) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fill(descriptor, plan)

    monkeypatch.setattr(env_file, "_fill", look)
    for umask, name in ((0, "open"), (0o077, "closed"), (0o777, "nothing")):
        previous = os.umask(umask)
        try:
            write(tmp_path / name, {"A": "1"})
        finally:
            os.umask(previous)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    assert all(mode & 0o077 == 0 for mode in modes)
    assert sorted(os.listdir(tmp_path)) == ["closed", "nothing", "open"]


def test_content_mode_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nX=1\n")
    path.chmod(0o644)
    assert write(path, {"A": "1"})
    assert path.read_text() == "# mine\nX=1\nA=1\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    before = stamp(path)
    assert not write(path, {"A": "1"})
    assert stamp(path) == before
    assert write(path, {"A": "1"}, mode=0o600)


def test_bytes_that_are_no_text_stay(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"NAME=caf\xe9\n")
    write(path, {"A": "1"})
    assert path.read_bytes() == b"NAME=caf\xe9\nA=1\n"


def test_planning_changes_nothing(tmp_path: Path) -> None:
    account = current_account()
    plan = plan_env_file(str(tmp_path / ".env"), {"A": "1"}, account, account.gid, 0o640)
    assert plan.changed and plan.before is None and os.listdir(tmp_path) == []


def test_a_missing_directory_is_foreseen_but_not_made(tmp_path: Path) -> None:
    account = current_account()
    plan = plan_env_file(str(tmp_path / "no" / ".env"), {"A": "1"}, account, account.gid, 0o640)
    assert plan.changed
    with pytest.raises(EnvFileError, match="its directory does not exist"):
        write_env_file(plan)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / ".env", tmp_path / "target"
    target.write_text("X=1\n")
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(target if kind == "symlink" else tmp_path / "nothing")
    with pytest.raises(UnsafePathError):
        write(path, {"A": "1"})
    assert target.read_text() == "X=1\n"


def test_a_file_that_is_no_environment_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A" * (env_file.SIZE_LIMIT_BYTES + 1))
    with pytest.raises(EnvFileError, match="larger than"):
        write(path, {"A": "1"})
    for name in ("relative/.env", f"{tmp_path}/"):
        with pytest.raises(EnvFileError, match="not the absolute path of a file"):
            plan_env_file(name, {}, current_account(), 0, 0o640)


def test_a_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelfleetError) as caught:
        write(tmp_path / "file" / ".env", {"A": "1"})
    assert "file" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / ".env"
    path.write_text("X=1\n")

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(EnvFileError, match=r"No space left on device; the file is as it was"):
        write(path, {"A": "1"})
    monkeypatch.undo()
    assert path.read_text() == "X=1\n" and os.listdir(tmp_path) == [".env"]


def test_the_difference_has_managed_lines_only_and_masks_secrets(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("FOREIGN=private\nHF_TOKEN=old\nSAME_KEY=same\nA=0\nPLAIN=x\n")
    path.chmod(0o600)
    values: dict[str, str | None] = {"HF_TOKEN": "new", "SAME_KEY": "same", "A": "1", "PLAIN": "y", "B": None}
    account = current_account()
    plan = plan_env_file(str(path), values, account, account.gid, 0o640)
    before, after = diff_lines(plan, list(values), ["PLAIN"])
    assert before == "mode 0600\nHF_TOKEN=********\nSAME_KEY=********\nA=0\nPLAIN=********\n"
    assert after == "mode 0640\nHF_TOKEN=******** (new value)\nSAME_KEY=********\nA=1\nPLAIN=******** (new value)\n"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(("HF_TOKEN", True), ("OPENAI_APIKEY", True), ("AWS_SECRET_ACCESS_KEY", True), ("DB_PASSWORD", True)),
        *(("TOKENIZERS_PARALLELISM", False), ("MAX_TOKENS", False), ("LOG_LEVEL", False)),
    ],
)
def test_which_names_look_secret(name: str, secret: bool) -> None:
    assert bool(env_file._SECRET.search(name)) is secret


@as_root
def test_the_file_is_written_as_the_owner(tmp_path: Path) -> None:
    owner = find_account("nobody")
    base = tmp_path / "base"
    base.mkdir()
    os.chown(base, owner.uid, owner.gid)
    assert write(base / ".env", {"A": "1"}, owner)
    assert ((base / ".env").stat().st_uid, (base / ".env").stat().st_gid) == (owner.uid, owner.gid)
    # Not even root gets past the owner's own lack of rights.
    base.chmod(0o555)
    with pytest.raises(EnvFileError, match="cannot be written as nobody: Permission denied"):
        write(base / ".env", {"A": "2"}, owner)
    assert (base / ".env").read_text() == "A=1\n"


@as_root
def test_a_file_of_roots_is_given_to_the_owner(tmp_path: Path) -> None:
    owner = find_account("nobody")
    path = tmp_path / ".env"
    path.write_text("X=1\n")
    path.chmod(0o600)
    plan = plan_env_file(str(path), {}, owner, owner.gid, 0o640)
    assert plan.attributes == (("mode 0600", "mode 0640"), ("uid 0 gid 0", f"uid {owner.uid} gid {owner.gid}"))
    assert write(path, {}, owner)
    assert path.stat().st_uid == owner.uid and path.read_text() == "X=1\n"


@as_root
def test_a_file_or_directory_of_a_third_account_is_refused(tmp_path: Path) -> None:
    owner, third = find_account("nobody"), find_account("daemon")
    path = tmp_path / ".env"
    path.write_text("X=1\n")
    os.chown(path, third.uid, third.gid)
    with pytest.raises(UnsafePathError, match=f"belongs to uid {third.uid}, not to nobody"):
        write(path, {"A": "1"}, owner)
    path.unlink()
    os.chown(tmp_path, third.uid, third.gid)
    with pytest.raises(UnsafePathError, match=f"belongs to uid {third.uid}, neither to root"):
        write(path, {"A": "1"}, owner)


@as_root
def test_a_symlink_of_a_third_account_on_the_way_is_not_followed(tmp_path: Path) -> None:
    owner, third = find_account("nobody"), find_account("daemon")
    (tmp_path / "goal").mkdir()
    (tmp_path / "link").symlink_to("goal")
    os.lchown(tmp_path / "link", third.uid, third.gid)
    with pytest.raises(UnsafePathError, match="is a symlink that another account"):
        write(tmp_path / "link" / ".env", {"A": "1"}, owner)
    assert os.listdir(tmp_path / "goal") == []


@as_root
def test_a_hard_link_to_a_file_of_roots_is_refused(tmp_path: Path) -> None:
    owner = find_account("nobody")
    base = tmp_path / "base"
    base.mkdir()
    os.chown(base, owner.uid, owner.gid)
    (tmp_path / "secret").write_text("X=1\n")
    os.link(tmp_path / "secret", base / ".env")
    with pytest.raises(UnsafePathError, match="hard link"):
        write(base / ".env", {"A": "1"}, owner)
