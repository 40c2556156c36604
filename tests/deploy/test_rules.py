"""Rules and alerts: valid, rendered from their source, about metrics that exist, tested by promtool, in the runbook."""

import ast
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from deploy.prometheus import rules, thresholds
from deploy.prometheus.render import FOLDER, render

from longarm_edge.metrics import LATENESS_BUCKETS
from tests.deploy import exported

ROOT = FOLDER.parent.parent
UNIT_TESTS = Path(__file__).with_name("alerts_test.yml")
RUNBOOK = ROOT / rules.RUNBOOK

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")


def promtool(*arguments: str) -> None:
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", "--lint-fatal", str(FOLDER / "prometheus.yml"))
    promtool("check", "rules", "--lint-fatal", *(str(FOLDER / name) for name in render()))


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(UNIT_TESTS))


def test_every_alert_has_a_test_of_firing_and_of_silence() -> None:
    cases = [case for group in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in group["alert_rule_test"]]
    names = {alert.name for alert in rules.ALERTS}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


@pytest.mark.parametrize("name", render())
def test_the_files_are_what_they_would_be_rendered_to(name: str) -> None:
    assert (FOLDER / name).read_text() == render()[name], "run python -m deploy.prometheus.render"


@pytest.mark.parametrize("rule", [*rules.RECORDINGS, *rules.ALERTS], ids=lambda rule: rule.name)
def test_rules_ask_for_metrics_and_labels_that_exist(rule: rules.Recording | rules.Alert) -> None:
    assert not exported.unknown(rule.expr, exported.samples(), {recording.name for recording in rules.RECORDINGS})


def test_a_query_for_what_nobody_exports_is_noticed() -> None:
    """Guards the guard above."""
    query = 'rate(longarm_edge_nothing_total[1m]) + longarm_edge_link_state{state=~"failed|asleep"} + a:longarm_x:sum'
    assert sorted(exported.unknown(query, exported.samples(), set())) == [
        "a:longarm_x:sum",
        'longarm_edge_link_state{state="asleep"}',
        "longarm_edge_nothing_total",
    ]


def test_recorded_names_say_level_metric_and_operations() -> None:
    for rule in rules.RECORDINGS:
        assert re.fullmatch(r"[a-z_]+:longarm_(edge|service)_[a-z_]+:[a-z0-9_]+", rule.name), rule.name


def test_alerts_are_named_and_described_alike() -> None:
    for alert in rules.ALERTS:
        assert re.fullmatch(r"Longarm[A-Z]\w+", alert.name)
        assert alert.severity in ("critical", "warning", "info")
        assert "{{" not in alert.summary, "alerts are grouped by their summary"
        assert "{{ $labels." in alert.description


def test_numbers_of_rules_are_in_thresholds_only() -> None:
    """Conditions on a gauge that is 0 or 1, and 1 - ratio, are no thresholds."""
    tree = ast.parse(Path(rules.__file__).read_text())
    pieces = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    literals = [
        piece
        for piece in pieces
        if (isinstance(piece, (int, float)) and not isinstance(piece, bool))
        or (isinstance(piece, str) and re.search(r"\d", piece.removeprefix("1 - ")) and piece not in ("== 0", "== 1"))
    ]
    assert not literals


def test_every_threshold_has_its_reason() -> None:
    lines = Path(thresholds.__file__).read_text().splitlines()
    bare = [line for before, line in pairwise(lines) if " = " in line and not before.startswith("#")]
    assert not [line for line in bare if not line.startswith("#")]


def test_the_late_ticks_are_counted_at_a_bound_of_the_histogram() -> None:
    assert thresholds.LATE_TICK_SECONDS in LATENESS_BUCKETS


def test_the_runbook_has_a_section_per_alert_and_no_other() -> None:
    page = RUNBOOK.read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == {alert.name for alert in rules.ALERTS}
    for name, text in sections.items():
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in text, f"{name} has no {part}"


def test_alerts_lead_to_their_section() -> None:
    for alert in rules.ALERTS:
        path, anchor = alert.runbook.split("#")
        assert f"## {alert.name}\n" in (ROOT / path).read_text()
        assert anchor == alert.name.lower(), "how a heading becomes an anchor"


def test_the_runbook_names_settings_and_panels_that_exist() -> None:
    page, settings = RUNBOOK.read_text(), (ROOT / "docs" / "settings.md").read_text()
    for name in re.findall(r"`(LONGARM_\w+)", page):
        assert name in settings, name
    dashboards = "".join(path.read_text() for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
    for name in re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", page):
        assert f'"title": "{name}"' in dashboards or name == "Status, Targets", name
