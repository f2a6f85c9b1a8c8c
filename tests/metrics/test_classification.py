import pytest
import torch

from dmkit.metrics.classification import (
    accuracy,
    average_accuracy,
    backward_transfer,
    forward_transfer,
    predict,
)

R = [[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.6, 0.8, 0.5]]


def test_accuracy_counts_the_largest_logit():
    inputs = torch.eye(4)
    assert accuracy(lambda x: x, inputs, torch.tensor([0, 1, 2, 0])) == 0.75


def test_prediction_is_in_eval_mode_and_leaves_the_mode():
    model = torch.nn.Dropout(0.5)
    assert torch.equal(predict(model, torch.ones(600, 3), batch_size=7), torch.ones(600, 3))
    assert model.training


def test_transfer_figures():
    assert average_accuracy(R) == pytest.approx(1.9 / 3)
    assert backward_transfer(R) == pytest.approx((-0.3 + 0.1) / 2)
    assert forward_transfer(R, [0.9, 0.6, 0.6]) == pytest.approx((0.1 - 0.1) / 2)
    assert (backward_transfer([[0.5]]), forward_transfer([[0.5]], [0.4])) == (0.0, 0.0)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"accuracies of T tasks after each of T tasks, not \(1, 2\)"):
        average_accuracy([[0.1, 0.2]])
    with pytest.raises(ValueError, match="2 reference accuracies for 3 tasks"):
        forward_transfer(R, [0.1, 0.2])
