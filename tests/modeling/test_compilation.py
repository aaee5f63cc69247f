"""The compiled network against the plain one. What is traced is tested with torch's own "eager" and
"aot_eager" backends, which need no compiler; one test compiles for real."""

import copy
import os
import pickle
import shutil

import pytest
import torch

from eomt_d2.errors import UserError
from eomt_d2.modeling.eomt import EoMT
from tests.modeling.test_eomt import SIZE, make_model, perturb, training_input

ROTARY = dict(position="rotary", key_bias=False)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiled_calls(monkeypatch):
    """Let ``torch.compile`` trace and differentiate, but run plain kernels; gives the number of
    operations of every graph that it makes."""
    graphs, plain_compile = [], torch.compile

    def backend(graph, example_inputs):
        graphs.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    def compile_(function, *, mode, **kwargs):
        return plain_compile(function, backend=backend, fullgraph=True, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_)
    return graphs


def model(probs=(1.0, 1.0), **vit) -> EoMT:
    made = perturb(make_model(**vit)).eval()
    made.mask_annealing.set_probs(probs)
    return made


@pytest.mark.parametrize(
    "probs, size, vit",
    [
        ((0.0, 0.0), (SIZE, SIZE), {}),
        ((0.0, 1.0), (48, 80), {}),
        ((0.4, 0.0), (SIZE, SIZE), {}),
        ((1.0, 1.0), (48, 80), ROTARY),
    ],
)
def test_inference_is_one_graph_and_equal(probs, size, vit):
    """Masked, unmasked, with rows drawn from the fixed seed; at the size of the position embedding
    and another one, which it is resampled to."""
    plain, images = model(probs, **vit), torch.randn(2, 3, *size)
    compiled = torch.compile(plain.predict, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            expected, actual = plain.predict(images), compiled(images)
            assert len(actual) == len(expected) == 1 + sum(p > 0 for p in probs)
            for a, b in zip(actual[-1], expected[-1], strict=True):
                torch.testing.assert_close(a, b)


def gradients(network, batch):
    network.zero_grad()
    torch.manual_seed(1)
    sum(network(batch).values()).backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("vit", [{}, dict(activation_checkpointing=True)])
def test_training_has_the_same_gradients(compiled_calls, vit):
    network = model(**vit).train()
    batch = [training_input(2), training_input(3)]
    expected = gradients(network, batch)
    network.compile_predict("default")
    actual = gradients(network, batch)
    assert len(compiled_calls) == 1 and compiled_calls[0] > 30
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_annealing_compiles_again_when_a_block_stops_masking(compiled_calls):
    network, images = model(), torch.randn(1, 3, SIZE, SIZE)
    plain = copy.deepcopy(network)
    network.compile_predict("default")
    operations = []
    for probs in ((1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0)):
        for m in (network, plain):
            m.mask_annealing.set_probs(probs)
        with torch.no_grad():
            (actual, expected) = (m.predict(images)[-1].mask_logits for m in (network, plain))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        operations.append(compiled_calls[-1])
    assert operations[0] > operations[1] > operations[2]
    assert len(compiled_calls) == 3, "masking everywhere is known already"


def test_weights_loaded_after_compiling_are_used(compiled_calls):
    """A finished checkpoint also switches the masks off by itself."""
    network, other = model(), model((0.0, 0.0))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    images = torch.randn(1, 3, SIZE, SIZE)
    network.compile_predict("default")
    with torch.no_grad():
        network.predict(images)
        network.load_state_dict(other.state_dict())
        actual, expected = network.predict(images), other.predict(images)
    assert len(actual) == 1
    torch.testing.assert_close(actual[0].mask_logits, expected[0].mask_logits)


def test_names_of_parameters_stay_and_copies_are_of_their_own(compiled_calls):
    network, images = model(), torch.randn(1, 3, SIZE, SIZE)
    names, modules = list(network.state_dict()), list(dict(network.named_modules()))
    network.compile_predict("default")
    assert list(network.state_dict()) == names
    assert list(dict(network.named_modules())) == modules
    with torch.no_grad():
        expected = network.predict(images)[-1].mask_logits
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert copied.compile_mode == "default"
        assert copied.predict is not network.predict
        with torch.no_grad():
            torch.testing.assert_close(copied.predict(images)[-1].mask_logits, expected)
            copied.class_head.bias.add_(1), copied.query_embed.weight.mul_(2)
            assert not torch.allclose(copied.predict(images)[-1].mask_logits, expected, atol=1e-2)
            torch.testing.assert_close(network.predict(images)[-1].mask_logits, expected)


def test_off_is_the_plain_method_again(compiled_calls):
    network = model()
    network.compile_predict("default")
    network.compile_predict("off")
    network.predict(torch.randn(1, 3, SIZE, SIZE))
    assert compiled_calls == []
    assert "predict" not in vars(network)


def test_divisible_inference_stays_uncompiled(compiled_calls):
    network = model((0.0, 0.0))
    network.compile_predict("default")
    network.test_mode = "divisible"
    with torch.no_grad():
        network([{"image": torch.zeros(3, 40, 50)}, {"image": torch.zeros(3, 64, 20)}])
        assert compiled_calls == []
        network.test_mode = "square"
        network([{"image": torch.zeros(3, 40, 50)}, {"image": torch.zeros(3, 64, 20)}])
        assert len(compiled_calls) == 1


def test_unknown_mode():
    with pytest.raises(UserError, match="MODEL.COMPILE is 'fast': choose from"):
        make_model().compile_predict("fast")


@pytest.mark.slow
def test_compiled_for_real():
    """Inductor, PyTorch's own code generator: kernels are fused, so results are equal to rounding,
    of which four blocks make up to 1e-4 of logits of size 10."""
    if not shutil.which(os.environ.get("CXX", "g++").split()[0]):
        reason = "torch.compile needs a C++ compiler, and there is no g++ (set $CXX to another)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    network, images = model((0.0, 1.0)), torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network.predict(images)
        network.compile_predict("default")
        actual = network.predict(images)
    assert expected[-1].mask_logits.std() > 1
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.mask_logits, b.mask_logits, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(a.class_logits, b.class_logits, atol=1e-3, rtol=1e-4)
