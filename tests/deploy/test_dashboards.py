"""Dashboards: rendered from their source, complete, about metrics that exist, provisioned with what they need."""

import json
import re
from typing import Any

import pytest
import yaml
from deploy.grafana.render import FOLDER, NAMES, render
from deploy.prometheus import rules
from deploy.prometheus.render import FOLDER as PROMETHEUS

from tests.deploy import exported

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RENDERED = {name: json.loads(text) for name, text in render().items()}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, dashboard in RENDERED.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]


def test_the_files_are_what_they_would_be_rendered_to() -> None:
    files = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert files == render(), "run python -m deploy.grafana.render"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_its_unit_and_what_good_looks_like(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert "Good:" in panel["description"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_the_chosen_data_source_for_what_exists(panel: dict[str, Any]) -> None:
    recorded = {rule.name for rule in rules.RECORDINGS}
    assert panel["datasource"] == DATASOURCE
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert not exported.unknown(target["expr"], exported.samples(), recorded)
        assert set(re.findall(r"\[(.*?)\]", target["expr"])) <= {"$__rate_interval"}
        assert re.search(r'robot="\$robot"|instance="\$instance"', target["expr"])


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_has_its_uid_variables_and_numbered_panels(name: str) -> None:
    dashboard = RENDERED[f"{name}.json"]
    assert dashboard["uid"] == f"longarm-{name}"
    choice = {"robot": "robot", "service": "instance"}[name]
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", choice]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(titles) == len(set(titles)), "the runbook calls panels by their titles"


def test_states_of_a_timeline_are_all_of_them() -> None:
    """A state without a colour would not be drawn at all."""
    known = exported.samples()
    for metric, title in (("longarm_edge_link_state", "Link"), ("longarm_edge_tunnel_state", "Tunnel")):
        (panel,) = (p for p in RENDERED["robot.json"]["panels"] if p["title"] == title and p["type"] != "row")
        assert {target["legendFormat"] for target in panel["targets"]} == known[metric]["state"]


def test_every_metric_can_be_seen_somewhere() -> None:
    """A measurement that nobody can look at is none."""
    queries = [t["expr"] for panel in PANELS for t in panel.values[0]["targets"]]
    queries += [rule.expr for rule in rules.RECORDINGS]
    seen = {_family(name) for query in queries for name in exported.metrics(query)}
    assert not {_family(name) for name in exported.samples()} - seen


def _family(sample: str) -> str:
    return re.sub("_(total|bucket|sum|count|created)$", "", sample)


def test_grafanas_interval_is_prometheus_interval() -> None:
    """$__rate_interval is made of it: too short a one gives empty graphs."""
    provisioning = FOLDER.parent / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    prometheus = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "longarm.yaml").read_text())["providers"]
    assert provider["type"] == "file"
