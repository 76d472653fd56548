"""The commit in a profile: the package's own, or none."""

from __future__ import annotations

import subprocess
from pathlib import Path

from trtllm_dflash.profile.provenance import commit


def test_commit_is_that_of_a_checkout_that_tracks_the_module(tmp_path: Path) -> None:
    """A package in a virtual environment may lie in another project's checkout."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    module = tmp_path / "package" / "module.py"
    module.parent.mkdir()
    module.write_text("1")
    assert commit(module) is None
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert commit(module) is None
    git("add", "package/module.py")
    git("commit", "-m", "ours")
    assert commit(module) == git("rev-parse", "HEAD")
    module.write_text("2")
    assert commit(module) == git("rev-parse", "HEAD") + "+"
