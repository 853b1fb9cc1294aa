"""Evaluation: per-point predictions become scores that carry their protocol."""
