"""What happened in a chat, for /save: JSON for programs, Markdown for people, PNG files beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.text_table import as_text

FORMAT, VERSION = "lvlm-radapt-chat", 1


def write_transcript(
    folder: Path, about: Mapping[str, Any], events: Sequence[Mapping[str, Any]], pictures: Mapping[str, Tensor]
) -> None:
    """Write transcript.json, transcript.md and NAME.png for each picture (uint8 [3, H, W]) into a new folder.

    about: the model and its settings; events: what happened, `kind` being image, turn, attack, defend or reset; both
    JSON values. UserError when the folder holds anything or cannot be written.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "images": {name: f"{name}.png" for name in pictures},
        "events": list(events),
    }
    with new_folder(folder) as inside:
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (inside / "transcript.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        (inside / "transcript.md").write_text(_markdown(document), encoding="utf-8", errors="backslashreplace")
        for name, pixels in pictures.items():
            Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy()).save(inside / f"{name}.png")


def _markdown(document: Mapping[str, Any]) -> str:
    defence = document["defence"]
    settings = "none" if defence is None else ", ".join(f"{key} {value}" for key, value in defence.items())
    lines = [f"# Chat with {as_text(document['model'])}", "", f"Defence: {settings}. Saved {document['saved']}.", ""]
    for event in document["events"]:
        lines += [*_lines(event), ""]
    lines += [f"![{name}]({file})" for name, file in document["images"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _lines(event: Mapping[str, Any]) -> list[str]:
    match event["kind"]:
        case "image":
            return [f"*Image {as_text(event['file'])}*"]
        case "turn":
            seen = " (attacked image)" if event["image"] == "adversarial" else ""
            said = [f"- **{side}**{seen}: {as_text(answer)}" for side, answer in event["answers"].items()]
            return [f"> {as_text(event['question'])}", "", *said]
        case "attack":
            aim = "its own answer" if event["target"] is None else f"target {as_text(repr(event['target']))}"
            aim = "its image tokens" if event["loss"] == "embedding" else aim
            losses = f"loss {event['loss_before']:.3f} -> {event['loss_after']:.3f}"
            budget = f"Linf {event['eps_text']}, {event['steps']} steps"
            return [f"*Attack on the {event['on']} model, {aim}: {budget}, {losses}*"]
        case "defend":
            return [f"*Defence {'on' if event['on'] else 'off'}*"]
    return ["*Conversation forgotten*"]
