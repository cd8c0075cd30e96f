"""What only several runs can show: an adaptive attack that a transfer attack beats."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from attacks.eps import budget_text
from eval_tasks.audit.context import mean
from eval_tasks.audit.findings import Finding, Verdict
from eval_tasks.audit.rules import MARGIN, bounded, difference
from eval_tasks.run.facts import model_label, setting, threat_of
from eval_tasks.run.records import Run, images_of

NAME = "adaptive against transfer"


def adaptive_against_transfer(runs: Sequence[Run]) -> list[Finding]:
    """One finding for each model, task and budget that was attacked both ways, over the samples both have.

    The strongest adaptive run (lowest mean score) is held against the strongest transfer run: whoever knows the
    model can do all that who does not know it can. Fails when the adaptive score is above the transfer score beyond
    the interval of their paired difference, and warns when it is above by over a tenth of the clean score.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if threat_of(run) in ("adaptive", "transfer") and run.scores("adversarial"):
            groups[_victim(run)].append(run)
    found = []
    for group in groups.values():
        strongest = {}
        for threat in ("adaptive", "transfer"):
            scored = [
                (mean(list(run.scores("adversarial").values())), i)
                for i, run in enumerate(group)
                if threat_of(run) == threat
            ]
            if scored:
                strongest[threat] = group[min(scored)[1]]
        if len(strongest) == 2:
            found.append(_finding(strongest["adaptive"], strongest["transfer"]))
    return [finding for finding in found if finding is not None]


def _finding(adaptive: Run, transfer: Run) -> Finding | None:
    ours, theirs = (run.scores("adversarial") for run in (adaptive, transfer))
    shared = [i for i in ours if i in theirs]
    if not shared:
        return None
    images = images_of(sample for sample in adaptive.samples if sample.id in shared)
    excess = difference([ours[i] for i in shared], [theirs[i] for i in shared], images)
    clean = mean([*adaptive.scores("clean").values()] or [0.0])
    verdict: Verdict = "fail" if excess.low > 0 else "warn" if excess.mean > max(MARGIN * clean, 0) else "pass"
    attack = setting(adaptive, "attack")
    numbers = {
        "samples": len(shared),
        "adaptive_score": mean([ours[i] for i in shared]),
        "transfer_score": mean([theirs[i] for i in shared]),
        "difference": excess.mean,
        "difference_low": bounded(excess.low),
        "difference_high": bounded(excess.high),
    }
    budget = f"{attack['norm']} {budget_text(attack['eps'], attack['norm'])}"
    what = f"{model_label(adaptive)}, {setting(adaptive, 'task')}, {budget}"
    scores = f"adaptive {numbers['adaptive_score']:.1f}, transfer {numbers['transfer_score']:.1f}"
    if verdict == "pass":
        said = f"{what}: {scores}, as it must be."
    else:
        sure = "beyond the interval" if verdict == "fail" else "though within the interval"
        said = f"{what}: {scores}; the attack that knows the model is the weaker one, {sure}: its score is too high."
    return Finding(NAME, verdict, said, numbers)


def _victim(run: Run) -> str:
    """What two runs must share: the model as it is scored, the questions, the budget."""
    model, attack = dict(setting(run, "model")), setting(run, "attack")
    parts = [setting(run, "task"), setting(run, "preset"), setting(run, "ids", "sha256"), run.settings.get("tokenizer")]
    parts += [run.settings.get("classes"), run.settings.get("answers")]
    return json.dumps([model, parts, attack.get("norm"), attack["eps"]], sort_keys=True)
