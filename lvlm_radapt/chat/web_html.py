"""What the web chat shows, as HTML. Whatever a user or a model said is escaped; pictures are part of the page, so that
no file needs to be served."""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attacks.eps import eps_text
from eval_tasks.report.figures import DIFFERENCE_GAIN, difference_image, png_uri
from eval_tasks.report.html_templates import data_uri
from lvlm_radapt.chat.commands import Attack, Side
from lvlm_radapt.chat.session import Attacked, Exchange
from lvlm_radapt.chat.web_visitor import View, Visitor

NAMES: dict[Side, str] = {"plain": "Undefended", "defended": "Defended"}
_COARSE = 256  # pixels: smaller canvases are shown with their pixels as squares


def notice(visitor: Visitor) -> str:
    """What went wrong."""
    said = visitor.view.notice
    return f'<p class="ra-notice" role="alert">{escape(said)}</p>' if said else ""


def original(visitor: Visitor) -> str:
    """The image on the model's canvas."""
    clean = visitor.clean
    if clean is None:
        return _empty("Original", "upload an image, or pick a sample")
    return _figure("Original", clean, f"{clean.shape[2]} x {clean.shape[1]} pixels, as the model gets it")


def adversarial(visitor: Visitor) -> str:
    """The attacked image, or where the attack in hand stands; with a link that saves the exact one."""
    attacked, point, made = visitor.attacked, visitor.view.point, visitor.view.found
    if point is not None:
        return _figure("Adversarial", point, "on its way")
    if attacked is None or made is None:
        return _empty("Adversarial", "nothing attacked yet")
    order, found = made
    link = f'<a class="ra-save" download="adversarial.png" href="{_exact(attacked)}">Save PNG</a>'
    return _figure("Adversarial", attacked, f"largest change {found.linf}/255 (eps {eps_text(order.eps)})", link)


def difference(visitor: Visitor) -> str:
    """What the attack changed, magnified."""
    title = f"Difference x{DIFFERENCE_GAIN}"
    clean, attacked, point = visitor.clean, visitor.attacked, visitor.view.point
    now = attacked if point is None else point
    if clean is None or now is None:
        return _empty(title, "grey is no change")
    picture = difference_image(_rows(clean), _rows(now))
    return _figure(title, picture, "around grey")


def progress(visitor: Visitor) -> str:
    """How far the attack is and its loss by step; then what it did."""
    view = visitor.view
    if view.order is None:
        return ""
    order, losses, done = view.order, view.losses, max(len(view.losses) - 1, 0)
    if view.stage == "waiting":
        before = "one attack" if view.ahead == 1 else f"{view.ahead} attacks"
        said = f"Waiting for {before} of others" if view.ahead else "Beginning"
        return f'<div class="ra-progress" data-stage="waiting"><p>{said} ...</p></div>'
    if view.stage == "attacking":
        said = f"<p><b>Step {done} of {order.steps}</b> {_measure(order)} {losses[-1]:.3f}</p>" if losses else ""
        bar = f'<progress max="{order.steps}" value="{done}"></progress>'
        return f'<div class="ra-progress" data-stage="attacking">{said}{bar}{_curve(losses, order.steps)}</div>'
    if view.stage == "stopped":
        said = f"<p>Stopped after step {done} of {order.steps}: the image stays as it was.</p>"
        return f'<div class="ra-progress" data-stage="stopped">{said}</div>'
    if view.found is None:
        return ""
    return f'<div class="ra-progress" data-stage="done">{_outcome(*view.found)}{_curve(losses, order.steps)}</div>'


def conversation(visitor: Visitor) -> str:
    """Question by question, the two models' answers side by side; the last ones as they come."""
    view = visitor.view
    exchanges = list(visitor.exchanges)
    asking = view.stage == "asking"
    first = exchanges.pop() if asking and view.again and exchanges else None
    turns = [_turn(exchange) for exchange in exchanges]
    if asking:
        before = first.first if first is not None else {}
        turns.append(_columns(view.asked, {side: _pending(side, view, before) for side in NAMES}))
    if not turns:
        turns = [
            '<p class="ra-nothing">Ask both models something about the image: their answers stand side by side.</p>'
        ]
    return f'<div class="ra-talk" aria-live="polite" data-asking="{str(asking).lower()}">{"".join(turns)}</div>'


def tower(visitor: Visitor) -> str:
    """What the settings of the defence do: the image behind the filter, the answer now beside the undefended one."""
    now = visitor.filtered()
    if now is None:
        words = "Choose an image in the chat and ask something: here the answer follows the knobs."
        return f'<p class="ra-nothing">{words}</p>'
    seen = "behind the filter" if visitor.settings.cutoff is not None else "no filter"
    picture = _figure("What the tower gets", now, f"{'attacked' if visitor.is_attacked else 'clean'} image, {seen}")
    if not visitor.exchanges:
        return f'<div class="ra-tower">{picture}<p class="ra-nothing">Ask something in the chat first.</p></div>'
    last = visitor.exchanges[-1]
    question, answer = visitor.view.tuned or ("", "")
    tuned = answer if question == last.question else last.answers["defended"]
    cells: dict[Side, str] = {"plain": _said(last.answers["plain"]), "defended": _said(tuned)}
    return f'<div class="ra-tower">{picture}{_columns(last.question, cells)}</div>'


