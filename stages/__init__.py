"""The stages: data sets, feature extraction, training, evaluation."""
