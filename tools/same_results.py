"""Whether a change of the code changed a result: every attack on every kind of task, compared byte by byte.

    python tools/same_results.py record before      # in a checkout of the old code
    python tools/same_results.py record after       # in a checkout of the new code, on the same machine
    python tools/same_results.py compare before after

`record` evaluates the embedded models through the command line (n = 4, 2 steps, float32, one thread, CPU): five tasks
with every attack that they accept, under both threat models, plain and with R-Adapt. It keeps each run's images and
samples, and the error line of each refused combination. `compare` exits with 1 and names what differs. The time that a
sample took is left out, and so are fields that only one of the two sides writes, which are named.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

LANGUAGE_ATTACKS = ("noise", "embedding", "embedding-l2", "e2e", "ensemble", "targeted")
ENCODER_ATTACKS = (
    "noise",
    "embedding",
    "pgd",
    "cw",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "autoattack-fare",
    "square",
    "fab",
)
RETRIEVAL_ATTACKS = ("noise", "embedding", "contrastive")
PLAN = (
    ("tiny-llava", "coco", "scenes", LANGUAGE_ATTACKS),
    ("tiny-llava", "vqav2", "scenes", LANGUAGE_ATTACKS),
    ("tiny-qwen", "vqav2", "mixed", LANGUAGE_ATTACKS),
    ("tiny-llava", "pope", "pope", LANGUAGE_ATTACKS),
    ("tiny-clip", "imagefolder", "scenes/classes", ENCODER_ATTACKS),
    ("tiny-clip", "coco-retrieval", "scenes", RETRIEVAL_ATTACKS),
)
"""Model, task, folder of data, attacks: a task of each of the five kinds."""

FIXED_STEPS = {"noise", "square", "fab"}
NOT_COMPARED = {"checksum", "seconds"}  # a checksum is over the seconds, too


def main(words: list[str]) -> int:
    match words:
        case ["record", out]:
            record(Path(out))
            return 0
        case ["compare", before, after]:
            return compare(Path(before), Path(after))
    print(__doc__)
    return 2


def record(out: Path) -> None:
    """Run every combination into `out`; what is there already is not run again."""
    out.mkdir(exist_ok=True)
    _data(out)
    for number, (name, command) in enumerate(combinations(out), start=1):
        done = out / "runs" / name / "metrics.json"
        refused = out / "refused" / f"{name}.txt"
        if done.is_file() or refused.is_file():
            continue
        code, said = _command(command)
        print(f"{number}: {name}: {'done' if code == 0 else said}", flush=True)
        if code == 2:
            refused.parent.mkdir(exist_ok=True)
            refused.write_text(said.replace(str(out), "OUT"), encoding="utf-8")
        elif code:
            raise SystemExit(f"stopped at {name}: {said}")


def combinations(out: Path) -> Iterator[tuple[str, list[str]]]:
    """(name of the run, words of the command)."""
    for model, task, data, attacks in PLAN:
        protected = out / "models" / model
        for defence, path in (("plain", model), ("radapt", str(protected))):
            if defence == "radapt" and not protected.exists():
                _must(["robustify", model, "--out", str(protected)])
            common = ["eval", path, "--task", task, "--data", str(out / data), "--preset", "scenes", "--samples", "4"]
            common += [
                "--batch-size",
                "2",
                "--chunk-size",
                "4",
                "--device",
                "cpu",
                "--dtype",
                "float32",
                "--seed",
                "42",
            ]
            name = f"{model}-{defence}-{task}-none"
            yield name, [*common, "--out", str(out / "runs" / name)]
            for attack in attacks:
                for threat in ("adaptive", "transfer") if attack != "noise" else (None,):
                    name = f"{model}-{defence}-{task}-{attack}-{threat or 'control'}"
                    words = [*common, "--attack", attack, "--eps", "8/255", "--out", str(out / "runs" / name)]
                    words += [] if threat is None else ["--threat", threat]
                    words += [] if attack in FIXED_STEPS else ["--steps", "2"]
                    words += ["--target", "red"] if attack == "targeted" else []
                    yield name, words


def compare(before: Path, after: Path) -> int:
    """0 where every run of `before` is in `after` with the same bytes, else 1; says what differs."""
    problems, one_sided = [], set()
    names = sorted(path.parent.name for path in (before / "runs").glob("*/metrics.json"))
    for name in names:
        old, new = before / "runs" / name, after / "runs" / name
        if not (new / "metrics.json").is_file():
            problems.append(f"{name}: missing")
            continue
        for path in sorted((old / "images").glob("*.png")):
            other = new / "images" / path.name
            if not other.is_file() or path.read_bytes() != other.read_bytes():
                problems.append(f"{name}: image {path.name} differs")
        pair = [_samples(folder / "samples.jsonl") for folder in (old, new)]
        if len(pair[0]) != len(pair[1]):
            problems.append(f"{name}: {len(pair[0])} samples, now {len(pair[1])}")
        for first, second in zip(*pair, strict=False):
            one_sided |= first.keys() ^ second.keys()
            wrong = [key for key in first.keys() & second.keys() if first[key] != second[key]]
            problems += [
                f"{name}: sample {first['id']}: {key} was {first[key]!r}, now {second[key]!r}" for key in wrong
            ]
    for path in sorted((before / "refused").glob("*.txt")):
        other = after / "refused" / path.name
        if not other.is_file():
            problems.append(f"{path.stem}: was refused, now it is not")
    for line in problems:
        print(line)
    if one_sided:
        print(f"fields that one side alone has: {', '.join(sorted(one_sided))}")
    print(f"{len(names)} runs compared, {len(problems)} differences")
    return 1 if problems or not names else 0


def _samples(path: Path) -> list[dict[str, Any]]:
    """The records, flat: `adversarial.loss` -> value."""
    return [_flat(json.loads(line)) for line in path.read_bytes().splitlines()]


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key in NOT_COMPARED:
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _data(out: Path) -> None:
    if not (out / "scenes").exists():
        _must(["data", "scenes", "--out", str(out / "scenes"), "--count", "8", "--per-class", "1"])
    if not (out / "mixed").exists():
        _must(["data", "scenes", "--out", str(out / "mixed"), "--count", "8", "--mixed"])
    pope = out / "pope"
    if pope.exists():
        return
    pope.mkdir()
    (pope / "val2014").symlink_to(Path("..") / "scenes" / "val2014")
    kinds = json.loads((out / "scenes" / "scenes.json").read_text(encoding="utf-8"))["images"]
    folder = out / "scenes"
    asked = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text(encoding="utf-8"))["questions"]
    told = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text(encoding="utf-8"))["annotations"]
    answers = {row["question_id"]: row["multiple_choice_answer"] for row in told}
    lines = [
        json.dumps(
            {
                "question_id": row["question_id"],
                "image": f"COCO_val2014_{row['image_id']:012d}.png",
                "text": row["question"],
                "label": answers[row["question_id"]],
            }
        )
        for row in asked
        if kinds[str(row["image_id"])]["questions"][str(row["question_id"])] == "yesno"
    ]
    for part in ("random", "popular", "adversarial"):
        (pope / f"coco_pope_{part}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _must(words: list[str]) -> None:
    code, said = _command(words)
    if code:
        raise SystemExit(f"lvlm-radapt {' '.join(words)}: {said}")


def _command(words: list[str]) -> tuple[int, str]:
    """Exit code and last line of stderr."""
    from lvlm_radapt.cli import main as command_line

    sys.argv = ["lvlm-radapt", *words]
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            command_line()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, (err.getvalue().strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
