"""Every query of every panel and alert, asked of a real Prometheus that scrapes a real run through a real tunnel."""

import os
import signal

import pytest
from deploy.grafana.render import NAMES
from deploy.prometheus import rules

from longarm_edge.metrics import Tick
from longarm_edge.run import Run
from tests.deploy.conftest import SCRAPE_SECONDS, Prometheus
from tests.deploy.test_dashboards import RENDERED
from tests.e2e.conftest import until

# As Grafana makes $__rate_interval: four scrapes
RATE_INTERVAL = f"{4 * SCRAPE_SECONDS}s"


def queries(prometheus: Prometheus) -> dict[str, str]:
    """Returns every query as it is asked, by where it comes from."""
    found = {f"alert {alert.name}": alert.value for alert in rules.ALERTS}
    found |= {f"rule {rule.name}": rule.expr for rule in rules.RECORDINGS}
    for name in NAMES:
        dashboard = RENDERED[f"{name}.json"]
        _, variable = dashboard["templating"]["list"]
        metric, label = variable["query"].removeprefix("label_values(").removesuffix(")").split(", ")
        (choice,) = prometheus.label_values(metric, label)
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace(f"${label}", choice)
                assert "$" not in query, query
                found[f"{name}: {panel['title']}: {target['legendFormat']} {target['refId']}"] = query
    return found


@pytest.mark.timeout(120)
def test_every_query_has_data_and_a_stalled_robot_fires(edge, service, tunnel_settings, prometheus) -> None:
    e = edge(ssh=tunnel_settings, server_address="127.0.0.1:1", duration=0, connect_timeout=20.0)
    assert e.run.tunnel is not None

    def look(run: Run) -> None:
        try:
            until(lambda: run.trace.tick_counts[Tick.ACTION] > 20, "streaming")
            edge_address = f"127.0.0.1:{run.endpoint.port}"
            with prometheus(longarm_edge=edge_address, longarm_service=run.tunnel.metrics_address) as server:
                until(lambda: len(server.values("up == 1")) == 2, "both sides are scraped", timeout=30)
                asked = queries(server)
                empty = dict(asked)

                def all_have_data() -> bool:
                    for where, query in list(empty.items()):
                        if server.values(query):
                            del empty[where]
                    return not empty

                try:
                    until(all_have_data, "every query has data", timeout=30)
                except AssertionError:
                    pytest.fail(f"no data for {empty}")
                assert len(asked) > 50
                assert not server.firing()
                service.stop()
                until(lambda: "LongarmRobotStalled" in server.firing(), "the alert fires", timeout=40)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    e.go(look)
