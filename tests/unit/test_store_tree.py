"""The store's directory tree: exact, the same in check mode, and out of reach of other accounts' tricks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelfleet.core.errors import ModelfleetError, UnsafePathError
from modelfleet.core.privilege import Account, acting_as
from modelfleet.core.store.layout import (
    CATEGORIES,
    STORE_DIRECTORIES,
    default_store_path,
    resolve_runtime_path,
    resolve_store_path,
)
from modelfleet.core.store.tree import Tree, compare, converge, ensure_directory, foresee, store_owner
from support.grounds import account_folder, needs_no_root, needs_root

TUTORIAL = [
    *(
        "chat/7b",
        "chat/13b",
        "chat/specialized",
        "image/stable-diffusion",
        "image/controlnet",
        "voice/tts",
        "voice/stt",
    ),
    *("embeddings", "cache/tokenizers", "cache/temp"),
]


@pytest.fixture
def tree(ground: Path, owner: Account) -> Tree:
    return Tree(str(ground / "base" / "models"), owner, owner.gid, 0o755, None)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["umask 000", "umask 022", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def listing(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return everything under ``root`` with owner, group, mode and kind."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = {stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(stat.S_IFMT(status.st_mode), "file")
        mode = 0 if kind == "link" else stat.S_IMODE(status.st_mode)
        found[str(path.relative_to(root))] = (status.st_uid, status.st_gid, mode, kind)
    return found


def test_the_tree_is_the_tutorials() -> None:
    assert set(TUTORIAL) <= set(STORE_DIRECTORIES)
    parents = {name.split("/")[0] for name in TUTORIAL}
    assert set(STORE_DIRECTORIES) - set(TUTORIAL) == (parents | {".modelfleet"}) - {"embeddings"}
    assert set(CATEGORIES) == {name for name in TUTORIAL if not name.startswith("cache/")}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o2775])
def test_exactly_the_tree_is_made_whatever_the_umask(ground: Path, tree: Tree, mode: int) -> None:
    converge(tree._replace(mode=mode))
    made = ["base", "base/models", *(f"base/models/{name}" for name in STORE_DIRECTORIES)]
    assert listing(ground) == dict.fromkeys(sorted(made), (tree.owner.uid, tree.gid, mode, "directory"))


def test_check_tells_what_a_run_changes_and_a_second_run_changes_nothing(ground: Path, tree: Tree) -> None:
    (ground / "home").mkdir()
    os.chown(ground / "home", tree.owner.uid, tree.owner.gid)
    tree = tree._replace(link=str(ground / "home" / "models"))
    predicted = compare(tree)
    assert listing(ground).keys() == {"home"}, "check mode changed something"
    assert [change.path for change in predicted] == [
        str(ground / "base"),
        tree.path,
        *(f"{tree.path}/{name}" for name in STORE_DIRECTORIES),
        tree.link,
    ]
    assert converge(tree) == predicted
    assert {change.path for change in predicted} == {str(ground / name) for name in listing(ground)} - {
        str(ground / "home")
    }
    assert compare(tree) == [] == converge(tree)


@pytest.mark.parametrize("there", ["", "base", "base/models"])
def test_what_an_account_that_is_yet_to_be_made_will_get(ground: Path, tree: Tree, there: str) -> None:
    (ground / there).mkdir(parents=True, exist_ok=True)
    foreseen = foresee(tree.path, "somebody")
    made = {change.path for change in converge(tree)}
    assert {change.path for change in foreseen} == made | {tree.path}
    assert {change.after for change in foreseen} == {"directory of somebody"}


@pytest.mark.parametrize("damage", ["removed", "mode", "mode of the root", "group"])
def test_only_what_differs_is_changed(tree: Tree, damage: str) -> None:
    converge(tree)
    victim = tree.path if damage == "mode of the root" else f"{tree.path}/voice/tts"
    if damage == "removed":
        os.rmdir(victim)
    elif damage == "group":
        if os.geteuid() != 0:
            pytest.skip("gives a directory another group: run it as root")
        os.chown(victim, -1, 4)
    else:
        os.chmod(victim, 0o700)
    other = os.stat(f"{tree.path}/embeddings").st_ctime_ns
    predicted = compare(tree)
    assert [change.path for change in predicted] == [victim]
    assert (predicted[0].before is None) == (damage == "removed")
    assert converge(tree) == predicted
    assert compare(tree) == []
    assert os.stat(f"{tree.path}/embeddings").st_ctime_ns == other


def test_what_is_in_the_tree_is_left_alone(tree: Tree) -> None:
    converge(tree)
    model = Path(tree.path, "chat/7b/model.gguf")
    model.write_bytes(b"GGUF")
    model.chmod(0o600)
    before = model.stat()
    converge(tree._replace(mode=0o700))
    assert model.stat().st_mode == before.st_mode and model.stat().st_uid == before.st_uid


@needs_root
def test_a_root_owned_folder_on_the_way_stays_roots(ground: Path, tree: Tree) -> None:
    (ground / "base").mkdir()
    assert converge(tree)[0].path == tree.path
    assert (ground / "base").stat().st_uid == 0
    assert Path(tree.path).stat().st_uid == tree.owner.uid


@needs_root
def test_a_store_made_by_hand_as_root_is_given_to_its_owner(tree: Tree) -> None:
    os.makedirs(f"{tree.path}/chat")
    changed = {change.path: change.before for change in converge(tree)}
    assert changed[tree.path] == "directory 0755 uid 0 gid 0"
    assert changed[f"{tree.path}/chat"] == "directory 0755 uid 0 gid 0"
    assert compare(tree) == []


class TestInTheWay:
    """A file, a symlink or another account's directory where one of ours belongs."""

    @pytest.mark.parametrize("where", ["base", "base/models"])
    def test_a_file_on_the_way(self, ground: Path, tree: Tree, where: str) -> None:
        (ground / where).parent.mkdir(exist_ok=True)
        (ground / where).touch()
        self.refused(tree, rf"^{tree.path}: '\w+' is not a directory; move it away")

    @pytest.mark.parametrize("where", ["chat", "chat/7b", "cache/temp", ".modelfleet"])
    def test_a_file_in_the_tree(self, tree: Tree, where: str) -> None:
        converge(tree)
        self.clear(tree, where)
        Path(tree.path, where).touch()
        self.refused(tree, f"^{tree.path}/{where}: is not a directory; move it away")

    @pytest.mark.parametrize("where", ["chat", "chat/7b", "cache/temp", ".modelfleet"])
    def test_a_symlink_in_the_tree(self, ground: Path, tree: Tree, where: str) -> None:
        converge(tree)
        (ground / "elsewhere").mkdir(mode=0o700)
        self.clear(tree, where)
        with acting_as(tree.owner):
            os.symlink(ground / "elsewhere", f"{tree.path}/{where}")
        self.refused(tree, f"^{tree.path}/{where}: is not a directory; move it away")
        assert os.listdir(ground / "elsewhere") == []

    @needs_root
    @pytest.mark.parametrize("where", ["", "chat", "chat/7b", ".modelfleet"])
    def test_another_accounts_directory(self, tree: Tree, stranger: Account, where: str) -> None:
        converge(tree)
        os.chown(os.path.join(tree.path, where), stranger.uid, stranger.gid)
        self.refused(tree, f"belongs to uid {stranger.uid}, not to {tree.owner.name}; give it to that account by hand")

    @needs_no_root
    def test_a_directory_of_roots(self, tree: Tree) -> None:
        with pytest.raises(UnsafePathError, match=r"belongs to uid 0, not to"):
            compare(tree._replace(path="/usr/share/doc"))

    def refused(self, tree: Tree, message: str) -> None:
        root = Path(tree.path).parents[1]
        before = listing(root)
        for act in (compare, converge):
            with pytest.raises(UnsafePathError, match=message) as caught:
                act(tree)
            assert "\n" not in str(caught.value)
        assert listing(root) == before

    def clear(self, tree: Tree, where: str) -> None:
        for directory, _, _ in os.walk(os.path.join(tree.path, where), topdown=False):
            os.rmdir(directory)


