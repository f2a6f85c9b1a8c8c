"""Gates by sample, on UNets and transformers."""

import copy

import pytest
import torch
from peft import LoraConfig
from small_models import pixart_output, random_spm, tiny_pixart_transformer, tiny_unet

from dmkit.adapters.spm.gating import gated
from dmkit.adapters.spm.layers import active_adapters, enable, lora_layers
from dmkit.adapters.spm.weights import into_model


@pytest.fixture
def stacked(unet):
    """A UNet with two SPMs of rank 1 and 3, and weights other than 1."""
    into_model(unet, "one", random_spm(unet, seed=1))
    into_model(unet, "three", random_spm(unet, seed=2, rank=3, alpha=2.0))
    enable(unet, {"one": 1.5, "three": 0.8})
    return unet


def hooks_of(model):
    """What `gated` puts on modules."""
    return [
        hook
        for module in model.modules()
        for hook in (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *(value for name, value in vars(module).items() if name == "forward"),
        )
    ]


def test_gates_of_one_are_the_adapters_themselves(stacked, predict):
    on = predict(stacked)
    with gated(stacked, {"one": torch.ones(1), "three": torch.ones(1)}):
        assert torch.allclose(predict(stacked), on, atol=1e-5)


def test_gates_of_zero_are_the_base_to_the_bit(stacked, predict):
    with gated(stacked, {"one": torch.zeros(1), "three": torch.zeros(1)}):
        closed = predict(stacked)
    stacked.disable_lora()
    assert torch.equal(closed, predict(stacked))


def test_each_row_is_what_its_strength_alone_gives(stacked, predict):
    gammas = {"one": torch.tensor([0.2, 1.0, 0.0]), "three": torch.tensor([0.7, 0.0, 1.0])}
    # Two images for each prompt, and both halves of classifier-free guidance.
    with gated(stacked, gammas, images_per_prompt=2):
        rows = predict(stacked, batch=12)
    for p in range(3):
        enable(stacked, {"one": 1.5 * float(gammas["one"][p]), "three": 0.8 * float(gammas["three"][p])})
        alone = predict(stacked, batch=12)
        for b in (2 * p, 2 * p + 1, 6 + 2 * p, 7 + 2 * p):
            assert torch.allclose(rows[b], alone[b], atol=1e-5)


def test_squared_squares_the_weight_too(stacked, predict):
    with gated(stacked, {"one": torch.tensor([0.5]), "three": torch.tensor([0.6])}, mode="squared"):
        squared = predict(stacked)
    enable(stacked, {"one": (1.5 * 0.5) ** 2, "three": (0.8 * 0.6) ** 2})
    assert torch.allclose(squared, predict(stacked), atol=1e-5)
    enable(stacked, {"one": 1.0, "three": 1.0})
    with gated(stacked, {"one": torch.tensor([0.5])}, mode="squared"):
        squared = predict(stacked)
    with gated(stacked, {"one": torch.tensor([0.25])}):
        assert torch.allclose(predict(stacked), squared, atol=1e-6)


def test_nothing_remains(stacked, predict):
    before, state = predict(stacked), active_adapters(stacked)
    trained = [p.requires_grad for p in stacked.parameters()]
    with gated(stacked, {"one": torch.zeros(1)}):
        assert hooks_of(stacked)
    assert not hooks_of(stacked)
    with pytest.raises(RuntimeError, match="within"), gated(stacked, {"one": torch.zeros(1)}):
        raise RuntimeError("within")
    assert not hooks_of(stacked)
    assert active_adapters(stacked) == state
    assert torch.equal(predict(stacked), before)
    assert [p.requires_grad for p in stacked.parameters()] == trained


def test_a_forward_of_somebody_else_runs_once_and_stays(stacked, predict):
    expected, layer = predict(stacked), next(iter(lora_layers(stacked).values()))
    calls, kept = [], layer.forward

    def forward(x):
        calls.append(x)
        return kept(x)

    layer.forward = forward
    with gated(stacked, {"one": torch.ones(1), "three": torch.ones(1)}):
        assert torch.allclose(predict(stacked), expected, atol=1e-5)
    assert len(calls) == 1
    assert layer.forward is forward


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_other_adapters_act_as_they_did(stacked, predict):
    config = LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
    stacked.add_adapter(config, "user")
    enable(stacked, {"user": 0.5, "one": 0.0})
    user = predict(stacked)
    enable(stacked, {"user": 0.5, "one": 1.5, "three": 0.8})
    with gated(stacked, {"one": torch.zeros(1), "three": torch.zeros(1)}):
        assert torch.equal(predict(stacked), user)
        assert active_adapters(stacked) == ["user"]
    assert active_adapters(stacked) == ["user", "one", "three"]


