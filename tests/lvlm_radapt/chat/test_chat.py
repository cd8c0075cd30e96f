"""The terminal chat: what lines mean, what a session does and keeps, and the program at the end of a pipe."""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attacks.eight_bit import from_8bit
from lvlm_radapt import load_model, robustify
from lvlm_radapt.chat import commands
from lvlm_radapt.chat.commands import Ask, Attack, Defend, Save, ShowImage, Side, parse
from lvlm_radapt.chat.session import Session, Step
from lvlm_radapt.chat.terminal import Stream
from lvlm_radapt.embedded.scenes import render, sample_scene
from lvlm_radapt.utils.errors import UserError
from tests.helpers.cli import Cli

CAPTION = "Provide a short caption for this image."
COLOUR = "what color is the background? Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a scene.png"
    render(sample_scene("test", 0, 0)).save(path)
    return path


def quiet(side: Side, text: str) -> None:
    pass


def no_bar(step: Step) -> None:
    pass


# Lines


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("", None),
        ("  \n", None),
        ("  what is it? \n", Ask("what is it?")),
        ("/image a b.png", ShowImage(Path("a b.png"))),
        ("/image 'a b.png'", ShowImage(Path("a b.png"))),
        ("/image ~/a.png", ShowImage(Path.home() / "a.png")),
        ("/attack", Attack(4 / 255, 20, None, None)),
        ("/attack steps=3 eps=8/255", Attack(8 / 255, 3, None, None)),
        ("/attack on=plain target=it's a pig = 1", Attack(4 / 255, 20, "plain", "it's a pig = 1")),
        ('/attack target="yes"', Attack(4 / 255, 20, None, "yes")),
        ("/attack loss=embedding steps=3", Attack(4 / 255, 3, None, None, "embedding")),
        ("/defend on", Defend(True)),
        ("/defend off", Defend(False)),
        ("/save out", Save(Path("out"))),
        ("/reset", "/reset"),
        ("/help", "/help"),
        ("/quit ", "/quit"),
    ],
)
def test_lines(line: str, command: commands.Command | None) -> None:
    assert parse(line) == command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/imgae a.png", "did you mean /image?"),
        ("/", "see /help"),
        ("/image", "/image FILE"),
        ('/image ""', "/image FILE"),
        ("/image ~nobody-at-all/a.png", "no folder"),
        ("/attack 4/255", "does not take '4/255'"),
        ("/attack seed=1", "does not take 'seed=1'"),
        ("/attack eps=4", "write 4/255"),
        ("/attack eps=", "write 4/255"),
        ("/attack steps=0", "whole number from 1"),
        ("/attack steps=٣", "whole number from 1"),
        ("/attack steps=-1", "whole number from 1"),
        ("/attack steps=1 steps=2", "given twice"),
        ("/attack on=both", "plain or defended"),
        ("/attack loss=l2", "e2e or embedding"),
        ("/attack loss=embedding target=a pig", "needs no text"),
        ("/attack target=", "needs the text"),
        ("/attack target=''", "needs the text"),
        ("/defend", "on or off"),
        ("/defend maybe", "on or off"),
        ("/save", "/save DIR"),
        ("/reset now", "takes nothing more"),
    ],
)
def test_lines_that_mean_nothing_are_told_in_one(line: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        parse(line)
    assert "\n" not in str(caught.value)


@given(
    levels=st.integers(1, 255),
    steps=st.integers(1, 999_999),
    on=st.sampled_from([None, "plain", "defended"]),
    target=st.none()
    | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).filter(lambda t: t[0] not in "'\""),
    order=st.permutations(["eps", "steps", "on"]),
    gap=st.sampled_from([" ", "   "]),
)
def test_attack_arguments_come_back(
    levels: int, steps: int, on: Side | None, target: str | None, order: list[str], gap: str
) -> None:
    words = {"eps": f"eps={levels}/255", "steps": f"steps={steps}", "on": f"on={on}" if on else ""}
    line = gap.join(
        ["/attack", *filter(None, (words[key] for key in order)), *([f"target={target}"] if target else [])]
    )
    assert parse(line) == Attack(levels / 255, steps, on, target)


