"""Prometheus rules and alerts as code. `python -m deploy.prometheus.render` writes recording.yml and alerts.yml."""
