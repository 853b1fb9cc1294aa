"""The feature cache: a plain Zarr group with commit records.

``writer.CacheWriter`` makes one, ``reader.FeatureReader`` gives out its rows; ``info``, ``verify``, ``repair``, ``gc``,
``diff`` and ``export`` look after it. Nothing here knows of torch, of images or of any other room of the package.
"""
