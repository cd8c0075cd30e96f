"""`lvlm-radapt eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.app import app, console, progress_console
from lvlm_radapt.cli.asking import attack_of, defence_of, evaluation_of, protocol_of
from lvlm_radapt.cli.group import Processes, is_first
from lvlm_radapt.cli.placing import place_of
from lvlm_radapt.cli.resuming import command_line, progress, resumable, saved_in
from lvlm_radapt.cli.tables import print_tables
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import read_settings
from lvlm_radapt.utils.progress import JsonLines

if TYPE_CHECKING:
    from eval_tasks.run.options import Evaluation
    from eval_tasks.run.records import Run, Scored
    from lvlm_radapt.loading.api import Service
    from lvlm_radapt.models.base import PixelModel


_API = "A model behind an API"


@app.command("eval")
def eval_(
    model: options.ModelArgument,
    task: options.TaskOption,
    data: Annotated[Path, typer.Option(help="The task's data folder, or hf:OWNER/NAME of the Hugging Face hub.")],
    out: Annotated[Path, typer.Option("--out", "--output_path", help="The run folder.")],
    attack: Annotated[
        str | None,
        typer.Option(
            help="none, noise, embedding, e2e, ensemble, targeted ... (lvlm-radapt list attacks).", show_default="none"
        ),
    ] = None,
    threat: Annotated[
        options.Threat | None,
        typer.Option(help="adaptive: made through the defence; transfer: on the undefended model or --surrogate."),
    ] = None,
    surrogate: Annotated[
        str | None,
        typer.Option(help="Craft transfer images on this model; on several (A,B) with --attack transfer-ensemble."),
    ] = None,
    images_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Score the attacked images of this finished run or pack: its attack, samples, seed, preset; transfer.",
        ),
    ] = None,
    target: options.TargetOption = None,
    eps: Annotated[
        str | None,
        typer.Option(
            help="Budget in [0, 1] pixel units: 4/255, 0.0157; under L2 a length: 2.0. "
            "Several (2/255,4/255) are a run each, in folders under --out.",
            show_default="4/255",
        ),
    ] = None,
    norm: options.NormOption = None,
    steps: options.StepsOption = None,
    attack_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of --attack, such as severity=5; give it once for each."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", "--limit", max=MOST, help="How many samples; the preset's number if left out."),
    ] = None,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    batch_size: options.BatchSizeOption = 32,
    chunk_size: Annotated[
        int, typer.Option(min=1, max=MOST, help="Samples of a unit of work; a kill costs at most one.")
    ] = 64,
    tokenizer: options.TokenizerOption = "ptb",
    defence: options.DefenceOption = None,
    defence_set: options.DefenceSetOption = None,
    eot_draws: options.EotDrawsOption = None,
    tower: options.TowerOption = None,
    texts: options.TextsOption = None,
    device: options.DeviceOption = "auto",
    device_map: options.DeviceMapOption = None,
    dtype: options.DtypeOption = "auto",
    half: Annotated[
        options.Half,
        typer.Option(help="Of an ensemble's first stages; auto: the attack's own on a GPU, none on a CPU."),
    ] = "auto",
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Adaptive e2e or ensemble: a sample leaves once its answer scores 0.")
    ] = False,
    quantize: options.QuantizeOption = None,
    max_pixels: options.MaxPixelsOption = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where MODEL openai:NAME answers, as http://127.0.0.1:8000/v1. The key is OPENAI_API_KEY.",
            show_default="OpenAI's",
            rich_help_panel=_API,
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, max=256, help="Requests at a time.", show_default="8", rich_help_panel=_API)
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT", help="Dollars for a million tokens; the run then tells its cost.", rich_help_panel=_API
        ),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave samples without an image out; the run says how many.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    log_json: options.LogJsonOption = None,
    report_to: options.ReportToOption = None,
) -> None:
    """Score MODEL on a task, clean and under attack, into a run folder with a report.

    openai:NAME is a model behind an OpenAI-compatible endpoint. It gets the run's PNG files, on --surrogate's canvas.

    The attacked images lie in the run folder as PNG files and can be scored again on another model: --images-from.
    Under `accelerate launch` or torchrun, all processes share the work. Ctrl-C keeps what is done: --resume goes on.
    """
    flags = dict(locals())
    from eval_tasks.run.pack import unpacked

    with unpacked(images_from) as folder:
        _score(SimpleNamespace(**flags | {"images_from": folder}))


def _score(flags: SimpleNamespace) -> None:
    """Run the evaluation that these flags of the command ask for, once for each eps, and show what was found."""
    from eval_tasks.api import run_evaluation
    from eval_tasks.report.page import write_report
    from eval_tasks.run.processes import restarted
    from lvlm_radapt.trackers import check_tracker, send_scores

    check_tracker(flags.report_to)
    defence = defence_of(flags.defence, flags.defence_set, flags.eot_draws)
    service = _service(flags.model, {name: getattr(flags, name) for name in ("base_url", "parallel", "price")})
    opened = flags.model if service is None else flags.surrogate  # whose weights are opened here
    place = place_of(
        flags.device, flags.dtype, flags.quantize, flags.device_map, model=opened, max_pixels=flags.max_pixels
    )
    asked = {out: _asked(flags, eps, place) for out, eps in _budgets(flags.out, flags.eps).items()}
    if flags.surrogate is not None and service is None and any(one.attack is None for one in asked.values()):
        raise UserError("--surrogate needs an attack: choose one with --attack")
    if len(asked) > 1 and any(one.attack is None for one in asked.values()):
        raise UserError("--eps needs an attack: choose one with --attack")
    from lvlm_radapt.loading.load import load_any, load_surrogate

    open_once = _KeptOpen(load_any)
    open_surrogate = _KeptOpen(load_surrogate)
    clean: dict[str, Scored] = {}
    runs: list[Run] = []
    with JsonLines.to(flags.log_json if is_first() else None) as log, log.ended(), progress() as announce:
        for out, one in asked.items():
            with resumable(command_line("--resume"), saved_in(out)):
                run = run_evaluation(
                    flags.model,
                    one,
                    out,
                    announce=announce,
                    tower=flags.tower,
                    texts=flags.texts,
                    defence=None if open_once.opened else defence,
                    eot_draws=flags.eot_draws,
                    surrogate=flags.surrogate,
                    images_from=flags.images_from,
                    resume=flags.resume or restarted(),
                    command=command_line(),
                    log=log.write,
                    group=Processes.group,
                    service=service,
                    open_model=open_once,
                    open_surrogate=open_surrogate,
                    clean=clean,
                    **place,
                )
            runs.append(run)
    if is_first() and len(runs) > 1:
        write_report(runs, flags.out / "report.html")
    if is_first() and flags.report_to is not None:
        for run in runs:
            send_scores(flags.report_to, run, progress_console.tell)
    if flags.log_json == "-":
        return
    print_tables(runs)
    for run in runs:
        _tell(run, f"eps {run.metrics['eps']:.3g}: " if len(runs) > 1 else "")
    console.tell(f"report: {flags.out / 'report.html'}")


def _tell(run: Run, which: str) -> None:
    """The run's notes and what its audit found."""
    for note in run.metrics["notes"]:
        console.tell(f"{which}note: {note}")
    if "audit" in run.metrics:
        from eval_tasks.audit import Audit

        console.tell(f"{which}audit, short form: {Audit.from_dict(run.metrics['audit']).line()}")


