"""What a check found, and how a list of findings is shown."""

import json
import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from longarm_wire import exit_codes


class Verdict(StrEnum):
    """How bad it is; in rising order."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


STYLES = {Verdict.SKIPPED: "dim", Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how it is, what was found, and what to do where it is not well."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


# A part of the examination: yields its findings and returns what the next part needs
type Steps[T] = Generator[Finding, None, T]


def worst(findings: Sequence[Finding]) -> Verdict:
    """Returns the worst verdict, OK where there is none."""
    return max((f.verdict for f in findings), key=list(Verdict).index, default=Verdict.OK)


def exit_code(findings: Sequence[Finding]) -> int:
    """Returns what the worst verdict means: 0 all is well, 4 there are warnings, 1 something failed."""
    codes = {Verdict.FAILED: exit_codes.FAILED, Verdict.WARNING: exit_codes.WARNINGS}
    return codes.get(worst(findings), exit_codes.DONE)


def show(findings: Sequence[Finding], console: Console) -> None:
    """Prints findings as a table, word for word: what robots and machines say may look like Rich's markup."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        words = Text(finding.found)
        if finding.fix:
            words.append(f"\n→ {finding.fix}", "bold")
        table.add_row(Text(finding.verdict.value, STYLES[finding.verdict]), Text(finding.check), words)
    console.print(table)


def as_json(findings: Sequence[Finding], measured: dict[str, Any]) -> str:
    """Returns findings and what was measured as one JSON object for scripts. What has no bound is null."""
    document = {
        "verdict": worst(findings).value,
        "findings": [asdict(f) for f in findings],
        **measured,
    }
    return json.dumps(_bounded(document), indent=2, allow_nan=False)


def _bounded(value: Any) -> Any:
    """Returns value without infinities, for which JSON has no word."""
    match value:
        case dict():
            return {key: _bounded(part) for key, part in value.items()}
        case list() | tuple():
            return [_bounded(part) for part in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
