"""Directories that appear whole or not at all, and checks of where they are to be.

A directory is written in a work folder beside its final place, then renamed into it. What is there
by then is looked at again: a long work may lie between. Nothing is deleted that no command of ours
wrote.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from trtllm_dflash.atomic.disk import existing_above, free_bytes
from trtllm_dflash.atomic.file_lock import LockedError, existing_lock, file_lock
from trtllm_dflash.atomic.swap import Written, delete_files, files_below, swap
from trtllm_dflash.atomic.work_folder import remove_leftovers, work_folder
from trtllm_dflash.errors import BuildError, DFlashError, UsageError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.termination import termination_as_exit

# Returns what of a directory a command wrote, or raises a DFlashError if it wrote none of it.
Recognize = Callable[[Path], Written]
_LOG = logging.getLogger(__name__)
_MOUNTS = Path("/proc/self/mountinfo")
_NAME_BYTES = 200  # of a name that is part of another one; file systems allow 255
# What a rename of a directory says where something else has come to be.
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def check_output_dir(
    directory: Path, *, overwrite: bool = False, what: str | None = None
) -> bool:
    """Return whether an output directory is new or empty.

    If it holds something, `overwrite` was given, and the caller must look what it holds.

    `what` is what the command's --overwrite replaces, None for a command without that option.

    Raises:
        UsageError: for a file, and for a directory with something in it and no `overwrite`. Also
            for a place where none can be made or replaced, or that another command is writing.
    """
    directory = Path(os.path.realpath(directory))
    try:
        exists = _exists(directory)
        is_empty = not exists or (directory.is_dir() and not any(directory.iterdir()))
    except OSError as error:
        raise UsageError(f"--output-dir {directory}: {error.strerror}; give another") from error
    if exists and not directory.is_dir():
        raise UsageError(f"--output-dir {directory} is a file; give the name of a directory")
    if not is_empty and not overwrite:
        instead = f", or --overwrite to replace {what}" if what else ""
        raise UsageError(f"--output-dir {directory} is not empty; give another{instead}")
    check_creatable("--output-dir", directory)
    if exists:
        _check_movable(directory)
    with existing_lock(_lock_path(directory)) as state:
        if state == "held":
            raise _busy(directory)
    return is_empty


def _exists(path: Path) -> bool:
    """Return whether something has that name, also a link to nothing.

    Raises:
        OSError: for a name that cannot be, as one of 300 letters.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _busy(directory: Path) -> UsageError:
    return UsageError(
        f"--output-dir {directory}: another build writes there; wait until it has ended, or give"
        " another"
    )


def _check_movable(directory: Path) -> None:
    """Check that a directory may be replaced by one of the same name.

    Raises:
        UsageError: for a mount point, which cannot be, and for the current directory, which a shell
            would go on to see as it was.
    """
    mounts = set()
    with suppress(OSError):
        for line in _MOUNTS.read_bytes().splitlines():
            mounts.add(line.split()[4])  # with octal escapes for blanks
    escaped = os.fsencode(directory).replace(b"\\", b"\\134").replace(b" ", b"\\040")
    if directory.is_mount() or escaped in mounts:
        reason = "is a mount point"
    elif _is_current(directory):
        reason = "is the current directory or has it inside"
    else:
        return
    raise UsageError(
        f"--output-dir {directory} {reason}, and the output appears by a rename; give a new folder"
        " in it"
    )


def _is_current(directory: Path) -> bool:
    with suppress(OSError):  # of a current directory that has been deleted
        return Path.cwd().is_relative_to(directory)
    return False


