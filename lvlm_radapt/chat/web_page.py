"""The web chat's page: its parts, and what happens when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from fastapi import FastAPI
from PIL import Image
from starlette.types import ASGIApp

from lvlm_radapt.chat.commands import Attack, Loss, Side
from lvlm_radapt.chat.web_guard import Uploads
from lvlm_radapt.chat.web_html import PARTS, picture_uri
from lvlm_radapt.chat.web_visitor import FORMATS, LONGEST_QUESTION, Engine, Visitor

_SYSTEM_FONT = [gr.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")]
_SYSTEM_MONO = [gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
_THEME = gr.themes.Base(
    primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=_SYSTEM_FONT, font_mono=_SYSTEM_MONO
)
_STYLE = Path(__file__).with_name("web.css")
_SUFFIXES = [".png", ".jpg", ".jpeg", ".webp"]
_GONE = '<p class="ra-notice" role="alert">this chat was forgotten: load the page again</p>'
_LARGEST_EPS, _MOST_STEPS = 32, 100

Update = dict[Any, Any]
Act = Callable[..., Iterator[None]]


Sample = tuple[str, Image.Image]
"""An image to pick, and its name."""


def make_app(
    engine: Engine, uploads: Uploads, samples: Sequence[Sample], questions: Sequence[str], *, max_new_tokens: int
) -> ASGIApp:
    """The page as gradio's ASGI application, which must not be reached but through a `Guard`."""
    page = _build(engine, uploads, samples, questions, max_new_tokens=max_new_tokens)
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        allowed_paths=[],
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=_THEME,
        css=_STYLE.read_text(encoding="utf-8") + _sample_style(samples),
    )


