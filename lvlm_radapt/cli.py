"""The command line: reads flags, calls the rest, turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lvlm_radapt.errors import Stopped, Unfinished, UserError
from lvlm_radapt.progress import Announce, JsonLines, bars
from lvlm_radapt.stopping import stoppable

if TYPE_CHECKING:
    from eval_tasks.processes import Group

app = typer.Typer(
    name="lvlm-radapt",
    help="Make a vision-language model robust to adversarial images without touching a weight (R-Adapt), "
    "and measure honestly what that buys: under attacks that do not know the defence, and under ones that do.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Data sets on disk.", no_args_is_help=True)
app.add_typer(data_app, name="data")

console = Console()
progress_console = Console(stderr=True)


class ThreatName(StrEnum):
    adaptive = "adaptive"
    transfer = "transfer"


class NormName(StrEnum):
    linf = "Linf"
    l2 = "L2"


class HalfChoice(StrEnum):
    auto = "auto"
    none = "none"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TokenizerChoice(StrEnum):
    ptb = "ptb"
    java = "java"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class MixName(StrEnum):
    interpolate = "interpolate"
    add = "add"


class Bits(StrEnum):
    four = "4bit"
    eight = "8bit"


class Spread(StrEnum):
    auto = "auto"
    balanced = "balanced"
    sequential = "sequential"


class Listing(StrEnum):
    models = "models"
    tasks = "tasks"
    attacks = "attacks"
    presets = "presets"


class TableFormat(StrEnum):
    table = "table"
    markdown = "markdown"
    csv = "csv"


ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="An embedded name, a checkpoint or robustified folder, or a Hugging Face id."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")]
DtypeOption = Annotated[Dtype, typer.Option(help="What the weights are computed in.")]
TowerOption = Annotated[
    str | None,
    typer.Option(help="Another vision tower in its place: an open_clip/FARE/TeCoA file or a Hugging Face folder."),
]

QuantizeOption = Annotated[
    Bits | None, typer.Option(help="Language model in 4 or 8 bits (bitsandbytes); the vision tower stays.")
]
LogJsonOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Append a JSON line an event, with rate and score; - is stdout, without tables."),
]
DeviceMapOption = Annotated[
    Spread | None, typer.Option(help="Spread the model over GPUs and memory (accelerate), in place of --device.")
]

TargetOption = Annotated[str | None, typer.Option(help="The text --attack targeted wants the model to say.")]
EpsOption = Annotated[str, typer.Option(help="Budget in [0, 1] pixel units: 4/255, 0.0157; under L2 a length: 2.0.")]
NormOption = Annotated[NormName | None, typer.Option(help="Of the budget; the attack's own if left out.")]
StepsOption = Annotated[int | None, typer.Option(help="Gradient steps; the attack's own number if left out.")]
SeedOption = Annotated[int | None, typer.Option(help="Draws the samples and the noise; the preset's if left out.")]
PresetOption = Annotated[
    str | None, typer.Option(help="Protocol, by name or YAML file; scenes for embedded models, native for others.")
]
TokenizerOption = Annotated[TokenizerChoice, typer.Option(help="For CIDEr.")]


class _Processes:
    """The group of processes this command runs in, joined when `main` begins."""

    group: Group | None = None


def main() -> None:
    """Entry point of the `lvlm-radapt` command. Of several launched processes the first alone prints results."""
    code = 0
    try:
        with stoppable():
            _Processes.group = _join()
            _of_the_first_only(console, progress_console)
            code = app(standalone_mode=False) or 0  # of --help and the like
    except UserError as error:
        code = 2
        _fail(error)
    except _UsageError as error:
        code = 2
        _misused(error)
    except Unfinished as error:
        code = 1
        _fail(error)
    except Stopped as stop:
        code = 128 + stop.signal_number
        _say(f"stopped; {stop.advice}" if stop.advice else "stopped", once="stopped")
    finally:
        if _Processes.group is not None:
            _Processes.group.leave()
            _Processes.group = None
    sys.exit(code)


# A flag or an argument that does not fit: the base of typer's own public error, in whichever package it has it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _misused(error: Any) -> None:
    """One line, and where to read more, in place of typer's box; the help itself where nothing was asked."""
    if error.ctx is None or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    _fail(UserError(f"{error.format_message().rstrip('.')} (see {error.ctx.command_path} --help)"))


