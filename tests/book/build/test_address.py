"""Links to the repository lead to the repository that the book is built from, and there are none without one."""

import subprocess

import pytest

from book.build import address
from book.build.record import ROOT

CONFIG = 'repository:\n  url: "{url}"\n  branch: main\n'
TOC = "parts:\n  - chapters:\n      - file: chapters/first\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """`place(remote, default)` makes a git repository with that remote and that default in _config.yml."""
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    (tmp_path / "_toc.yml").write_text(TOC)

    def make(remote: str = "", default: str = ""):
        (tmp_path / "_config.yml").write_text(CONFIG.format(url=default))
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        if remote:
            subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", remote], check=True)
        return tmp_path

    return make


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/ada/a.book",
        "https://github.com/ada/a.book.git",
        "git@github.com:ada/a.book.git",
        "ssh://git@github.com:22/ada/a.book.git/",
        "https://token@github.com/ada/a.book",
    ],
)
def test_the_remote_says_where_the_book_lives(place, remote):
    root = place(remote, default="https://github.com/old/one")
    assert address.repository(root) == "ada/a.book"
    found = address.sphinx_settings(root)
    assert found["html_baseurl"] == found["ogp_site_url"] == "https://ada.github.io/a.book/"
    assert found["html_theme_options"]["repository_url"] == "https://github.com/ada/a.book"


def test_github_knows_better_and_the_default_comes_last(place, monkeypatch):
    root = place(default="https://github.com/some/default")
    assert address.repository(root) == "some/default"
    monkeypatch.setenv("GITHUB_REPOSITORY", "Ada/ada.github.io")
    assert address.repository(root) == "Ada/ada.github.io"
    assert address.site("Ada/ada.github.io") == "https://ada.github.io/"


@pytest.mark.parametrize("remote", ["", "/srv/books/one.git", "https://example.org/ada/book.git"])
def test_without_an_address_there_is_nothing_that_leads_nowhere(place, remote):
    root = place(remote)
    assert address.repository(root) is None
    assert address.sphinx_settings(root) == {}
    assert address.badge(root) == ""


def test_the_badge_comes_goes_and_stays(place, monkeypatch):
    root = place()
    text = (ROOT / "README.md").read_text("utf-8")
    bare = address.with_badge(text, root)
    monkeypatch.setenv("GITHUB_REPOSITORY", "ada/book")
    written = address.with_badge(bare, root)
    assert "mybinder.org/v2/gh/ada/book/main?urlpath=lab/tree/chapters/first.ipynb" in written
    assert address.with_badge(written, root) == written
    monkeypatch.delenv("GITHUB_REPOSITORY")
    assert address.with_badge(written, root) == bare
    assert "mybinder" not in bare
    assert "github.io" not in bare


def test_no_other_file_holds_an_address():
    names = ["_config.yml", "pyproject.toml", "CONTRIBUTING.md", "glossary.md", "reference.md", "intro.ipynb"]
    for name in names:
        text = (ROOT / name).read_text("utf-8")
        assert "mybinder.org/v2" not in text
        assert ".github.io" not in text
    assert "github.com" not in (ROOT / "_config.yml").read_text("utf-8").replace("https://github.com/owner/name", "")
