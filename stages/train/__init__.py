"""Stage two: the sparse 3D network and the fusion module learn from cached features."""
