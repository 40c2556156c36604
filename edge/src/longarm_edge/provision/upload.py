"""Sends files over SFTP so that a broken-off upload goes on where it stopped, and nothing wrong is taken for right."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import paramiko  # type: ignore[import-untyped]

from longarm_edge.provision.errors import ProvisionError
from longarm_edge.provision.far import Far, lost_connections_named
from longarm_edge.provision.scripts import FINISH_FILES, LIST_FILES, TRY_TO_WRITE
from longarm_wire.settings import ConfigurationError

# Bytes sent, of how many; those that were there already count as sent
OnProgress = Callable[[int, int], None]

PIECE_BYTES = 1 << 18
MAKE_ROOM = "Make room there, or name a directory on a bigger disk: --far.directory=…"
# Hashing gigabytes on the far side
LIST_TIMEOUT = 1800.0


@dataclass(frozen=True)
class File:
    """One file to send.

    Attributes:
      source: Where it is.
      name: Where it belongs, relative, with slashes.
      size: Its bytes.
      digest: Its SHA-256.
    """

    source: Path
    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Missing:
    """A file that is not whole on the far side: what lies there already, and is right, need not be sent."""

    file: File
    offset: int


def read_file(source: Path, name: str) -> File:
    """Returns a file to send."""
    with source.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return File(source, name, source.stat().st_size, digest)


def read_directory(directory: Path) -> list[File]:
    """Returns the files of a directory, links followed."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [read_file(path, path.relative_to(directory).as_posix()) for path in paths]


def read_policy(directory: Path) -> tuple[str, list[File]]:
    """Returns a name for the policy in a directory, which tells it from other ones by content, and its files.

    Raises:
      ConfigurationError: It is no policy directory.
    """
    if not (directory / "config.json").is_file():
        example = "checkpoints/last/pretrained_model of a training run"
        raise ConfigurationError(
            [f"Expected a policy directory with a config.json at {directory} ({example}), found none."]
        )
    files = read_directory(directory)
    if unfit := [file.name for file in files if re.search(r"[\n\r\\]", file.name)]:
        raise ConfigurationError([f"Expected plain file names in {directory}, found {unfit[0]!r}."])
    content = "".join(f"{file.digest} {file.name}\n" for file in files)
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", directory.resolve().name).strip(".-") or "policy"
    return f"{label}-{hashlib.sha256(content.encode()).hexdigest()[:12]}", files


def send(far: Far, files: Iterable[File], target: str, on_progress: OnProgress = lambda _sent, _total: None) -> int:
    """Makes target on the far side hold exactly these files, and returns the bytes that travelled.

    Files gather in `target.part`, which becomes target when all are whole. It stays when the connection breaks.

    Raises:
      ConnectionLostError: The connection broke; the next call goes on from there.
      ProvisionError: The far side does not take the files.
    """
    files = list(files)
    part = f"{target}.part"
    total = sum(file.size for file in files)
    travelled = 0
    # Each file is continued if its beginning is right, else sent anew: two rounds are enough
    for _ in range(2):
        there = list_files(far, part)
        missing = compare(files, there)
        stray = there.keys() - {file.name for file in files}
        if not missing and not stray:
            break
        sent = total - sum(entry.file.size - entry.offset for entry in missing)
        with lost_connections_named(), far.sftp() as sftp:
            path = part
            try:
                for path in (f"{part}/{name}" for name in stray):
                    sftp.remove(path)
                for entry in missing:
                    path = f"{part}/{entry.file.name}"
                    for count in _send_rest(sftp, entry, path):
                        sent += count
                        travelled += count
                        on_progress(sent, total)
            except OSError as error:
                if _is_gone(sftp, error):
                    raise
                if error.filename is not None:
                    raise ProvisionError(f"A file to send cannot be read here: {error}") from error
                # SFTP has no words for a full disk
                reason = why_not_writable(far, part) or error
                raise ProvisionError(f"The far side does not take {path}: {reason}") from error
    if names := ", ".join(entry.file.name for entry in compare(files, list_files(far, part))):
        reason = why_not_writable(far, part) or "something there changes them"
        raise ProvisionError(f"These files do not arrive as they were sent: {names}. {reason}")
    far.run(FINISH_FILES, {"target": target})
    return travelled


def why_not_writable(far: Far, directory: str) -> str:
    """Returns why the far side takes no more in a directory and how much is left there; empty if it takes a megabyte.

    Raises:
      ConnectionLostError: The connection broke.
    """
    found = dict(line.split("=", 1) for line in far.run(TRY_TO_WRITE, {"directory": directory}) if "=" in line)
    if not found.get("reason"):
        return ""
    left = f"{found.get('free_kib') or '?'} KiB and {found.get('free_files') or '?'} files are left"
    return f"{found['reason']} ({left}). {MAKE_ROOM}"


def list_files(far: Far, target: str) -> dict[str, tuple[int, str]]:
    """Returns size and SHA-256 of each file below target on the far side, by name."""
    found = {}
    for line in far.run(LIST_FILES, {"target": target}, timeout=LIST_TIMEOUT):
        # A login shell may have things to say of its own
        if match := re.fullmatch(r"(\d+) ([0-9a-f]{64}) (.+)", line):
            found[match[3]] = (int(match[1]), match[2])
    return found


def compare(files: Iterable[File], there: Mapping[str, tuple[int, str]]) -> list[Missing]:
    """Returns what is still to be sent."""
    missing = []
    for file in files:
        size, digest = there.get(file.name, (-1, ""))
        if (size, digest) == (file.size, file.digest):
            continue
        is_beginning = 0 <= size < file.size and _digest_of_beginning(file.source, size) == digest
        missing.append(Missing(file, size if is_beginning else 0))
    return missing


def _send_rest(sftp: paramiko.SFTPClient, entry: Missing, path: str) -> Iterable[int]:
    """Sends what is missing of a file and yields the bytes of each piece."""
    _make_directories(sftp, PurePosixPath(path).parent)
    with sftp.open(path, "ab" if entry.offset else "wb") as there, entry.file.source.open("rb") as here:
        # Without waiting for each piece's receipt; errors come up at the end
        there.set_pipelined(True)
        here.seek(entry.offset)
        while piece := here.read(PIECE_BYTES):
            there.write(piece)
            yield len(piece)


def _is_gone(sftp: paramiko.SFTPClient, error: OSError) -> bool:
    """Tells a connection that broke from a far side that says no: an SFTP server's «Failure» has no number either."""
    channel = sftp.get_channel()
    return isinstance(error, TimeoutError) or channel.closed or not channel.get_transport().is_active()


def _make_directories(sftp: paramiko.SFTPClient, path: PurePosixPath) -> None:
    try:
        sftp.stat(str(path))
    except FileNotFoundError:
        _make_directories(sftp, path.parent)
        sftp.mkdir(str(path), 0o700)


def _digest_of_beginning(path: Path, size: int) -> str:
    total = hashlib.sha256()
    with path.open("rb") as content:
        while size and (piece := content.read(min(size, PIECE_BYTES))):
            total.update(piece)
            size -= len(piece)
    return total.hexdigest()
