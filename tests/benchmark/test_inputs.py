import torch

from eomt_d2.benchmark import inputs
from eomt_d2.benchmark.plan import Point, at_point
from tests.benchmark.models import DINOV2, EOMT, narrow, tiny


def cfg_of_size(side):
    (model,), _ = tiny(EOMT)
    return at_point(model.cfg, Point(size=side))


def test_images_have_the_size_that_the_mapper_would_give_them():
    """The long side becomes 640; 1333 * 640 / 2000 = 426.56, which Detectron2 rounds."""
    cfg = narrow(DINOV2)[0][0].cfg
    assert inputs.image_size(cfg, (480, 640)) == (480, 640)
    assert inputs.image_size(cfg, (1333, 2000)) == (427, 640)
    assert inputs.image_size(cfg, (640, 480)) == (640, 480)


def test_inputs_of_inference():
    batch = inputs.test_inputs(cfg_of_size(64), 2, (120, 160))
    assert [x["image"].shape for x in batch] == [(3, 48, 64)] * 2
    assert {x["image"].dtype for x in batch} == {torch.uint8}
    assert [(x["height"], x["width"]) for x in batch] == [(120, 160)] * 2
    assert not torch.equal(batch[0]["image"], batch[1]["image"])


def test_inputs_of_training_are_cut_up_into_segments():
    batch = inputs.training_inputs(cfg_of_size(64), 2, num_segments=6)
    for x in batch:
        instances = x["instances"]
        assert x["image"].shape == (3, 64, 64)
        assert instances.gt_masks.tensor.shape == (6, 64, 64)
        assert (instances.gt_masks.tensor.sum(0) == 1).all(), "each pixel has one segment"
        assert instances.gt_masks.tensor.any(2).any(1).all()
        assert ((instances.gt_classes >= 0) & (instances.gt_classes < 8)).all()
    first, second = (x["instances"].gt_masks.tensor for x in batch)
    assert not torch.equal(first, second)
