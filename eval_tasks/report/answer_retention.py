"""The retained share: how much of what the undefended model says to clean images is still said.

Of a caption, CIDEr of the output against the undefended model's caption of the clean image, over what that caption
scores against itself; of an answer or a class, whether it is the same after the task's own normalisation. In percent,
by sample; 100 where nothing changed. The reference is a model's answer and no human's: a model that was wrong and stays
wrong in the same words retains everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from eval_tasks.config.presets import load_task_config, names
from eval_tasks.metrics import CiderScorer, normalise_answer
from eval_tasks.metrics.choice import read_letter, read_yes_no
from eval_tasks.metrics.tokenizers import TokenizerName, tokenizer
from eval_tasks.metrics.vqa import Style
from eval_tasks.run.records import Run
from lvlm_radapt.utils.errors import UserError


def retained_scores(
    outputs: Mapping[str, str],
    undefended: Mapping[str, str],
    type_: str,
    *,
    style: Style = "openflamingo",
    tokenizer_name: TokenizerName = "ptb",
) -> dict[str, float]:
    """Percent retained by sample id.

    outputs: what the model under test says, by sample id; undefended: what the undefended model says to the same clean
    images; type_: of the task, as presets name it; style: how answers to questions are normalised. Captions: the
    document frequency comes from the undefended captions, so at least two are needed. A caption without a score against
    itself (no words, or none that sets it apart from the others) is retained where it is equal word for word. Answers
    of an outside task are retained where they are equal. Raises UserError where the ids differ.
    """
    if outputs.keys() != undefended.keys():
        raise UserError("the retained share needs answers to the same samples: evaluate both models on the same ids")
    if type_ == "caption":
        return _captions(outputs, undefended, tokenizer_name)
    readers: dict[str, Callable[[str], str | None]] = {
        "vqa": lambda text: normalise_answer(text, style),
        "yes_no": read_yes_no,
        "letter": read_letter,
    }
    read = readers.get(type_, str)
    return {one: 100.0 * (read(text) == read(undefended[one])) for one, text in outputs.items()}


def retained_of(run: Run, undefended: Run, *, attacked: bool) -> list[float]:
    """`retained_scores` of a run's answers, to attacked images or clean ones, against an undefended run's; in the order
    of the run's samples.

    Raises UserError for other samples, and for `attacked` of a run that has no attacked images.
    """
    outputs = {}
    for sample in run.samples:
        said = sample.adversarial if attacked else sample.clean
        if said is None:
            raise UserError(f"sample {sample.id} has no attacked image: the run was clean")
        outputs[sample.id] = said.output
    task = run.settings["task"]
    scores = retained_scores(
        outputs,
        {sample.id: sample.clean.output for sample in undefended.samples},
        load_task_config(task).type if task in names("tasks") else "outside",
        style=run.settings.get("answers", {}).get("style", "openflamingo"),
        tokenizer_name=run.settings.get("tokenizer") or "ptb",
    )
    return [scores[sample.id] for sample in run.samples]


def _captions(
    outputs: Mapping[str, str], undefended: Mapping[str, str], tokenizer_name: TokenizerName
) -> dict[str, float]:
    scorer = CiderScorer({one: [text] for one, text in undefended.items()}, tokenizer=tokenizer_name)
    reached, whole = scorer.score(outputs)[1], scorer.score(undefended)[1]
    words = tokenizer(tokenizer_name)
    return {
        one: 100 * reached[one] / whole[one]
        if whole[one] > 0
        else 100.0 * (words([outputs[one]]) == words([undefended[one]]))
        for one in outputs
    }
