"""A model as small as a model for checkpoints can be, and files of it."""

import torch
from torch import nn

from eomt_d2.modeling.backbone import ViT
from eomt_d2.modeling.masked_attention import MaskAnnealing


class Segmenter(nn.Module):
    def __init__(self, num_classes=3, img_size=64):
        super().__init__()
        self.backbone = ViT(embed_dim=16, depth=2, num_heads=2, patch_size=16, img_size=img_size)
        self.class_head = nn.Linear(16, num_classes)
        self.mask_annealing = MaskAnnealing(2)
        for parameter in self.parameters():
            nn.init.normal_(parameter)


def assert_equal(one, other):
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=0)


def saved(tmp_path, content, name="weights.pth"):
    path = str(tmp_path / name)
    torch.save(content, path)
    return path
