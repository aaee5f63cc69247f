"""ViT-Adapter: its equations written out from the paper over the same layers, sizes, invariants."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eomt_d2.config import add_eomt_config
from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone import ViT, ViTAdapter
from eomt_d2.modeling.ops import ms_deform_attn_reference

DIM, HEADS = 32, 2


def make_adapter(depth=4, norm="SyncBN", **vit) -> ViTAdapter:
    args = dict(embed_dim=DIM, depth=depth, num_heads=HEADS, img_size=64, final_norm=False)
    adapter = ViTAdapter(vit=ViT(**{**args, **vit}), norm=norm)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.05))
    return adapter


def deform(attention, queries, centers, source, shapes):
    """Deformable attention from its own layers: offsets are pixels of each map."""
    batch, count, _ = queries.shape
    levels = len(shapes)
    values = attention.value_proj(source).reshape(batch, -1, HEADS, DIM // 2 // HEADS)
    offsets = attention.sampling_offsets(queries).reshape(batch, count, HEADS, levels, 4, 2)
    sizes = torch.tensor([[w, h] for h, w in shapes])[:, None]
    locations = centers.reshape(1, -1, 1, 1, 1, 2) + offsets / sizes
    weights = attention.attention_weights(queries).reshape(batch, count, HEADS, -1).softmax(-1)
    weights = weights.reshape(batch, count, HEADS, levels, 4)
    return attention.output_proj(ms_deform_attn_reference(values, shapes, locations, weights))


def centers(height, width):
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    y, x = torch.meshgrid(rows / height, columns / width, indexing="ij")
    return torch.stack((x, y), -1).reshape(-1, 2)


@pytest.mark.parametrize("depth, runs", [(4, [1, 1, 1, 1]), (8, [2, 2, 2, 2]), (6, [1, 2, 1, 2])])
def test_equals_the_equations_of_the_paper(depth, runs):
    """Section 3: prior, then per group inject, ViT blocks, extract; two more extractors; the ViT's
    maps of the four groups join the outputs."""
    adapter = make_adapter(depth).eval()
    vit, images = adapter.vit, torch.randn(2, 3, 64, 96)
    h, w = 4, 6  # the ViT's grid
    shapes = [(8, 12), (4, 6), (2, 3)]
    with torch.no_grad():
        c1, *rest = adapter.spatial_prior(images)
        assert [tuple(x.shape[-2:]) for x in (c1, *rest)] == [(16, 24), *shapes]
        c = torch.cat([rest[i].flatten(2).mT + adapter.level_embed[i] for i in range(3)], dim=1)
        prior_points = torch.cat([centers(*shape) for shape in shapes])

        def extract(extractor, c, x):
            c = c + deform(extractor.attn, extractor.query_norm(c), prior_points,
                           extractor.feat_norm(x), [(h, w)])  # fmt: skip
            ffn, y = extractor.ffn, extractor.ffn.fc1(extractor.ffn_norm(c))
            pieces = []
            for part, (a, b) in zip(y.split([96, 24, 6], dim=1), shapes, strict=True):
                part = part.mT.reshape(2, DIM // 4, a, b)
                part = F.conv2d(part, ffn.dwconv.weight, ffn.dwconv.bias, padding=1,
                                groups=DIM // 4)  # fmt: skip
                pieces.append(part.flatten(2).mT)
            return c + ffn.fc2(F.gelu(torch.cat(pieces, dim=1)))

        tokens, _ = vit.embed(images)
        blocks, features = list(vit.blocks), []
        for i, run in enumerate(runs):
            prefix, x = tokens[:, :5], tokens[:, 5:]
            injector = adapter.injectors[i]
            x = x + injector.gamma * deform(injector.attn, injector.query_norm(x), centers(h, w),
                                            injector.feat_norm(c), shapes)  # fmt: skip
            tokens = torch.cat((prefix, x), dim=1)
            for _ in range(run):
                tokens = blocks.pop(0)(tokens)
            c = extract(adapter.extractors[i], c, tokens[:, 5:])
            features.append(tokens[:, 5:].mT.reshape(2, DIM, h, w))
        for extractor in adapter.extractors[4:]:
            c = extract(extractor, c, tokens[:, 5:])
        assert not blocks and len(adapter.extractors) == 6
        c2, c3, c4 = (
            part.mT.reshape(2, DIM, *shape)
            for part, shape in zip(c.split([96, 24, 6], dim=1), shapes, strict=True)
        )
        maps = [c1 + adapter.up(c2), c2, c3, c4]
        expected = {}
        for i, factor in enumerate((4, 2, 1, 0.5)):
            resized = F.interpolate(features[i], scale_factor=factor, mode="bilinear")
            expected[f"res{i + 2}"] = adapter.norms[i](maps[i] + resized)
        actual = adapter(images)
    assert list(actual) == list(expected) == ["res2", "res3", "res4", "res5"]
    for name, x in expected.items():
        assert x.std() > 0.1
        torch.testing.assert_close(actual[name], x, atol=1e-4, rtol=1e-4, msg=name)


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes():
    """SPEC-mask2former, "ViT-Adapter (L: 23.24 M)"."""
    with torch.device("meta"):
        adapter = ViTAdapter(vit=ViT(embed_dim=1024, depth=24, num_heads=16, final_norm=False))
    assert [parameters(x) for x in adapter.injectors] == [1_645_632] * 4
    assert [parameters(x) for x in adapter.extractors] == [1_781_184] * 6
    assert parameters(adapter.spatial_prior) == 1_760_576
    assert parameters(adapter) - parameters(adapter.vit) == 23_236_800
    # At 640 pixels: ViT-L with its final norm is 304,791,552.
    assert parameters(adapter.vit) == 304_791_552 - 2_048
    assert not any("vit.norm" in name for name, _ in adapter.named_parameters())


def test_a_fresh_adapter_leaves_the_vit_as_it_was():
    vit = ViT(embed_dim=DIM, depth=4, num_heads=HEADS, img_size=64)
    adapter = ViTAdapter(
        vit=ViT(embed_dim=DIM, depth=4, num_heads=HEADS, img_size=64, final_norm=False)
    )
    missing = adapter.vit.load_state_dict(vit.state_dict(), strict=False)
    assert missing.unexpected_keys == ["norm.weight", "norm.bias"]
    images = torch.randn(1, 3, 64, 64)
    prior = torch.randn(1, 84, DIM)
    with torch.no_grad():
        _, maps = adapter._interact(images, (4, 4), prior, [(8, 8), (4, 4), (2, 2)])
        normed = vit.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, vit(images)["vit"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_equals_single():
    adapter, images = make_adapter().eval(), torch.randn(3, 3, 32, 64)
    together = adapter(images)
    for i, image in enumerate(images):
        for name, x in adapter(image[None]).items():
            torch.testing.assert_close(together[name][i], x[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kwargs", [{"patch_size": 8}, {"position": "rotary"}])
def test_other_patches_and_rotary_positions(kwargs):
    adapter = make_adapter(**kwargs).train()
    maps = adapter(torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(x.square().sum() for x in maps.values()).backward()
    assert [name for name, p in adapter.named_parameters() if p.grad is None] == []
    spec = adapter.output_shape()
    assert [(s.channels, s.stride) for s in spec.values()] == [(32, 4), (32, 8), (32, 16), (32, 32)]


def from_config(device):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = "ViTAdapter", device
    cfg.merge_from_list(
        ["MODEL.VIT.NAME", "", "MODEL.VIT.EMBED_DIM", DIM, "MODEL.VIT.DEPTH", 4,
         "MODEL.VIT.NUM_HEADS", HEADS, "INPUT.IMAGE_SIZE", 64]
    )  # fmt: skip
    return build_backbone(cfg)


def test_distributed_training_without_gpus(tmp_path):
    """DistributedDataParallel refuses synchronised norms on the CPU; every parameter takes part."""
    adapter = from_config("cpu").train()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(adapter)
        for _ in range(2):  # the second forward fails if a parameter had no gradient
            maps = model(torch.randn(2, 3, 64, 64))
            sum(x.square().sum() for x in maps.values()).backward()
    finally:
        dist.destroy_process_group()


def test_norms_are_synchronised_on_gpus_and_of_the_same_names():
    synchronised, plain = from_config("cuda"), from_config("cpu")
    for adapter, kind in ((synchronised, nn.SyncBatchNorm), (plain, nn.BatchNorm2d)):
        norms = {
            type(m) for m in adapter.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        }
        assert norms == {kind}
    assert list(synchronised.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("norm", ["BN", "GN", "LN"])
def test_other_norms_are_of_the_same_size(norm):
    """Two numbers per channel, whichever it is."""
    adapter, expected = make_adapter(norm=norm), make_adapter()
    assert parameters(adapter) == parameters(expected)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in adapter.modules())
    has_statistics = any("running_mean" in name for name, _ in adapter.named_buffers())
    assert has_statistics == (norm == "BN")


def test_what_cannot_be_is_explained():
    with pytest.raises(UserError, match="VIT_ADAPTER.NORM is 'FrozenBN'; it must be one of SyncBN"):
        make_adapter(norm="FrozenBN")
    with pytest.raises(ValueError, match="3 blocks is too short .* at least 4"):
        make_adapter(depth=3)
    with pytest.raises(ValueError, match="final_norm=False"):
        make_adapter(final_norm=True)
    with pytest.raises(ValueError, match="48 x 64 pixels: pad it to multiples of 32"):
        make_adapter()(torch.zeros(1, 3, 48, 64))
