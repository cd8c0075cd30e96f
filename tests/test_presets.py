"""The shipped YAML files, and the complaints about a user's own."""

from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attacks.losses import Distance
from attacks.norms import Norm
from eval_tasks.config import presets
from eval_tasks.config.presets import load_attack, load_protocol, load_recipe, load_task_config, names
from eval_tasks.data import tasks
from lvlm_radapt.utils.errors import UserError

PGD = {"steps": 1, "random_start": True, "step_scale": 1.0}
APGD = PGD | {"restarts": 1}


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_shipped_file_loads_under_its_own_name() -> None:
    assert names("protocols") == ["clip-benchmark", "fare", "lmms-eval", "native", "scenes", "tecoa"]
    ours = {"none", "noise", "embedding", "embedding-l2", "e2e", "ensemble", "targeted"}
    assert ours <= set(names("attacks"))
    kinds = (
        (load_protocol, "protocols"),
        (load_attack, "attacks"),
        (load_task_config, "tasks"),
        (load_recipe, "finetune"),
    )
    for load, kind in kinds:
        for name in names(kind):
            assert load(name).name == name
    # Every task can be loaded from disk and is covered by every protocol.
    assert sorted(tasks()) == names("tasks")
    for protocol in map(load_protocol, names("protocols")):
        for_encoders = ("classification", "retrieval")
        for task in (name for name, config in tasks().items() if protocol.prompts and config.kind not in for_encoders):
            assert protocol.tokens(task) >= 1
            assert not protocol.threshold(task).reached(1000.0, canonical=1000.0)
        for attack in names("attacks"):
            protocol.adapt(load_attack(attack))


def test_fare_facts() -> None:
    fare = load_protocol("fare")
    assert (fare.geometry, fare.seed, fare.samples) == ("pad", 42, 500)
    assert [fare.tokens(task) for task in ("coco", "flickr30k", "vqav2", "textvqa")] == [20, 20, 5, 10]
    assert fare.prompt(load_task_config("coco"), None) == "Provide a short caption for this image."
    asked = fare.prompt(load_task_config("textvqa"), "what is {this}?")
    assert asked == "what is {this}?\nAnswer the question using a single word or phrase."
    asked_in = fare.opening()["conversation"]
    assert asked_in.render("Who?", "<image>") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: <image>\nWho? ASSISTANT:"
    )
    assert asked_in.render("{system}{text}<image>", "I").endswith("USER: I\n{system}{text}<image> ASSISTANT:")
    apgd = fare.adapt(load_attack("e2e")).apgd
    assert apgd is not None
    assert (apgd.random_start, apgd.step_scale, apgd.steps) == (False, 1.0, 100)
    ensemble, targeted = (fare.adapt(load_attack(name)).apgd for name in ("ensemble", "targeted"))
    assert ensemble == apgd
    assert targeted is not None
    assert (targeted.random_start, targeted.step_scale, targeted.steps) == (False, 1.0, 10_000)
    # The other attacks keep AutoAttack's settings, and so does e2e elsewhere.
    for other in (fare.adapt(load_attack("embedding")), load_protocol("scenes").adapt(load_attack("e2e"))):
        assert other.apgd is not None
        assert (other.apgd.random_start, other.apgd.step_scale) == (True, 2.0)
    coco, flickr, vqa = (fare.threshold(task) for task in ("coco", "flickr30k", "vqav2"))
    assert [coco.reached(score) for score in (9.99, 10.0, 0.0)] == [True, False, True]
    assert [flickr.reached(score) for score in (1.99, 2.0)] == [True, False]
    assert [vqa.reached(score) for score in (0.0, 0.1)] == [True, False]


