"""Linear CKA: how alike two layers see the same rows, whatever rotation or scale lies between them.

CKA is HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with linear kernels (Kornblith et al. 2019, arXiv 1905.00414). With the
plain HSIC it grows with the width of the layers when rows are few; here HSIC is the unbiased estimator (Song et al.
2012, JMLR 13, equation 5; Nguyen et al. 2021, arXiv 2010.15327, equation 3), over all rows at once, no
minibatches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_radapt.utils.errors import UserError


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Unbiased linear CKA of two layers [n, D] and [n, D'], whose rows belong together; at most 1, around 0 (also a
    little below) for layers that have nothing in common, NaN where a layer is the same for all rows.

    UserError for fewer than 4 rows.
    """
    return float(cka_matrix([x], [y])[0, 0])


def cka_matrix(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """float64 [len(xs), len(ys)] on the CPU: `linear_cka` of each pair."""
    rows = {len(one) for one in (*xs, *ys)}
    if len(rows) != 1 or min(rows) < 4:
        raise UserError(f"CKA needs layers of equally many rows, 4 or more, got {', '.join(map(str, sorted(rows)))}")
    left, right = [_prepared(x) for x in xs], [_prepared(y) for y in ys]
    own = torch.stack([_hsic(x, x) for x in left])[:, None] * torch.stack([_hsic(y, y) for y in right])
    both = torch.stack([torch.stack([_hsic(x, y) for y in right]) for x in left])
    return torch.where(own > 0, both / own.clamp_min(torch.finfo(own.dtype).tiny).sqrt(), torch.nan).cpu()


def _prepared(x: Tensor) -> Tensor:
    """Centred, which changes nothing but rounding, and scaled, so that no product overflows."""
    x = x.detach().double()
    x = x - x.mean(0)
    scale = x.square().mean().sqrt()
    return x / scale if scale > 0 else x


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimator for the kernels K = x x' and L = y y', from the features: no n by n matrix is made.

    (tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 / (n-2) 1'KL1) / (n(n-3)), the diagonals of K and L set to 0.
    """
    n = len(x)
    k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741
    rows_k, rows_l = x @ x.sum(0) - k, y @ y.sum(0) - l
    trace = (x.T @ y).square().sum() - k @ l
    joint = rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
    return (trace + joint - 2 / (n - 2) * (rows_k @ rows_l)) / (n * (n - 3))