class TestSymlinksOnTheWay:
    def test_our_own_and_roots_are_followed(self, ground: Path, tree: Tree) -> None:
        (ground / "disk").mkdir()
        (ground / "absolute").symlink_to(ground / "disk")
        (ground / "relative").symlink_to("./absolute/../absolute")
        predicted = compare(tree._replace(path=str(ground / "relative" / "models")))
        assert predicted[0].path == str(ground / "relative" / "models")
        assert converge(tree._replace(path=str(ground / "relative" / "models"))) == predicted
        assert (ground / "disk" / "models" / "chat" / "7b").is_dir()
        assert compare(tree._replace(path=str(ground / "disk" / "models"))) == []

    def test_the_store_itself_may_lie_behind_one(self, ground: Path, tree: Tree) -> None:
        converge(tree._replace(path=str(ground / "disk")))
        (ground / "models").symlink_to("disk")
        assert compare(tree._replace(path=str(ground / "models"))) == []
        assert store_owner(str(ground / "models")).uid == tree.owner.uid

    def test_one_that_leads_nowhere(self, ground: Path, tree: Tree) -> None:
        (ground / "base").symlink_to(ground / "not" / "there")
        with pytest.raises(UnsafePathError, match=r"a symlink on the way leads to 'not', which is missing; make it"):
            compare(tree)
        with pytest.raises(UnsafePathError, match="which is missing"):
            converge(tree)
        assert not (ground / "not").exists()

    def test_one_that_leads_out_of_a_missing_folder(self, ground: Path, tree: Tree) -> None:
        (ground / "base").symlink_to("not/../../etc")
        with pytest.raises(UnsafePathError, match="which is missing"):
            converge(tree)

    def test_a_loop(self, ground: Path, tree: Tree) -> None:
        (ground / "base").symlink_to("base")
        with pytest.raises(UnsafePathError, match="too many symlinks on the way"):
            compare(tree)

    @needs_root
    @pytest.mark.parametrize("whose", ["the stranger's", "the owner's"])
    @pytest.mark.parametrize("where", ["base", "base/models"])
    def test_another_accounts_is_refused(
        self, ground: Path, tree: Tree, owner: Account, stranger: Account, whose: str, where: str
    ) -> None:
        # Root would give the owner whatever the owner's own symlink leads to: /etc, say.
        (ground / "treasure").mkdir(mode=0o700)
        planter = owner if whose == "the owner's" else stranger
        link = ground / where
        if where == "base/models":
            account_folder(ground / "base", planter)
        link.symlink_to(ground / "treasure")
        os.lchown(link, planter.uid, planter.gid)
        for act in (compare, converge):
            with pytest.raises(
                UnsafePathError, match=rf"is a symlink that another account \(uid {planter.uid}\) controls; remove it"
            ):
                act(tree)
        with pytest.raises(UnsafePathError, match="controls"):
            ensure_directory(f"{link}/runtime", owner)
        with pytest.raises(UnsafePathError, match="controls"):
            store_owner(str(link))
        status = (ground / "treasure").stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)
        assert os.listdir(ground / "treasure") == []

    @needs_root
    def test_roots_in_a_folder_where_others_may_replace_it(self, ground: Path, tree: Tree) -> None:
        (ground / "disk").mkdir()
        (ground / "open").mkdir()
        (ground / "open" / "base").symlink_to(ground / "disk")
        path = str(ground / "open" / "base" / "models")
        (ground / "open").chmod(0o777)
        with pytest.raises(UnsafePathError, match=r"is a symlink that every account that may write beside it controls"):
            compare(tree._replace(path=path))
        (ground / "open").chmod(0o1777)
        assert compare(tree._replace(path=path))


