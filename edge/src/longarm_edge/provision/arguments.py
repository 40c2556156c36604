"""The far side as people name it: `user@host -p 2222 -i key`, as for ssh, turned into flags of the settings."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from longarm_wire.settings import ConfigurationError

# Short flags with a value, and the setting that each stands for
_SHORT = {"-p": "--ssh.port", "-i": "--ssh.key_file", "-l": "--ssh.user", "--policy": "--far.policy"}
# What may follow a flag that is on or off
_SWITCHED = ("true", "false", "yes", "no", "on", "off", "1", "0")


@dataclass(frozen=True)
class Arguments:
    """A command line, understood.

    Attributes:
      flags: For EdgeSettings and the robot.
      follow: -f or --follow was there.
      line_count: After -n, else 200.
    """

    flags: tuple[str, ...]
    follow: bool = False
    line_count: int = 200


def understand(arguments: Sequence[str], switches: Collection[str] = ()) -> Arguments:
    """Returns what arguments say. A pasted `ssh -p 2222 root@host` is understood as well.

    Args:
      arguments: The words after the command.
      switches: Flags that may stand alone, see ProcessSettings.switches. The word after any other is its value.

    Raises:
      ConfigurationError: A value is missing, or two hosts are named.
    """
    rest = list(arguments)
    if rest[:1] == ["ssh"]:
        rest.pop(0)
    flags: list[str] = []
    target = ""
    follow, line_count = False, 200
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-f", "--follow"):
            follow = True
        elif name in (*_SHORT, "-n") or word[:2] in _SHORT:
            if word[:2] in _SHORT and not word.startswith("--") and len(word) > 2:
                name, value = word[:2], word[2:].removeprefix("=")  # -p2222
            elif not equals:
                value = _value(name, rest)
            if name == "-n":
                if not value.isdigit():
                    raise ConfigurationError([f"Expected a number of lines after -n, found {value!r}."])
                line_count = int(value)
            else:
                flags.append(f"{_SHORT[name]}={value}")
        elif word.startswith("-"):
            flags.append(word)
            if not equals and rest and _is_value(rest[0], alone=word in switches or word in ("-h", "--help")):
                flags.append(rest.pop(0))
        elif target:
            raise ConfigurationError([f"Expected one far machine, found {target} and {word}."])
        else:
            target = word
    return Arguments((*_target_flags(target), *flags), follow, line_count)


def _is_value(word: str, *, alone: bool) -> bool:
    """Returns whether a word belongs to the flag before it, which may stand alone or not."""
    return word.lower() in _SWITCHED if alone else not word.startswith("-")


def _value(name: str, rest: list[str]) -> str:
    if not rest:
        raise ConfigurationError([f"Expected a value after {name}."])
    return rest.pop(0)


def _target_flags(target: str) -> list[str]:
    if not target:
        return []
    address = target.removeprefix("ssh://").rstrip("/")
    user, at, host = address.rpartition("@")
    flags = [f"--ssh.user={user}"] if at else []
    if target.startswith("ssh://") and ":" in host:
        host, _, port = host.rpartition(":")
        flags.append(f"--ssh.port={port}")
    return [*flags, f"--ssh.host={host}"]
