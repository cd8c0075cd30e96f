"""The shipped YAML files, and the complaints about a user's own."""

from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.losses import Distance
from attacks.norms import Norm
from eval_tasks.config import presets
from eval_tasks.config.presets import load_attack, load_protocol, load_recipe, load_task_config, names
from eval_tasks.config.task_files import task_loader
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import Sample, tasks
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt.utils.errors import UserError
from tests.helpers.paths import ROOT

APGD = {"steps": 1, "random_start": True, "step_scale": 1.0, "restarts": 1}


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
        for_encoders = ("zero_shot", "retrieval")
        for task in (name for name, config in tasks().items() if protocol.prompts and config.type not in for_encoders):
            made = make_task(task, protocol)
            assert made.max_new_tokens >= 1
            assert not made.threshold.reached(1000.0, lambda: 1000.0)
        for attack in names("attacks"):
            protocol.adapt(load_attack(attack))


def prompt(preset: str, task: str, question: str | None) -> str:
    return make_task(task, preset).prompt(Sample("1", Path("absent.png"), question, ("a",)))


def start(preset: str, attack: str) -> tuple[bool, float, int]:
    made = make_attack(load_protocol(preset).adapt(load_attack(attack)), target="x" if attack == "targeted" else None)
    return made.random_start, made.step_scale, made.steps


def unknown() -> float:
    raise AssertionError("the first reference's score was asked for")


def test_fare_facts() -> None:
    fare = load_protocol("fare")
    assert (fare.geometry, fare.seed, fare.samples) == ("pad", 42, 500)
    tasks = ("coco", "flickr30k", "vqav2", "textvqa")
    assert [make_task(task, fare).max_new_tokens for task in tasks] == [20, 20, 5, 10]
    assert prompt("fare", "coco", None) == "Provide a short caption for this image."
    asked = prompt("fare", "textvqa", "what is {this}?")
    assert asked == "what is {this}?\nAnswer the question using a single word or phrase."
    asked_in = fare.opening()["conversation"]
    assert asked_in.render("Who?", "<image>") == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: <image>\nWho? ASSISTANT:"
    )
    assert asked_in.render("{system}{text}<image>", "I").endswith("USER: I\n{system}{text}<image> ASSISTANT:")
    assert start("fare", "e2e") == (False, 1.0, 100)
    assert start("fare", "ensemble") == (False, 1.0, 100)
    assert start("fare", "targeted") == (False, 1.0, 10_000)
    # The other attacks keep AutoAttack's settings, and so does e2e elsewhere.
    assert start("fare", "embedding") == start("scenes", "e2e") == (True, 2.0, 100)
    coco, flickr, vqa = (make_task(task, fare).threshold for task in ("coco", "flickr30k", "vqav2"))
    assert [coco.reached(score, unknown) for score in (9.99, 10.0, 0.0)] == [True, False, True]
    assert [flickr.reached(score, unknown) for score in (1.99, 2.0)] == [True, False]
    assert [vqa.reached(score, unknown) for score in (0.0, 0.1)] == [True, False]


def test_lmms_eval_and_scenes_facts() -> None:
    lmms = load_protocol("lmms-eval")
    assert lmms.samples is None
    assert [make_task(task, lmms).max_new_tokens for task in ("coco", "vqav2", "textvqa")] == [64, 16, 16]
    assert prompt("lmms-eval", "coco", None).startswith("Provide a one-sentence caption")
    suffix = "\nAnswer the question using a single word or phrase."
    assert prompt("lmms-eval", "vqav2", "is this NASA?") == "is this NASA?" + suffix
    assert prompt("lmms-eval", "textvqa", "is this NASA?") == "Is this nasa?" + suffix
    scenes = load_protocol("scenes")
    assert (scenes.geometry, scenes.conversation) == ("stock", None)
    assert [make_task(task, scenes).max_new_tokens for task in ("coco", "vqav2")] == [40, 5]
    threshold = make_task("coco", scenes).threshold
    assert [threshold.reached(score, lambda: 900.0) for score in (179.9, 180.0)] == [True, False]


def test_attack_files_name_what_the_attacks_know() -> None:
    embedding = make_attack("embedding")
    assert embedding.distance in Distance.__args__
    assert embedding.at == "tower"
    assert make_attack("none") is None
    for name in names("attacks"):
        if name != "none":
            made = make_attack(name, target="x" if name == "targeted" else None)
            assert made.norm in Norm.__args__
            assert (made.name, made.to_dict()["loss"]) == (name, load_attack(name).type)


