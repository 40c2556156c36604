"""Where results go."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def publish(name: str, text: str) -> None:
    """Prints a page of results, and writes it to bench/results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
