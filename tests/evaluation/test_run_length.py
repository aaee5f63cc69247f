"""The run lengths of pycocotools' own encoder, on every path."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from eomt_d2.evaluation import run_length
from eomt_d2.evaluation.run_length import encode_masks

PATHS = ("_run_ends_numpy", "_run_ends_torch")


def official(masks):
    encoded = []
    for mask in masks.to(torch.uint8).cpu().numpy():
        rle = mask_util.encode(np.asfortranarray(mask))
        encoded.append({"size": rle["size"], "counts": rle["counts"].decode()})
    return encoded


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """The path of GPUs, in PyTorch, runs on a CPU too."""
    monkeypatch.setattr(run_length, "_run_ends_numpy", getattr(run_length, request.param))


def test_by_hand(path):
    # 2 x 3; down the columns: 1 1, 0 1, 1 0. Runs from 0 on: 0, 2, 1, 2, 1.
    mask = torch.tensor([[[1, 0, 1], [1, 1, 0]]], dtype=torch.bool)
    raw = {"size": [2, 3], "counts": [0, 2, 1, 2, 1]}
    expected = mask_util.frPyObjects(raw, 2, 3)
    assert encode_masks(mask) == [{"size": [2, 3], "counts": expected["counts"].decode()}]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(37, 53), (53, 37), (1, 20), (20, 1), (1, 1)])
def test_noise(path, size, share):
    masks = torch.rand(4, *size) < share
    assert encode_masks(masks) == official(masks)


def test_every_mask_of_six_pixels(path):
    bits = torch.arange(64)[:, None] >> torch.arange(6) & 1
    for size in ((2, 3), (3, 2), (1, 6), (6, 1)):
        masks = bits.reshape(64, *size).bool()
        assert encode_masks(masks) == official(masks)


def test_in_several_parts(path, monkeypatch):
    masks = torch.rand(7, 30, 20) < 0.3
    monkeypatch.setattr(run_length, "_PIXELS_AT_ONCE", 2 * 30 * 20 + 1)
    assert encode_masks(masks) == official(masks)


def test_other_types_and_layouts_and_no_mask_at_all(path):
    masks = torch.rand(3, 20, 30) < 0.3
    assert encode_masks(masks.float()) == official(masks)
    assert encode_masks(masks.to(torch.uint8) * 255) == official(masks)
    assert encode_masks(masks.transpose(1, 2)) == official(masks.transpose(1, 2))
    assert encode_masks(torch.zeros(0, 20, 30, dtype=torch.bool)) == []


def test_real_masks(path, test_data):
    coco = COCO(str(test_data / "coco" / "annotations" / "instances_val2017_mini.json"))
    for image_id in coco.imgs:
        annotations = coco.imgToAnns[image_id]
        if annotations:
            masks = torch.from_numpy(np.stack([coco.annToMask(a) for a in annotations])).bool()
            assert encode_masks(masks) == official(masks)


@pytest.mark.cuda
def test_on_a_gpu():
    masks = (torch.rand(20, 480, 640) < 0.1).cuda()
    assert encode_masks(masks) == official(masks)