def check_creatable(option: str, directory: Path) -> None:
    """Check that `directory` could be made: the nearest existing path above it may be written.

    Nothing is written. A few file systems refuse writes in spite of their modes. For those
    `atomic_directory` raises.

    Raises:
        UsageError: naming the path that is in the way.
    """
    above = _nearest_entry(directory.absolute().parent)
    if not above.is_dir():
        raise UsageError(
            f"{option} {directory}: {above} is a file, and nothing can be in it; give another"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {directory}: {above} may not be written; give another")


def _nearest_entry(path: Path) -> Path:
    """Return the path itself, or the nearest one above it, be it a link to nothing."""
    return next(candidate for candidate in (path, *path.parents) if os.path.lexists(candidate))


def check_replaceable(directory: Path, recognize: Recognize, *, what: str) -> Written:
    """Return what a command wrote into a directory, if that is all that is in it.

    `what` is what --overwrite replaces, as "an engine".

    Raises:
        UsageError: if there is something else.
    """
    try:
        found = recognize(directory)
    except (DFlashError, OSError) as error:
        raise UsageError(
            f"--overwrite replaces {what}, and nothing else is ever deleted: {error}"
        ) from error
    others = sorted(files_below(directory) - found.files)
    if others:
        raise UsageError(
            f"--overwrite replaces {what}, and {directory} also holds files that do not belong"
            f" to it: {', '.join(others[:8])}. Move them away"
        )
    return found


def check_space(directory: Path, needed: int, *, what: str = "the engine") -> None:
    """Check that the disk of `directory` has `needed` bytes free.

    Raises:
        BuildError: naming both sizes.
    """
    free = free_bytes(directory)
    if free < needed:
        raise BuildError(
            f"{what} needs about {human_bytes(needed)}, and the disk of"
            f" {existing_above(directory)} has {human_bytes(free)} free; give another --output-dir"
        )


@contextmanager
def atomic_directory(directory: Path, *, replaces: Recognize | None = None) -> Iterator[Path]:
    """Yield an empty directory that becomes `directory` if the block succeeds, else is deleted.

    A directory already there is replaced at the same moment, if `replaces` recognizes it now and
    then, and it holds nothing else. SIGTERM and SIGHUP count as failures of the block.

    Raises:
        UsageError: if no directory can be made there, or another command is writing it.
        BuildError: if something else is there in the end, or a file cannot be written.
    """
    directory = Path(os.path.realpath(directory))
    with termination_as_exit(), ExitStack() as stack:
        try:
            stack.enter_context(_parents(directory))
            stack.enter_context(file_lock(_lock_path(directory)))
            found = _found(directory, replaces)
            _name_leftovers(directory)
            folder = stack.enter_context(work_folder(_work_prefix(directory), directory.parent))
            new = folder / "new"
            new.mkdir()
        except LockedError:
            raise _busy(directory) from None
        except OSError as error:
            raise UsageError(
                f"{directory}: no directory can be made there ({error.strerror}); give another"
            ) from error
        try:
            yield new
            if found is None or replaces is None or not os.path.lexists(directory):
                _move(new, directory)
            else:
                _replace(new, directory, found, replaces)
        except BrokenPipeError:
            raise  # of what the command prints, not of a file
        except OSError as error:
            raise write_error(directory, error) from error


def write_error(path: Path, error: OSError) -> BuildError:
    """Return the error of an output that could not be written or moved."""
    reason = str(error)
    if isinstance(error, shutil.Error):
        reason = str(
            error.args[0][0][-1]
        )  # of copytree: (source, destination, why) of each file
    if error.errno in _FULL or os.strerror(errno.ENOSPC) in reason:
        reason = f"the disk of {existing_above(path)} is full"
    elif error.errno == errno.EFBIG:
        what = error.filename or "a file"
        reason = f"{what} is larger than this file system or `ulimit -f` allows"
    return BuildError(f"{path} was not written: {reason}")


def _found(directory: Path, replaces: Recognize | None) -> Written | None:
    """Return what is there to be replaced, None if there is nothing."""
    if not os.path.lexists(directory):
        return None
    if directory.is_dir() and not any(directory.iterdir()):
        return None
    if replaces is None or not directory.is_dir():
        raise UsageError(f"--output-dir {directory} is not empty; give another")
    return check_replaceable(directory, replaces, what="what the same command wrote")


def _move(new: Path, directory: Path) -> None:
    """Rename onto nothing or an empty directory; the system refuses anything else."""
    try:
        new.rename(directory)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        there = "a file"
        if directory.is_dir() and not directory.is_symlink():
            there = f"a directory with {_first(path.name for path in directory.iterdir())}"
        raise BuildError(
            f"{directory}: {there} has come to be there meanwhile, and stays. What was made for it"
            " is removed; give another --output-dir"
        ) from error


def _replace(new: Path, directory: Path, found: Written, replaces: Recognize) -> None:
    _check_unchanged(directory, directory, found, replaces)
    old = new.with_name("old")
    swap(new, directory, old)
    try:  # in the last moment something may have come into it
        _check_unchanged(old, directory, found, replaces)
    except BuildError:
        swap(old, directory, new)
        raise
    delete_files(old, found.files)
    if old.exists():
        kept = Path(tempfile.mkdtemp(prefix=f"{directory.name}.old-", dir=directory.parent))
        old.rename(kept)
        _LOG.warning("%s has files that no build wrote, from the replaced %s", kept, directory)


def _check_unchanged(place: Path, directory: Path, found: Written, replaces: Recognize) -> None:
    """Check that `place` still holds what `directory` held in the beginning, and no more."""
    try:
        is_same = replaces(place) == found
        others = files_below(place) - found.files
    except (DFlashError, OSError):
        is_same, others = False, set()
    if is_same and not others:
        return
    what = f"{_first(others)} has come into it" if others else "it is another one"
    raise BuildError(
        f"{directory} was to be replaced, and has changed meanwhile: {what}. It stays as it is, and"
        " what was made for it is removed"
    )


def _first(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


@contextmanager
def _parents(directory: Path) -> Iterator[None]:
    """Make the directories above, and remove those again if the block fails."""
    created = [parent for parent in directory.parents if not parent.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for parent in created:
            with suppress(OSError):  # somebody else has put something there
                parent.rmdir()
        raise


def _name_leftovers(directory: Path) -> None:
    """Remove what killed commands have left of this output, and name what may be left of one."""
    for folder in remove_leftovers(_work_prefix(directory), directory.parent):
        _LOG.warning("%s looks like the rest of a killed command; remove it if it is", folder)


def _work_prefix(directory: Path) -> str:
    return f".{_short_name(directory)}.building-"


def _lock_path(directory: Path) -> Path:
    return directory.with_name(f".{_short_name(directory)}.building.lock")


def _short_name(directory: Path) -> str:
    """Return the directory's name, cut where nothing could be added to it."""
    name = os.fsencode(directory.name)
    if len(name) <= _NAME_BYTES:
        return directory.name
    digest = hashlib.sha256(name).hexdigest()[:16]
    return f"{name[:_NAME_BYTES].decode(errors='ignore')}-{digest}"
