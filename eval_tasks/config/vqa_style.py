"""The answer normalisations that VQA accuracy is computed under; `eval_tasks.metrics.vqa` says what each does."""

from typing import Literal

Style = Literal["vqav2", "openflamingo", "textvqa"]
