"""Node mode: one exporter for all inference pods of a Kubernetes node. See docs/node-mode.md."""
