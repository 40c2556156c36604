"""Grafana dashboards as code. `python -m deploy.grafana.render` writes dashboards/.

For the Grafana whose version the SDK in images/requirements/dev.in has. The tests ask a real Prometheus every query;
that a Grafana shows them as meant is for a person to see.
"""
