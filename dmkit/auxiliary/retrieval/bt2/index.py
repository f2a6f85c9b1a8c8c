"""A stored gallery that is searched without ranking all of it: scikit-learn's neighbours, exact.

Its trees want distances, where vectors here are compared by products over their first n entries. With one
more entry, of the length that a vector lacks to the longest, both have one order (Bachrach et al., *Speeding
Up the Xbox Recommender System Using a Euclidean Transformation for Inner-Product Spaces*, RecSys 2014):

    g' = (g[:n], sqrt(M² - |g[:n]|²)),   q' = (q[:n], 0),   |q' - g'|² = |q[:n]|² + M² - 2 <q[:n], g[:n]>
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ....errors import MissingExtraError
from .scoring import common_prefix


class GalleryIndex:
    """Finds the items of a gallery that score highest, for queries of its own model or another of the chain.

    A gallery is stored as it is and never computed anew; for every length of query there is one tree.

    Args:
        gallery: (G, d), of one model.
        lengths: see `common_prefix`.
        algorithm: of `sklearn.neighbors.NearestNeighbors`: `auto`, `ball_tree`, `kd_tree` or `brute`.

    Raises:
        MissingExtraError: scikit-learn is not installed; it comes with the extra `metrics`.
        ValueError: vectors that are no rows of finite numbers, or none.
    """

    def __init__(self, gallery: Tensor, lengths: Collection[int] | None = None, *, algorithm: str = "auto"):
        try:
            import sklearn.neighbors  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "metrics") from error
        if gallery.ndim != 2 or not len(gallery) or not gallery.isfinite().all():
            raise ValueError(f"A gallery is rows of finite numbers, (G, d), not of {tuple(gallery.shape)}.")
        self.gallery = gallery.detach().to("cpu", torch.float64)
        self.lengths, self.algorithm = lengths, algorithm
        self._trees: dict[int, Any] = {}

    def search(self, query: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """The k best items of each query.

        Args:
            query: (Q, a), of one model; longer or shorter than the gallery's vectors.
            k: at least 1, at most G.

        Returns:
            Scores (Q, k), falling, those of `compatible_scores`; and places in the gallery (Q, k), int64.
            Items of equal score are in no particular order.

        Raises:
            ValueError: a k out of range, or as `common_prefix`.
        """
        if not 1 <= k <= len(self.gallery):
            raise ValueError(f"k is 1 to {len(self.gallery)}, the items of the gallery, not {k}.")
        shared = common_prefix(query, self.gallery, self.lengths)
        cut = query[:, :shared].detach().to("cpu", torch.float64)
        padded = torch.nn.functional.pad(cut, (0, 1))
        places = torch.from_numpy(self._tree(shared).kneighbors(padded.numpy(), k, return_distance=False))
        scores = torch.einsum("qd,qkd->qk", cut, self.gallery[places][..., :shared])
        # Products are more exact than differences of squares: the last digits may want another order.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores, places.gather(1, order)

    def _tree(self, shared: int) -> Any:
        from sklearn.neighbors import NearestNeighbors

        if shared not in self._trees:
            rows = self.gallery[:, :shared]
            squares = rows.square().sum(1, keepdim=True)
            lack = (squares.max() - squares).clamp_min(0).sqrt()
            tree = NearestNeighbors(algorithm=self.algorithm)
            self._trees[shared] = tree.fit(torch.cat([rows, lack], 1).numpy())
        return self._trees[shared]
