import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from eomt_d2.config import add_eomt_config
from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone import ViT
from eomt_d2.solver import build_optimizer


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ViT(embed_dim=8, depth=4, num_heads=1, patch_size=16, img_size=32)
        self.head = nn.Linear(8, 2)
        self.num_blocks = 2


def config(**solver):
    cfg = get_cfg()
    add_eomt_config(cfg)
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def test_adamw_of_the_published_recipe():
    optimizer = build_optimizer(config(), Segmenter())
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.05)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx(
        {
            "embeddings": 5.12e-5,
            "block_0": 5.12e-5,
            "block_1": 6.4e-5,
            "block_2": 8e-5,
            "block_3": 1e-4,
            "norm": 1e-4,
            "head": 1e-4,
        }
    )


def test_query_blocks_at_the_full_rate():
    optimizer = build_optimizer(config(QUERY_BLOCKS_FULL_LR=True), Segmenter())
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["block_1"] == pytest.approx(6.4e-5)
    assert rates["block_2"] == rates["block_3"] == 1e-4


def test_decay_of_norms_and_embeddings_only_where_asked():
    model = Segmenter()
    model.queries = nn.Embedding(3, 8)
    optimizer = build_optimizer(
        config(WEIGHT_DECAY_NORM=0.0, WEIGHT_DECAY_EMBED=0.01, BACKBONE_MULTIPLIER=0.5), model
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["norm_norms"]["weight_decay"] == groups["block_0_norms"]["weight_decay"] == 0
    assert groups["head_embeddings"]["params"] == [model.queries.weight]
    assert groups["head_embeddings"]["weight_decay"] == 0.01
    assert groups["head"]["weight_decay"] == groups["block_0"]["weight_decay"] == 0.05
    assert groups["norm_norms"]["lr"] == 5e-5


def test_sgd():
    optimizer = build_optimizer(config(OPTIMIZER="SGD", MOMENTUM=0.8), Segmenter())
    assert type(optimizer) is torch.optim.SGD
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05}


def test_unknown_optimizer():
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER is 'LAMB'; it must be ADAMW or SGD"):
        build_optimizer(config(OPTIMIZER="LAMB"), Segmenter())


@pytest.mark.cuda
def test_fused_on_the_gpu():
    optimizer = build_optimizer(config(), Segmenter().cuda())
    assert optimizer.defaults["fused"] is True