@given(st.text())
def test_no_line_is_more_than_refused(text: str) -> None:
    for line in (text, f"/{text}", f"/attack {text}", f"/attack eps={text}", f"/image {text}"):
        with contextlib.suppress(UserError):
            parse(line)


# Sessions


def test_a_conversation_goes_on_from_what_was_said(picture: Path) -> None:
    model = load_model("tiny-llava")
    session = Session(model, max_new_tokens=12)
    session.show(picture)
    seen: list[str] = []
    first = session.ask(CAPTION, lambda side, text: seen.append(text)).answers["plain"]
    second = session.ask(COLOUR, quiet).answers["plain"]
    batch = model.pixels([Image.open(picture)])
    assert first == seen[-1] == model.generate(batch, [CAPTION], 12)[0]
    assert second == model.generate(batch, [(CAPTION, first, COLOUR)], 12)[0]
    session.reset()
    assert session.ask(COLOUR, quiet).answers["plain"] == model.generate(batch, [COLOUR], 12)[0]


def test_an_attack_lowers_the_answer_s_likelihood_and_stays_in_the_ball(picture: Path, tmp_path: Path) -> None:
    session = Session(load_model("tiny-llava"), max_new_tokens=12)
    session.show(picture)
    answer = session.ask(CAPTION, quiet).answers["plain"]
    steps: list[tuple[int, int]] = []
    found = session.attack(parsed("/attack eps=8/255 steps=4"), lambda step: steps.append((step.done, step.total)))
    assert steps == [(done, 4) for done in range(5)]
    assert (found.on, found.text) == ("plain", answer)
    session.save(tmp_path / "saved")
    clean, attacked = (torch.from_numpy(pixels(tmp_path / "saved" / f"{n}.png")) for n in ("canvas", "adversarial"))
    assert (clean.int() - attacked.int()).abs().max() == found.linf == 8
    batch = session.model.pixels([Image.open(picture)])
    assert torch.equal(from_8bit(clean)[None], batch.x)
    with torch.no_grad():
        losses = [
            float(session.model.loss(batch.replace(x), [CAPTION], [answer]))
            for x in (batch.x, from_8bit(attacked)[None])
        ]
    assert (found.before, found.after) == pytest.approx(losses)
    assert found.after > found.before + 0.5
    again = session.ask_again(quiet).answers["plain"]
    assert again == session.model.generate(batch.replace(from_8bit(attacked)[None]), [CAPTION], 12)[0]
    assert len(session.exchanges) == 1
    assert session.attack(parsed("/attack steps=1"), no_bar).text == answer, "the answer before the attack counts"
    aimed = session.attack(parsed("/attack eps=8/255 steps=4 target=a pig"), no_bar)
    assert aimed.text == "a pig"
    assert aimed.after < aimed.before


def test_the_defence_is_switched_and_attacked(picture: Path) -> None:
    model = load_model("tiny-llava")
    session = Session(model, max_new_tokens=6)
    session.show(picture)
    stock = session.ask(CAPTION, quiet).answers
    with pytest.raises(UserError, match="no defence to attack"):
        session.attack(parsed("/attack on=defended"), no_bar)
    assert session.defend(True)
    assert not session.defend(False)
    assert session.sides == ("plain",)
    session.reset()
    assert session.ask(CAPTION, quiet).answers == stock
    session.defend(True)
    session.reset()
    own = session.ask(CAPTION, quiet).answers
    assert list(own) == ["defended"]
    batch = model.pixels([Image.open(picture)])
    with torch.no_grad():
        through = float(model.loss(batch, [CAPTION], [own["defended"]]))
        with model.undefended():
            around = float(model.loss(batch, [CAPTION], [own["defended"]]))
    assert through != pytest.approx(around, rel=1e-3)
    assert session.attack(parsed("/attack steps=1"), no_bar).before == pytest.approx(through)
    assert session.attack(parsed("/attack steps=1 on=plain"), no_bar).before == pytest.approx(around)


