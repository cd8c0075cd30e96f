"""The small files of released checkpoints, in the form in which they are released.

Templates are cut down to what decides: which file holds them, whether they read a message's content as one string
or as a list of parts, where they put the image, and what opens the answer. The forms are those of llava-hf's
llava-1.5, llava-v1.6-mistral and llava-onevision-qwen2, of Qwen's Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, of
Z.ai's GLM-4.5V, of Google's gemma-3, and of Idefics3, SmolVLM2 and InternVL3. PaliGemma is released without any: its
template here writes image and
question, as its processor asks for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from PIL import Image

from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.families import FAMILIES, PixtralProcessor, without_videos

Place = Literal["chat_template.json", "chat_template.jinja", "processor_config.json"]

# The language models' own, which their tokenizer_config.json kept: content is one string.
_MISTRAL_TEXT = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
_CHATML_TEXT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Prints a list of parts as Python does, without an error.
_LLAMA_TEXT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token }}[INST] {{ message['content'] }}"
    " [/INST]{% else %} {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)


def _parts(kind: str, written: str) -> str:
    """The loop over a message's parts of one kind, as llava-hf's templates have it."""
    return (
        f"{{% for content in message['content'] | selectattr('type', 'equalto', '{kind}') %}}"
        f"{{{{ {written} }}}}{{% endfor %}}"
    )


_VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{# Render all images first #}" + _parts("image", r"'<image>\n'") + "{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}" + _parts("text", "content['text'] + ' '") + "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}"
    "{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    + _parts("image", r"'<image>\n'")
    + _parts("text", "content['text']")
    + "{{ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + _parts("image", "'<image>'")
    + _parts("video", "'<video>'")
    + _parts("text", r"'\n' + content['text']")
    + "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{%- for message in messages -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- else -%}{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
_INTERNVL = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
_AYA = (
    "{{ bos_token }}{%- for message in messages -%}<|START_OF_TURN_TOKEN|>{{ message.role | replace('user', "
    "'<|USER_TOKEN|>') | replace('assistant', '<|CHATBOT_TOKEN|>') }}{%- if message.content is string -%}"
    "{{ message.content }}{%- else -%}"
    + _parts("image", "'<image>'")
    + _parts("text", "content.text")
    + "{%- endif -%}<|END_OF_TURN_TOKEN|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}"
)
_QWEN3 = (
    "{%- set image_count = namespace(value=0) %}\n{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' }}\n    {%- if message.content is string %}\n"
    "        {{- message.content }}\n    {%- else %}\n        {%- for content in message.content %}\n"
    "            {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}\n"
    "<|vision_start|><|image_pad|><|vision_end|>\n            {%- elif 'text' in content %}\n"
    "                {{- content.text }}\n            {%- endif %}\n        {%- endfor %}\n    {%- endif %}\n"
    "    {{- '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
# Of Qwen3.5 and 3.6: a macro writes the content, and unless thoughts are left out the answer begins with them.
_QWEN3_5 = (
    "{%- macro written(content) %}\n    {%- if content is string %}\n        {{- content }}\n    {%- else %}\n"
    "        {%- for part in content %}\n            {%- if 'image' in part or part.type == 'image' %}\n"
    "                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}\n            {%- elif 'text' in part %}\n"
    "                {{- part.text }}\n            {%- else %}\n"
    "                {{- raise_exception('Unexpected part of a message.') }}\n            {%- endif %}\n"
    "        {%- endfor %}\n    {%- endif %}\n{%- endmacro %}\n{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + (written(message.content) | trim) + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- else %}\n        {{- '<think>\\n' }}\n    {%- endif %}\n"
    "{%- endif %}\n"
)
# Of GLM-4.5V and 4.6V: thoughts are left out by a word after the question and an empty pair of marks.
_GLM = (
    "[gMASK]<sop>\n{%- macro written(content) -%}\n    {%- if content is string -%}\n        {{- content }}\n"
    "    {%- else -%}\n        {%- for part in content -%}\n            {%- if part.type == 'image' -%}\n"
    "                {{- '<|begin_of_image|><|image|><|end_of_image|>' }}\n"
    "            {%- elif part.type == 'text' -%}\n                {{- part.text }}\n            {%- endif -%}\n"
    "        {%- endfor -%}\n    {%- endif -%}\n{%- endmacro -%}\n{% for m in messages %}\n"
    "{%- if m.role == 'user' -%}<|user|>\n{{ written(m.content) }}\n"
    "{{- '/nothink' if (enable_thinking is defined and not enable_thinking) else '' -}}\n"
    "{%- elif m.role == 'assistant' -%}\n<|assistant|>\n{{ written(m.content) }}\n{%- endif -%}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n    <|assistant|>"
    "{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' -}}\n{%- endif -%}\n"
)
# Of Gemma 4: where thoughts are left out, the answer follows an empty one.
_GEMMA4 = (
    "{{ bos_token }}\n{%- for message in messages -%}\n"
    "    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\n"
    "    {{- '<|turn>' + role + '\\n' }}\n    {%- if message['content'] is string -%}\n"
    "        {{- message['content'] | trim -}}\n    {%- else -%}\n        {%- for item in message['content'] -%}\n"
    "            {%- if item['type'] == 'text' -%}\n                {{- item['text'] | trim -}}\n"
    "            {%- elif item['type'] == 'image' -%}\n                {{- '\\n\\n<|image|>\\n\\n' -}}\n"
    "            {%- endif -%}\n        {%- endfor -%}\n    {%- endif -%}\n    {{- '<turn|>\\n' -}}\n"
    "{%- endfor -%}\n{%- if add_generation_prompt -%}\n    {{- '<|turn>model\\n' -}}\n"
    "    {%- if not enable_thinking | default(false) -%}\n        {{- '<|channel>thought\\n<channel|>' -}}\n"
    "    {%- endif -%}\n{%- endif -%}\n"
)
# Of Mistral Small 3.1: the day stands in its system prompt.
_MISTRAL3 = (
    "{%- set today = strftime_now('%Y-%m-%d') %}\n{{- bos_token }}\n"
    "{{- '[SYSTEM_PROMPT]You are helpful. The date is ' + today + '.[/SYSTEM_PROMPT]' }}\n"
    "{%- for message in messages %}\n    {%- if message['role'] == 'user' %}\n        {{- '[INST]' }}\n"
    "        {%- if message['content'] is string %}\n            {{- message['content'] }}\n        {%- else %}\n"
    "            {%- for block in message['content'] %}\n                {%- if block['type'] == 'text' %}\n"
    "                    {{- block['text'] }}\n"
    "                {%- elif block['type'] == 'image' or block['type'] == 'image_url' %}\n"
    "                    {{- '[IMG]' }}\n                {%- endif %}\n            {%- endfor %}\n"
    "        {%- endif %}\n        {{- '[/INST]' }}\n    {%- else %}\n"
    "        {{- message['content'][0]['text'] + eos_token }}\n    {%- endif %}\n{%- endfor %}\n"
)


@dataclass(frozen=True)
class Templates:
    """processor: what AutoProcessor takes; tokenizer: what stands in tokenizer_config.json beside it."""

    processor: str
    tokenizer: str


TEMPLATES = {
    "llava": Templates(_VICUNA, _LLAMA_TEXT),
    "llava-next": Templates(_MISTRAL, _MISTRAL_TEXT),
    "onevision": Templates(_ONEVISION, _CHATML_TEXT),
    "qwen2": Templates(_QWEN, _QWEN),
    "qwen2.5": Templates(_QWEN, _QWEN),
    "qwen3": Templates(_QWEN3, _QWEN3.replace("<|vision_start|>", "")),
    "gemma3": Templates(_GEMMA, _GEMMA.replace("<start_of_image>", "")),
    "paligemma": Templates(tiny_checkpoints.PALIGEMMA_TEMPLATE, ""),
    "qwen3.5": Templates(_QWEN3_5, _QWEN3_5),
    "glm": Templates(_GLM, _GLM),
    "idefics3": Templates(f"<s>{tiny_checkpoints.IDEFICS_TEMPLATE}", ""),
    "smolvlm": Templates(f"<|im_start|>{tiny_checkpoints.IDEFICS_TEMPLATE}", ""),
    "gemma4": Templates(_GEMMA4, _GEMMA4),
    "mistral3": Templates(_MISTRAL3, ""),
    "pixtral": Templates(f"<s>{tiny_checkpoints.MISTRAL_TEMPLATE}", ""),
    "internvl": Templates(_INTERNVL, _INTERNVL.replace("<IMG_CONTEXT>", "")),
    "aya": Templates(_AYA, _AYA.replace("<image>", "")),
}
"""Family -> its two templates; Qwen2's, 2.5's and 3.5's and GLM's are one text in two files."""


def templates_of(name: str) -> Templates:
    """Those of the family, or of the one whose release it shares."""
    return TEMPLATES[FAMILIES[name].release or name]


def merge(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file, which may not be there yet."""
    old = json.loads(path.read_bytes()) if path.is_file() else {}
    path.write_text(json.dumps(old | values))


