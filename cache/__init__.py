"""The feature cache: a plain Zarr group with commit records."""
