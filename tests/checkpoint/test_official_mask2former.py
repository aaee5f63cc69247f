"""Files of the official Mask2Former: every name finds its place, in both of their spellings."""

import pickle

import convert_checkpoint
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from eomt_d2.analysis import build_meta_model
from eomt_d2.checkpoint import Checkpointer
from eomt_d2.checkpoint.sources import rename_to_ours
from eomt_d2.errors import UserError
from tests.checkpoint.official_mask2former import official_shapes, older
from tests.configs.published import load

SIZES = dict(num_queries=7, dim=32, ffn=48, layers=4)
OURS = {
    # A name in the file: the same tensor here. Post-norm order: cross-attention, self-attention,
    # feed-forward network.
    "predictor.transformer_cross_attention_layers.1.norm.weight": "decoder.layers.1.norm1.weight",
    "predictor.transformer_self_attention_layers.1.norm.bias": "decoder.layers.1.norm2.bias",
    "predictor.transformer_ffn_layers.1.norm.weight": "decoder.layers.1.norm3.weight",
    "predictor.transformer_cross_attention_layers.2.multihead_attn.in_proj_weight": (
        "decoder.layers.2.cross_attn.in_proj_weight"
    ),
    "predictor.transformer_self_attention_layers.2.self_attn.out_proj.bias": (
        "decoder.layers.2.self_attn.out_proj.bias"
    ),
    "predictor.transformer_ffn_layers.3.linear2.weight": "decoder.layers.3.linear2.weight",
    "predictor.decoder_norm.bias": "decoder.norm.bias",
    "predictor.query_feat.weight": "decoder.query_feat.weight",
    "predictor.query_embed.weight": "decoder.query_embed.weight",
    "predictor.class_embed.weight": "decoder.class_head.weight",
    "predictor.mask_embed.layers.1.weight": "decoder.mask_head.2.weight",
    "pixel_decoder.input_proj.0.0.weight": "pixel_decoder.input_proj.0.0.weight",
    "pixel_decoder.input_proj.2.1.bias": "pixel_decoder.input_proj.2.1.bias",
    "pixel_decoder.transformer.level_embed": "pixel_decoder.level_embed",
    "pixel_decoder.transformer.encoder.layers.5.self_attn.sampling_offsets.bias": (
        "pixel_decoder.layers.5.self_attn.sampling_offsets.bias"
    ),
    "pixel_decoder.adapter_1.norm.weight": "pixel_decoder.lateral.norm.weight",
    "pixel_decoder.layer_1.weight": "pixel_decoder.output.weight",
}


@pytest.fixture(scope="module")
def cfg():
    """The network of the ResNet-50 config with a narrow decoder."""
    return load(
        "coco/panoptic/mask2former_r50", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7",
        "MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "48",
        "MODEL.MASK_FORMER.DEC_LAYERS", "5",
    )  # fmt: skip


@pytest.fixture(scope="module")
def official():
    """A file's tensors, random; as NumPy arrays, which is what the published files hold."""
    generator = torch.Generator().manual_seed(8)
    shapes = official_shapes(**SIZES)
    return {n: 0.1 * torch.rand(s, generator=generator).numpy() for n, s in shapes.items()}


def pickled(path, arrays):
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party"}))
    return str(path)


@pytest.mark.parametrize("spelling", [dict, older])
def test_names_and_shapes_at_full_size(spelling):
    """Of the published ResNet-50: nothing is left over, nothing is missing, all shapes agree."""
    weights = {name: torch.empty(shape, device="meta") for name, shape in official_shapes().items()}
    renamed, title = rename_to_ours(spelling(weights))
    assert title == "an official Mask2Former"
    wanted = build_meta_model(load("coco/panoptic/mask2former_r50")).state_dict()
    assert {n: tuple(t.shape) for n, t in renamed.items()} == {
        n: tuple(t.shape) for n, t in wanted.items()
    }
    assert renamed["mask_annealing.probs"].tolist() == [1.0] * 9


@pytest.mark.parametrize("spelling", [dict, older])
def test_a_pickle_of_arrays_loads_for_evaluation(tmp_path, cfg, official, spelling):
    model = build_model(cfg)
    Checkpointer(model, strict=True).load(pickled(tmp_path / "m.pkl", spelling(official)))
    state = model.state_dict()
    for theirs, ours in OURS.items():
        torch.testing.assert_close(
            state[ours], torch.from_numpy(official[f"sem_seg_head.{theirs}"]), rtol=0, atol=0
        )
    name = "backbone.res3.1.conv2.norm.running_var"
    torch.testing.assert_close(state[name], torch.from_numpy(official[name]), rtol=0, atol=0)
    assert model.mask_annealing.active == (True,) * 4


def test_a_tensor_that_is_missing_is_told(tmp_path, cfg, official):
    name = "sem_seg_head.predictor.decoder_norm.weight"
    weights = {n: value for n, value in official.items() if n != name}
    with pytest.raises(UserError, match="decoder.norm.weight is not in the file"):
        Checkpointer(build_model(cfg), strict=True).load(pickled(tmp_path / "m.pkl", weights))


def test_the_converter_takes_it(tmp_path, cfg, official):
    source = pickled(tmp_path / "official.pkl", official)
    destination = tmp_path / "ours.pth"
    convert_checkpoint.main([source, str(destination), "--source", "mask2former"])
    converted = torch.load(destination, weights_only=True)["model"]
    build_model(cfg).load_state_dict(converted, strict=True)


def test_imagenet_weights_of_detectron2_s_zoo_fill_the_backbone(tmp_path, cfg, official):
    """What MODEL.WEIGHTS of the configs is: a ResNet alone, matched by the ends of its names."""
    resnet = {
        name.removeprefix("backbone."): value
        for name, value in official.items()
        if name.startswith("backbone.")
    }
    content = {"model": resnet, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    model = build_model(cfg)
    Checkpointer(model).load(str(tmp_path / "R-50.pkl"))
    for name, tensor in model.backbone.state_dict().items():
        torch.testing.assert_close(tensor, torch.from_numpy(resnet[name]), rtol=0, atol=0)


def test_another_network_of_detectron2_is_none():
    """A head named alike, of a network that is not known here."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "SemanticSegmentor", "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    weights = build_meta_model(cfg).state_dict()
    assert rename_to_ours(weights)[0].keys() == weights.keys()
