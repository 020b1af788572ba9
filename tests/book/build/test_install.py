"""The packages are unpacked by uv where pip would have looked for them, and pip has the last word."""

import os
import subprocess
import sys
import zipfile

import pytest

from book.build import install

LISTED = """\
:env:.cert='/etc/certificates'
:env:.find-links='here'
global.extra-index-url='\\nhttps://one/simple\\nhttps://two/simple'
global.find-links='elsewhere'
global.timeout='180'
install.trusted-host='two'
user.find-links='nowhere'
wheel.find-links='for-another-command'
"""


def test_settings_are_those_that_pip_would_use():
    known = install.settings(LISTED)
    assert known["find-links"] == "here"
    assert known["extra-index-url"].split() == ["https://one/simple", "https://two/simple"]
    assert known["trusted-host"] == "two"
    assert install.settings("global.find-links='a'\ninstall.find-links='b'\n") == {"find-links": "b"}
    assert install.settings("install.find-links='b'\nglobal.find-links='a'\n") == {"find-links": "b"}
    assert install.settings("") == {}


def test_uv_is_given_them():
    options, extra = install.by_uv(install.settings(LISTED))
    given = list(zip(options, options[1:], strict=False))
    for pair in [
        ("--index", "https://one/simple"), ("--index", "https://two/simple"), ("--find-links", "here"),
        ("--allow-insecure-host", "two"), ("-r", "requirements.txt"), ("--index-strategy", "unsafe-best-match"),
    ]:  # fmt: skip
        assert pair in given
    assert "--no-deps" in options
    assert "--no-index" not in options
    assert "--default-index" not in options
    assert extra == {"SSL_CERT_FILE": "/etc/certificates"}
    options, extra = install.by_uv({"index-url": "https://mine/simple", "no-index": "1", "proxy": "http://door:3128"})
    assert options[:3] == ["--default-index", "https://mine/simple", "--no-index"]
    assert extra == {"ALL_PROXY": "http://door:3128"}


def wheel(folder, name: str, version: str) -> None:
    """The smallest package there is."""
    about = f"{name}-{version.replace('+', '_')}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        packed.writestr(f"{name}.py", "")
        named = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        packed.writestr(f"{about}/METADATA", f"{named}Requires-Dist: more\n")
        packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{about}/RECORD", "")


def test_uv_takes_the_build_that_pip_would_take(tmp_path):
    """The small build of PyTorch is called 2.13.0+cpu, is pinned as 2.13.0, and lies where only pip's settings say."""
    wheel(tmp_path, "tiny", "1.0")
    wheel(tmp_path, "tiny", "1.0+cpu")
    (tmp_path / "requirements.txt").write_text("tiny==1.0  # as torch\n")
    env = os.environ | {"PIP_FIND_LINKS": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    asked = [*install.PIP, "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, env=env, check=True).stdout
    options, extra = install.by_uv(install.settings(listed))
    command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--python", sys.executable, *options]
    said = subprocess.run(command, capture_output=True, text=True, env=env | extra, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert " + tiny==1.0+cpu" in said.stderr
    assert "more" not in said.stderr


@pytest.mark.parametrize("status", [0, 3])
def test_pip_has_the_last_word(status, tmp_path, monkeypatch, capsys):
    (tmp_path / "requirements.txt").write_text("a==1\nb==2\n# c==3\n")  # no uv among them
    monkeypatch.chdir(tmp_path)
    asked = []

    class Called:
        returncode, stdout = 0, ""

    def run(command, **others):
        asked.append(command[3:])
        return Called()

    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(install, "try_uv", lambda: False)
    monkeypatch.setattr(install, "ask_pip", lambda: asked.append("pip") or status)
    assert install.main() == status
    assert "2 pinned packages" in capsys.readouterr().out
    assert asked[0] == "pip"
    assert len(asked) == (1 if status else 2)


def test_where_uv_cannot_be_had_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text("a==1\nuv==0.0.0.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert install.try_uv() is False


def test_what_pip_complains_of_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text("there-is-no-such-package==1\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert install.ask_pip()
    assert "there-is-no-such-package" in capsys.readouterr().err
