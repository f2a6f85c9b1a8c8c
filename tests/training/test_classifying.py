"""Classification by the trainer, its small networks, SGD, and rules about the applied step."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from dmkit.data import Rows
from dmkit.data.digits import digit_tensors
from dmkit.metrics.classification import accuracy
from dmkit.training.arguments import TrainingArguments
from dmkit.training.classifying import ClassificationTask
from dmkit.training.networks import MLP, ConvNet
from dmkit.training.rules import GradientRule
from dmkit.training.trainer import Trainer


def arguments(folder, **changes):
    given = {
        "output_dir": str(folder),
        "train_batch_size": 32,
        "max_train_steps": 120,
        "learning_rate": 0.1,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "optimizer": "sgd",
        "max_grad_norm": 0.0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
        **changes,
    }
    return TrainingArguments(**given)


def train(folder, model=None, task=None, rule=None, **changes):
    torch.manual_seed(0)
    images, labels = digit_tensors(seed=0)
    task = task or ClassificationTask(model or MLP((64, 32, 10)))
    data = Rows(inputs=images[:1200], labels=labels[:1200])
    rules = {} if rule is None else {"rule": rule}
    Trainer(task, data, arguments(folder, **changes), **rules).train()
    return task.modules["model"]


def test_digits_are_learned(tmp_path):
    images, labels = digit_tensors(seed=0)
    model = train(tmp_path, ConvNet(blocks=((8,), (16,))), max_train_steps=400, sgd_momentum=0.9)
    assert accuracy(model, images[1200:], labels[1200:]) > 0.9
    loaded = ConvNet.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded(images[:8]), model(images[:8]))


def test_augmentation_sees_new_draws_every_step(tmp_path):
    seen = []

    def augment(inputs, draws):
        seen.append(draws.normal((1,)).item())
        return inputs

    train(tmp_path, task=ClassificationTask(MLP((64, 10)), augment=augment), max_train_steps=3)
    assert len(set(seen)) == 3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_resumes_exactly(tmp_path, momentum):
    straight = train(tmp_path / "straight", max_train_steps=12, sgd_momentum=momentum)
    saved = {"checkpointing_steps": 5, "sgd_momentum": momentum}
    train(tmp_path / "parts", max_train_steps=5, **saved)
    resumed = train(tmp_path / "parts", max_train_steps=12, resume_from_checkpoint="latest", **saved)
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))


def test_a_rule_may_change_the_applied_step(tmp_path):
    class Frozen(GradientRule):
        @contextmanager
        def stepping(self, parameters):
            before = parameters[0].detach().clone()
            yield
            assert not torch.equal(before, parameters[0])
            parameters[0].data.copy_(before)

    torch.manual_seed(0)
    first = MLP((64, 32, 10)).layers[0].weight.detach().clone()
    model = train(tmp_path, rule=Frozen(), max_train_steps=3, optimizer="adamw", learning_rate=1e-3)
    assert torch.equal(model.layers[0].weight, first)


def test_groups_have_rates_of_their_own(tmp_path):
    class Slow(ClassificationTask):
        def parameter_groups(self, parameters):
            return [{"params": parameters[1:]}, {"params": parameters[:1], "lr": 0.0}]

    torch.manual_seed(0)
    network = MLP((64, 32, 10))
    first = network.layers[0].weight.detach().clone()
    model = train(tmp_path, task=Slow(network), max_train_steps=3)
    assert torch.equal(model.layers[0].weight, first)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"Unknown --optimizer 'sdg'\. Did you mean 'sgd'"):
        TrainingArguments(optimizer="sdg")
    with pytest.raises(ValueError, match="at least an input and an output"):
        MLP((3,))
    with pytest.raises(ValueError, match="Columns of one length"):
        Rows(inputs=torch.zeros(3), labels=torch.zeros(4))


def test_networks_have_the_shapes_that_they_are_asked_for():
    net = MLP((64, 100, 100, 10), bias=False)
    assert sum(p.numel() for p in net.parameters()) == 64 * 100 + 100 * 100 + 100 * 10
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    convolutions = [m for m in ConvNet().modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [24, 24, 48, 48]
    assert ConvNet(in_channels=3, classes=7)(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
