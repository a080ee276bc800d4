"""Numbers of different protocols never stand in one comparison."""

import pytest

from gancompress.protocol import FIELDS, comparable, disagreements, protocol_hash

ONE = {"extractor": "inception-v3", "weights_sha256": "6726", "num_images": 50000, "reference_sha256": "ab", "seed": 0, "device": "a CPU", "torch": "2.15"}


@pytest.mark.parametrize("field", FIELDS)
def test_numbers_that_differ_in_a_field_that_counts_are_not_comparable(field):
    other = ONE | {field: "something else"}
    assert not comparable(ONE, other)
    assert protocol_hash(ONE) != protocol_hash(other)
    assert disagreements(ONE, other) == [f"{field}: {ONE.get(field)}, something else"]


def test_device_and_versions_count_for_milliseconds_alone():
    other = ONE | {"device": "a GPU", "torch": "2.16"}
    assert comparable(ONE, other)
    assert protocol_hash(ONE) == protocol_hash(other)
    assert disagreements(ONE, other, timed=True) == ["device: a CPU, a GPU", "torch: 2.15, 2.16"]
    assert not comparable(ONE, other, timed=True)


def test_the_hash_does_not_depend_on_the_order_of_fields_nor_on_absent_ones():
    assert protocol_hash(dict(reversed(ONE.items()))) == protocol_hash(ONE | {"ppl_pairs": None})
