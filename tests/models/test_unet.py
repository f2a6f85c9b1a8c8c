"""The scaled UNets as Diffusers' models: signatures, files, pipelines, EMA, conversion."""

import copy
import inspect
import json
import subprocess
import sys
import warnings

import denoisers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.training_utils import EMAModel

from dmkit.models import ScaleLongUNet2DConditionModel, ScaleLongUNet2DModel, SkipScaling, apply_skip_scaling

OURS = {"unconditional": ScaleLongUNet2DModel, "conditional": ScaleLongUNet2DConditionModel}
KINDS = pytest.mark.parametrize("kind", OURS)
MODES = pytest.mark.parametrize("mode", ["none", "inv_sqrt2", "cs", "ls"])
OPTIONS = {"skip_kappa": 0.6, "skip_index": "level", "skip_reduction": 4, "skip_shared": False}


def scaled(kind: str, mode: str, **changes):
    torch.manual_seed(0)
    _, blocks = denoisers.KINDS[kind]
    arguments = {**denoisers.SMALL, **blocks, **OPTIONS, **changes}
    return OURS[kind](skip_scaling=mode, **arguments).eval()


@KINDS
def test_the_signature_is_the_parents_and_ours(kind):
    ours, theirs = (inspect.signature(model.__init__).parameters for model in (OURS[kind], OURS[kind].STOCK))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {name: ours[name].default for name in theirs} == {name: p.default for name, p in theirs.items()}
    assert [n for n in ours if n not in theirs] == [
        *("skip_scaling", "skip_kappa", "skip_index", "skip_reduction", "skip_shared", "skip_init_gate")
    ]


@KINDS
@MODES
def test_a_model_with_the_same_seed_has_the_parents_weights_and_the_hooks_effect(kind, mode):
    ours, theirs = scaled(kind, mode), denoisers.stock(kind)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    torch.manual_seed(3)
    apply_skip_scaling(theirs, SkipScaling(mode, 0.6, "level", 4, False))
    theirs.skip_scaler.load_state_dict(ours.skip_scaler.state_dict())
    assert torch.equal(denoisers.run(ours), denoisers.run(theirs))


@KINDS
@MODES
def test_saving_and_loading_is_exact(kind, mode, tmp_path):
    model = scaled(kind, mode)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == OURS[kind].__name__
    again = OURS[kind].from_pretrained(tmp_path)
    assert torch.equal(denoisers.run(again), denoisers.run(model))
    for name in (*denoisers.SMALL, *OPTIONS):
        wanted = {**denoisers.SMALL, **OPTIONS}[name]
        got = again.config[name]
        assert (tuple(got) if isinstance(got, list) else got) == wanted, name


@pytest.mark.parametrize("mode", ["cs", "ls"])
@KINDS
def test_plain_diffusers_loads_the_weights_and_says_what_it_ignores(kind, mode, tmp_path, caplog):
    model = scaled(kind, mode)
    model.save_pretrained(tmp_path)
    for name in ("diffusers.configuration_utils", "diffusers.models.modeling_utils"):
        monitored = __import__("logging").getLogger(name)
        monitored.addHandler(caplog.handler)
    plain = OURS[kind].STOCK.from_pretrained(tmp_path)
    assert "skip_kappa" in caplog.text
    assert "ignored" in caplog.text
    assert ("skip_scaler.gates" in caplog.text) == (mode == "ls")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    # It computes something else: the scaling is no decoration.
    assert (denoisers.run(plain) - denoisers.run(model)).abs().max() > 1e-3


