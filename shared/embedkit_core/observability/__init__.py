"""Observability: progress, hooks, OpenTelemetry, snapshots."""