def test_side_by_side_each_goes_on_from_its_own_answers(picture: Path) -> None:
    session = Session(load_model("tiny-llava"), compare=True, max_new_tokens=6)
    assert session.given_defence
    assert not Session(robustify(load_model("tiny-llava")), compare=True).given_defence
    session.show(picture)
    order: list[Side] = []
    first = session.ask(CAPTION, lambda side, text: order.append(side)).answers
    assert list(first) == ["plain", "defended"] == list(dict.fromkeys(order))
    second = session.ask(COLOUR, quiet).answers
    model, batch = session.model, session.model.pixels([Image.open(picture)])
    assert second["defended"] == model.generate(batch, [(CAPTION, first["defended"], COLOUR)], 6)[0]
    with model.undefended():
        assert second["plain"] == model.generate(batch, [(CAPTION, first["plain"], COLOUR)], 6)[0]
    assert session.attack(parsed("/attack steps=1"), no_bar).on == "defended"
    with pytest.raises(UserError, match="side by side"):
        session.defend(False)


def test_what_fails_or_is_stopped_leaves_the_session_as_it_was(picture: Path, tmp_path: Path) -> None:
    session = Session(load_model("tiny-llava"), max_new_tokens=4)
    for act in (lambda: session.ask("what", quiet), lambda: session.attack(parsed("/attack"), no_bar)):
        with pytest.raises(UserError, match="no image yet"):
            act()
    session.show(picture)
    with pytest.raises(UserError, match="no answer to attack"):
        session.attack(parsed("/attack"), no_bar)
    with pytest.raises(UserError, match="reserved token"):
        session.ask("what is <image>", quiet)
    answers = session.ask(CAPTION, quiet).answers
    events = len(session.events)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for act in (
        lambda: session.ask(COLOUR, stop),
        lambda: session.ask_again(stop),
        lambda: session.attack(parsed("/attack"), stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            act()
    with pytest.raises(UserError, match="cannot read"):
        session.show(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="reserved token"):
        session.attack(parsed("/attack target=<image>"), no_bar)
    assert not session.is_attacked
    assert [exchange.answers for exchange in session.exchanges] == [answers]
    assert len(session.events) == events
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        session.save(tmp_path / "full")


def test_an_attack_whose_loss_is_no_number_changes_nothing(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(load_model("tiny-llava"), max_new_tokens=4)
    session.show(picture)
    session.ask(CAPTION, quiet)
    monkeypatch.setattr(session.model, "loss", lambda batch, prompts, targets: batch.x.sum((1, 2, 3)) * torch.nan)
    with pytest.raises(UserError, match="the attack failed, loss is not finite"):
        session.attack(parsed("/attack"), no_bar)
    assert not session.is_attacked


def test_the_transcript_holds_everything(picture: Path, tmp_path: Path) -> None:
    session = Session(load_model("tiny-llava"), max_new_tokens=6)
    session.save(tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["transcript.json", "transcript.md"]
    session.show(picture)
    session.ask(CAPTION, quiet)
    found = session.attack(parsed("/attack eps=2/255 steps=2"), no_bar)
    session.ask_again(quiet)
    session.defend(True)
    session.reset()
    session.save(tmp_path / "saved")
    names = ["canvas.png", "transcript.json", "transcript.md"]
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == names  # the attack was forgotten
    document = json.loads((tmp_path / "saved" / "transcript.json").read_text())
    assert (document["model"], document["device"], document["dtype"]) == ("tiny-llava", "cpu", "float32")
    assert document["defence"]["cutoff"] == 40
    image, turn, attack, again, defend, reset = document["events"]
    assert (image["kind"], image["canvas"]) == ("image", [112, 112])
    assert (turn["question"], turn["image"], again["image"]) == (CAPTION, "clean", "adversarial")
    assert attack["reference"] == turn["answers"]["plain"]
    assert (attack["eps_text"], attack["steps"], attack["on"]) == ("2/255", 2, "plain")
    assert (attack["loss_before"], attack["loss_after"]) == (found.before, found.after)
    assert (defend, reset) == ({"kind": "defend", "on": True}, {"kind": "reset"})
    text = (tmp_path / "saved" / "transcript.md").read_text()
    for part in (f"> {CAPTION}", turn["answers"]["plain"], "Linf 2/255, 2 steps", "*Defence on*", "![canvas]"):
        assert part in text


def test_the_transcript_shows_what_was_said_as_text(picture: Path, tmp_path: Path) -> None:
    session = Session(load_model("tiny-llava"), max_new_tokens=2)
    session.model.name = "<b>m</b>"
    session.begin(Image.open(picture).convert("RGB"), "a*b_<img src=x>\udcff.png")
    session.ask("![a](http://evil.example/x) <script>\n# head | `x`", quiet)
    session.save(tmp_path / "saved")
    text = (tmp_path / "saved" / "transcript.md").read_text(encoding="utf-8")
    assert "*Image a\\*b\\_&lt;img src=x>\\udcff.png*" in text
    assert "> ![a]\\(http://evil.example/x) &lt;script> # head \\| \\`x\\`\n" in text
    assert "<" not in text
    saved = json.loads((tmp_path / "saved" / "transcript.json").read_text(encoding="utf-8"))
    assert saved["events"][1]["question"].startswith("![a](http")


# The terminal


def test_streams_write_what_has_grown_once() -> None:
    class Shown:
        file = io.StringIO()

    stream = Stream(Shown)  # type: ignore[arg-type]
    for text in ("a", "a b", "a b \ufffd", "a b é"):
        stream.show(text)
    stream.show("a b é", last=True)
    stream.close(answered=True)
    assert Shown.file.getvalue() == "a b é\n"
    stream = Stream(Shown)  # type: ignore[arg-type]
    stream.show("do n't")
    stream.show("don't go")  # joined anew: waits, and is then written whole
    stream.show("don't go", last=True)
    assert Shown.file.getvalue().splitlines()[-2:] == ["do n't", "don't go"]


def test_no_answer_drives_the_terminal() -> None:
    class Shown:
        file = io.StringIO()

    stream = Stream(Shown)  # type: ignore[arg-type]
    stream.show("a\x1b]0;x\x07b")
    stream.show("a\x1b]0;x\x07b\r\x9bc\nd\t\u4e2d", last=True)
    assert Shown.file.getvalue() == "a\\x1b]0;x\\x07b\\x0d\\x9bc\nd\t\u4e2d"


Piped = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def piped(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Piped:
    """Lines of stdout and of stderr of a chat whose lines come from a pipe."""

    def run(lines: list[str], *arguments: object) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code, out, err = cli("chat", *arguments)
        assert code == 0, err
        return out.splitlines(), err.splitlines()

    return run


def test_a_script_holds_a_whole_conversation(picture: Path, tmp_path: Path, piped: Piped) -> None:
    lines = [
        CAPTION, "/attack eps=8/255 steps=3", "/nonsense", "/image nowhere.png", "", "/defend on", COLOUR,
        f"/save {tmp_path / 'saved'}", "/help", "/quit", "never said",
    ]  # fmt: skip
    out, err = piped(lines, "tiny-llava", "--image", picture, "--max-new-tokens", 12)
    document = json.loads((tmp_path / "saved" / "transcript.json").read_text())
    said = [answer for event in document["events"] for answer in event.get("answers", {}).values()]
    assert out == said
    assert len(said) == 3
    text = "\n".join(err)
    for part in (
        "trained on single turns", "sees 112x112", "error: there is no command '/nonsense'", "error: cannot read image",
        "defence on, the training-free one: a Gaussian filter (cutoff 40)", "saved in", "nats a token", "Ctrl-C",
    ):  # fmt: skip
        assert part in text
    assert "Traceback" not in text
    assert "\x1b" not in text


def test_a_script_compares(picture: Path, piped: Piped) -> None:
    out, err = piped([f"/image {picture}", CAPTION], "tiny-qwen", "--compare", "--max-new-tokens", 5)
    assert [line.partition(": ")[0] for line in out] == ["plain", "defended"]
    assert "tiny-qwen has no defence" in err[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny-lava"], "did you mean tiny-llava"),
        (["tiny-clip"], "is an image encoder"),
        (["tiny-llava", "--image", "nowhere.png"], "cannot read image nowhere.png"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], said: str, cli: Cli) -> None:
    assert said in cli.refused("chat", *arguments)


def parsed(line: str) -> Attack:
    command = parse(line)
    assert isinstance(command, Attack)
    return command


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).transpose(2, 0, 1).copy()
