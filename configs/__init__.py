"""Presets: one YAML file a published setting and task."""