def test_the_three_things_called_autoattack() -> None:
    lines = {name: load_attack(name).settings["line"] for name in names("attacks") if name.startswith("autoattack-")}
    assert lines == {
        "autoattack-standard": ["standard"],  # arXiv 2003.01690: APGD-CE, APGD-T, FAB-T, Square
        "autoattack-fare": ["apgd-ce", "apgd-t"],  # arXiv 2402.12336
        "autoattack-tecoa": ["apgd-ce", "apgd-dlr"],  # as TeCoA (arXiv 2212.07016) and its followers are attacked
    }
    for name in ("pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "square"):
        attack = make_attack(name)
        steps = None if name == "square" else 100
        assert (attack.kind, attack.norm, attack.gradient_steps) == ("classifier", "Linf", steps)


@pytest.mark.parametrize(
    ("load", "wrong", "near"),
    [
        (load_protocol, "fair", "did you mean 'fare'"),
        (load_protocol, "lmms_eval", "did you mean 'lmms-eval'"),
        (load_attack, "embeding", "did you mean 'embedding'"),
        (load_attack, "autoattack", "did you mean 'autoattack-standard'"),
        (load_attack, "VEAttack", "did you mean 'embedding'"),
        (load_task_config, "coco2014_cap_val", "did you mean 'coco'"),
        (task_loader, "vizwiz_vqa_val", "did you mean 'vizwiz'"),
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
        ({"thresholds": {"coco": {"kind": "absolute", "value": float("nan")}}}, "field thresholds.coco.value"),
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
    with pytest.raises(UserError, match="no max_new_tokens for task vqav2: add it"):
        make_task("vqav2", protocol)
    protocol = protocol.model_copy(update={"max_new_tokens": {"vqa": 5}})
    assert make_task("vqav2", protocol).max_new_tokens == 5  # by kind, where the task has no own
    with pytest.raises(UserError, match="prompt for textvqa"):
        make_task("textvqa", protocol).prompt(Sample("1", Path("absent.png"), "why?", ("a",)))
    with pytest.raises(ValueError, match="needs a question"):
        make_task("vqav2", protocol).prompt(Sample("1", Path("absent.png"), None, ("a",)))


def test_how_each_preset_scores_answers(tmp_path: Path) -> None:
    questions = [name for name in names("tasks") if load_task_config(name).type == "vqa"]
    assert len(questions) == 4
    for preset in ("fare", "native", "scenes"):
        assert {load_protocol(preset).vqa_style(task) for task in questions} == {"openflamingo"}
    theirs = {task: load_protocol("lmms-eval").vqa_style(task) for task in questions}
    assert theirs == {"vqav2": "openflamingo", "textvqa": "textvqa", "okvqa": "textvqa", "vizwiz": "textvqa"}
    silent = load_protocol(str(own(tmp_path, vqa_styles={})))
    with pytest.raises(UserError, match="no vqa_styles for task vqav2: add it to the preset"):
        silent.vqa_style("vqav2")


def test_an_override_of_what_an_attack_has_not(tmp_path: Path) -> None:
    protocol = load_protocol(str(own(tmp_path, attacks={"noise": {"steps": 3}})))
    with pytest.raises(UserError, match="which has none"):
        protocol.adapt(load_attack("noise"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "nll", "distance": "l2"}, "distance"),
        ({"type": "nll", "steps": 0}, "steps"),
        ({"type": "nll", "steps": True}, "steps"),
        ({"type": "classifier"}, "line"),
        ({"type": "classifier", "line": []}, "line: .*at least 1 item"),
        ({"type": "classifier", "line": ["apgd"], **APGD}, "line.0"),
        ({"type": "classifier", "line": ["apgd-ce"]}, "must be given for the line apgd-ce"),
        ({"type": "classifier", "line": ["square"], "queries": 9, **APGD}, "must not be given for the line square"),
        ({"type": "classifier", "line": ["fab", "square"], "queries": 9}, "steps must be given"),
        ({"type": "classifier", "line": ["standard", "fab"], "steps": 9}, "nothing else may be"),
        ({"type": "classifier", "line": ["pgd-ce", "apgd-t"], **APGD}, "not of both"),
    ],
)
def test_attack_fields_fit_together(fields: dict[str, object], words: str) -> None:
    config = presets.AttackConfig.model_validate({"name": "x", "description": ""} | fields)
    with pytest.raises(UserError, match=f"attack x: .*{words}") as caught:
        make_attack(config)
    one_line(caught)


@pytest.mark.parametrize("fields", [{"type": "captions"}, {}, {"type": "vqa", "metric": "cider"}])
def test_task_fields(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"type|metric"):
        presets.TaskConfig.model_validate({"name": "x", "description": ""} | fields)


def test_an_installed_copy_comes_before_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "configs" / "attacks"
    shipped.mkdir(parents=True)
    (shipped / "only.yaml").write_text("{name: only, description: d, type: none}")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert names("attacks") == ["only"]
    assert load_attack("only").type == "none"


@settings(max_examples=20)
@given(st.text(max_size=60))
def test_questions_enter_prompts_as_they_are(question: str) -> None:
    asked = prompt("scenes", "vqav2", question)
    assert asked == question + "\nAnswer the question using a single word or phrase."


@given(st.binary(max_size=200))
def test_any_yaml_is_a_protocol_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_protocol(str(path))
    assert "\n" not in str(caught.value)


def test_a_recipe_of_fine_tuning_takes_fractions_and_refuses_what_is_no_budget(tmp_path: Path) -> None:
    shipped = yaml.safe_load((ROOT / "configs/finetune/published.yaml").read_text())
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
