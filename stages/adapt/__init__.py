"""Adaptation to an unlabelled domain: makes pseudo labels."""
