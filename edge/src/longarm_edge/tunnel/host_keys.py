"""Decides whether a host is the one it should be, by its key: one policy for both backends, never a silent yes."""

import base64
import binascii
import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from longarm_edge.tunnel.errors import Cause, PermanentTunnelError
from longarm_edge.tunnel.events import HostKeyQuestion
from longarm_edge.tunnel.settings import HostKeyPolicy, SshSettings

GLOBAL_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
SSH_PORT = 22


@dataclass(frozen=True)
class HostKey:
    """A public key: its type, such as ssh-ed25519, and its body in base64."""

    key_type: str
    body: str

    @property
    def fingerprint(self) -> str:
        """The key's SHA-256 as ssh-keygen writes it."""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass
class HostKeys:
    """What is known about host keys, and what to do about the others.

    Attributes:
      settings: Files, policy and pin.
      ask: Asks a person; None where nobody is there.
    """

    settings: SshSettings
    ask: Callable[[HostKeyQuestion], bool] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _refused: set[tuple[str, HostKey]] = field(default_factory=set)

    def known(self, name: str) -> list[HostKey]:
        """Returns the keys known for a host, named as in known_hosts (see host_name). Revoked ones are left out."""
        return [key for marker, key in self._entries(name) if not marker]

    def check(self, name: str, key: HostKey, *, pinned: bool) -> None:
        """Returns if the host may be trusted.

        Args:
          name: The host as in known_hosts.
          key: What it presents.
          pinned: Whether settings.host_key_fingerprint speaks of this host; it does not of jump hosts.

        Raises:
          PermanentTunnelError: It may not, with what a person can do about it.
        """
        pin = self.settings.host_key_fingerprint
        if pinned and pin:
            if not hmac.compare_digest(pin, key.fingerprint):
                raise PermanentTunnelError(Cause.HOST_KEY_CHANGED, _not_pinned(name, key, pin))
            return
        # One question at a time, and the answer to the first counts for the second
        with self._lock:
            entries = list(self._entries(name))
            if ("@revoked", key) in entries:
                raise PermanentTunnelError(
                    Cause.HOST_KEY_CHANGED,
                    f"The key of {name} ({key.fingerprint}) is marked as revoked in known_hosts.",
                )
            known = [entry for marker, entry in entries if not marker]
            if key in known:
                return
            if known:
                # Also when only the type differs: who asks for the types known first gets them from the real host
                raise PermanentTunnelError(
                    Cause.HOST_KEY_CHANGED, _changed(name, key, known, self.settings.known_hosts_file)
                )
            if self.settings.host_key_policy is not HostKeyPolicy.ACCEPT_NEW:
                self._ask(name, key)
            remember(name, key, self.settings.known_hosts_file)

    def _ask(self, name: str, key: HostKey) -> None:
        file = self.settings.known_hosts_file
        if self.ask is None:
            raise PermanentTunnelError(Cause.HOST_KEY_UNKNOWN, _unknown(name, key, file))
        question = HostKeyQuestion(
            host=name, key_type=key.key_type, fingerprint=key.fingerprint, known_hosts_file=str(file)
        )
        # A connection may end and be made anew while a person thinks; nobody is asked twice
        if (name, key) in self._refused or not self.ask(question):
            self._refused.add((name, key))
            raise PermanentTunnelError(
                Cause.HOST_KEY_UNKNOWN, f"The key of {name} ({key.fingerprint}) was not accepted. Nothing was sent."
            )

    def _entries(self, name: str) -> Iterator[tuple[str, HostKey]]:
        for file in (self.settings.known_hosts_file, GLOBAL_KNOWN_HOSTS):
            try:
                lines = file.read_text(errors="replace").splitlines()
            except OSError:
                continue
            for line in lines:
                words = line.split()
                marker = words.pop(0) if words and words[0].startswith("@") else ""
                # Certificate authorities are for ssh itself: neither backend is shown certificates
                if len(words) < 3 or marker not in ("", "@revoked") or not _is_key(words[2]):
                    continue  # a line that a full disk cut off says nothing, as for ssh
                if _matches(words[0], name):
                    yield marker, HostKey(words[1], words[2])


def host_name(host: str, port: int) -> str:
    """Returns a host as known_hosts names it."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def remember(name: str, key: HostKey, file: Path) -> None:
    """Appends a key to a known_hosts file, which need not exist.

    Raises:
      PermanentTunnelError: The file cannot be written.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = file.read_bytes() if file.exists() else b""
        new_line = "" if not before or before.endswith(b"\n") else "\n"
        with open(file, "a", opener=_private) as known_hosts:  # Path.open takes no opener
            known_hosts.write(f"{new_line}{name} {key.key_type} {key.body}\n")
    except OSError as error:
        raise PermanentTunnelError(
            Cause.HOST_KEY_UNKNOWN,
            f"The key of {name} cannot be remembered in {file}: {error.strerror}. Make the file writable, or set "
            f"LONGARM_EDGE_SSH__HOST_KEY_FINGERPRINT={key.fingerprint}",
        ) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_key(body: str) -> bool:
    try:
        return bool(base64.b64decode(body, validate=True))
    except ValueError:
        return False


def _matches(patterns: str, name: str) -> bool:
    """Returns whether the first word of a line in known_hosts speaks of a host."""
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in patterns.split("|")[2:4])
        except (ValueError, binascii.Error):
            return False
        return hmac.compare_digest(hmac.new(salt, name.lower().encode(), hashlib.sha1).digest(), digest)
    found = False
    for pattern in patterns.lower().split(","):
        # In a pattern [ and ] are part of [host]:port, not a set of characters
        plain = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatchcase(name.lower(), plain):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _unknown(name: str, key: HostKey, file: Path) -> str:
    return (
        f"The host {name} is not known yet: {file} has no key for it, and it presents {key.key_type} "
        f"{key.fingerprint}. Nothing was sent. Run once in a terminal to be asked; or, if that is the fingerprint your "
        f"provider shows, set LONGARM_EDGE_SSH__HOST_KEY_FINGERPRINT={key.fingerprint}; or trust at first sight with "
        "LONGARM_EDGE_SSH__HOST_KEY_POLICY=accept-new."
    )


def _not_pinned(name: str, key: HostKey, pin: str) -> str:
    return (
        f"Expected {name} to have the host key {pin} (LONGARM_EDGE_SSH__HOST_KEY_FINGERPRINT) but found "
        f"{key.key_type} {key.fingerprint}. Nothing was sent. A rented machine comes back with new keys when it is "
        "made anew: if yours was, set the fingerprint that the provider shows. If not, somebody may be in between."
    )


def _changed(name: str, key: HostKey, known: list[HostKey], file: Path) -> str:
    expected = ", ".join(f"{entry.key_type} {entry.fingerprint}" for entry in known)
    return (
        f"The host {name} has another key than before: expected {expected} but found {key.key_type} {key.fingerprint}. "
        "Nothing was sent. A rented machine has new keys when it was made anew, and its address and port may have "
        f'belonged to another one before. If that is so here, forget the old key with: ssh-keygen -R "{name}" -f '
        f'"{file}" and start again. If not, somebody may be in between: ask your provider for the fingerprint.'
    )