def test_lmms_eval_and_scenes_facts() -> None:
    lmms = load_protocol("lmms-eval")
    assert lmms.samples is None
    assert (lmms.tokens("coco"), lmms.tokens("vqav2"), lmms.tokens("textvqa")) == (64, 16, 16)
    assert lmms.prompt(load_task_config("coco"), None).startswith("Provide a one-sentence caption")
    suffix = "\nAnswer the question using a single word or phrase."
    assert lmms.prompt(load_task_config("vqav2"), "is this NASA?") == "is this NASA?" + suffix
    assert lmms.prompt(load_task_config("textvqa"), "is this NASA?") == "Is this nasa?" + suffix
    scenes = load_protocol("scenes")
    assert (scenes.geometry, scenes.conversation) == ("stock", None)
    assert (scenes.tokens("coco"), scenes.tokens("vqav2")) == (40, 5)
    threshold = scenes.threshold("coco")
    assert [threshold.reached(score, canonical=900.0) for score in (179.9, 180.0)] == [True, False]
    with pytest.raises(ValueError, match="canonical"):
        threshold.reached(100.0)


def test_attack_files_name_what_the_attacks_know() -> None:
    embedding = load_attack("embedding")
    assert embedding.distance in Distance.__args__  # type: ignore[attr-defined]
    assert embedding.at == "tower"
    assert load_attack("none").norm is None
    for name in ("noise", "embedding", "e2e"):
        assert load_attack(name).norm in Norm.__args__  # type: ignore[attr-defined]


def test_the_three_things_called_autoattack() -> None:
    lines = {name: load_attack(name).line for name in names("attacks") if name.startswith("autoattack-")}
    assert lines == {
        "autoattack-standard": ["standard"],  # arXiv 2003.01690: APGD-CE, APGD-T, FAB-T, Square
        "autoattack-fare": ["apgd-ce", "apgd-t"],  # arXiv 2402.12336
        "autoattack-tecoa": ["apgd-ce", "apgd-dlr"],  # as TeCoA (arXiv 2212.07016) and its followers are attacked
    }
    for name in ("pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "square"):
        attack = load_attack(name)
        assert (attack.loss, attack.norm, attack.steps) == ("classifier", "Linf", None if name == "square" else 100)


@pytest.mark.parametrize(
    ("load", "wrong", "near"),
    [
        (load_protocol, "fair", "did you mean 'fare'"),
        (load_protocol, "lmms_eval", "did you mean 'lmms-eval'"),
        (load_attack, "embeding", "did you mean 'embedding'"),
        (load_attack, "../attacks/e2e", "known: "),
        (load_task_config, "VQAv2", "did you mean 'vqav2'"),
        (load_task_config, "", "known: caltech101"),
    ],
)
def test_unknown_names(load: object, wrong: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        load(wrong)  # type: ignore[operator]
    assert near in one_line(caught)


def own(tmp_path: Path, **changes: object) -> Path:
    fields = load_protocol("fare").model_dump(exclude_none=True) | {"name": "mine"} | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in fields.items() if value is not ...}))
    return path


