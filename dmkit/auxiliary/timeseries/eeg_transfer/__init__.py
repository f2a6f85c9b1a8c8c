"""EEG transfer takes a classifier of clinical EEG from a hospital with many labelled recordings to one with
few, and says where that helps, where it harms and what is forgotten: Darvishi-Bayazi et al., *Amplifying
Pathological Detection in EEG Signaling Pathways through Cross-Dataset Transfer Learning*, Computers in
Biology and Medicine 169, 2024, arXiv 2309.10910.

A dense network f gives logits at P positions of a window x; a recording R has the windows x_1, x_2, ...:

    loss = CE(1/P Σ_p f(x)_p, y)                                       cropped training                (1)
    p(R) = mean over windows and positions of softmax(f(x_j)_p)        one decision a recording        (2)
    balanced accuracy = mean over classes of the share that is recognised                             (3)
    lr_l = lr / r^(L - l), L the head                                  discriminative fine-tuning      (4)
    CKA(A, B) = ‖BᵀA‖² / (‖AᵀA‖ ‖BᵀB‖), columns centred                how much training changed       (5)
    gain = (3) after transfer - (3) from scratch, below 0: negative transfer                          (6)
    forgetting = (3) on the source's test before - after                                              (7)

    source = fit(EEGNetwork.build("shallow", recordings.signal), recordings, training, valid=others)
    report = fraction_sweep(source, target, test, training, fractions=(0.05, 1.0))
    report.negative()

`preprocessing` makes recordings of MNE alike, `files` finds and reads folders in the layouts of TUAB, NMT and
BIDS, `recordings` keeps them and cuts windows; `networks` has braindecode's networks, or any module, with
their contract; `transfer` (1) and (4) as a task of the trainer, `predicting` (2), (3) and (5), `sweep` (6)
and (7); `hospitals` makes two hospitals that need no download.
"""

from .files import Entry, find, find_bids, find_nmt, find_tuab, prepare
from .hospitals import hospital
from .networks import NETWORKS, EEGNetwork
from .predicting import evaluate, linear_cka, predict_proba, shortcut, similarity
from .preprocessing import EEGPreprocessor
from .recordings import EEGWindows, Recordings, check_disjoint, windows_from_raws
from .signal import CHANNELS, Signal
from .sweep import Report, fraction_sweep
from .transfer import STRATEGIES, Transfer, adapt, fit

__all__ = [
    "CHANNELS",
    "NETWORKS",
    "STRATEGIES",
    "EEGNetwork",
    "EEGPreprocessor",
    "EEGWindows",
    "Entry",
    "Recordings",
    "Report",
    "Signal",
    "Transfer",
    "adapt",
    "check_disjoint",
    "evaluate",
    "find",
    "find_bids",
    "find_nmt",
    "find_tuab",
    "fit",
    "fraction_sweep",
    "hospital",
    "linear_cka",
    "predict_proba",
    "prepare",
    "shortcut",
    "similarity",
    "windows_from_raws",
]
