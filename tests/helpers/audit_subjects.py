"""A small sound classifier as an audit's target, and the same with one flaw planted in it."""

import torch
from torch.nn import functional as F

from attacks import apgd
from attacks.eight_bit import to_8bit
from eval_tasks.audit import AuditTarget

B, SIDE, EPS, STEPS = 8, 12, 4 / 255, 8


class Net:
    """Three classes by linear templates and a bend; `classify(x) -> [b, 3]` logits. Its labels are its own answers."""

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.first = torch.randn(3 * SIDE * SIDE, 32, generator=g) / 4
        self.second = torch.randn(32, 3, generator=g)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh((x - 0.5).flatten(1) @ self.first) @ self.second


def sound(logits=None, undefended="same") -> AuditTarget:
    """The target without a flaw; `logits(x) -> [b, 3]` takes the place of the net's own."""
    net = Net()
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (B, 3, SIDE, SIDE), generator=g).float() / 255
    labels = net.classify(x).argmax(1)
    logits = logits or net.classify

    def loss_of(function):
        return lambda x, index: F.cross_entropy(function(x), labels[index], reduction="none")

    def answers(x, index):
        with torch.no_grad():
            return [str(int(c)) for c in logits(x).argmax(1)]

    def score(texts, index):
        return [100.0 * (t == str(int(labels[i]))) for t, i in zip(texts, index, strict=True)]

    loss = loss_of(logits)

    def craft(eps, steps):
        return to_8bit(apgd(loss, x, eps=eps, steps=steps).x_adv, x, eps=eps, norm="Linf")

    def blurred(x):
        return net.classify(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))

    def targeted(x, index):
        return logits(x)[:, 0] - logits(x).logsumexp(1)

    return AuditTarget(
        x=x,
        loss=loss,
        eps=EPS,
        steps=STEPS,
        undefended=loss_of(blurred) if undefended == "same" else undefended,
        targeted={"class 0": targeted},
        half=lambda x, index: loss(x.bfloat16().float(), index),
        answers=answers,
        score=score,
        logits=lambda x, index: logits(x),
        labels=labels,
        craft=craft,
        prompts=lambda: (["what is it?"] * B, ["what is it?"] * B),
        batch_size=B,
    )