def settings(visitor: Visitor) -> str:
    """The model and the defence the user talks to."""
    words = escape(visitor.settings.describe())
    return f'<p class="ra-settings"><b>{escape(visitor.model.label)}</b> against itself with {words}</p>'


PARTS = (notice, settings, original, adversarial, difference, progress, conversation, tower)
"""What the page shows of a visitor. Each goes into the page's part of the same name."""


def picture_uri(image: Image.Image) -> str:
    """A sample as it stands on its button."""
    return png_uri(np.asarray(image.convert("RGB")))


def _turn(exchange: Exchange) -> str:
    again = exchange.first is not exchange.answers
    cells: dict[Side, str] = {}
    for side, answer in exchange.answers.items():
        if again:
            changed = answer != exchange.first[side]
            mark = '<b class="ra-broke">changed</b>' if changed else '<b class="ra-held">the same</b>'
            after = (
                f'<span class="ra-when">after the attack, {mark}</span>{_answer(_marked(exchange.first[side], answer))}'
            )
            cells[side] = _said(exchange.first[side], "before") + after
        else:
            cells[side] = _said(answer, "attacked image" if exchange.image == "adversarial" else "clean image")
    return _columns(exchange.question, cells)


def _pending(side: Side, view: View, before: Mapping[Side, str]) -> str:
    earlier = _said(before[side], "before") if side in before else ""
    return earlier + (_said(view.said[side], "answering") if side in view.said else '<p class="ra-wait">...</p>')


def _columns(question: str, cells: Mapping[Side, str]) -> str:
    columns = "".join(f'<div class="ra-{side}"><h4>{NAMES[side]}</h4>{cell}</div>' for side, cell in cells.items())
    asked = f'<p class="ra-question">{escape(question)}</p>'
    return f'<section class="ra-turn">{asked}<div class="ra-two">{columns}</div></section>'


def _said(text: str, when: str = "") -> str:
    label = f'<span class="ra-when">{when}</span>' if when else ""
    return label + _answer(escape(text))


def _answer(html: str) -> str:
    return f'<p class="ra-answer">{html or "(nothing)"}</p>'


def _marked(before: str, after: str) -> str:
    """`after`, with the words marked that are not in `before`."""
    old, new = before.split(), after.split()
    parts = []
    for kind, _, _, first, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        words = escape(" ".join(new[first:end]))
        if words:
            parts.append(words if kind == "equal" else f"<mark>{words}</mark>")
    return " ".join(parts)


def _outcome(order: Attack, found: Attacked) -> str:
    on = "the defended model (adaptive: it knows the defence)" if found.on == "defended" else (
        "the undefended model (transfer, for the defended one)")  # fmt: skip
    zero = " The gradient was zero throughout: this attack says nothing." if found.zero_grad else ""
    return (
        f"<p>Attacked {on}, {order.loss}, Linf {eps_text(order.eps)}, {order.steps} steps: {_measure(order)} "
        f"{found.before:.3f} &rarr; <b>{found.after:.3f}</b>.{zero}</p>"
    )


def _measure(order: Attack) -> str:
    return "loss of the answer" if order.reads_answer else "distance of the image tokens"


def _curve(losses: Sequence[float], steps: int) -> str:
    """The loss by step as a line; it needs no axis, only its rise is to be seen."""
    if len(losses) < 2:
        return ""
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    points = " ".join(f"{200 * i / steps:.1f},{38 - 34 * (value - low) / span:.1f}" for i, value in enumerate(losses))
    return (
        f'<svg class="ra-curve" viewBox="0 0 200 42" preserveAspectRatio="none" role="img" '
        f'aria-label="loss by step, from {losses[0]:.3f} to {losses[-1]:.3f}"><polyline points="{points}"/></svg>'
    )


def _figure(title: str, pixels: Tensor | NDArray[np.uint8], words: str, more: str = "") -> str:
    rows = pixels if isinstance(pixels, np.ndarray) else _rows(pixels)
    coarse = ' class="ra-coarse"' if max(rows.shape) < _COARSE else ""
    return (
        f'<figure class="ra-figure"><div class="ra-frame"><img{coarse} src="{png_uri(rows)}" alt="{title}"></div>'
        f"<figcaption><b>{title}</b> <span>{escape(words)}</span>{more}</figcaption></figure>"
    )


def _empty(title: str, words: str) -> str:
    return (
        f'<figure class="ra-figure"><div class="ra-frame ra-empty"></div><figcaption><b>{title}</b> '
        f"<span>{escape(words)}</span></figcaption></figure>"
    )


def _exact(pixels: Tensor) -> str:
    """The PNG of all pixels, as `eval` writes it into a run folder."""
    out = io.BytesIO()
    Image.fromarray(_rows(pixels)).save(out, format="PNG")
    return data_uri("image/png", out.getvalue())


def _rows(pixels: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
