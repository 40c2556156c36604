"""Command-line flags of a settings class: one per setting, its value as text, as the environment would give it.

pydantic-settings has a command line of its own. It refuses `--flag=true`, which LeRobot's users write, offers the names
of enum members in place of their values, and reports bad JSON without the setting's name.
"""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from longarm_wire._declarations import (
    choices,
    default,
    is_container,
    is_mapping,
    is_secret,
    is_switch,
    kinds,
    leaves,
    written,
)


def parse(settings: type[BaseModel], arguments: Sequence[str], program: str) -> dict[str, Any]:
    """Returns the values that arguments give, as text in nested dicts; only what is there.

    Raises:
      SystemExit: 2 on an unknown flag, with the nearest name on stderr, and on a secret; 0 after --help.
    """
    declared = dict(leaves(settings))
    secrets = {path: _variable(settings, path, info) for path, info in declared.items() if is_secret(info)}
    epilog = "A flag of true|false may also be written --FLAG or --no-FLAG."
    if secrets:
        epilog += f" Secrets are no flags but variables: {', '.join(secrets.values())}."
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s [--FLAG VALUE ...]",
        description=settings.__doc__,
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for path, info in declared.items():
        if path in secrets:
            parser.add_argument(f"--{_flag(path)}", dest=path, nargs="?", help=argparse.SUPPRESS)
        else:
            _add(parser, settings, path, info)
    found, unknown = parser.parse_known_args(arguments)
    for path in filter(secrets.get, vars(found)):
        file = f"{path}_file"
        elsewhere = f", or name a file with --{_flag(file)}" if file in declared else ""
        parser.error(
            f"--{_flag(path)} is a secret, and every user of this machine can read a command line. Set the variable "
            f"{secrets[path]}{elsewhere}."
        )
    if unknown:
        parser.error(_unknown(unknown[0], parser))
    values: dict[str, Any] = {}
    for path, text in vars(found).items():
        *groups, name = path.split("__")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = text
    return values


def _variable(settings: type[BaseModel], path: str, info: FieldInfo) -> str:
    return f"{settings.model_config.get('env_prefix', '')}{path.upper()}{'__NAME' if is_mapping(info) else ''}"


def _add(parser: argparse.ArgumentParser, settings: type[BaseModel], path: str, info: FieldInfo) -> None:
    flag = _flag(path)
    value = default(settings, path)
    shown = "required" if value is PydanticUndefined else f"default: {written(value)}" if written(value) else ""
    words = " ".join([*(info.description or "").split(), f"({shown})" if shown else ""])
    metavar = "true|false" if is_switch(info) else _metavar(info)
    # A switch may stand alone
    more: dict[str, Any] = {"nargs": "?", "const": "true"} if is_switch(info) else {}
    parser.add_argument(f"--{flag}", dest=path, metavar=metavar, help=words.replace("%", "%%"), **more)
    if is_switch(info):
        parser.add_argument(f"--no-{flag}", dest=path, action="store_const", const="false", help=argparse.SUPPRESS)


def _flag(path: str) -> str:
    return path.replace("__", ".")


def _metavar(info: FieldInfo) -> str:
    if closed := choices(info):
        return "{" + ",".join(closed) + "}"
    if is_container(info):
        return "JSON"
    names = {int: "N", float: "X", Path: "PATH"}
    return "|".join(dict.fromkeys(names.get(kind, "TEXT") for kind in kinds(info)))


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    name = argument.split("=", 1)[0]
    if not name.startswith("-"):
        return f"unexpected argument {argument!r}"
    nearest = difflib.get_close_matches(name, parser._option_string_actions, n=1)
    return f"unknown flag {name}. " + (f"Did you mean {nearest[0]}?" if nearest else "See --help.")