def test_a_saved_pipeline_loads_after_import_dmkit_alone(tmp_path):
    model = scaled("unconditional", "ls")
    DDPMPipeline(unet=model, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "p")
    torch.save(denoisers.run(model), tmp_path / "expected.pt")
    code = (
        "import sys, torch, dmkit\nfrom diffusers import DiffusionPipeline\n"
        f"sys.path.insert(0, {str(denoisers.__file__).rpartition('/')[0]!r})\nimport denoisers\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(tmp_path / 'p')!r})\n"
        f"expected = torch.load({str(tmp_path / 'expected.pt')!r}, weights_only=True)\n"
        "print(type(pipe.unet).__name__, (denoisers.run(pipe.unet) - expected).abs().max().item())\n"
        "images = pipe(num_inference_steps=2, output_type='np').images\nprint(images.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (kind, difference), shape = done.stdout.split("\n")[0].split(), done.stdout.split("\n")[1]
    assert (kind, shape) == ("ScaleLongUNet2DModel", "(1, 8, 8, 1)")
    assert float(difference) < 1e-5  # another process may use other threads, and sum in another order


def test_ema_averages_and_keeps_the_gates(tmp_path):
    model = scaled("unconditional", "ls")
    ema = EMAModel(
        model.parameters(), decay=0.5, model_cls=ScaleLongUNet2DModel, model_config=dict(model.config)
    )
    for _ in range(2):  # the first step only copies
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        ema.step(model.parameters())
    ema.save_pretrained(tmp_path)
    averaged = ScaleLongUNet2DModel.from_pretrained(tmp_path)
    expected = copy.deepcopy(model)
    ema.copy_to(expected.parameters())
    assert torch.equal(denoisers.run(averaged.eval()), denoisers.run(expected))
    assert not torch.equal(denoisers.run(expected), denoisers.run(model))


@KINDS
def test_conversion_takes_weights_config_dtype_and_mode(kind, tmp_path):
    unet = denoisers.stock(kind).train().to(torch.bfloat16)
    ours = OURS[kind].from_unet(unet, skip_scaling="ls", skip_init_gate=0.3)
    assert ours.training
    assert ours.dtype == torch.bfloat16
    assert ours.config.norm_num_groups == 4
    assert ours.config.skip_init_gate == 0.3
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in unet.state_dict().items())
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in denoisers.inputs(ours).items()}
    output = ours(**given).sample
    assert output.dtype == torch.bfloat16
    assert bool(torch.isfinite(output).all())
    with pytest.raises(ValueError, match="has skip scaling already"):
        OURS[kind].from_unet(ours)
    with pytest.raises(TypeError, match=r"Unknown options kappa of skip scaling. Known: skip_scaling"):
        OURS[kind].from_unet(unet, kappa=0.5)


def test_conversion_refuses_another_class_and_warns_of_trained_weights(tmp_path):
    with pytest.raises(TypeError, match="takes a UNet2DModel, not a UNet2DConditionModel"):
        ScaleLongUNet2DModel.from_unet(denoisers.stock("conditional"))
    denoisers.stock("unconditional").save_pretrained(tmp_path)
    trained = UNet2DModel.from_pretrained(tmp_path).eval()
    with pytest.warns(UserWarning, match="trained without skip scaling"):
        changed = ScaleLongUNet2DModel.from_unet(trained)
    assert (denoisers.run(changed) - denoisers.run(trained)).abs().max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = ScaleLongUNet2DModel.from_unet(trained, skip_kappa=1.0)
        ScaleLongUNet2DModel.from_unet(trained, skip_scaling="ls", skip_init_gate=0.98)
        ScaleLongUNet2DModel.from_unet(denoisers.stock("unconditional"))
    assert torch.equal(denoisers.run(start), denoisers.run(trained))
    start.set_skip_kappa(0.7)
    assert torch.equal(denoisers.run(start), denoisers.run(changed))


def test_kappa_can_be_ramped_and_is_saved(tmp_path):
    model = ScaleLongUNet2DModel(**denoisers.SMALL, **denoisers.PLAIN).eval()
    model.set_skip_kappa(0.4)
    model.save_pretrained(tmp_path)
    again = ScaleLongUNet2DModel.from_pretrained(tmp_path)
    assert again.config.skip_kappa == 0.4
    assert torch.equal(denoisers.run(again), denoisers.run(model))
    assert ScaleLongUNet2DModel.from_config(model.config).config.skip_kappa == 0.4
    with pytest.raises(ValueError, match="kappa is 2"):
        model.set_skip_kappa(2)
    with pytest.raises(ValueError, match="this model's mode is 'ls'"):
        scaled("unconditional", "ls").set_skip_kappa(0.5)


@KINDS
@MODES
def test_scaling_can_be_switched_off_and_on(kind, mode):
    model, plain = scaled(kind, mode), denoisers.stock(kind)
    on = denoisers.run(model)
    model.disable_skip_scaling()
    assert torch.equal(denoisers.run(model), denoisers.run(plain))
    model.enable_skip_scaling()
    assert torch.equal(denoisers.run(model), on)
    assert (mode == "none") == torch.equal(on, denoisers.run(plain))


def test_options_are_checked_at_construction():
    with pytest.raises(ValueError, match="Did you mean 'level'"):
        ScaleLongUNet2DModel(**denoisers.SMALL, **denoisers.PLAIN, skip_index="levels")
    with pytest.raises(TypeError, match="skip_kapa"):
        ScaleLongUNet2DModel(skip_kapa=0.5)


def test_a_stock_config_makes_a_scaled_model():
    unet = denoisers.stock("conditional")
    ours = ScaleLongUNet2DConditionModel.from_config(unet.config, skip_scaling="inv_sqrt2")
    assert ours.config.act_fn == "gelu"
    assert isinstance(ours, UNet2DConditionModel)
    assert ours.skip_scaler.coefficient(3) == pytest.approx(0.7071, abs=1e-4)
