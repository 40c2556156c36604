"""Writes recording.yml and alerts.yml: python -m deploy.prometheus.render."""

from pathlib import Path

import yaml
from deploy.prometheus import rules

FOLDER = Path(__file__).resolve().parent
HEAD = "# Rendered from rules.py and thresholds.py. Change those, then run: python -m deploy.prometheus.render\n"


def render() -> dict[str, str]:
    """Returns the text of every file by its name."""
    files = {"recording.yml": rules.recording_file(), "alerts.yml": rules.alerts_file()}
    # One line per query, however long: a wrapped one is hard to paste and gives noisy diffs
    return {name: HEAD + yaml.safe_dump(rule, sort_keys=False, width=1000) for name, rule in files.items()}


if __name__ == "__main__":
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
