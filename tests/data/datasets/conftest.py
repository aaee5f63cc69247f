"""A small shapes data set, and catalogs that forget what a test registers."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from eomt_d2.data.datasets.shapes import make_shapes


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """Parent folder of a data set of 6 train and 4 val images, as $DETECTRON2_DATASETS is."""
    root = tmp_path_factory.mktemp("data")
    make_shapes(root / "shapes", num_train=6, num_val=4, num_workers=1)
    return root


@pytest.fixture
def catalogs():
    """Detectron2's catalogs with only Detectron2's own entries, restored afterwards."""
    saved = dict(DatasetCatalog), dict(MetadataCatalog)
    for name in list(DatasetCatalog):
        # What Detectron2 registers itself comes from its own modules.
        module = getattr(DatasetCatalog[name], "__module__", "")
        if not module.startswith("detectron2."):
            DatasetCatalog.remove(name)
            if name in MetadataCatalog:
                MetadataCatalog.remove(name)
    yield
    for catalog, content in zip((DatasetCatalog, MetadataCatalog), saved, strict=True):
        catalog.data.clear()
        catalog.data.update(content)