def put_templates(folder: Path, templates: Templates, place: Place = "chat_template.json") -> None:
    """Both templates where released checkpoints have them."""
    merge(folder / "tokenizer_config.json", chat_template=templates.tokenizer)
    if place == "chat_template.jinja":
        (folder / place).write_text(templates.processor)
    else:
        merge(folder / place, chat_template=templates.processor)


_CLIP = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
_SIGLIP = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2"}
NUMBERS: dict[str, dict[str, Any]] = {
    "llava": _CLIP,
    "llava-next": _CLIP,
    "onevision": _SIGLIP,
    "gemma3": {"image_seq_length": 4},
    "idefics3": {"image_seq_len": 4},
    "smolvlm": {"image_seq_len": 4},
    "internvl": {"image_seq_length": 4},
    "aya": {"patch_size": 28, "img_size": 56},
    "mistral3": {"patch_size": 14, "spatial_merge_size": 2, "processor_class": "PixtralProcessor"},
    "pixtral": {"patch_size": 14, "spatial_merge_size": 1, "processor_class": "PixtralProcessor"},
}
"""What a release's processor_config.json says of the model; the others have none."""


def write(name: str, folder: Path, templates: Templates | None = None, place: Place = "chat_template.json") -> Path:
    """The family's tiny checkpoint with the small files of a release."""
    FAMILIES[name].save(folder)
    (folder / "chat_template.jinja").unlink()
    name = FAMILIES[name].release or name
    if name in NUMBERS:
        merge(folder / "processor_config.json", **NUMBERS[name])
    put_templates(folder, templates or templates_of(name), place)
    return folder