class TestPlaces:
    @needs_root
    @pytest.mark.parametrize("path", ["/", "/etc", "/usr", "/home", "/opt", "/tmp", "/var/lib"])
    def test_the_systems_own_directories_are_given_to_nobody(self, tree: Tree, path: str) -> None:
        before = os.stat(path)
        for act in (compare, converge):
            with pytest.raises(UnsafePathError, match=rf"^{path}: is a directory of the system; choose one below it"):
                act(tree._replace(path=path))
        after = os.stat(path)
        assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)

    @needs_root
    def test_not_even_behind_roots_symlink(self, ground: Path, tree: Tree) -> None:
        (ground / "etc").symlink_to("/etc")
        with pytest.raises(UnsafePathError, match="is a directory of the system"):
            converge(tree._replace(path=str(ground / "etc")))

    @needs_no_root
    def test_where_we_may_not_write_check_mode_says_so_too(self, tree: Tree) -> None:
        for act in (compare, converge):
            with pytest.raises(UnsafePathError, match=r"'modelfleet-test' cannot be made there; run with become"):
                act(tree._replace(path="/usr/modelfleet-test/models"))

    @needs_root
    def test_where_the_account_may_not_write_check_mode_says_so_too(self, tree: Tree) -> None:
        with acting_as(tree.owner):
            for act in (compare, converge):
                with pytest.raises(UnsafePathError, match=r"'modelfleet-test' cannot be made there; run with become"):
                    act(tree._replace(path="/usr/modelfleet-test/models"))

    @needs_root
    def test_a_folder_that_the_account_may_pass_but_not_list(self, ground: Path, tree: Tree) -> None:
        # /home is often so.
        (ground / "home").mkdir()
        account_folder(ground / "home" / "theirs", tree.owner)
        (ground / "home").chmod(0o711)
        with acting_as(tree.owner):
            wanted = tree._replace(path=str(ground / "home" / "theirs" / "models"))
            assert converge(wanted) and compare(wanted) == []

    @needs_root
    def test_a_folder_that_the_account_may_not_pass(self, ground: Path, tree: Tree) -> None:
        account_folder(ground / "private", tree.owner)
        os.chown(ground / "private", 0, 0)
        (ground / "private").chmod(0o700)
        with acting_as(tree.owner), pytest.raises(UnsafePathError, match="cannot be entered; run with become"):
            compare(tree._replace(path=str(ground / "private" / "store" / "models")))

    @needs_root
    def test_a_group_that_the_account_is_not_in(self, ground: Path, tree: Tree) -> None:
        account_folder(ground / "theirs", tree.owner)
        path = str(ground / "theirs" / "models")
        with acting_as(tree.owner), pytest.raises(PermissionError) as caught:
            converge(tree._replace(path=path, gid=4))
        assert caught.value.filename == path, "the message says to what"


