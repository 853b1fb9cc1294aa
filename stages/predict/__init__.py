"""Prediction with a trained network: frames, sweeps, fusion of predictions, and attention maps."""
