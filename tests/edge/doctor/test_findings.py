"""How findings are shown: what robots and machines say is printed word for word."""

import io
import json

from rich.console import Console

from longarm_edge.doctor.findings import Finding, Verdict, as_json, show

FOREIGN = [
    Finding("host key", Verdict.FAILED, 'changed: ssh-keygen -R "[gpu.example.com]:20567"', 'ssh-keygen -R "[h]:1"'),
    Finding("serial port", Verdict.FAILED, "no port [/dev/ttyACM0]", "plug in [/dev/ttyACM0] [bold"),
    Finding("camera [front]", Verdict.WARNING, "OpenCVCamera[/] ends\\", "[red]more light\\"),
    Finding("robot", Verdict.OK, "a :warning: robot"),
]


def test_foreign_words_are_no_markup() -> None:
    console = Console(file=io.StringIO(), width=200)
    show(FOREIGN, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for finding in FOREIGN:
        for words in (finding.check, finding.verdict.value, finding.found, finding.fix):
            assert words in shown


def test_a_terminal_gets_colours() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, record=True)
    show(FOREIGN, console)
    assert "\x1b[1;31mfailed" in console.export_text(styles=True)


def test_a_link_too_fast_to_measure_is_null_in_json() -> None:
    """Infinity is what Python writes and no other program reads."""

    def refuse(word: str) -> float:
        raise ValueError(word)

    text = as_json([], {"costs": {"uplink": float("inf"), "round_trip": 0.1}})
    assert json.loads(text, parse_constant=refuse)["costs"] == {"uplink": None, "round_trip": 0.1}
