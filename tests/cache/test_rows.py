from xd3d.cache.schema import features_of, named_arrays


def test_features_and_named_arrays_are_the_same_thing(features_of_rows):
    features = features_of_rows(range(2))
    again = features_of(named_arrays(features))
    assert again.maps.keys() == features.maps.keys()
    assert again.agents.keys() == features.agents.keys()
    assert again.geometry is features.geometry
