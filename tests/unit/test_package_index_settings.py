"""Which package index this machine is set to use: read as pip reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from modelfleet.core.errors import FetchError
from modelfleet.core.fetch import package_index
from modelfleet.core.fetch.package_index import DEFAULT_INDEX, PackageIndexSettings, configuration_files

CANARY = "canary-3141"


class TestSettings:
    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Return a home; the machine's own pip.conf files are out of sight."""
        home = tmp_path / "home"
        (home / ".config" / "pip").mkdir(parents=True)
        (home / ".pip").mkdir()
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
        monkeypatch.setattr(sys, "platform", "linux")
        every = package_index.configuration_files
        monkeypatch.setattr(
            package_index,
            "configuration_files",
            lambda environment: [path for path in every(environment) if not path.startswith("/etc")],
        )
        return home

    def read(self, home: Path, ca_bundle: str | None = None, **environment: str) -> PackageIndexSettings:
        return PackageIndexSettings.from_environment({"HOME": str(home), **environment}, ca_bundle)

    def test_nothing_is_set(self, home: Path) -> None:
        assert self.read(home) == PackageIndexSettings((DEFAULT_INDEX,), (), None, None)

    def test_the_environment_wins_over_the_files(self, home: Path) -> None:
        (home / ".config/pip/pip.conf").write_text(
            "[global]\nindex_url = https://file/simple/\nextra-index-url =\n    https://a/simple\n    https://b/simple\n"
            "find-links = /wheels /more\ncert = /file.pem\nproxy = file:1\n"
        )
        from_file = self.read(home)
        assert from_file == PackageIndexSettings(
            ("https://file/simple", "https://a/simple", "https://b/simple"), ("/wheels", "/more"), "/file.pem", "file:1"
        )
        from_environment = self.read(
            home,
            PIP_INDEX_URL="https://env/simple/",
            PIP_EXTRA_INDEX_URL="https://c/simple",
            PIP_FIND_LINKS="/env",
            PIP_CERT="/env.pem",
            PIP_PROXY="env:1",
        )
        assert from_environment == PackageIndexSettings(
            ("https://env/simple", "https://c/simple"), ("/env",), "/env.pem", "env:1"
        )

    def test_files_win_over_one_another_as_pip_orders_them(self, home: Path, tmp_path: Path) -> None:
        places = [home / ".pip" / "pip.conf", home / ".config/pip/pip.conf", tmp_path / "prefix" / "pip.conf"]
        for number, place in enumerate(places):
            place.parent.mkdir(exist_ok=True)
            place.write_text(f"[global]\nindex-url = https://{number}/\n")
            assert self.read(home).index_urls == (f"https://{number}",)

    def test_a_file_of_ones_own_replaces_the_users(self, home: Path, tmp_path: Path) -> None:
        (home / ".config/pip/pip.conf").write_text("[global]\nindex-url = https://user/\nproxy = user:1\n")
        (tmp_path / "own.conf").write_text("[global]\nindex-url = https://own/\n")
        assert self.read(home, PIP_CONFIG_FILE=str(tmp_path / "own.conf")) == PackageIndexSettings(("https://own",))
        assert self.read(home, PIP_CONFIG_FILE=str(tmp_path / "missing.conf")).proxy == "user:1"
        assert self.read(home, PIP_CONFIG_FILE=os.devnull).index_urls == (DEFAULT_INDEX,)

    @pytest.mark.parametrize("section", ["install", "download", "wheel"])
    def test_a_section_for_a_command_wins_over_global(self, home: Path, section: str) -> None:
        (home / ".config/pip/pip.conf").write_text(
            f"[{section}]\nindex-url = https://command/\n[global]\nindex-url = https://global/\n"
        )
        assert self.read(home).index_urls == ("https://command",)

    @pytest.mark.parametrize("value", ["1", "true", "YES", "on", "y", "t"])
    def test_no_index(self, home: Path, value: str) -> None:
        settings = self.read(home, PIP_NO_INDEX=value, PIP_INDEX_URL="https://env/", PIP_FIND_LINKS="/env")
        assert settings.index_urls == () and settings.find_links == ("/env",)

    @pytest.mark.parametrize("value", ["0", "false", "no", "off", ""])
    def test_an_index_after_all(self, home: Path, value: str) -> None:
        (home / ".config/pip/pip.conf").write_text("[global]\nno-index = false\n")
        assert self.read(home, PIP_NO_INDEX=value).index_urls == (DEFAULT_INDEX,)

    def test_certificates(self, home: Path) -> None:
        weakest = {"REQUESTS_CA_BUNDLE": "/requests.pem"}
        assert self.read(home, **weakest).ca_bundle == "/requests.pem"
        stronger = {**weakest, "SSL_CERT_FILE": "/ssl.pem"}
        assert self.read(home, **stronger).ca_bundle == "/ssl.pem"
        strong = {**stronger, "PIP_CERT": "/pip.pem"}
        assert self.read(home, **strong).ca_bundle == "/pip.pem"
        assert self.read(home, ca_bundle="/named.pem", **strong).ca_bundle == "/named.pem"

    @pytest.mark.parametrize(
        "text",
        [
            f"index-url = https://u:{CANARY}@host/\n",
            f"[global\nindex-url = https://u:{CANARY}@host/\n",
            f"[global]\nindex-url = https://u:{CANARY}@host/\nindex-url = https://u:{CANARY}@host/\n",
            f"[global]\n{CANARY}\n",
        ],
        ids=["no section", "half a section", "twice", "no value"],
    )
    def test_a_damaged_file_is_named_and_not_quoted(self, home: Path, text: str) -> None:
        path = home / ".config/pip/pip.conf"
        path.write_text(text)
        with pytest.raises(FetchError) as caught:
            self.read(home)
        assert str(path) in str(caught.value) and str(caught.value).endswith("; correct it")
        assert "\n" not in str(caught.value) and CANARY not in str(caught.value)

    def test_a_file_that_is_no_text(self, home: Path) -> None:
        (home / ".config/pip/pip.conf").write_bytes(b"[global]\nindex-url = \xff\xfe\n")
        with pytest.raises(FetchError, match=r"cannot be read as a pip configuration: .*; correct it$"):
            self.read(home)

    def test_macos_has_a_place_of_its_own(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert str(home / "Library/Application Support/pip/pip.conf") in configuration_files({"HOME": str(home)})

    def test_what_pip_itself_reads(self) -> None:
        """Compare with pip, where this Python has one, on this machine's own settings."""
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "config", "debug"], capture_output=True, text=True, check=False
        )
        if pip.returncode != 0:
            pytest.skip("this Python has no pip")
        known = [line.strip().rpartition(", exists:")[0] for line in pip.stdout.splitlines() if ", exists:" in line]
        assert {path for path in configuration_files(os.environ) if path in known} == set(known)
