"""FAB, Square and the standard AutoAttack ensemble from the official code (package `pyautoattack`), as they are.

The library draws its noise for a whole batch from torch's global generator: a sample's result depends on the batch it
is in. The generator's state is put back afterwards.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from attacks.norms import Norm, check_ball, check_images, project

BatchLogits = Callable[[Tensor], Tensor]
"""`logits(x) -> [b, K]`, whichever samples x holds: the library does not say which they are."""

TARGETS = 9
"""Wrong classes that the targeted attacks of AutoAttack try, the most likely ones."""


class LibraryMissingError(ImportError):
    """The library is not installed."""


def fab(
    logits: BatchLogits,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "Linf",
    steps: int = 100,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """FAB-T (Croce & Hein 2020, arXiv 1907.02044): the nearest point that is fooled, towards each of the 9 most likely
    wrong classes in turn.

    logits: [b, K >= 2]. x: [B, C, H, W] in [0, 1]. labels: int64 [B]. Returns [B, C, H, W] in x's dtype: the point
    found where it lies within `eps`, else x itself. Raises ValueError for bad images or budget and
    LibraryMissingError.
    """
    require_library()
    from pyautoattack.fab_pt import FABAttack_PT

    with _run(logits, x, eps, norm, seed, least=2) as (own, start, number, classes):
        attack = FABAttack_PT(
            own, norm=norm, n_restarts=1, n_iter=steps, eps=eps, seed=number, targeted=True, device=x.device,
            n_target_classes=min(TARGETS, classes - 1),
        )  # fmt: skip
        return project(attack.perturb(start, labels.to(x.device)).to(x), x, eps, norm)


def square(
    logits: BatchLogits,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "Linf",
    queries: int = 5000,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search without gradients, with the settings
    of AutoAttack. Arguments and errors as for `fab`; returns x where it found nothing."""
    require_library()
    from pyautoattack.square import SquareAttack

    with _run(logits, x, eps, norm, seed, least=2) as (own, start, number, _), torch.no_grad():
        attack = SquareAttack(
            own, p_init=0.8, n_queries=queries, eps=eps, norm=norm, n_restarts=1, seed=number, device=x.device,
            resc_schedule=False,
        )  # fmt: skip
        return project(attack.perturb(start, labels.to(x.device)).to(x), x, eps, norm)


def standard(
    logits: BatchLogits,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "Linf",
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
) -> tuple[Tensor, list[str]]:
    """The ensemble that "AutoAttack" stands for (arXiv 2003.01690), all of it the library's: APGD-CE, APGD-T and
    FAB-T with 9 targets (with all wrong classes where there are fewer), Square with 5000 queries.

    logits: [b, K >= 4]; the rest as for `fab`, `batch_size` at a time (None: all at once). Returns the images, x where
    nothing was found, and what the library says of an evaluation that looks broken.
    """
    require_library()
    from pyautoattack import AutoAttack

    remarks = _Remarks()
    with _run(logits, x, eps, norm, seed, least=4) as (own, start, number, classes), remarks.kept():
        ensemble = AutoAttack(own, eps=eps, norm=norm, seed=number, device=x.device, version="standard")
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = min(TARGETS, classes - 1)
        found, _ = ensemble.run_standard_evaluation(
            start, labels.to(x.device), batch_size=len(x) if batch_size is None else batch_size
        )
        return project(found.to(x), x, eps, norm), remarks.texts


def require_library() -> None:
    """LibraryMissingError unless the official code can be imported."""
    try:
        import pyautoattack  # noqa: F401
    except ImportError as error:
        raise LibraryMissingError(
            "FAB, Square and the standard AutoAttack come from a library that is not installed: "
            "pip install 'lvlm-radapt[autoattack]'"
        ) from error


@contextmanager
def _run(
    logits: BatchLogits, x: Tensor, eps: float, norm: Norm, seed: int | Sequence[int], *, least: int
) -> Iterator[tuple[BatchLogits, Tensor, int, int]]:
    """(logits in float32, x in float32, one seed, the number of classes) for a run of the library."""
    check_images(x)
    check_ball(eps, norm)
    start = x.detach().float()

    def own(points: Tensor) -> Tensor:
        return logits(points).float()

    with torch.no_grad():
        classes = own(start[:1]).shape[1]
    if classes < least:
        raise ValueError(f"this attack needs at least {least} classes, the classifier has {classes}")
    digest = hashlib.blake2b(repr(seed if isinstance(seed, int) else list(seed)).encode(), digest_size=4).digest()
    tracer = sys.gettrace()  # the library's check for dynamic defences drops a debugger's or coverage's
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        try:
            yield own, start, int.from_bytes(digest, "big"), classes
        finally:
            sys.settrace(tracer)


class _Remarks(logging.Handler):
    """The library's warnings, kept in place of being printed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self.texts:
            self.texts.append(text)

    @contextmanager
    def kept(self) -> Iterator[None]:
        logger = logging.getLogger("auto-attack")
        spread = logger.propagate
        logger.propagate = False
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = spread
