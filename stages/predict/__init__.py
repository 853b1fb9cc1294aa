"""What a trained network says: predictions of frames and sweeps, their fusion, and attention maps."""