def asked(image: Image.Image, question: str) -> list[dict[str, Any]]:
    """Chat messages as transformers' processors take them."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def stock_processor(name: str, folder: Path) -> Any:
    """transformers' own processor of a checkpoint of that family, or of a folder saved from one.

    Qwen's and OneVision's want a video processor, which wants torchvision: theirs is put together without one.
    """
    if not FAMILIES[name].processor:
        return transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    if name in ("mistral3", "pixtral"):
        stored, _ = PixtralProcessor.get_processor_dict(folder)
        return PixtralProcessor(
            transformers.PixtralImageProcessorPil.from_pretrained(folder),
            transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
            **{key: stored[key] for key in ("patch_size", "spatial_merge_size", "chat_template")},
        )
    kind: Any = getattr(transformers, FAMILIES[name].processor)
    stored, _ = kind.get_processor_dict(folder)
    if name in ("smolvlm", "internvl", "gemma4", "gemma4-large"):
        images = json.loads((folder / "preprocessor_config.json").read_bytes())["image_processor_type"]
        number = {key: stored[key] for key in ("image_seq_len", "image_seq_length") if key in stored}
        if "feature_extractor" in kind.get_attributes():
            number["feature_extractor"] = None
        return without_videos(
            kind,
            getattr(transformers, images.removesuffix("Pil") + "Pil").from_pretrained(folder),
            transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
            chat_template=stored.get("chat_template"),
            **number,
        )
    processor = kind.__new__(kind)
    processor.chat_template = stored.get("chat_template")
    processor.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    images = json.loads((folder / "preprocessor_config.json").read_bytes())["image_processor_type"]
    processor.image_processor = getattr(transformers, images.removesuffix("Pil") + "Pil").from_pretrained(folder)
    processor.image_token, processor.video_token = processor.tokenizer.convert_ids_to_tokens(
        [tiny_random.IMAGE_TOKEN, tiny_random.VIDEO_TOKEN]
    )
    processor.image_token_id, processor.video_token_id = tiny_random.IMAGE_TOKEN, tiny_random.VIDEO_TOKEN
    processor.video_start_id, processor.video_end_id = tiny_random.GLM_VIDEO
    for key in ("num_image_tokens", "vision_aspect_ratio", "vision_feature_select_strategy"):
        setattr(processor, key, stored.get(key))
    return processor