class _KeptOpen:
    """Opens a model once for all budgets, by that function."""

    def __init__(self, load: Callable[..., PixelModel]) -> None:
        self._load = load
        self._model: PixelModel | None = None

    @property
    def opened(self) -> bool:
        """Whether it is open, and has what was put into it."""
        return self._model is not None

    def __call__(self, name: str, **how: Any) -> PixelModel:
        if self._model is None:
            self._model = self._load(name, **how)
        return self._model


def _budgets(out: Path, eps: str | None) -> dict[Path, str | None]:
    """The run folder of each eps: OUT itself where there is one alone. UserError for one that comes twice."""
    if eps is None or "," not in eps:
        return {out: eps}
    texts = [text.strip() for text in eps.split(",")]
    folders: dict[Path, str | None] = {out / f"eps-{text.replace('/', '-')}": text for text in texts}
    if len(folders) < len(texts):
        raise UserError(f"--eps {eps!r} names a budget twice: keep one")
    return folders


def _asked(flags: SimpleNamespace, eps: str | None, place: dict[str, Any]) -> Evaluation:
    """The evaluation under one budget."""
    from eval_tasks.run.reuse import taken_from

    names = ("attack", "norm", "steps", "target", "samples", "seed", "preset")
    given: dict[str, Any] = {name: getattr(flags, name) for name in names} | {"eps": eps}
    given |= {"half": None if flags.half == "auto" else flags.half, "early_exit": flags.early_exit or None}
    chosen: dict[str, Any] = given | {"half": flags.half, "early_exit": flags.early_exit}
    ids, threat = None, flags.threat
    if flags.images_from is not None:
        taken = taken_from(flags.images_from, given | {"task": flags.task})
        chosen, ids, threat = taken.flags, taken.ids, threat or "transfer"
    protocol = protocol_of(chosen["preset"], flags.model)
    attack = attack_of(
        chosen["attack"] or "none",
        protocol,
        place,
        eps=chosen["eps"],
        threat=threat,
        norm=chosen["norm"],
        settings=read_settings(flags.attack_set or ()),
        **{name: chosen[name] for name in ("steps", "target", "half", "early_exit")},
    )
    return evaluation_of(
        flags.task,
        flags.data,
        protocol,
        attack,
        samples=chosen["samples"],
        seed=chosen["seed"],
        ids=ids,
        chunk_size=flags.chunk_size,
        batch_size=flags.batch_size,
        tokenizer=flags.tokenizer,
        skip_missing=flags.skip_missing,
    )


def _service(model: str, flags: dict[str, Any]) -> Service | None:
    """How the model behind an API is asked; None where MODEL is opened here. UserError for flags of the other kind."""
    from lvlm_radapt.loading.api import Service, is_api

    given = {name: value for name, value in flags.items() if value is not None}
    if is_api(model):
        return Service(**given)
    if given:
        raise UserError(f"--{next(iter(given)).replace('_', '-')} is for MODEL openai:NAME, which an endpoint answers")
    return None
