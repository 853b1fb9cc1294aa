"""The feature cache: a plain Zarr group with commit records.

``writer.CacheWriter`` writes one and ``reader.FeatureReader`` reads its rows; ``info``, ``verify``, ``repair``, ``gc``,
``diff`` and ``export`` manage it. This package does not use torch and imports no other package of xd3d.
"""