def test_a_users_own_protocol(tmp_path: Path) -> None:
    protocol = load_protocol(str(own(tmp_path, samples=7)))
    assert (protocol.name, protocol.samples) == ("mine", 7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": "many"}, "field samples"),
        ({"samples": 0}, "field samples"),
        ({"samples": True}, "field samples"),
        ({"geometry": "square"}, "field geometry"),
        ({"seed": -1}, "field seed"),
        ({"sampels": 3}, "field sampels"),
        ({"description": ...}, "field description"),
        ({"prompts": {"caption": "x"}}, "a prompt for vqa is missing"),
        ({"prompts": {"caption": "x", "vqa": "no place"}}, "must contain {question}"),
        ({"max_new_tokens": {"coco": 0}}, "field max_new_tokens.coco"),
        (
            {"thresholds": {"coco": {"kind": "absolute", "value": float("nan")}}},
            "field thresholds.coco.value",
        ),
        ({"vqa_styles": {"vqav2": "official"}}, "field vqa_styles.vqav2"),
        ({"attacks": {"e2e": {"step_scale": 0}}}, "field attacks.e2e.step_scale"),
        ({"conversation": {"name": "x", "system": "", "template": "USER:"}}, "must contain <image> once"),
        ({"conversation": {"name": "x", "template": "<image>"}}, "must contain {text} once"),
        ({"conversation": {"name": "x", "template": "<image>{text}<image>"}}, "must contain <image> once"),
        ({"conversation": {"name": "x", "template": "{system}<image>{text}"}}, "system and the place {system}"),
        ({"conversation": {"name": "x", "system": "s", "template": "<image>{text}"}}, "system and the place {system}"),
        ({"conversation": {"name": "vicuna"}}, "choose one of vicuna_v1, "),
        ({"conversation": {"name": "vicuna", "system": "s"}}, "or give it a template"),
        ({"conversation": {"name": "vicuna_v1", "template": "<image>{text}"}}, "is built in with another template"),
        ({"conversation": {"name": "qwen3", "system": "s"}}, "system and the place {system}"),
        ({"name": "fare"}, "shipped preset's name"),
        ({"templates": ["a photo"]}, "must contain {}"),
        ({"templates": []}, "field templates"),
    ],
)
def test_bad_fields_are_named_on_one_line(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = own(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load_protocol(str(path))
    assert words in one_line(caught)
    assert str(path) in one_line(caught)


def test_a_built_in_conversation_needs_its_name_alone_and_takes_another_system_prompt(tmp_path: Path) -> None:
    def asked(**conversation: str) -> str:
        protocol = load_protocol(str(own(tmp_path, conversation=conversation)))
        return protocol.opening()["conversation"].render("Who?", "<image>")

    fare = load_protocol("fare").opening()["conversation"]
    assert asked(name="vicuna_v1") == fare.render("Who?", "<image>")
    assert asked(name="vicuna_v1", system="Be {brief}.") == "Be {brief}. USER: <image>\nWho? ASSISTANT:"
    assert asked(name="vicuna_v1", system="") == " USER: <image>\nWho? ASSISTANT:"
    assert asked(name="mine", template="Q: {text} <image>") == "Q: Who? <image>"


@pytest.mark.parametrize(
    "content", [b"a: [1\nb: 2", b"- 1", b"", b"\xff\xfe\x00", b"a: !!python/object:os.x {}", b"\t"]
)
def test_bad_yaml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_protocol(str(path))
    assert str(path) in one_line(caught)


def test_a_preset_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_protocol(str(tmp_path / "none.yaml"))


def test_a_preset_without_the_task(tmp_path: Path) -> None:
    prompts = {"caption": "c", "vqa": "{question}", "textvqa": "no place"}
    protocol = load_protocol(str(own(tmp_path, max_new_tokens={"coco": 5}, thresholds={}, prompts=prompts)))
    for ask in (protocol.tokens, protocol.threshold):
        with pytest.raises(UserError, match="for task vqav2: add it"):
            ask("vqav2")
    with pytest.raises(UserError, match="prompt for textvqa"):
        protocol.prompt(load_task_config("textvqa"), "why?")
    with pytest.raises(ValueError, match="needs a question"):
        protocol.prompt(load_task_config("vqav2"), None)


def test_how_each_preset_scores_answers(tmp_path: Path) -> None:
    questions = [task for name in names("tasks") if (task := load_task_config(name)).kind == "vqa"]
    assert len(questions) == 4
    for preset in ("fare", "native", "scenes"):
        assert {load_protocol(preset).vqa_style(task) for task in questions} == {"openflamingo"}
    theirs = {task.name: load_protocol("lmms-eval").vqa_style(task) for task in questions}
    assert theirs == {"vqav2": "openflamingo", "textvqa": "textvqa", "okvqa": "textvqa", "vizwiz": "textvqa"}
    assert load_protocol("fare").vqa_style(load_task_config("pope")) is None
    silent = load_protocol(str(own(tmp_path, vqa_styles={})))
    with pytest.raises(UserError, match="no vqa_styles for task vqav2: add it to the preset"):
        silent.vqa_style(load_task_config("vqav2"))


def test_an_override_of_what_an_attack_has_not(tmp_path: Path) -> None:
    protocol = load_protocol(str(own(tmp_path, attacks={"noise": {"steps": 3}})))
    with pytest.raises(UserError, match="which has none"):
        protocol.adapt(load_attack("noise"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": "nll", "norm": "Linf"}, "apgd must be given"),
        ({"loss": "none", "norm": "Linf"}, "norm must not be given"),
        ({"loss": "noise"}, "norm must be given"),
        ({"loss": "noise", "norm": "Linf", "distance": "l2"}, "distance must not be given"),
        ({"loss": "classifier", "norm": "Linf"}, "line must be given"),
        ({"loss": "nll", "norm": "Linf", "apgd": APGD, "line": ["apgd-ce"]}, "line must not be given"),
        ({"loss": "classifier", "norm": "Linf", "line": []}, "at least 1 item"),
        ({"loss": "classifier", "norm": "Linf", "line": ["apgd"], "apgd": APGD}, "line.0"),
        ({"loss": "classifier", "norm": "Linf", "line": ["apgd-ce"]}, "apgd must be given for the line apgd-ce"),
        ({"loss": "classifier", "norm": "Linf", "line": ["square"], "queries": 9, "apgd": APGD}, "apgd must not be"),
        ({"loss": "classifier", "norm": "Linf", "line": ["fab", "square"], "queries": 9}, "fab_steps must be given"),
        ({"loss": "classifier", "norm": "Linf", "line": ["standard", "fab"], "fab_steps": 9}, "nothing else may be"),
        ({"loss": "classifier", "norm": "Linf", "line": ["pgd-ce", "apgd-t"], "apgd": APGD, "pgd": PGD}, "not of both"),
    ],
)
def test_attack_fields_fit_together(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        presets.AttackConfig.model_validate({"name": "x", "description": ""} | fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "caption", "metric": "vqa_accuracy", "style": None}, "metric must be cider"),
        ({"kind": "vqa", "metric": "vqa_accuracy", "style": "yes_no"}, "style must be null"),
        ({"kind": "choice", "metric": "accuracy", "style": None}, "style must be yes_no or letter"),
        ({"kind": "classification", "metric": "cider", "style": None}, "metric must be accuracy"),
        ({"kind": "classification", "metric": "accuracy", "style": "letter"}, "style must be null"),
    ],
)
def test_task_fields_fit_together(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        presets.TaskConfig.model_validate({"name": "x", "description": ""} | fields)


def test_an_installed_copy_comes_before_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "configs" / "attacks"
    shipped.mkdir(parents=True)
    (shipped / "only.yaml").write_text("{name: only, description: d, loss: none}")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert names("attacks") == ["only"]
    assert load_attack("only").loss == "none"


@given(st.text(max_size=60))
def test_questions_enter_prompts_as_they_are(question: str) -> None:
    asked = load_protocol("scenes").prompt(load_task_config("vqav2"), question)
    assert asked == question + "\nAnswer the question using a single word or phrase."


@given(st.binary(max_size=200))
def test_any_yaml_is_a_protocol_or_a_user_error(content: bytes) -> None:
    with pytest.raises(UserError) as caught:
        presets._parse(content, "file", presets.Protocol)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_fine_tuning_takes_fractions_and_refuses_what_is_no_budget(tmp_path: Path) -> None:
    shipped = yaml.safe_load((Path(__file__).parent.parent / "configs/finetune/published.yaml").read_text())
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(shipped | {"name": "own", "eps": "2/255"}))
    assert load_recipe(str(own)).eps == 2 / 255
    for change, words in (
        ({"eps": "4"}, r"field eps: .*write 4/255"),
        ({"pgd_step": 2.0}, "field pgd_step"),
        ({"templates": ["a photo"]}, "must contain {}"),
        ({"lr": 0}, "field lr"),
        ({"momentum": 0.9}, "field momentum"),
    ):
        own.write_text(yaml.safe_dump(shipped | change))
        with pytest.raises(UserError, match=words) as caught:
            load_recipe(str(own))
        one_line(caught)
    with pytest.raises(UserError, match="field steps"):
        load_recipe("scenes").changed(steps=0)
