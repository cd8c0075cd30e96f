"""`lvlm-radapt analyze`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.asking import attack_of, evaluation_of, protocol_of
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.placing import place_of
from lvlm_radapt.cli.resuming import command_line, progress, resumable
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from eval_tasks.run.options import Evaluation


@app.command()
def analyze(
    model: options.ModelArgument,
    guide: Annotated[
        str,
        typer.Option(
            help="Its robust twin: an embedded encoder, an open_clip/FARE/TeCoA file or a Hugging Face folder."
        ),
    ],
    images: Annotated[Path, typer.Option(help="A folder of images, no labels: for layers, spectra and attention.")],
    out: Annotated[
        Path, typer.Option(help="A folder for numbers, figures and index.html; a stopped one is gone on with.")
    ],
    task: Annotated[
        str | None, typer.Option(help="Scores after each replaced part: imagefolder for encoders, coco, vqav2 ...")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The task's data folder.")] = None,
    data_shifted: Annotated[
        Path | None, typer.Option(help="The same task on other data: a second curve (data scenes --shifted).")
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help="Of the scores.", show_default="apgd-ce for encoders, e2e for others")
    ] = None,
    eps: options.EpsOption = "4/255",
    steps: options.StepsOption = None,
    samples: Annotated[
        int | None, typer.Option(max=MOST, help="How many samples are scored; the preset's if left out.")
    ] = None,
    image_count: Annotated[int, typer.Option(min=1, max=MOST, help="How many of the images are used at most.")] = 64,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    batch_size: options.BatchSizeOption = 32,
    tower: options.TowerOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
) -> None:
    """Compare MODEL's vision tower with a robust twin: CKA, spectra, attention, and parts replaced one by one.

    With --task and --data the model is scored, clean and under both threat models, after each part that is taken from
    the twin: original, embedding, block 1's attention, block 1, block 2, ... all of it.
    """
    exit_unless_rank0()
    from eval_tasks.crafting.embedding import Embedding
    from lvlm_radapt.analysis.study import OURS, AnalysisSettings, analyse
    from lvlm_radapt.experiments.mixing import open_guide
    from lvlm_radapt.loading.load import is_encoder, is_robustified, load_any
    from lvlm_radapt.utils.atomic_folder import check_own_folder

    if (task is None) != (data is None):
        raise UserError("--task and --data go together: give both for scores, neither to leave them out")
    if task is None and (data_shifted is not None or attack is not None or samples is not None):
        raise UserError("--data-shifted, --attack and --samples are for scores: give --task and --data with them")
    if is_robustified(model):
        raise UserError(f"{model} is robustified: the analysis is of plain towers, name its base")
    check_own_folder(out, OURS)  # before models are opened for nothing
    protocol = protocol_of(preset, model)
    place = place_of(device, dtype, None, None, model=model)
    perturb = attack_of("embedding", protocol, place, eps=eps, steps=steps)
    assert isinstance(perturb, Embedding)  # the preset is one
    scored = None
    if task is not None and data is not None:
        name = attack or ("apgd-ce" if is_encoder(model) else "e2e")
        plan = attack_of(name, protocol, place, eps=eps, steps=steps)
        if plan is None or not plan.knows_model:
            raise UserError(f"--attack {name} attacks no model: choose one that does, lvlm-radapt list attacks")
        scored = evaluation_of(task, data, protocol, plan, samples=samples, seed=seed, batch_size=batch_size)
    asked = AnalysisSettings(
        images=images,
        image_count=image_count,
        perturb=perturb,
        batch_size=batch_size,
        seed=protocol.seed if seed is None else seed,
        scored=scored,
        shifted=_on_other_data(scored, data_shifted),
        command=command_line(),
    )
    opened = load_any(model, **protocol.opening(), tower=tower, **place)
    with resumable(command_line()), progress() as announce:
        analyse(
            opened,
            open_guide(guide, opened),
            asked,
            out,
            announce=announce,
            tell=lambda text: console.tell(f"note: {text}"),
        )
    console.tell(f"report: {out / 'index.html'}")


def _on_other_data(scored: Evaluation | None, data: Path | None) -> Evaluation | None:
    if scored is None or data is None:
        return None
    return replace(scored, options=replace(scored.options, data=data))
