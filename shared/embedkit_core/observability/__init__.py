"""Progress, hooks, OpenTelemetry, snapshots."""
