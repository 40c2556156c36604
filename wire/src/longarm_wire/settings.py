"""Settings from flags, environment, a .env file and defaults, in this order, declared once in one class a process."""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from dotenv.parser import parse_stream
from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from longarm_wire._declarations import (
    MASK,
    decoded,
    default,
    is_mapping,
    is_secret,
    is_switch,
    leaves,
    resolve,
    written,
)
from longarm_wire._flags import parse

# Prefixes of this project's processes. A variable LONGARM_* with another prefix is a misspelling
KNOWN_PREFIXES = ("LONGARM_EDGE_", "LONGARM_SERVICE_", "LONGARM_SSHD_")

# Types of pydantic's errors about text where a container should be
_NOT_DECODED = ("dict_type", "list_type", "tuple_type", "set_type")


def environment_for_others() -> dict[str, str]:
    """Returns this process's environment without settings, secrets among them: for any program that it starts."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("LONGARM_")}


class ConfigurationError(Exception):
    """The process can never start as configured.

    Attributes:
      problems: One line each: which setting, what was expected, what was found.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ProcessSettings(BaseSettings):
    """Base of a process's settings. A subclass sets env_prefix in its model_config and declares fields."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",  # unknown variables are reported by load, with the nearest name
        env_nested_delimiter="__",
        env_file=".env",
        enable_decoding=False,  # text is decoded below, alike from every source
        nested_model_default_partial_update=True,  # one value of a group leaves the group's other defaults alone
        use_attribute_docstrings=True,
    )

    @classmethod
    def load(cls, arguments: Sequence[str], *, program: str, **overrides: Any) -> Self:
        """Returns the settings of this process.

        Args:
          arguments: Command-line flags, as --name=value or --name value.
          program: Name of the command, for --help.
          **overrides: Values that win over everything else.

        Raises:
          ConfigurationError: A value is invalid, a LONGARM_* variable is unknown, or .env cannot be read.
          SystemExit: 2 on an unknown flag and on a secret as a flag, 0 after --help.
        """
        flags = parse(cls, arguments, program)
        try:
            unknown = cls._unknown_variables()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError([f".env cannot be read as UTF-8 text: {error}"]) from None
        if unknown:
            raise ConfigurationError(unknown)
        try:
            return cls(**{**flags, **overrides})
        except ValidationError as error:
            raise ConfigurationError(cls._explain(error)) from None
        except SettingsError as error:
            cause = f": {error.__cause__}" if error.__cause__ else ""
            raise ConfigurationError([f"{error}{cause}"]) from None

    @model_validator(mode="before")
    @classmethod
    def _decode(cls, values: Any) -> Any:
        for path, info in leaves(cls):
            *groups, name = path.split("__")
            target = values
            for group in groups:
                target = target.get(group) if isinstance(target, dict) else None
            if isinstance(target, dict) and name in target:
                target[name] = decoded(info, target[name])
        return values

    @classmethod
    def variables(cls) -> dict[str, FieldInfo]:
        """Returns every environment variable of the class with its declaration."""
        prefix = cls.model_config.get("env_prefix", "")
        return {prefix + name.upper(): info for name, info in leaves(cls)}

    @classmethod
    def switches(cls) -> frozenset[str]:
        """Returns the flags that may stand alone. All others take a value, in the same word or the next."""
        names = [name.replace("__", ".") for name, info in leaves(cls) if is_switch(info)]
        return frozenset(f"--{prefix}{name}" for name in names for prefix in ("", "no-"))

    def effective(self) -> dict[str, str]:
        """Returns every variable with its effective value as it would be written, secrets masked."""
        prefix = self.model_config.get("env_prefix", "")
        return {prefix + name.upper(): written(resolve(self, name)) for name, _ in leaves(type(self))}

    @classmethod
    def _unknown_variables(cls) -> list[str]:
        prefix = cls.model_config.get("env_prefix", "")
        known = cls.variables()
        file = cls.model_config.get("env_file")
        from_file, problems = _read(Path(str(file))) if file and Path(str(file)).is_file() else ([], [])
        given = {name.upper(): name for name in sorted({*os.environ, *from_file})}
        for upper, name in given.items():
            foreign = upper.startswith(KNOWN_PREFIXES) and not upper.startswith(prefix)
            if not upper.startswith("LONGARM_") or foreign or upper in known:
                continue
            # A dict setting takes its entries one by one as NAME__KEY
            whole = next((k for k, info in known.items() if is_mapping(info) and upper.startswith(f"{k}__")), None)
            if whole is None:
                problems.append(f"{name} is not a setting. {_hint(upper, prefix, known)}")
            elif whole in given:
                problems.append(f"{name} is an entry of {given[whole]}, which is set as well. Keep one of the two.")
        return problems

    @classmethod
    def _explain(cls, error: ValidationError) -> list[str]:
        """Returns one line per setting that is wrong, and one per check of several settings."""
        prefix = cls.model_config.get("env_prefix", "")
        known = dict(leaves(cls))
        lines: dict[str, list[str]] = {}
        for problem in error.errors(include_url=False, include_context=False):
            parts = [str(part) for part in problem["loc"]]
            # What follows the setting in the location is a key of it, or a member of a union
            paths = ["__".join(parts[:count]) for count in range(len(parts), 0, -1)]
            path = next((path for path in paths if path in known), None)
            message = " ".join(problem["msg"].removeprefix("Value error, ").split())
            if path is None:
                # The input of a group may hold a secret
                lines.setdefault(".".join(parts), []).append(message)
                continue
            flag = "" if is_secret(known[path]) else f" (--{path.replace('__', '.')})"
            where = f"{prefix}{path.upper()}{flag}"
            if problem["type"] in _NOT_DECODED and isinstance(problem["input"], str):
                message += " written as JSON"
            # A check of our own may have said what it found, in better words than the value
            if problem["type"] != "missing" and ", found " not in message:
                message += f", found {MASK if is_secret(known[path]) else _printable(problem['input'])}"
            lines.setdefault(where, []).append(message)
        return [f"{where}: {'; '.join(texts)}" if where else "; ".join(texts) for where, texts in lines.items()]


def _read(file: Path) -> tuple[list[str], list[str]]:
    """Returns the names in file, and what is wrong with lines about settings: unread, a bound would be off in silence.

    A line is told by its number alone: it may hold a secret.
    """
    with file.open(encoding="utf-8") as lines:
        bindings = list(parse_stream(lines))
    names = [binding.key for binding in bindings if binding.key is not None]
    return names, [
        f"{file}, line {binding.original.line}: expected NAME=value with quotes that end"
        for binding in bindings
        if binding.error and "LONGARM_" in binding.original.string.upper()
    ]


def _hint(name: str, prefix: str, known: Iterable[str]) -> str:
    members = [k for k in known if k.startswith(f"{name}__")]
    if members:
        return f"It is a group: set {', '.join(members)}."
    # The prefix is left out, or any two names would look alike. It may be misspelt itself, or forgotten
    tails = {k.removeprefix(prefix): k for k in known}
    rest = name.removeprefix("LONGARM_")
    for tail in (name.removeprefix(prefix), rest, rest.partition("_")[2]):
        if nearest := difflib.get_close_matches(tail, tails, n=1):
            return f"Did you mean {tails[nearest[0]]}?"
    return "See docs/settings.md."


def reference(settings: type[ProcessSettings], program: str) -> str:
    """Returns the Markdown table of every setting, generated from the declarations."""
    rows = ["| variable | flag | default | meaning |", "| --- | --- | --- | --- |"]
    prefix = settings.model_config.get("env_prefix", "")
    for name, info in leaves(settings):
        value = default(settings, name)
        text = written(value).replace("|", "\\|")
        shown = "(required)" if value is PydanticUndefined else f"`{text}`" if text else ""
        meaning = " ".join((info.description or "").split()).replace("|", "\\|")
        flag = "" if is_secret(info) else f"`--{name.replace('__', '.')}`"
        rows.append(f"| `{prefix}{name.upper()}` | {flag} | {shown} | {meaning} |")
    return f"## `{program}`\n\n" + "\n".join(rows) + "\n"


def _printable(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["ConfigurationError", "ProcessSettings", "environment_for_others", "reference"]
