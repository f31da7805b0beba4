from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from paywarden.schemas import private_files
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.private_files import (
    make_parent,
    make_private_folder,
    open_private,
    require_not_planted,
    require_unwritable,
)

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /dev/shm: everybody may make files there."""
    folder = tmp_path / "shm"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture(autouse=True)
def usual_umask() -> None:
    os.umask(0o002)


def test_folders_and_files_are_made_for_one_user(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_private_folder(folder)
    os.close(open_private(folder / "file", os.O_CREAT | os.O_RDWR))
    assert [mode_of(path) for path in (tmp_path / "a", folder, folder / "file")] == [0o700, 0o700, 0o600]
    make_parent(tmp_path / "c" / "d" / "file")
    assert mode_of(tmp_path / "c" / "d") == 0o700


def test_wider_permissions_are_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    (folder / "inner").mkdir(parents=True)
    (folder / "data.mdb").write_bytes(b"x")
    make_private_folder(folder)
    assert [mode_of(path) for path in (folder, folder / "inner", folder / "data.mdb")] == [0o700, 0o700, 0o600]
    assert (folder / "data.mdb").read_bytes() == b"x"
    (folder / "data.mdb").chmod(0o644)
    os.close(open_private(folder / "data.mdb", os.O_RDWR))
    assert mode_of(folder / "data.mdb") == 0o600


def test_a_folder_that_only_holds_one_of_our_files_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_parent(tmp_path / "file")
    os.close(open_private(tmp_path / "file", os.O_CREAT | os.O_RDWR))
    assert mode_of(tmp_path) == 0o755


def test_a_link_is_never_followed_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine", encoding="utf-8")
    (tmp_path / "file").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        open_private(tmp_path / "file", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    assert (tmp_path / "secret").read_text(encoding="utf-8") == "mine"
    with pytest.raises(Misconfigured, match="is a link"):
        make_private_folder(tmp_path)


@as_root
def test_a_folder_that_another_user_planted_is_refused(shared: Path) -> None:
    planted = shared / "paywarden"
    planted.mkdir()
    os.chown(planted, NOBODY, -1)
    for attempt in (
        lambda: make_private_folder(planted),
        lambda: make_private_folder(planted / "mirror"),
        lambda: open_private(planted / "answered", os.O_CREAT | os.O_RDWR),
        lambda: require_not_planted(planted / "mirror" / "data.mdb"),
    ):
        with pytest.raises(Misconfigured, match=r"paywarden is a file or folder of user nobody in a folder that every"):
            attempt()


@as_root
def test_a_link_that_another_user_planted_is_refused(shared: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (shared / "paywarden").symlink_to(mine)
    os.chown(shared / "paywarden", NOBODY, -1, follow_symlinks=False)
    with pytest.raises(Misconfigured, match="is a link of user nobody"):
        make_private_folder(shared / "paywarden")
    with pytest.raises(Misconfigured, match="is a link of user nobody"):
        require_not_planted(shared / "paywarden" / "data.mdb")


@as_root
def test_a_file_of_another_user_in_our_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "data.mdb").touch()
    os.chown(folder / "data.mdb", NOBODY, -1)
    with pytest.raises(Misconfigured, match="belongs to another user"):
        make_private_folder(folder)
    with pytest.raises(Misconfigured, match="user nobody"):
        open_private(folder / "data.mdb", os.O_RDWR)


@as_root
def test_a_file_that_another_user_plants_after_the_path_was_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(path: Path) -> None:
        path.touch()
        os.chown(path, NOBODY, -1)

    monkeypatch.setattr(private_files, "require_not_planted", plant)
    with pytest.raises(Misconfigured, match="answered belongs to user nobody; wanted a file of user root"):
        open_private(tmp_path / "answered", os.O_CREAT | os.O_RDWR)


def test_our_own_link_in_a_shared_folder_is_followed(shared: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (shared / "paywarden").symlink_to(mine)
    make_private_folder(shared / "paywarden")
    assert mode_of(mine) == 0o700


def test_a_path_that_others_can_write_to_is_told(tmp_path: Path) -> None:
    library = tmp_path / "bundle" / "native" / "model.so"
    library.parent.mkdir(parents=True)
    library.touch()
    for path in (library, library.parent, tmp_path / "bundle"):
        path.chmod(0o755)
    require_unwritable(library)
    for path in (library, library.parent, tmp_path / "bundle"):
        path.chmod(0o777)
        with pytest.raises(Misconfigured, match=rf"{path.name} can be written by others \(mode 777\)"):
            require_unwritable(library)
        path.chmod(0o755)


@as_root
def test_a_group_of_others_counts_and_a_group_of_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "model.so"
    library.touch()
    os.chown(library, -1, 12_345)
    library.chmod(0o664)
    with pytest.raises(Misconfigured, match="can be written by others"):
        require_unwritable(library)
    monkeypatch.setattr(private_files, "_is_group_of_one", lambda gid: gid == 12_345)
    require_unwritable(library)


@as_root
def test_another_owner_of_a_folder_above_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    (folder / "model.so").touch()
    os.chown(folder, NOBODY, -1)
    with pytest.raises(Misconfigured, match="belongs to user nobody, who is neither root nor this user"):
        require_unwritable(folder / "model.so")


@as_root
def test_where_a_link_leads_counts_too(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "model.so").touch()
    real.chmod(0o777)
    (tmp_path / "bundle").symlink_to(real)
    with pytest.raises(Misconfigured, match="real can be written by others"):
        require_unwritable(tmp_path / "bundle" / "model.so")


@as_root
def test_another_user_cannot_read_what_was_made(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "outbox")
    (tmp_path / "outbox" / "log").write_text("decisions", encoding="utf-8")
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.owner() == "root" and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    script = f"import os; os.setuid({NOBODY}); open({str(tmp_path / 'outbox' / 'log')!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr


def test_a_link_that_leads_back_to_itself_is_refused_in_one_line(tmp_path: Path) -> None:
    """`Path.resolve` raises RuntimeError for it, which nobody expects: a checker of releases ended with a traceback."""
    loop, file = tmp_path / "loop", tmp_path / "file"
    loop.symlink_to(loop)
    file.touch()
    for check in (require_unwritable, require_not_planted):
        with pytest.raises(Misconfigured, match="loop is a link that leads back to itself"):
            check(loop)
        with pytest.raises(Misconfigured, match=r"cannot look at .*Too many levels of symbolic links"):
            check(loop / "file")
        # Opening it says what is wrong.
        check(file / "below")
