"""A small shapes data set."""

import pytest

from eomt_d2.data.datasets.shapes import make_shapes


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """Parent folder of a data set of 6 train and 4 val images, as $DETECTRON2_DATASETS is."""
    root = tmp_path_factory.mktemp("data")
    make_shapes(root / "shapes", num_train=6, num_val=4, num_workers=1)
    return root
