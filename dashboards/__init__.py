"""What other systems show of agentserve: Grafana dashboards made by code, Prometheus rules, and a compose file."""
