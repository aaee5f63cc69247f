import json

import benchmark_mapper
import numpy as np
import pytest
from PIL import Image


def test_both_mappers_on_generated_images(tmp_path, capsys):
    file = tmp_path / "times.json"
    benchmark_mapper.main(
        ["--images", "2", "--segments", "4", "--rounds", "2", "--json", str(file)]
    )
    report = json.loads(file.read_text())
    assert (report["images"], report["rounds"], report["ground_truth"]) == (2, 2, "panoptic")
    # A crop may miss some of the four cells, not all.
    assert 0 < report["segments_per_image"] <= 4
    # Rounding to the nearest pixel differs from the floor rule by half a pixel, along edges.
    assert 0.99 < report["agreeing_mask_pixels"] < 1
    for times in report["milliseconds"].values():
        assert list(times) == ["sample", *benchmark_mapper.STAGES]
        assert all(value > 0 for value in times.values())
    ratio = report["ratio"]
    assert ratio["min"] <= ratio["median"] <= ratio["max"]
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 1 + len(benchmark_mapper.STAGES)


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_both_mappers_give_the_same_masks_without_resizing(tmp_path, kind):
    """Crop and flip alone move pixels without rounding, so the masks are equal everywhere."""
    (entry,) = benchmark_mapper.generated(tmp_path, 1, 5)
    ids = benchmark_mapper.panoptic_ground_truth(entry).layers[0]
    entry["sem_seg_file_name"] = str(tmp_path / "labels.png")
    Image.fromarray(ids).save(entry["sem_seg_file_name"])
    left, right = [0, 0, 300, 0, 300, 480, 0, 480], [200, 0, 640, 0, 640, 480, 200, 480]
    entry["annotations"] = [
        {"segmentation": [polygon], "category_id": 0} for polygon in (left, right)
    ]

    def draw(height, width):
        return benchmark_mapper.Geometry(True, height, width, 30, 50, 400)

    def clock(_stage):
        return benchmark_mapper.contextlib.nullcontext()

    image, masks = benchmark_mapper.mapped(entry, kind, draw, clock)
    separate_image, separate = benchmark_mapper.mapped_separately(entry, kind, draw, clock)
    np.testing.assert_array_equal(image, separate_image)
    assert len(masks) >= 2
    np.testing.assert_array_equal(masks.tensor.numpy(), separate.tensor.numpy())