class TestLink:
    """The convenience link, ~/models."""

    @pytest.fixture
    def linked(self, ground: Path, tree: Tree) -> Tree:
        account_folder(ground / "home", tree.owner)
        return tree._replace(link=str(ground / "home" / "models"))

    def test_it_is_made_by_the_owner(self, linked: Tree) -> None:
        assert converge(linked)[-1] == (linked.link, None, f"link to {linked.path}")
        assert linked.link is not None and os.readlink(linked.link) == linked.path
        assert os.lstat(linked.link).st_uid == linked.owner.uid
        assert os.listdir(os.path.dirname(linked.link)) == ["models"]
        assert converge(linked) == []

    def test_a_link_to_somewhere_else_is_replaced(self, linked: Tree) -> None:
        assert linked.link is not None
        os.symlink("/somewhere/else", linked.link)
        assert compare(linked)[-1].before == "link to /somewhere/else"
        converge(linked)
        assert os.readlink(linked.link) == linked.path

    @pytest.mark.parametrize("what", ["file", "directory"])
    def test_anything_else_is_refused(self, linked: Tree, what: str) -> None:
        assert linked.link is not None
        if what == "file":
            Path(linked.link).write_text("mine")
        else:
            os.mkdir(linked.link)
        for act in (compare, converge):
            with pytest.raises(UnsafePathError, match="is in the way of the link to the store; move it away, or set"):
                act(linked)
        assert not os.path.exists(linked.path), "nothing was made before the refusal"

    def test_a_home_that_is_missing_has_no_link(self, linked: Tree) -> None:
        elsewhere = linked._replace(link=f"{linked.path}/no/home/models")
        assert all(change.path != elsewhere.link for change in converge(elsewhere))

    def test_a_store_at_the_links_own_place_needs_none(self, linked: Tree) -> None:
        assert linked.link is not None
        same = linked._replace(path=linked.link)
        assert converge(same) and converge(same) == []
        assert not os.path.islink(linked.link)

    @needs_root
    def test_a_home_in_which_the_owner_may_not_write(self, linked: Tree) -> None:
        assert linked.link is not None
        os.chown(os.path.dirname(linked.link), 0, 0)
        with pytest.raises(UnsafePathError, match=f"{linked.owner.name} may not make the link to the store there"):
            compare(linked)

    @needs_root
    def test_a_home_that_is_a_symlink_to_roots_place_gains_nothing(self, ground: Path, linked: Tree) -> None:
        (ground / "treasure").mkdir()
        os.symlink(ground / "treasure", ground / "home" / "sub")
        with pytest.raises(UnsafePathError, match="may not make the link"):
            converge(linked._replace(link=str(ground / "home" / "sub" / "models")))
        assert os.listdir(ground / "treasure") == []

    def test_what_a_killed_run_left_is_no_obstacle(self, linked: Tree) -> None:
        os.symlink("x", f"{linked.link}.{os.getpid()}.modelfleet")
        converge(linked)
        assert linked.link is not None and os.listdir(os.path.dirname(linked.link)) == ["models"]


