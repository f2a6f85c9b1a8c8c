"""Fits how a task's score after fine-tuning grows with the data of pre-training, predicts it for more data
with an interval, and says whether more of that data is worth its compute: Isik et al., *Scaling Laws for
Downstream Task Performance of Large Language Models*, ICLR 2025, arXiv 2402.04177.

    f(D) = (log(A D^α))^β                        a score, such as BLEU                               (1)
    L(D) = E + A / D^α                           cross-entropy, or another error                     (3)

both by the least sum of Huber losses of log residuals, (6) and (7), from the smallest D on.

    early = fit(LogLaw(), tokens, bleu, first=4)
    early.predict(1e11), early.interval(1e11)
    diagnose(tokens, bleu).reason

`laws` has the two laws, `curves` the measured scores, `fitting` the fits, `deciding` the guide, `plots` a
picture.
"""

from .curves import Curve, read_csv
from .deciding import Candidate, Diagnosis, compare, diagnose, language_alignment, trend
from .fitting import Fit, fit
from .laws import LogLaw, PowerLaw
from .plots import plot

__all__ = [
    "Candidate",
    "Curve",
    "Diagnosis",
    "Fit",
    "LogLaw",
    "PowerLaw",
    "compare",
    "diagnose",
    "fit",
    "language_alignment",
    "plot",
    "read_csv",
    "trend",
]
