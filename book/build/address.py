"""Where the book lives: found when it is built, so that a copy that somebody publishes points to itself.

`GITHUB_REPOSITORY` (GitHub sets it) comes first, then the git remote "origin", then `repository: url` in `_config.yml`.
Where none of them names a repository on GitHub, the book has no button and no link that would lead nowhere.

    python -m book.build.address        (`make badge`) writes badge and address into README.md, or takes them out
"""

import os
import re
import subprocess
from pathlib import Path

import yaml

from book.build.record import ROOT

BEGIN, END = "<!-- `make badge` writes what stands here -->\n", "<!-- until here -->\n"
ON_GITHUB = re.compile(r"github\.com(?::\d+)?[:/]+([\w.-]+)/([\w.-]+?)(?:\.git)?/?$")


def repository(root: Path = ROOT) -> str | None:
    """`owner/name` on GitHub, or None."""
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return name
    command = ["git", "-C", str(root), "config", "--get", "remote.origin.url"]
    try:
        remote = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        remote = ""
    default = (settings(root).get("repository") or {}).get("url") or ""
    found = ON_GITHUB.search(remote) or ON_GITHUB.search(default)
    return f"{found[1]}/{found[2]}" if found else None


def settings(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / "_config.yml").read_text("utf-8"))


def site(name: str) -> str:
    """Where GitHub publishes the repository `owner/name`."""
    owner, book = name.split("/")
    home = f"{owner.lower()}.github.io"
    return f"https://{home}/" if book.lower() == home else f"https://{home}/{book}/"


def sphinx_settings(root: Path = ROOT) -> dict:
    """Settings of Sphinx and its theme that hold the address; empty without one."""
    name = repository(root)
    if name is None:
        return {}
    return {
        "html_baseurl": site(name),
        "ogp_site_url": site(name),
        "html_theme_options": {
            "repository_url": f"https://github.com/{name}",
            "use_repository_button": True,
            "launch_buttons": {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"},
        },
    }


def badge(root: Path = ROOT) -> str:
    """The lines of README.md that hold the address; empty without one."""
    name = repository(root)
    if name is None:
        return ""
    first = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))["parts"][0]["chapters"][0]["file"]
    branch = settings(root)["repository"]["branch"]
    live = f"https://mybinder.org/v2/gh/{name}/{branch}?urlpath=lab/tree/{first}.ipynb"
    return f"[![Binder](https://mybinder.org/badge_logo.svg)]({live}) · read it at <{site(name)}>\n"


def with_badge(text: str, root: Path = ROOT) -> str:
    """README's text with the lines between BEGIN and END written anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + badge(root) + END + rest.split(END)[1]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_badge(readme.read_text("utf-8")), "utf-8")
    print(f"README.md has the address of {repository()}" if repository() else "README.md has no address: none is known")
