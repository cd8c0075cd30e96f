"""The language half of an LVLM, given embeddings: target likelihood and greedy decoding.

Both run the same modules on the same embeddings, so an attack's loss and the scored answer never take
different roads through the library.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor


def _pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids, mask


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both long [B, longest]; padding after the text, for likelihoods."""
    return _pad(rows, pad_id, left=False)


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both long [B, longest]; padding before the text, for generation."""
    return _pad(rows, pad_id, left=True)


def text_positions(mask: Tensor) -> Tensor:
    """[B, L] positions that count the unpadded tokens only, whichever side the padding is on."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def target_positions(prompt_lengths: Sequence[int], targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(positions, labels), both long [B, longest target]: which states of right-padded prompt + target rows predict
    the target's tokens, and these tokens; position 0 and label -100 after a shorter target's end."""
    labels = torch.full((len(targets), max(len(t) for t in targets)), -100, dtype=torch.long)
    positions = torch.zeros_like(labels)
    for i, (start, target) in enumerate(zip(prompt_lengths, targets, strict=True)):
        labels[i, : len(target)] = torch.tensor(target, dtype=torch.long)
        # the state before a token predicts it
        positions[i, : len(target)] = torch.arange(start - 1, start - 1 + len(target))
    return positions, labels


def target_nll(states: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """[B] mean over each target's tokens of -log p(token | everything before), at least float32.

    states: [B, T, D] final states at `target_positions` (a 7B model's logits for whole sequences would dominate the
    memory); labels: [B, T], as given there; head: states -> logits.
    """
    logits = head(states)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.device)
    nll = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return nll.sum(1) / (labels != -100).sum(1)


def output_head(hf: Any) -> Callable[[Tensor], Tensor]:
    """Final states -> logits, with the bound on logits that some language models have (softcapping)."""
    head, cap = hf.get_output_embeddings(), getattr(hf.config.get_text_config(), "final_logit_softcapping", None)
    return head if cap is None else lambda states: torch.tanh(head(states) / cap) * cap


def key_value_cache(language_model: Any) -> dict[str, DynamicCache]:
    """An empty key-value cache under the keyword that this model's `forward` has for it.

    transformers 5.24 calls it `cache`, older versions `past_key_values`. The signature decides, because older versions
    accept an unknown keyword without a word. The forward pass fills the object in place: never read it from the output.
    """
    known = inspect.signature(language_model.forward).parameters
    keyword = "cache" if "cache" in known else "past_key_values"
    return {keyword: DynamicCache(config=language_model.config)}


def greedy(
    hf: Any,
    language_model: Any,
    *,
    ids: Tensor,
    mask: Tensor,
    embeds: Tensor,
    positions: Tensor,
    max_new_tokens: int,
    end_ids: Collection[int],
    first: Mapping[str, Any],
    each: Callable[[Tensor], Mapping[str, Any]],
    on_tokens: Callable[[list[list[int]]], None] | None = None,
) -> list[list[int]]:
    """The most likely token again and again, with a key-value cache; end tokens are cut off.

    ids, mask: [B, L] left-padded; embeds: [B, L, D]; positions: [B, L] or [3, B, L]; first: further keywords
    of the language model for the pass over the prompt, `attention_mask` among them where it is not `mask`; each: those
    for a pass over the token ids [B, 1]; on_tokens: gets the answers as far as they go, after every token. It differs
    from `hf.generate` in that the vision tower has already run, on unrounded pixels, as it does for the loss.
    """
    head, embed = output_head(hf), hf.get_input_embeddings()
    penalty = hf.generation_config.repetition_penalty
    penalise = RepetitionPenaltyLogitsProcessor(float(penalty)) if penalty and penalty != 1.0 else None
    ends = torch.tensor(sorted(end_ids), dtype=torch.long, device=ids.device)
    # what the penalty counts as said; padding is replaced, so that no answer depends on its neighbours' lengths
    said = torch.where(mask.bool(), ids, ids[:, -1:])
    position = positions[..., -1:].clone()
    position[:] = positions.amax(-1, keepdim=True)
    if position.ndim == 3:  # the text after an image goes on from the largest of its axes
        position[:] = position.amax(0, keepdim=True)
    open_rows = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    answers: list[list[int]] = [[] for _ in range(len(ids))]
    cached = key_value_cache(language_model)
    extra = dict(first)
    for _ in range(max_new_tokens):
        out = language_model(
            inputs_embeds=embeds, position_ids=positions, use_cache=True, **cached, **{"attention_mask": mask, **extra}
        )
        logits = head(out.last_hidden_state[:, -1]).float().to(ids.device)
        token = (logits if penalise is None else penalise(said, logits)).argmax(-1)
        open_rows &= ~torch.isin(token, ends)
        for row in open_rows.nonzero().flatten().tolist():
            answers[row].append(int(token[row]))
        if on_tokens is not None:
            on_tokens(answers)
        if not open_rows.any():
            break
        said = torch.cat([said, token[:, None]], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = position = position + 1
        embeds, extra = embed(token[:, None]), dict(each(token[:, None]))
    return answers
