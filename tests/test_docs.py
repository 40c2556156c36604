"""Documents that are generated are what they would be generated to, and links lead somewhere."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_settings_page_is_up_to_date() -> None:
    path = ROOT / "scripts" / "settings_reference.py"
    spec = importlib.util.spec_from_file_location("settings_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run .venv/bin/python scripts/settings_reference.py"


def test_every_flag_of_lerobots_client_and_server_has_its_place() -> None:
    from lerobot.async_inference.configs import PolicyServerConfig, RobotClientConfig

    page = (ROOT / "docs" / "from-lerobot.md").read_text()
    names = {*PolicyServerConfig.__dataclass_fields__, *RobotClientConfig.__dataclass_fields__} - {"robot"}
    missing = [name for name in names if f"`--{name}`" not in page]
    assert not missing


def anchors(page: Path) -> set[str]:
    """Returns what a link may name after #: headings in small letters, words joined by dashes, other signs left out."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere() -> None:
    pages = [
        path for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "bench/**/*.md") for path in ROOT.glob(pattern)
    ]
    assert len(pages) > 20
    broken = []
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            file = page.parent / target if target else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert broken == []