def _join() -> Group | None:
    """The launched group, None for a process alone: `--help` then need not wait for torch."""
    if "RANK" not in os.environ:
        return None
    from eval_tasks.processes import join

    joined = join()
    return joined if joined.size > 1 else None


def _is_first() -> bool:
    return _Processes.group is None or _Processes.group.first


def _of_the_first_only(*consoles: Console) -> None:
    for one in consoles:
        one.quiet = not _is_first()


def _leave_it_to_the_first() -> None:
    """End this command in all launched processes but one: there is nothing in it to share."""
    if not _is_first():
        raise typer.Exit


def _fail(error: Exception) -> None:
    if _Processes.group is not None and isinstance(error, UserError):
        _Processes.group.fail(error)  # the others would meet it too
    _say(f"[red]error:[/red] {_plain(str(error))}", once=str(error), markup=True)


def _say(text: str, *, once: str, markup: bool = False) -> None:
    """A line on stderr, by one process alone of all that have one to say under the name `once`."""
    if _Processes.group is None or _Processes.group.once(once):
        Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=markup)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


@contextmanager
def _resumable(again: str, saved: Callable[[], str] = lambda: "what is done is saved") -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM tell how to go on; so does memory that does not suffice for one image."""
    import torch

    try:
        yield
    except Stopped as stop:
        stop.advice = f"{saved()}; go on with: {again}"
        raise
    except torch.OutOfMemoryError as error:
        raise Unfinished(f"out of memory, even for one image; {saved()}; free some and go on with: {again}") from error


def _progress(log: JsonLines | None = None) -> AbstractContextManager[Announce]:
    return bars(progress_console, log)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name!r} is no device: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA device is available here, use --device cpu")
    if _Processes.group is not None and name == "cuda":
        from eval_tasks.processes import local_rank

        # a launcher may show every process one GPU alone
        return f"cuda:{local_rank() % torch.cuda.device_count()}"
    return name


def _place(device: str, dtype: Dtype, quantize: Bits | None, device_map: Spread | None) -> dict[str, Any]:
    """The keywords of `load_model` behind these flags."""
    import torch

    if device_map is not None and device != "auto":
        raise UserError("--device and --device-map exclude each other: leave one out")
    if device_map is not None and _Processes.group is not None:
        raise UserError("--device-map spreads one model over all GPUs: run it as a single process, without a launcher")
    return {
        "device": "cpu" if device_map is not None else _device(device),
        "dtype": getattr(torch, dtype.value),
        "quantize": quantize.value if quantize else None,
        "device_map": device_map.value if device_map else None,
    }


def _command_line(*more: str) -> str:
    arguments = sys.argv[1:]
    return shlex.join(["lvlm-radapt", *arguments, *(one for one in more if one not in arguments)])


def _saved_in(out: Path) -> Callable[[], str]:
    """Says how many samples a run folder holds."""

    def saved() -> str:
        from eval_tasks.records import RunFolder

        try:
            total = json.loads((out / "run.json").read_bytes())["ids"]["n"]
            return f"{len(RunFolder(out).done_ids())} of {total} samples are saved in {out}"
        except (OSError, ValueError, KeyError, TypeError):  # stopped before the folder was there
            return "nothing was begun"

    return saved


@app.command("list")
def list_(
    what: Annotated[Listing | None, typer.Argument(help="What to list; everything when left out.")] = None,
) -> None:
    """List the embedded models, tasks, attacks and presets."""
    _leave_it_to_the_first()
    from eval_tasks import presets
    from lvlm_radapt.models.load import EMBEDDED, ENCODERS, FAMILIES, embedded_models

    def attack_text(name: str) -> str:
        return presets.load_attack(name).description

    def read_by(table: Mapping[str, tuple[Any, str]]) -> dict[str, str]:
        return {model_type: f"checkpoints of {hf_class}" for model_type, (_, hf_class) in table.items()}

    sections: dict[Listing, dict[str, dict[str, str]]] = {
        Listing.models: {
            "models inside the package": {name: EMBEDDED[name] for name in embedded_models()},
            "families, by model_type (original LLaVA too)": read_by(FAMILIES),
            "image encoders, for imagefolder and --surrogate (and open_clip files)": read_by(ENCODERS),
        },
        Listing.tasks: {"tasks": {name: presets.load_task_config(name).description for name in presets.names("tasks")}},
        Listing.attacks: {"attacks": {name: attack_text(name) for name in presets.names("attacks")}},
        Listing.presets: {
            "presets": {name: presets.load_protocol(name).description for name in presets.names("protocols")}
        },
    }
    for section, parts in sections.items():
        for title, entries in parts.items() if what in (None, section) else ():
            table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
            table.add_column(style="bold", no_wrap=True)
            table.add_column()
            for name, text in entries.items():
                table.add_row(name, text)
            console.print(table)
            console.print()


@data_app.command("scenes")
def scenes(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    count: Annotated[int, typer.Option(min=2, help="How many test scenes.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other scenes.")] = 0,
    mixed: Annotated[bool, typer.Option("--mixed", help="Three aspect ratios instead of squares.")] = False,
    per_class: Annotated[
        int, typer.Option(min=0, help="Images of each of 36 classes for the task imagefolder, in OUT/classes; 0: none.")
    ] = 8,
) -> None:
    """Write procedural test scenes as COCO captions, VQAv2 and TextVQA files, and a folder of classes."""
    _leave_it_to_the_first()
    from lvlm_radapt.tiny.dataset import write_scenes

    with _progress() as announce:
        advance = announce("drawing scenes", count + 36 * per_class)
        written = write_scenes(
            out,
            count=count,
            seed=seed,
            mixed=mixed,
            per_class=per_class,
            progress=lambda done, total: advance(1, f"{done} of {total}"),
        )
    console.print(f"{out}: " + ", ".join(f"{number} {name}" for name, number in written.items()), soft_wrap=True)


@data_app.command("check")
def check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="lvlm-radapt list tasks names them.")],
    data: Annotated[Path, typer.Option(help="The task's data folder.")],
    samples: Annotated[int | None, typer.Option(help="Only what eval with that many would draw.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the samples.")] = 42,
) -> None:
    """Tell what is in a data folder, what is missing or damaged, and the layout wanted; no model is loaded.

    Exit code 0 when the task can run, 2 when it cannot.
    """
    from eval_tasks.data.checking import check_data

    shown = _progress() if progress_console.is_terminal else nullcontext(None)
    with shown as announce:
        found = check_data(task, data, samples=samples, seed=seed, announce=announce)
    for line in found.lines():
        console.print(_plain(line), soft_wrap=True, highlight=False)
    if not found.ok:
        raise UserError(found.verdict())
    console.print(_plain(found.verdict()), soft_wrap=True, highlight=False)


@app.command()
def robustify(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="A new or empty folder for what is written.")],
    cutoff: Annotated[
        float | None,
        typer.Option(help="D0 of the Gaussian filter, cycles per 224 px; above 0.", show_default="40"),
    ] = None,
    no_filter: Annotated[bool, typer.Option("--no-filter", help="Leave the filter out.")] = False,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the anchor; 0 leaves it out.", show_default="1")
    ] = None,
    mix: Annotated[
        MixName | None, typer.Option(help="(1 - alpha) r + alpha A, or r + alpha A.", show_default="interpolate")
    ] = None,
    tower: TowerOption = None,
    export: Annotated[
        bool, typer.Option("--export", help="Write a whole model folder that needs transformers alone.")
    ] = False,
    fold: Annotated[
        bool, typer.Option("--fold", help="Write plain stock weights with the anchor in them, for any server.")
    ] = False,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.float32,
    quantize: QuantizeOption = None,
) -> None:
    """Protect MODEL: write an adapter folder that every other command takes as a model.

    With --export a whole model, which transformers opens with trust_remote_code=True and refuses to open
    unprotected. With --fold plain weights, where the anchor is one vector (Qwen2-VL and 2.5); the filter must
    then run on images before they reach the model. Of an adapter folder both write the defence that is in it.

    The anchor is the training-free one: the encoder's own first attention output on a white image.
    """
    _leave_it_to_the_first()
    import lvlm_radapt as package
    from lvlm_radapt.checkpoint import save_adapter
    from lvlm_radapt.folders import check_new_folder
    from lvlm_radapt.models.load import is_encoder, is_robustified, load_any

    if export and fold:
        raise UserError("--export and --fold write different folders: choose one")
    knobs = {"cutoff": cutoff, "alpha": alpha, "mix": mix and mix.value}
    chosen: dict[str, Any] = {name: value for name, value in knobs.items() if value is not None}
    if no_filter:
        chosen["cutoff"] = None
    config = package.RAdaptConfig(**chosen)
    protected_already = is_robustified(model)
    if protected_already:
        given = [f"--{name}" if value is not None else "--no-filter" for name, value in chosen.items()]
        _check_robustified(model, given, written_whole=export or fold)
    check_new_folder(out)
    encoder = is_encoder(model)
    if encoder and (export or fold):
        raise UserError(
            f"{model} is an image encoder: --export and --fold are for vision-language models, leave them out"
        )
    loaded = load_any(model, tower=tower, **_place(device, dtype, quantize, device_map))
    protected = loaded if protected_already else package.robustify(loaded, config)
    if export or fold:
        _write_model(protected, out, fold=fold)
        return
    save_adapter(protected, out)
    console.print(f"{out}: {model} protected by {config.describe()}", soft_wrap=True)
    task, attack = ("imagefolder", "apgd-ce") if encoder else ("coco", "e2e")
    console.print(
        f"next: lvlm-radapt eval {out} --task {task} --data DIR --attack {attack} --eps 4/255 --out RUN", soft_wrap=True
    )


def _check_robustified(model: str, given: list[str], *, written_whole: bool) -> None:
    """UserError for what cannot be asked of a folder that is robustified already."""
    from lvlm_radapt.checkpoint import base_name
    from lvlm_radapt.export import exported_from

    if given:
        base = exported_from(base_name(model))
        raise UserError(f"{model} has its settings already: leave {' and '.join(given)} out, or robustify {base} anew")
    if not written_whole:
        raise UserError(f"{model} is robustified already: use it as it is, or write it whole with --export or --fold")


def _write_model(protected: Any, out: Path, *, fold: bool) -> None:
    from lvlm_radapt.export import export_model
    from lvlm_radapt.fold import FILTER, fold_model

    config = protected.radapt
    if fold:
        fold_model(protected, out)
        console.print(f"{out}: {protected.name} as plain weights, the white anchor folded in", soft_wrap=True)
        if config.cutoff is not None:
            console.print(
                f"The filter (cutoff {config.cutoff:g}) is NOT in the weights: pass every image through "
                f"filter_image of {out / FILTER} first, or the model is only half protected.",
                soft_wrap=True,
            )
        return
    export_model(protected, out)
    console.print(f"{out}: {protected.name} with {config.describe()} inside", soft_wrap=True)
    console.print(
        f"load: AutoModelForImageTextToText.from_pretrained({str(out)!r}, trust_remote_code=True); "
        f"every lvlm-radapt command takes it as a model too",
        soft_wrap=True,
        markup=False,
    )


@app.command("eval")
def eval_(
    model: ModelArgument,
    task: Annotated[str, typer.Option(help="coco, flickr30k, vqav2, textvqa, imagefolder (lvlm-radapt list tasks).")],
    data: Annotated[Path, typer.Option(help="The task's data folder.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    attack: Annotated[
        str, typer.Option(help="none, noise, embedding, e2e, ensemble, targeted ... (lvlm-radapt list attacks).")
    ] = "none",
    threat: Annotated[
        ThreatName | None,
        typer.Option(help="adaptive: made through the defence; transfer: on the undefended twin or --surrogate."),
    ] = None,
    surrogate: Annotated[str | None, typer.Option(help="Craft transfer images on this model.")] = None,
    images_from: Annotated[
        Path | None, typer.Option(help="Score the attacked images of this finished run (transfer only).")
    ] = None,
    target: TargetOption = None,
    eps: EpsOption = "4/255",
    norm: NormOption = None,
    steps: StepsOption = None,
    samples: Annotated[int | None, typer.Option(help="How many samples; the preset's number if left out.")] = None,
    seed: SeedOption = None,
    preset: PresetOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    chunk_size: Annotated[int, typer.Option(min=1, help="Samples of a unit of work; a kill costs at most one.")] = 64,
    tokenizer: TokenizerOption = TokenizerChoice.ptb,
    tower: TowerOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.float32,
    half: Annotated[
        HalfChoice, typer.Option(help="Of an ensemble's first stages; auto: the attack's own on a GPU, none on a CPU.")
    ] = HalfChoice.auto,
    quantize: QuantizeOption = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave samples without an image out; the run says how many.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    log_json: LogJsonOption = None,
) -> None:
    """Score MODEL on a task, clean and under attack, into a run folder with a report.

    The attacked images lie in the run folder as PNG files and can be scored again on another model: --images-from.
    Under `accelerate launch` or torchrun, all processes share the work. Ctrl-C keeps what is done: --resume goes on.
    """
    from eval_tasks.evaluation import run_evaluation
    from eval_tasks.planning import plan_attack
    from eval_tasks.presets import load_attack, load_protocol, load_task_config
    from eval_tasks.processes import restarted
    from eval_tasks.runner import EvalSettings

    task_config = load_task_config(task)
    protocol = load_protocol(preset or default_preset(model))
    place = _place(device, dtype, quantize, device_map)
    plan = plan_attack(
        protocol.adapt(load_attack(attack)),
        eps=eps,
        threat=threat.value if threat else None,
        norm=norm.value if norm else None,
        steps=steps,
        target=target,
        half=half.value,
        device=_device("auto") if device_map else place["device"],
        dtype=place["dtype"],
    )
    if plan is None and (surrogate is not None or images_from is not None):
        raise UserError("--surrogate and --images-from need an attack: choose one with --attack")
    settings = EvalSettings(
        task=task_config.name,
        data=data,
        protocol=protocol,
        attack=plan,
        samples=samples if samples is not None else protocol.samples,
        seed=protocol.seed if seed is None else seed,
        chunk_size=chunk_size,
        batch_size=batch_size,
        tokenizer=tokenizer.value,
        skip_missing=skip_missing,
    )
    with (
        JsonLines.to(log_json if _is_first() else None) as log,
        _resumable(_command_line("--resume"), _saved_in(out)),
        log.ended(),
        _progress() as announce,
    ):
        run = run_evaluation(
            model,
            settings,
            out,
            announce=announce,
            tower=tower,
            surrogate=surrogate,
            images_from=images_from,
            resume=resume or restarted(),
            command=_command_line(),
            log=log.write,
            group=_Processes.group,
            **place,
        )
    if log_json == "-":
        return
    print_tables([run])
    for note in run.metrics["notes"]:
        console.print(f"note: {_plain(note)}", soft_wrap=True)
    if "audit" in run.metrics:
        from eval_tasks.audit import Audit

        found = Audit.from_dict(run.metrics["audit"])
        console.print(f"audit, short form: {found.line()}", soft_wrap=True, markup=False)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)


def default_preset(model: str) -> str:
    """`scenes` for the embedded models, their adapters and exports, `native` for everything else."""
    from lvlm_radapt.checkpoint import base_name
    from lvlm_radapt.export import exported_from
    from lvlm_radapt.models.load import EMBEDDED

    return "scenes" if exported_from(base_name(model)) in EMBEDDED else "native"


def print_tables(runs: list[Any], form: TableFormat = TableFormat.table) -> None:
    """The comparison of `runs` on stdout, a table a preset."""
    from eval_tasks.report import tables

    for table in tables(runs).values():
        if form is TableFormat.markdown:
            sys.stdout.write(table.to_markdown() + "\n")
        elif form is TableFormat.csv:
            sys.stdout.write(table.to_csv())
        else:
            console.print(table.to_rich())


@app.command()
def audit(
    model: ModelArgument,
    task: Annotated[str, typer.Option(help="coco, flickr30k, vqav2, textvqa, imagefolder (lvlm-radapt list tasks).")],
    data: Annotated[Path, typer.Option(help="The task's data folder.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder for audit.json and audit.html.")],
    attack: Annotated[str, typer.Option(help="A white-box attack (lvlm-radapt list attacks).")] = "e2e",
    target: TargetOption = None,
    eps: EpsOption = "4/255",
    norm: NormOption = None,
    steps: StepsOption = None,
    samples: Annotated[int, typer.Option(min=2, help="How many samples; more of them prove more.")] = 16,
    seed: SeedOption = None,
    preset: PresetOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    tokenizer: TokenizerOption = TokenizerChoice.ptb,
    tower: TowerOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.float32,
    quantize: QuantizeOption = None,
    log_json: LogJsonOption = None,
) -> None:
    """Check that an attack on MODEL measures what it says: some 20 checks, each pass, warn or fail.

    Among them: gradients against finite differences, black-box and transfer attacks against the white-box one,
    larger eps, more steps, restarts, half precision, a low-frequency attack, one through the undefended model.
    """
    _leave_it_to_the_first()
    from eval_tasks.audit.page import audit_table
    from eval_tasks.audit.run import run_audit
    from eval_tasks.planning import plan_attack
    from eval_tasks.presets import load_attack, load_protocol, load_task_config
    from eval_tasks.runner import EvalSettings

    task_config = load_task_config(task)
    protocol = load_protocol(preset or default_preset(model))
    place = _place(device, dtype, quantize, device_map)
    plan = plan_attack(
        protocol.adapt(load_attack(attack)),
        eps=eps,
        norm=norm.value if norm else None,
        steps=steps,
        target=target,
        device=_device("auto") if device_map else place["device"],
        dtype=place["dtype"],
    )
    settings = EvalSettings(
        task=task_config.name,
        data=data,
        protocol=protocol,
        attack=plan,
        samples=samples,
        seed=protocol.seed if seed is None else seed,
        batch_size=batch_size,
        tokenizer=tokenizer.value,
    )
    with JsonLines.to(log_json) as log, log.ended(), _progress(log) as announce:
        found = run_audit(
            model,
            settings,
            out,
            announce=announce,
            tower=tower,
            command=_command_line(),
            **place,
        )
    if log_json == "-":
        return
    console.print(audit_table(found))
    console.print(f"report: {out / 'audit.html'}", soft_wrap=True)
    console.print(f"verdict: {found.line()}", soft_wrap=True, markup=False)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Finished run folders.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    form: Annotated[TableFormat, typer.Option("--format", help="Of the table on stdout.")] = TableFormat.table,
) -> None:
    """Compare finished runs: one table (transfer and adaptive side by side) and one HTML report."""
    _leave_it_to_the_first()
    from eval_tasks.records import read_run
    from eval_tasks.report import write_report

    read = [read_run(path) for path in runs]
    write_report(read, out)
    print_tables(read, form)
    progress_console.print(f"report: {out}", soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written; run again to continue.")] = Path(
        "lvlm-radapt-demo"
    ),
    samples: Annotated[int, typer.Option(min=2, help="Scenes a model is scored on, each task.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="APGD steps.")] = 20,
    device: DeviceOption = "auto",
    log_json: LogJsonOption = None,
) -> None:
    """Protect the embedded models and attack them, with and without knowledge of the defence.

    Ends with one table and a report; nothing is downloaded.
    """
    from lvlm_radapt.demo import run_demo

    again = f"lvlm-radapt demo --out {shlex.quote(str(out))} --samples {samples} --steps {steps}"
    try:
        with (
            JsonLines.to(log_json if _is_first() else None) as log,
            _resumable(again),
            log.ended(),
            _progress(log) as announce,
        ):
            runs = run_demo(
                out, samples=samples, steps=steps, announce=announce, device=_device(device), group=_Processes.group
            )
    except Stopped as stop:
        _say(f"stopped; {stop.advice}", once="stopped")
        sys.stdout.flush()
        if _Processes.group is not None:
            _Processes.group.leave()
        os._exit(128 + stop.signal_number)  # the other model's thread would work on for as long as its attack takes
    if log_json == "-":
        return
    print_tables(runs)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)


@app.command()
def chat(
    model: ModelArgument,
    image: Annotated[Path | None, typer.Option(help="The image to talk about; /image FILE shows another.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="The model without its defence and with it, side by side.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.float32,
    quantize: QuantizeOption = None,
) -> None:
    """Talk with MODEL about an image, attack the image, switch the defence, and see what it says then.

    Lines are said to the model, in its own chat template; /help lists the commands. In a pipe a line is a turn, and
    stdout holds the answers alone.
    """
    from eval_tasks.data.images import open_image
    from lvlm_radapt.chat.session import Session
    from lvlm_radapt.chat.terminal import run_chat
    from lvlm_radapt.models.load import load_model

    if image is not None:
        open_image(image)  # a mistake there shows before the model is loaded
    loaded = load_model(model, **_place(device, dtype, quantize, device_map))
    hint = _embedded_prompts() if default_preset(model) == "scenes" else None
    run_chat(Session(loaded, compare=compare, max_new_tokens=max_new_tokens), image=image, hint=hint)


def _embedded_prompts() -> str:
    from eval_tasks.presets import load_protocol, load_task_config

    protocol = load_protocol("scenes")
    caption, question = (
        " ".join(protocol.prompt(load_task_config(task), "QUESTION").split()) for task in ("coco", "vqav2")
    )
    return f"the embedded models were trained on single turns (/reset begins anew) of two kinds: {caption} | {question}"


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if __name__ == "__main__":
    main()
