import copy
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xd3d.fingerprint import differences, fingerprint_digest

scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text("ab", max_size=2)
names = st.text("xyz", min_size=1, max_size=2)
values = st.recursive(
    scalars | st.lists(scalars, max_size=3),
    lambda inner: st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(names, values, max_size=4)


def leaves(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def test_the_digest_is_the_sha256_of_sorted_compact_json():
    digest = fingerprint_digest({"b": (1, 2.5), "a": {"d": None, "c": "é"}})
    assert digest == hashlib.sha256(b'{"a":{"c":"\\u00e9","d":null},"b":[1,2.5]}').hexdigest()


@given(fields)
def test_equal_fields_have_no_differences_whatever_their_order(tree):
    shuffled = dict(reversed(list(tree.items())))
    assert differences(tree, shuffled) == []
    assert fingerprint_digest(tree) == fingerprint_digest(shuffled)


@given(fields.filter(bool), st.data())
def test_changing_one_field_names_exactly_that_field_and_changes_the_digest(tree, data):
    path = data.draw(st.sampled_from(list(leaves(tree))))
    changed = copy.deepcopy(tree)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = "another value"
    lines = differences(tree, changed)
    assert [line.split(": ")[0] for line in lines] == [".".join(path)]
    assert lines[0].endswith('found "another value"')
    assert fingerprint_digest(tree) != fingerprint_digest(changed)


def test_a_field_that_one_side_lacks_is_named():
    assert differences({"taps": ["up0"], "t": 0}, {"taps": ["up0"], "agents": {"count": 5}}) == [
        "agents.count: expected (absent), found 5",
        "t: expected 0, found (absent)",
    ]


def test_numbers_that_print_differently_differ():
    assert differences({"t": 1}, {"t": 1.0}) == ["t: expected 1, found 1.0"]
    assert differences({"t": 1}, {"t": True}) == ["t: expected 1, found true"]


def test_nan_has_no_place_in_a_fingerprint():
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint_digest({"temperature": float("nan")})
