"""The text of an environment file: what it is split into, how it is merged, and how three real readers read it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.env_format import format_line, merge, parse, read_values
from modelfleet.core.errors import EnvFileError
from support import containers

FOREIGN = """# The application's own settings
export LOG_LEVEL=info

GREETING="hello
# not a comment
LOCAL_MODELS_PATH=/not/this
world"
EMPTY=
  INDENTED = spaced
PATTERN='a "b" $c' # trailing comment
APOSTROPHE=it's fine
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("A=1", ["A"]),
        ("# c\n\n \t\nA=1\n", [None, None, None, "A"]),
        ("export A=1\n", ["A"]),
        ("A = 1\n", ["A"]),
        ("A='x\ny'\nB=2\n", ["A", "B"]),
        ('A="x\\"\ny" # c\r\nB=2\r\n', ["A", "B"]),
        ("A=a'b\nB=2\n", ["A", "B"]),
        ("A=1;B=2\n", ["A"]),
        ("export=1\n", ["export"]),
        (FOREIGN, [None, "LOG_LEVEL", None, "GREETING", "EMPTY", "INDENTED", "PATTERN", "APOSTROPHE"]),
    ],
)
def test_entries(text: str, names: list[str | None]) -> None:
    entries = parse(text, "f")
    assert [entry.name for entry in entries] == names
    assert "".join(entry.text for entry in entries) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=1\nnonsense\n", "f:2: neither a comment nor NAME=VALUE"),
        ("export A\n", "f:1: neither"),
        ("2A=1\n", "f:1: neither"),
        ("; systemd's comment\n", "f:1: neither"),
        ("Ä=1\n", "f:1: neither"),
        ("A='x\ny'\nB\n", "f:3: neither"),
        ("A=1\nB='open\nC=2\n", "f:2: a ' that is not closed"),
        ('A="open', 'f:1: a " that is not closed'),
        ("A='x'y\n", "f:1: text after the closing quote"),
        ("A='x'#y\n", "f:1: text after the closing quote"),
        # The shell ends here, python-dotenv at the next quote.
        ("A='C:\\'\nB='x'\n", "f:1: a \\' that readers understand differently"),
        ('A="C:\\\\"\nB="x"\n', 'f:1: a \\" that readers understand differently'),
        ("A=x\\\ny\n", "f:1: a line continued with a backslash"),
        ("# path C:\\\nA=1\n", "f:1: a comment that ends in a backslash"),
        ("\ufeffA=1\n", "f:1: a byte order mark"),
        ("A=\0\n", "f:1: a control character"),
        ("A=1\rB=2\n", "f:1: a control character"),
    ],
)
def test_what_cannot_be_read_alike_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(EnvFileError) as caught:
        parse(text, "f")
    assert str(caught.value).startswith(message) and "; " in str(caught.value)


def test_an_error_does_not_show_the_line() -> None:
    with pytest.raises(EnvFileError) as caught:
        parse("TOKEN hf_secret\n", "f")
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "values", "after"),
    [
        ("", {"A": "1", "B": None}, "A=1\n"),
        ("X=1\n", {"A": "1"}, "X=1\nA=1\n"),
        ("X=1", {"A": "1"}, "X=1\nA=1\n"),
        ("X=1", {}, "X=1"),
        ("A=0\nX=1\n", {"A": "1"}, "A=1\nX=1\n"),
        # The last of several is the one that readers take: its place stays.
        ("A=0\nX=1\nexport A='2'\nY=1\n", {"A": "1"}, "X=1\nA=1\nY=1\n"),
        ("A=0\nX=1\nA=2\n", {"A": None}, "X=1\n"),
        ("X=1\nA=0", {"A": "1"}, "X=1\nA=1"),
        ("X=1\nA=0", {"A": None}, "X=1\n"),
        ("X=1\r\nA=0\r\n", {"A": "1", "B": "2"}, "X=1\r\nA=1\nB=2\n"),
        ("A='x\ny'\nX=1\n", {"A": "1"}, "A=1\nX=1\n"),
        ("A=1\n", {"A": "1"}, "A=1\n"),
        ("A='1'\n", {"A": "1"}, "A=1\n"),
    ],
)
def test_merging(before: str, values: dict[str, str | None], after: str) -> None:
    assert merge(before, values, "f") == after
    assert merge(after, values, "f") == after


def test_foreign_lines_stay_byte_for_byte() -> None:
    merged = merge(FOREIGN, {"LOCAL_MODELS_PATH": "/srv/models", "LOG_LEVEL": "debug"}, "f")
    assert merged == FOREIGN.replace("export LOG_LEVEL=info", "LOG_LEVEL=debug") + "LOCAL_MODELS_PATH=/srv/models\n"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("", "A="),
        ("/opt/ashley-ai/models", "A=/opt/ashley-ai/models"),
        ("a b", "A='a b'"),
        ("~/models", "A='~/models'"),
        ('$HOME `x` "y" #z', "A='$HOME `x` \"y\" #z'"),
        ("bob's models", 'A="bob\'s models"'),
        ("größer", "A='größer'"),
    ],
)
def test_quoting(value: str, line: str) -> None:
    assert format_line("A", value) == line


REFUSED = ["a\nb", "a\rb", "a\0b", "\x1b[31m", "\x7f", "a\\b", "${HOME}", 'it\'s "it"', "it's $5", "it's `x`", "\ud800"]


