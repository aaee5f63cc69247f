"""Masked attention and its annealing, by hand."""

import pytest
import torch
import torch.nn.functional as F

from eomt_d2.modeling.backbone.vit_block import Attention
from eomt_d2.modeling.masked_attention import (
    MaskAnnealing,
    annealing_windows,
    attention_mask,
    cross_attention_mask,
    masking_probability,
)


def test_attention_mask_by_hand():
    """Two queries, one prefix token, a grid of 1 x 2 patches, masks of 2 x 4 pixels."""
    logits = torch.tensor([[[[1.0, 1, -3, 1], [1, 1, -3, 1]], [[-1.0] * 4, [-1.0] * 4]]])
    mask = attention_mask(logits, (1, 2), num_prefix_tokens=1)
    # Query 0: the means of its halves are 1 and -1. Query 1 sees no patch but is not blind.
    assert mask.tolist() == [[[True, True, True, True, False], [True, True, True, False, False]]]
    opened = attention_mask(logits, (1, 2), 1, opened=torch.tensor([[False, True]]))
    assert opened.tolist() == [[[True, True, True, True, False], [True] * 5]]


def test_mask_of_a_decoder_by_hand():
    """Two queries, masks of 2 x 4 pixels, a map of 1 x 2: the means of query 0's halves are 0,
    which is a probability of 1/2 and inside, and -1. Query 1 has no mask and sees everything."""
    logits = torch.tensor([[[[2.0, 1, -3, 1], [-2, -1, -3, 1]], [[-1.0] * 4, [-1.0] * 4]]])
    assert cross_attention_mask(logits, (1, 2)).tolist() == [[[True, False], [True, True]]]
    opened = cross_attention_mask(logits, (1, 2), opened=torch.tensor([[True, False]]))
    assert opened.tolist() == [[[True, True], [True, True]]]


def dense_mask(query_mask, tokens):
    dense = torch.ones(len(query_mask), tokens, tokens, dtype=torch.bool)
    dense[:, : query_mask.shape[1]] = query_mask
    return dense


def test_split_attention_equals_dense_attention_and_its_gradients():
    torch.manual_seed(1)
    attention = Attention(24, 3).double()
    x = torch.randn(2, 11, 24, dtype=torch.double)
    query_mask = torch.rand(2, 4, 11) > 0.5
    query_mask[:, :, :6] = True
    weight = torch.randn(2, 11, 24, dtype=torch.double)

    def dense(tokens):
        q, k, v = attention.qkv(tokens).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        scores = scores.masked_fill(~dense_mask(query_mask, 11)[:, None], -torch.inf)
        return attention.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    results = []
    for forward in (lambda t: attention(t, None, query_mask), dense):
        attention.zero_grad()
        tokens = x.clone().requires_grad_()
        out = forward(tokens)
        (out * weight).sum().backward()
        results.append(
            [out.detach(), tokens.grad, *(p.grad.clone() for p in attention.parameters())]
        )
    for split, full in zip(*results, strict=True):
        torch.testing.assert_close(split, full)
    unmasked = attention(x)
    assert not torch.allclose(unmasked[:, :4], results[0][0][:, :4])
    torch.testing.assert_close(unmasked[:, 4:], results[0][0][:, 4:])


def test_windows_of_the_published_schedules():
    """RECIPES: COCO panoptic, T = 88,692, T / 6 = 14,782."""
    assert annealing_windows(4, 88692) == [
        (14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)
    ]  # fmt: skip
    assert annealing_windows(3, 88692) == [(14782, 29564), (36955, 51737), (59128, 73910)]
    starts = [start for start, _ in annealing_windows(5, 88692)]
    assert starts == [14782, 25869, 36955, 48042, 59128]
    assert annealing_windows(4, 19902)[0] == (3317, 6634)
    assert annealing_windows(1, 60) == [(10, 20)]


def test_masking_probability_by_hand():
    assert masking_probability(0, 0, 100) == 1
    assert masking_probability(99, 100, 200) == 1
    assert masking_probability(100, 100, 200) == 1
    assert masking_probability(150, 100, 200) == pytest.approx(0.535887, abs=1e-6)  # 0.5^0.9
    assert masking_probability(200, 100, 200) == 0
    assert masking_probability(0, 0, 0) == 1
    assert masking_probability(150, 100, 200, power=2) == 0.25


def test_probability_one_and_zero_draw_nothing():
    annealing, logits = MaskAnnealing(2), torch.randn(2, 3, 4, 4)
    state = torch.get_rng_state()
    assert annealing.mask(0, logits, (2, 2), 1).shape == (2, 3, 8)
    annealing.set_probs([0, 1])
    assert annealing.mask(0, logits, (2, 2), 1) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert annealing.active == (False, True)


def test_rows_are_opened_as_often_as_told():
    annealing, logits = MaskAnnealing(1), torch.full((50, 80, 2, 2), -1.0)
    annealing.set_probs([0.7])
    rows = annealing.train().mask(0, logits, (2, 2), 1)[..., -4:]
    opened = rows.all(-1)
    assert torch.equal(rows.any(-1), opened), "a row is opened as a whole"
    assert opened.float().mean() == pytest.approx(0.3, abs=0.03)
    assert opened.float().mean(1).std() > 0, "drawn per image"


def test_evaluation_draws_the_same_rows_for_all_images_and_calls():
    annealing, logits = MaskAnnealing(2).eval(), torch.full((3, 40, 2, 2), -1.0)
    annealing.set_probs([0.5, 0.5])
    state = torch.get_rng_state()
    first, again = (annealing.mask(0, logits, (2, 2), 1) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first, annealing.mask(1, logits, (2, 2), 1))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_checkpoint_carries_the_probabilities():
    finished, fresh = MaskAnnealing(3), MaskAnnealing(3)
    finished.set_probs([0, 0, 0.25])
    fresh.load_state_dict(finished.state_dict())
    assert fresh.active == (False, False, True)
    with pytest.raises(ValueError, match="3 probabilities"):
        fresh.set_probs([1, 1])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        fresh.set_probs([1, 1, 1.5])


def test_gradients_do_not_flow_through_masks():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    assert not F.pad(attention_mask(logits, (2, 2), 1), (1, 0)).requires_grad
