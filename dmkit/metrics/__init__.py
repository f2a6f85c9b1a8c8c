"""Figures for generated images (Fréchet distance, KID, precision and recall, diversity), for images against
their prompts, and for round trips.

    from dmkit import data, metrics

    test = data.load("fashion-mnist", split="test", resolution=32)
    metrics.evaluate_images(samples, test)  # {"frechet_efficientnet_lite0": …, …}
    metrics.psnr(reconstruction, original)

Results bear the name of the features that they compare. A Fréchet distance is called FID only where the
features are those of Inception-v3, which none of the packages here carries.
"""

from .distances import pairwise_diversity, precision_recall
from .erasure import concept_share, drift
from .evaluate import FeatureSet, describe, evaluate_images
from .evaluator import PromptEvaluator
from .features import EfficientNetLite0, Extractor
from .frechet import Moments, frechet_distance, frechet_interval
from .kernel import Estimate, kid
from .prompts import (
    concept_accuracy,
    concept_recall,
    evaluate_prompts,
    named_concepts,
    retrieval,
)
from .roundtrip import max_abs_error, pixel_error, psnr, round_trip_error, ssim

__all__ = [
    "EfficientNetLite0",
    "Estimate",
    "Extractor",
    "FeatureSet",
    "Moments",
    "PromptEvaluator",
    "concept_accuracy",
    "concept_recall",
    "concept_share",
    "describe",
    "drift",
    "evaluate_images",
    "evaluate_prompts",
    "frechet_distance",
    "frechet_interval",
    "kid",
    "max_abs_error",
    "named_concepts",
    "pairwise_diversity",
    "pixel_error",
    "precision_recall",
    "psnr",
    "retrieval",
    "round_trip_error",
    "ssim",
]
