"""The ablation: every variant of the method trained on one domain and tested on shifted ones, and what came of it."""
