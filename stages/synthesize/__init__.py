"""The synthetic city: one analytic world, seen by LiDAR and cameras, written in real formats."""