class TestStoreOwner:
    def test_it_is_the_directorys(self, store: Path, owner: Account) -> None:
        assert store_owner(str(store)) == owner

    @pytest.mark.parametrize("what", ["nothing", "no parent", "another directory"])
    def test_where_there_is_no_store(self, ground: Path, what: str) -> None:
        path = {"nothing": ground / "x", "no parent": ground / "x" / "y", "another directory": ground}[what]
        with pytest.raises(ModelfleetError, match=f"^{path}: there is no model store; run the role model_store first$"):
            store_owner(str(path))

    @needs_root
    def test_only_root_and_the_owner_may_act(self, store: Path, owner: Account, stranger: Account) -> None:
        with acting_as(owner):
            assert store_owner(str(store)) == owner
        store.chmod(0o700)
        with acting_as(stranger), pytest.raises(UnsafePathError, match=f"belongs to {owner.name}; run with become"):
            store_owner(str(store))


def test_ensure_directory_makes_all_of_a_path_and_changes_nothing_that_is_there(ground: Path, owner: Account) -> None:
    ensure_directory(str(ground / "a" / "b"), owner)
    assert listing(ground) == dict.fromkeys(["a", "a/b"], (owner.uid, owner.gid, 0o755, "directory"))
    (ground / "a").chmod(0o700)
    ensure_directory(str(ground / "a"), owner)
    assert stat.S_IMODE((ground / "a").stat().st_mode) == 0o700


@needs_root
def test_ensure_directory_refuses_a_strangers(ground: Path, owner: Account, stranger: Account) -> None:
    account_folder(ground / "a", stranger)
    with pytest.raises(UnsafePathError, match=f"belongs to uid {stranger.uid}"):
        ensure_directory(str(ground / "a"), owner)


class TestLayout:
    def test_default_paths(self) -> None:
        assert default_store_path(0, "/root") == "/opt/ashley-ai/models"
        assert default_store_path(1000, "/home/ashley") == "/home/ashley/.local/share/ashley-ai/models"

    def test_given_paths(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/ashley")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert resolve_store_path("") == "/home/ashley/.local/share/ashley-ai/models"
        assert resolve_store_path("~/models/") == "/home/ashley/models"
        assert resolve_store_path("/srv/../data//models/.") == "/data/models"

    def test_the_runtime_is_beside_the_store(self) -> None:
        assert resolve_runtime_path("", "/opt/ashley-ai/models") == "/opt/ashley-ai/runtime"
        assert resolve_runtime_path("/srv/runtime/", "/opt/ashley-ai/models") == "/srv/runtime"