@pytest.mark.parametrize("value", [*REFUSED, "\ufffe"])
def test_values_that_are_not_read_alike_are_refused(value: str) -> None:
    with pytest.raises(EnvFileError, match="the value of A has "):
        format_line("A", value)


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "Ä", "A\n"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(EnvFileError, match="is no name of a variable"):
        format_line(name, "x")


def test_reading_values() -> None:
    assert read_values(FOREIGN, "f") == {
        "LOG_LEVEL": "info",
        "GREETING": "hello\n# not a comment\nLOCAL_MODELS_PATH=/not/this\nworld",
        "EMPTY": "",
        "INDENTED": "spaced",
        "PATTERN": 'a "b" $c',
        "APOSTROPHE": "it's fine",
    }
    assert read_values('A="\\\\ \\" \\$ \\n"\nB=1 # c\nB=2#d\n', "f") == {"A": '\\ " $ \\n', "B": "2#d"}


NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)


@given(st.text(max_size=40), st.dictionaries(NAMES, st.text(max_size=20), max_size=4))
def test_any_text_merges_or_is_refused(text: str, values: dict[str, str]) -> None:
    try:
        merged = merge(text, values, "f")
    except EnvFileError:
        return
    assert merge(merged, values, "f") == merged
    assert {name: read_values(merged, "f")[name] for name in values} == values
    foreign = [entry.text.rstrip("\n") for entry in parse(text, "f") if entry.name not in values]
    assert [entry.text.rstrip("\n") for entry in parse(merged, "f") if entry.name not in values] == foreign
    managed = [entry.name for entry in parse(merged, "f") if entry.name in values]
    assert sorted(managed) == sorted(values)


ALPHABET = "".join(map(chr, range(32, 127))) + "\tä€😀\u00a0\u2028"
VALUES = [
    *ALPHABET,
    *(f"a{letter}b" for letter in ALPHABET),
    *(f" {letter} " for letter in ALPHABET),
    *(f"it's {letter}{letter}" for letter in ALPHABET),
    *("", "$HOME", "$(id)", "`id`", "a #b", "#", "export X=1", "!x", "%h", "${", "{a,b}", "/opt/ashley-ai/models"),
]


def writable() -> dict[str, str]:
    """Return by name all values above that are not refused."""
    found = {}
    for index, value in enumerate(VALUES):
        try:
            format_line("K", value)
        except EnvFileError:
            continue
        found[f"K{index}"] = value
    return found


def split_environment(output: bytes) -> dict[str, str]:
    """Return what ``env -0`` wrote, of our names only."""
    pairs = (line.partition("=") for line in output.decode().split("\0"))
    return {name: value for name, equals, value in pairs if equals and name.startswith("K")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment file with every value that may be written."""
    path = tmp_path_factory.mktemp("env") / ".env"
    path.write_text(merge("", writable(), "f"), encoding="utf-8")
    return path


def test_we_read_what_we_write(written: Path) -> None:
    assert len(writable()) > 300
    assert read_values(written.read_text(encoding="utf-8"), "f") == writable()


def test_python_dotenv_reads_the_same(written: Path) -> None:
    assert dotenv_values(written) == writable()


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox"])
def test_a_shell_reads_the_same(written: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = [shell, "sh"] if shell == "busybox" else [shell]
    script = 'set -a; . "$1"; exec env -0'
    output = subprocess.run([*words, "-c", script, "sh", str(written)], check=True, stdout=subprocess.PIPE).stdout
    assert split_environment(output) == writable()


def run_unit(prefix: list[str], path: str) -> dict[str, str]:
    """Return what a service sees that systemd starts with the environment file ``path``."""
    command = ["systemd-run", "--quiet", "--wait", "--pipe", "--property", f"EnvironmentFile={path}", "env", "-0"]
    return split_environment(subprocess.run([*prefix, *command], check=True, stdout=subprocess.PIPE).stdout)


def test_systemd_reads_the_same(written: Path) -> None:
    if not os.path.isdir("/run/systemd/system") or os.geteuid() != 0:
        pytest.skip("systemd is not in charge here, or this is not root; the containers have it")
    assert run_unit([], str(written)) == writable()


@pytest.fixture(params=sorted(containers.SUITES))
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[containers.Container]:
    """Return a running systemd container of each release."""
    name = f"modelfleet-env-file-{request.param}"
    try:
        yield containers.create(name, request.param, tmp_path, volumes=[f"{tmp_path}:/srv/env-file"])
    finally:
        containers.destroy(name)


@pytest.mark.containers
def test_systemd_of_each_release_reads_the_same(written: Path, host: containers.Container, tmp_path: Path) -> None:
    shutil.copy(written, tmp_path / "all.env")
    assert run_unit(["podman", "exec", host.name], "/srv/env-file/all.env") == writable()


@pytest.mark.parametrize(
    ("line", "value"), [("K='${HOME}'", "${HOME}"), ("K='a\\\\b'", "a\\\\b"), ('K="it\'s $K2"', "it's $K2")]
)
def test_what_is_refused_is_indeed_read_differently(tmp_path: Path, line: str, value: str) -> None:
    path = tmp_path / ".env"
    path.write_text(line + "\n")
    output = subprocess.run(
        ["sh", "-c", 'set -a; . "$1"; exec env -0', "sh", str(path)], check=True, stdout=subprocess.PIPE
    ).stdout
    assert {split_environment(output)["K"], dotenv_values(path)["K"]} != {value}