def test_what_is_switched_off_stays_off(stacked, predict):
    enable(stacked, {"one": 1.0})
    one = predict(stacked)
    with gated(stacked, {"one": torch.ones(1), "three": torch.ones(1)}):
        assert torch.allclose(predict(stacked), one, atol=1e-5)
    stacked.disable_lora()
    off = predict(stacked)
    with gated(stacked, {"one": torch.ones(1)}):
        assert torch.equal(predict(stacked), off)


def test_a_scale_of_the_call_multiplies(stacked, predict):
    with gated(stacked, {"one": torch.tensor([0.5]), "three": torch.tensor([1.0])}):
        scaled = predict(stacked, cross_attention_kwargs={"scale": 0.4})
        plain = predict(stacked)
    enable(stacked, {"one": 0.4 * 1.5 * 0.5, "three": 0.4 * 0.8})
    assert torch.allclose(scaled, predict(stacked), atol=1e-5)
    assert not torch.allclose(scaled, plain, atol=1e-3)


def test_equal_gates_are_one_product_where_the_layer_allows_it(stacked, predict):
    """W + U D is what W x + U (γ ⊙ D x) computes; half precision and hooked layers keep to the second."""
    equal = {"one": torch.full((2,), 0.4), "three": torch.full((2,), 0.9)}
    enable(stacked, {"one": 1.5 * 0.4, "three": 0.8 * 0.9})
    expected = predict(stacked, batch=4)
    enable(stacked, {"one": 1.5, "three": 0.8})
    with gated(stacked, equal):
        merged = [layer.forward.__self__.merged for layer in lora_layers(stacked).values()]
        assert all(weight is not None for weight in merged)
        assert torch.allclose(predict(stacked, batch=4), expected, atol=1e-5)
        seen = predict(stacked, batch=4, cross_attention_kwargs={"scale": 0.0})
    stacked.disable_lora()
    assert torch.allclose(seen, predict(stacked, batch=4), atol=1e-6)
    stacked.enable_lora()
    layer = next(iter(lora_layers(stacked).values()))
    calls = []
    handle = layer.get_base_layer().register_forward_hook(lambda *_: calls.append(1))
    with gated(stacked, equal):
        assert layer.forward.__self__.merged is None
        predict(stacked, batch=4)
    handle.remove()
    assert calls
    with gated(stacked.to(torch.bfloat16), equal):
        assert all(layer.forward.__self__.merged is None for layer in lora_layers(stacked).values())


def test_a_batch_that_does_not_fit(stacked, predict):
    with gated(stacked, {"one": torch.tensor([1.0, 0.5, 0.0])}, images_per_prompt=2):
        for batch in (2, 9):
            with pytest.raises(ValueError, match=rf"a batch of {batch}, which is no multiple .* 6 images"):
                predict(stacked, batch=batch)


def test_copies_of_a_gated_model_go_on_alone(stacked, predict):
    with gated(stacked, {"one": torch.tensor([0.3]), "three": torch.tensor([0.3])}):
        here = predict(stacked)
        twin = copy.deepcopy(stacked)
    assert torch.equal(predict(twin), here)
    for parameter in stacked.parameters():
        parameter.data.zero_()
    assert torch.equal(predict(twin), here)


def test_gradients_pass_through(stacked):
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with gated(stacked, {"one": torch.tensor([0.3])}):
        stacked(x, torch.tensor(7), encoder_hidden_states=torch.randn(1, 5, 16)).sample.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_half_precision_closed_is_the_base():
    unet = tiny_unet().half()
    into_model(unet, "spm", random_spm(unet, size=3.0))
    draws = torch.Generator().manual_seed(0)
    x, context = (torch.randn(2, *size, generator=draws).half() for size in ((4, 8, 8), (5, 16)))
    with torch.no_grad(), gated(unet, {"spm": torch.tensor([0.0, 1.0])}):
        closed, opened = unet(x, torch.tensor(7), encoder_hidden_states=context).sample
    unet.unload_lora()
    with torch.no_grad():
        base = unet(x, torch.tensor(7), encoder_hidden_states=context).sample
    assert torch.equal(closed, base[0])
    assert base.isfinite().all()
    assert not torch.equal(opened, base[1])


def test_transformers_without_diffusers_methods():
    model = tiny_pixart_transformer()
    plain = pixart_output(model)
    into_model(model, "spm", random_spm(model))
    enable(model, {"spm": 0.5})
    half = pixart_output(model)
    enable(model, {"spm": 1.0})
    with gated(model, {"spm": torch.tensor([0.5, 0.0])}):
        rows = pixart_output(model)
    assert torch.allclose(rows[0], half[0], atol=1e-5)
    assert torch.equal(rows[1], plain[1])
    assert not hooks_of(model)
    assert lora_layers(model)
