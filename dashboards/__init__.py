"""Grafana dashboards: what makes them, and the JSON that is committed."""
