"""The decoder's attention against PyTorch's, and the decoder's own rules."""

import pytest
import torch
from torch import nn

from eomt_d2.modeling.masked_attention import MaskAnnealing
from eomt_d2.modeling.transformer_decoder import Attention, MaskedTransformerDecoder


def test_attention_equals_pytorch_under_the_same_names():
    oracle, attention = nn.MultiheadAttention(12, 3, batch_first=True), Attention(12, 3)
    nn.init.normal_(oracle.in_proj_bias)
    nn.init.normal_(oracle.out_proj.bias)
    attention.load_state_dict(oracle.state_dict(), strict=True)
    queries, keys, values = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    mask = torch.rand(2, 5, 7) > 0.5
    mask[:, :, 0] = True
    forbidden = ~mask.repeat_interleave(3, dim=0)
    expected, _ = oracle(queries, keys, values, attn_mask=forbidden)
    torch.testing.assert_close(attention(queries, keys, values, mask), expected)
    expected, _ = oracle(queries, keys, values)
    torch.testing.assert_close(attention(queries, keys, values), expected)


def make_decoder(**kwargs):
    sizes = dict(num_classes=3, num_queries=4, num_levels=2, dim=32, num_layers=3, num_heads=4)
    return MaskedTransformerDecoder(**{**sizes, "ffn_dim": 16, **kwargs})


def test_layers_take_the_maps_in_turn():
    """Three layers, two maps: a change of the second map first shows after the second layer."""
    decoder, annealing = make_decoder(), MaskAnnealing(3)
    mask_features = torch.randn(1, 32, 8, 8)
    coarse, fine = torch.randn(1, 32, 2, 2), torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        before = decoder(mask_features, [coarse, fine], annealing, all_predictions=True)
        after = decoder(mask_features, [coarse, 2 * fine], annealing, all_predictions=True)
        other = decoder(mask_features, [2 * coarse, fine], annealing, all_predictions=True)
    same = [torch.equal(a.mask_logits, b.mask_logits) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, False]
    same = [torch.equal(a.mask_logits, b.mask_logits) for a, b in zip(before, other, strict=True)]
    assert same == [True, False, False, False]


def test_a_query_with_an_empty_mask_attends_everywhere():
    """All masks are empty: the result is the one without any mask."""
    decoder, annealing = make_decoder(), MaskAnnealing(3)
    with torch.no_grad():
        decoder.mask_head[4].weight.zero_()
        decoder.mask_head[4].bias.fill_(-1)
        mask_features = torch.rand(1, 32, 8, 8) + 0.1
        maps = [torch.randn(1, 32, 2, 2), torch.randn(1, 32, 4, 4)]
        masked = decoder(mask_features, maps, annealing)[-1]
        annealing.set_probs([0.0] * 3)
        (free,) = decoder(mask_features, maps, annealing)
    assert (masked.mask_logits < 0).all()
    torch.testing.assert_close(masked.class_logits, free.class_logits)
    assert torch.isfinite(masked.class_logits).all()


@pytest.mark.parametrize(
    "queries, levels, parameters",
    [(100, 3, 14_493_062), (200, 3, 14_544_262), (200, 1, 14_543_750)],
)
def test_published_sizes(queries, levels, parameters):
    """SPEC-mask2former, 133 classes; one level embedding less is 256 parameters less."""
    with torch.device("meta"):
        decoder = MaskedTransformerDecoder(num_classes=133, num_queries=queries, num_levels=levels)
    assert sum(p.numel() for p in decoder.parameters()) == parameters


def test_every_map_must_be_read():
    with pytest.raises(ValueError, match="leaves some of its 2 maps unread: .* at least 3"):
        make_decoder(num_layers=1)
