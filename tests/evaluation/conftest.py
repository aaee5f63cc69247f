"""Registration of data sets for the time of one test."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def register():
    """``register(name, dicts, **metadata)``; everything is forgotten after the test."""
    names = []

    def register_dataset(name, dicts, **metadata):
        DatasetCatalog.register(name, lambda: dicts)
        names.append(name)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register_dataset
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
