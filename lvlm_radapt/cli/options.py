"""The flags that several commands share, and the choices they offer."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from lvlm_radapt.trackers import TrackerName
from lvlm_radapt.utils.bounds import MOST

Threat = Literal["adaptive", "transfer"]
Norm = Literal["Linf", "L2"]
Half = Literal["auto", "none", "bfloat16", "float16"]
Tokenizer = Literal["ptb", "java"]
Precision = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Mix = Literal["interpolate", "add"]
Anchor = Literal["white", "guided", "learned"]
Bits = Literal["4bit", "8bit"]
Split = Literal["train", "validation", "test"]
Spread = Literal["auto", "balanced", "sequential"]
TableFormat = Literal["table", "markdown", "csv"]

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="An embedded name, a checkpoint or robustified folder, or a Hugging Face id."),
]
TaskOption = Annotated[
    str, typer.Option(help="coco, vqav2, textvqa, imagenet, flickr30k-retrieval ... (lvlm-radapt list tasks).")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, max=MOST, help="Images at a time.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        help="What the weights are computed in. auto: an adapter's own; else as stored on a GPU, float32 on a CPU."
    ),
]
ConversationOption = Annotated[
    str | None,
    typer.Option(help="Ask in this conversation (vicuna_v1, qwen, chatml ...), not in MODEL's chat template."),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Largest canvas of a Qwen in pixels; photos above it are shrunk.", show_default="MODEL's own"
    ),
]
TowerOption = Annotated[
    str | None,
    typer.Option(help="Another vision tower in its place: an open_clip/FARE/TeCoA file or a Hugging Face folder."),
]
TextsOption = Annotated[
    str | None,
    typer.Option(help="Of an image encoder: whose texts are asked, for a bare tower the CLIP that it was tuned from."),
]

QuantizeOption = Annotated[
    Bits | None, typer.Option(help="Language model in 4 or 8 bits (bitsandbytes); the vision tower stays.")
]
LogJsonOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Append a JSON line an event, with rate and score; - is stdout, without tables."),
]
ReportToOption = Annotated[
    TrackerName | None,
    typer.Option(help="Send curves or scores to this tracker, which finds its server and key by itself."),
]
DeviceMapOption = Annotated[
    Spread | None, typer.Option(help="Spread the model over GPUs and memory (accelerate), in place of --device.")
]

DefenceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Put this in front of MODEL: jpeg, random-resize, radapt ... (list defences), or your own "
        "class as pkg.module:Name. Its code then runs here.",
    ),
]  # fmt: skip
DefenceSetOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A setting of --defence, such as quality=60; give it once for each."),
]
EotDrawsOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST, help="An attack averages over so many draws of a random --defence (EOT).", show_default="10"
    ),
]

TargetOption = Annotated[str | None, typer.Option(help="The text --attack targeted wants the model to say.")]
EpsOption = Annotated[
    str, typer.Option(help="Budget in [0, 1] pixel units, 1/255 or more: 4/255, 0.0157; under L2 a length: 2.0.")
]
NormOption = Annotated[Norm | None, typer.Option(help="Of the budget; the attack's own if left out.")]
StepsOption = Annotated[int | None, typer.Option(max=MOST, help="Gradient steps; the attack's own number if left out.")]
SeedOption = Annotated[int | None, typer.Option(help="Draws the samples and the noise; the preset's if left out.")]
PresetOption = Annotated[
    str | None, typer.Option(help="Protocol, by name or YAML file; scenes for embedded models, native for others.")
]
TokenizerOption = Annotated[Tokenizer, typer.Option(help="For CIDEr.")]
