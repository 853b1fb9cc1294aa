"""Adaptation to a domain without labels: pseudo labels."""
