"""Comparison pictures of a data set, with a model that repeats the ground truth."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from eomt_d2.data.datasets.builtin import register_panoptic
from eomt_d2.data.datasets.coco_format import read_categories
from eomt_d2.data.datasets.shapes import make_shapes
from eomt_d2.data.image_reading import read_id_png
from eomt_d2.visualization import write_panoptic_comparisons


class Oracle(torch.nn.Module):
    def __init__(self, dataset):
        super().__init__()
        self.records = {record["image_id"]: record for record in dataset}

    def forward(self, inputs):
        assert not self.training
        record = self.records[inputs[0]["image_id"]]
        ids = torch.from_numpy(read_id_png(record["pan_seg_file_name"]).astype(np.int32))
        segments = [{**s, "isthing": bool(s["isthing"])} for s in record["segments_info"]]
        return [{"panoptic_seg": (ids, segments)}]


def test_a_perfect_prediction_looks_like_the_ground_truth(tmp_path):
    root = make_shapes(tmp_path / "shapes", num_train=1, num_val=3, num_workers=1)
    json_file, name = root / "annotations/panoptic_val.json", "test_results_shapes"
    register_panoptic(
        name,
        read_categories(json_file),
        image_root=root / "val",
        panoptic_root=root / "panoptic_val",
        panoptic_json=json_file,
    )
    try:
        dataset = DatasetCatalog.get(name)
        model = Oracle(dataset).train()
        loader = [[{"image_id": record["image_id"]}] for record in dataset]
        models = {"one": model, "other": Oracle(dataset).eval()}
        files = write_panoptic_comparisons(models, loader, name, tmp_path / "out", count=2, scale=2)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert [model.training for model in models.values()] == [True, False], "modes are restored"
    assert files == sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 2
    for file, record in zip(files, dataset, strict=False):
        picture = np.asarray(Image.open(file)).astype(int)[-256:]
        image, truth, *predictions = np.split(picture, 4, axis=1)
        photo = np.asarray(Image.open(record["file_name"]).resize((256, 256), Image.BILINEAR))
        assert np.abs(image - photo).mean() < 6  # enlarged by another filter
        assert np.abs(truth - image).mean() > 10
        assert all(np.array_equal(truth, prediction) for prediction in predictions)
