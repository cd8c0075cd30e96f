"""Tasks, attacks on them, scores and run folders; `eval_tasks.api` is the way in."""

from lvlm_radapt.utils.moved import allow_old_paths

allow_old_paths()
