"""Private keys from files and from the agent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko  # type: ignore[import-untyped]
from cryptography.exceptions import UnsupportedAlgorithm

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError
from longarm_edge.tunnel.settings import SshSettings, why_not_private


class UnsupportedKeyError(PermanentTunnelError):
    """The key is of a kind that paramiko cannot use, a hardware key say. ssh itself may well."""


def load(file: Path, passphrase: str) -> paramiko.PKey:
    """Returns the private key in a file.

    Raises:
      UnsupportedKeyError: Only ssh itself can use it.
      PermanentTunnelError: There is none, or the passphrase is missing or wrong.
    """
    try:
        return _load(file, None)
    except TypeError:
        pass  # It has a passphrase
    except ValueError as error:
        raise PermanentTunnelError(
            Cause.KEY_FILE, f"Expected a private key in {file}, found something else."
        ) from error
    if not passphrase:
        raise PermanentTunnelError(
            Cause.PASSPHRASE,
            f"The key {file} has a passphrase. Set LONGARM_EDGE_SSH__PASSPHRASE_FILE, or add the key to the agent with "
            f"ssh-add {file}",
        )
    try:
        return _load(file, passphrase.encode())
    except ValueError as error:
        raise PermanentTunnelError(
            Cause.PASSPHRASE, f"The passphrase for the key {file} is wrong (LONGARM_EDGE_SSH__PASSPHRASE or its file)."
        ) from error


def check(settings: SshSettings) -> None:
    """Returns if ssh can use the configured key file as far as one can tell before asking it.

    Raises:
      PermanentTunnelError: There is no key, or the passphrase is missing or wrong.
    """
    if settings.key_file is None:
        return
    try:
        load(settings.key_file, settings.read_passphrase())
    except UnsupportedKeyError:
        return
    except PermanentTunnelError as error:
        if error.cause is not Cause.PASSPHRASE or settings.read_passphrase() or not _agent_has_keys(settings):
            raise


@contextmanager
def offered(settings: SshSettings, identity_files: list[Path]) -> Iterator[list[paramiko.PKey]]:
    """Gives the keys to offer: the configured file alone, else the agent's and those of identity_files.

    Raises:
      PermanentTunnelError: The configured key file cannot be used, and the agent has no key that could do instead.
    """
    agent = paramiko.Agent() if settings.agent else None
    try:
        from_agent = list(agent.get_keys()) if agent is not None else []
        yield _offered(settings, identity_files, from_agent)
    finally:
        if agent is not None:
            agent.close()


def _offered(settings: SshSettings, identity_files: list[Path], from_agent: list[paramiko.PKey]) -> list[paramiko.PKey]:
    passphrase = settings.read_passphrase()
    if settings.key_file is None:
        return from_agent + list(_usable(identity_files, passphrase))
    try:
        return [load(settings.key_file, passphrase)]
    except PermanentTunnelError as error:
        if error.cause is not Cause.PASSPHRASE or passphrase or not from_agent:
            raise
        return from_agent


def _agent_has_keys(settings: SshSettings) -> bool:
    if not settings.agent:
        return False
    agent = paramiko.Agent()
    try:
        return bool(agent.get_keys())
    finally:
        agent.close()


def _usable(files: list[Path], passphrase: str) -> Iterator[paramiko.PKey]:
    """Yields the keys of files that nobody named for this purpose: what cannot be used is passed over, as ssh does."""
    for file in files:
        if not why_not_private(file):
            try:
                yield load(file, passphrase)
            except PermanentTunnelError:
                continue


def _load(file: Path, passphrase: bytes | None) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(file, passphrase)
    except OSError as error:
        raise PermanentTunnelError(Cause.KEY_FILE, f"The key {file} cannot be read: {error.strerror}.") from error
    except (UnsupportedAlgorithm, paramiko.UnknownKeyType) as error:
        raise UnsupportedKeyError(
            Cause.KEY_FILE, f"paramiko cannot use the key {file}. Set LONGARM_EDGE_SSH__BACKEND=openssh, which may."
        ) from error
