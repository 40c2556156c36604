"""Writes dashboards/: python -m deploy.grafana.render."""

import importlib
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).resolve().parent / "dashboards"
NAMES = ("robot", "service")


def render() -> dict[str, str]:
    """Returns the text of every file by its name. The UID comes from the name, so that addresses never change."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    files = {}
    for name in NAMES:
        dashboard = importlib.import_module(f"deploy.grafana.{name}").dashboard().uid(f"longarm-{name}")
        files[f"{name}.json"] = encoder.encode(dashboard.build()) + "\n"
    return files


def write() -> None:
    """Empties the folder first: a dashboard that is no more must not stay."""
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