def _build(
    engine: Engine, uploads: Uploads, samples: Sequence[Sample], questions: Sequence[str], *, max_new_tokens: int
) -> gr.Blocks:
    """The page. uploads: what visitors sent; questions: offered beside the text box, the first stands in it."""
    own = engine.settings
    with gr.Blocks(title=f"{engine.model.label} - lvlm-radapt", analytics_enabled=False) as page:
        state = gr.State()
        parts: dict[str, gr.HTML] = {}

        def part(name: str) -> None:
            parts[name] = gr.HTML(elem_id=f"ra-{name}")

        gr.HTML('<h1 class="ra-title">One image, one question, two models</h1>')
        part("settings")
        part("notice")
        with gr.Tabs():
            with gr.Tab("Chat", elem_id="ra-chat"), gr.Row(elem_id="ra-main"):
                with gr.Column(scale=4, min_width=300):
                    file = gr.File(
                        label=f"Image ({', '.join(FORMATS)})", file_types=_SUFFIXES, height=120, elem_id="ra-file"
                    )
                    # gradio never gets the file itself, as it would open any path that a browser names
                    secret = gr.Textbox(visible="hidden", elem_id="ra-secret")
                    with gr.Row(elem_id="ra-samples", visible=bool(samples)):
                        buttons = [
                            gr.Button(name, elem_id=f"ra-sample-{i}", min_width=40)
                            for i, (name, _) in enumerate(samples)
                        ]
                    with gr.Group(elem_id="ra-attack"):
                        loss = gr.Radio(
                            [("the answer (e2e)", "e2e"), ("the image tokens (embedding)", "embedding")],
                            value="e2e", label="Attack", elem_id="ra-loss",
                        )  # fmt: skip
                        on = gr.Radio(
                            [("undefended (transfer)", "plain"), ("defended (adaptive)", "defended")],
                            value="defended", label="Crafted on the model that is", elem_id="ra-on",
                        )  # fmt: skip
                        eps = gr.Slider(
                            1, _LARGEST_EPS, value=4, step=1, label="eps, in 1/255 (Linf)", elem_id="ra-eps"
                        )
                        steps = gr.Slider(1, _MOST_STEPS, value=20, step=1, label="Steps", elem_id="ra-steps")
                    with gr.Row():
                        attack = gr.Button("Attack", variant="primary", elem_id="ra-go", min_width=100)
                        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="ra-stop", min_width=100)
                    part("progress")
                with gr.Column(scale=7, min_width=300):
                    with gr.Row(elem_id="ra-pictures"):
                        for name in ("original", "adversarial", "difference"):
                            part(name)
                    part("conversation")
                    question = gr.Textbox(
                        questions[0], label="Question to both", lines=1, max_lines=4, max_length=LONGEST_QUESTION,
                        elem_id="ra-question",
                    )  # fmt: skip
                    with gr.Row(elem_id="ra-asking"):
                        ask = gr.Button("Ask both", variant="primary", elem_id="ra-ask", min_width=100)
                        reset = gr.Button("New conversation", elem_id="ra-reset", min_width=100)
                    with gr.Row(elem_id="ra-questions"):
                        for words in questions:
                            gr.Button(words, size="sm", min_width=80).click(
                                partial(str, words), outputs=question, queue=False, api_visibility="private"
                            )
            with gr.Tab("Tower", elem_id="ra-knobs"), gr.Row():
                with gr.Column(scale=4, min_width=300):
                    filtered = gr.Checkbox(own.cutoff is not None, label="Gaussian filter", elem_id="ra-filter")
                    cutoff = gr.Slider(
                        4, 112, value=40 if own.cutoff is None else own.cutoff, step=1,
                        label="Cutoff, cycles per 224 px" if own.cutoff_unit == "px224" else "Cutoff, cycles per side",
                        elem_id="ra-cutoff",
                    )  # fmt: skip
                    alpha = gr.Slider(0, 2, value=own.alpha, step=0.05, label="Anchor alpha", elem_id="ra-alpha")
                    mix = gr.Radio(["interpolate", "add"], value=own.mix, label="Mix", elem_id="ra-mix")
                    gr.HTML('<p class="ra-nothing">The defended model keeps these settings in the chat, too.</p>')
                with gr.Column(scale=7, min_width=300):
                    part("tower")
        shown = [*parts.values(), attack, ask, stop, file]

        def seen(visitor: Visitor, known: Update) -> Update:
            """What is to be shown and is not shown yet; `known` is then all that is."""
            now: Update = {parts[part.__name__]: part(visitor) for part in PARTS}
            now |= {attack: not visitor.working, ask: not visitor.working, stop: visitor.working}
            new = {key: value for key, value in now.items() if known.get(key, gr) != value}
            known.update(new)
            return {key: gr.update(interactive=v) if isinstance(v, bool) else v for key, v in new.items()}

        def handler(act: Act, *, clears_file: bool = False) -> Callable[..., Iterator[Update]]:
            def handle(visitor: Visitor | None, *values: Any) -> Iterator[Update]:
                if visitor is None:
                    yield {parts["notice"]: _GONE}
                    return
                known: Update = {}
                for _ in act(visitor, *values):
                    if new := seen(visitor, known):
                        yield new
                if clears_file:
                    yield {file: None}

            return handle

        def shows(sample: Sample) -> Act:
            return lambda visitor: visitor.showing(sample[1], sample[0])

        def enter() -> Iterator[Update]:
            """A visitor of its own, who sees the first sample."""
            visitor = Visitor(engine, max_new_tokens=max_new_tokens)
            yield {state: visitor, **seen(visitor, {})}
            if samples:
                yield from handler(shows(samples[0]))(visitor)

        def on_attack(visitor: Visitor, loss: Loss, on: Side, eps: float, steps: float, asked: str) -> Iterator[None]:
            # gradio itself holds what a browser sends against the sliders and radios
            return visitor.attacking(Attack(int(eps) / 255, int(steps), on, None, loss), asked or "")

        def on_tune(
            visitor: Visitor, filtered: bool, cutoff: float, alpha: float, mix: Literal["interpolate", "add"]
        ) -> Iterator[None]:
            return visitor.tuning(float(cutoff) if filtered else None, float(alpha), mix)

        def on_stop(visitor: Visitor | None) -> None:
            if visitor is not None:
                visitor.stop()

        private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(enter, outputs=[state, *shown], **private)
        upload = handler(lambda visitor, secret: visitor.uploading(lambda: uploads.take(secret)), clears_file=True)
        file.upload(None, file, secret, js="file => file ? file.path : ''", **private).then(
            upload, [state, secret], shown, **private
        )
        for button, sample in zip(buttons, samples, strict=True):
            button.click(handler(shows(sample)), state, shown, **private)
        asking = handler(lambda visitor, asked: visitor.asking(asked or ""))
        gr.on([ask.click, question.submit], asking, [state, question], shown, **private)
        attack.click(handler(on_attack), [state, loss, on, eps, steps, question], shown, **private)
        stop.click(on_stop, state, None, queue=False, **private)
        reset.click(handler(Visitor.resetting), state, shown, **private)
        gr.on(
            [filtered.change, cutoff.release, alpha.release, mix.change],
            handler(on_tune), [state, filtered, cutoff, alpha, mix], shown, trigger_mode="always_last", **private,
        )  # fmt: skip
    # what takes long waits in the engine's own line, where it can be stopped
    return page.queue(default_concurrency_limit=None, max_size=200, api_open=False)


def _sample_style(samples: Sequence[Sample]) -> str:
    """CSS that puts the samples on their buttons, so that no file needs to be served."""
    return "\n".join(
        f"#ra-sample-{i} {{ background-image: url({picture_uri(image)}); }}" for i, (_, image) in enumerate(samples)
    )
