"""The image's own sshd: what can be set on it, and how it is started. It leads to the service's two ports only."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from longarm_service.settings import Port
from longarm_wire.settings import ConfigurationError, ProcessSettings

PROGRAM = "/usr/sbin/sshd"
CONFIG = Path(__file__).with_name("sshd_config")
# A volume: a container that is made anew keeps its identity
DIRECTORY = Path("~/ssh")


class SshdSettings(ProcessSettings):
    """An sshd in the server image, through which robots reach the service. Off unless there are keys."""

    model_config = SettingsConfigDict(env_prefix="LONGARM_SSHD_")

    authorized_keys: str = ""
    """Public keys of the robots that may come in, one a line, as in their .pub files. Empty, and no file either: no
    sshd."""
    authorized_keys_file: Path | None = None
    """File with such lines, in place of authorized_keys. Read at the start."""
    port: Port = 2222
    """Port on which it listens, on all addresses of the container."""

    @property
    def wanted(self) -> bool:
        """Whether it is to run."""
        return bool(self.authorized_keys.strip() or self.authorized_keys_file)


def prepare(settings: SshdSettings, ports: Sequence[int], directory: Path = DIRECTORY) -> tuple[list[str], str]:
    """Makes what sshd needs: the list of keys at every start, the host key once.

    Args:
      settings: The sshd's.
      ports: Of this container's loopback, to which it may lead.
      directory: Where its files are kept.

    Returns:
      sshd's command line, and the host key's fingerprint.

    Raises:
      ConfigurationError: It can never run so.
    """
    if 0 in ports or settings.port == 0:
        raise ConfigurationError(["Expected fixed ports for the sshd to lead to, found 0 among them."])
    keys = _keys(settings)
    directory = directory.expanduser()
    host_key, authorized_keys = directory / "ssh_host_ed25519_key", directory / "authorized_keys"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        authorized_keys.unlink(missing_ok=True)
        authorized_keys.write_text("\n".join([*keys, ""]))
        authorized_keys.chmod(0o600)
    except OSError as error:
        problem = (
            f"Expected to write the sshd's keys into {directory}, found: {error.strerror}. Mount a volume on "
            f"{directory.parent} that belongs to user {os.getuid()}: --volume longarm-server:{directory.parent}"
        )
        raise ConfigurationError([problem]) from None
    if not host_key.exists():
        _keygen("-q", "-t", "ed25519", "-N", "", "-C", "longarm-server", "-f", str(host_key))
    options = {
        "Port": settings.port,
        "HostKey": host_key,
        "AuthorizedKeysFile": authorized_keys,
        "PermitOpen": " ".join(f"127.0.0.1:{port}" for port in ports),
    }
    command = [PROGRAM, "-D", "-e", "-f", str(CONFIG), *(f"-o{name}={value}" for name, value in options.items())]
    return command, _keygen("-l", "-f", str(host_key)).split()[1]


def _keys(settings: SshdSettings) -> list[str]:
    where = "LONGARM_SSHD_AUTHORIZED_KEYS"
    text = settings.authorized_keys
    if settings.authorized_keys_file is not None:
        if text.strip():
            raise ConfigurationError([f"Expected {where} or {where}_FILE, found both."])
        where = f"{where}_FILE ({settings.authorized_keys_file})"
        try:
            text = settings.authorized_keys_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError([f"{where}: Expected a file that this user can read: {error}"]) from None
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    for number, key in enumerate(keys, 1):
        # Nothing of it is shown: it may be the private key
        if not _keygen("-l", "-f", "-", text=key, check=False):
            raise ConfigurationError(
                [f"{where}: Expected a public key, as in the .pub file that ssh-keygen made, in line {number}."]
            )
    if not keys:
        raise ConfigurationError([f"{where}: Expected at least one public key, found none."])
    return keys


def _keygen(*arguments: str, text: str = "", check: bool = True) -> str:
    """Returns what ssh-keygen prints, nothing if it fails."""
    done = subprocess.run(["ssh-keygen", *arguments], input=text, capture_output=True, text=True, check=check)  # noqa: S603, S607
    return done.stdout if done.returncode == 0 else ""
