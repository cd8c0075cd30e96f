"""The rules of three VQA evaluation scripts, written down step by step and slowly, to compare ours with.

Sources: vqaEval.py of the VQA data set's authors, vqa_metric.py of OpenFlamingo (with RobustVLM's copy of it), and
m4c_evaluators.py of TextVQA's authors. Nothing here is shared with the package.
"""

import random
import re

SIGNS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
# As the scripts spell them: what is looked up, and what it becomes.
_PAIRS = """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't havent=haven't
hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's Id've=I'd've I'dve=I'd've Im=I'm
Ive=I've isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll let's=let's maam=ma'am mightnt=mightn't
mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've neednt=needn't notve=not've
oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've
she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've shouldn'tve=shouldn't've
somebody'd=somebodyd somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's
someoned=someone'd someoned've=someone'd've someone'dve=someone'd've someonell=someone'll someones=someone's
somethingd=something'd somethingd've=something'd've something'dve=something'd've somethingll=something'll thats=that's
thered=there'd thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've we'dve=we'd've
weve=we've werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's whered=where'd
wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's whove=who've
whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've
wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've
y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're youve=you've
"""
CONTRACTIONS = dict(pair.split("=") for pair in _PAIRS.split())


def stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def punctuation_step(text: str) -> str:
    result = text
    for sign in SIGNS:
        if (sign + " ") in text or (" " + sign) in text or re.search(r"(\d)(,)(\d)", text):
            result = result.replace(sign, "")
        else:
            result = result.replace(sign, " ")
    # the scripts' own slips: "(?!<=" for "(?<!", and a flag where the count stands
    return re.sub(r"(?!<=\d)(\.)(?!\d)", "", result, count=int(re.UNICODE))


def word_step(text: str) -> str:
    kept = []
    for word in text.lower().split():
        number = NUMBERS.get(word, word)
        if number not in ("a", "an", "the"):
            kept.append(number)
    for place, word in enumerate(kept):
        if word in CONTRACTIONS:
            kept[place] = CONTRACTIONS[word]
    return " ".join(kept)


def leave_one_out(said: str, wanted: list[str]) -> float:
    accuracies = []
    for left_out in range(len(wanted)):
        others = [answer for place, answer in enumerate(wanted) if place != left_out]
        matching = [answer for answer in others if answer == said]
        accuracies.append(min(1, float(len(matching)) / 3))
    return float(sum(accuracies)) / len(accuracies)


def vqav2(prediction: str, answers: list[str]) -> float:
    said, wanted = stripped(prediction), [stripped(answer) for answer in answers]
    if len(set(wanted)) > 1:
        for place in range(len(wanted)):
            wanted[place] = punctuation_step(wanted[place])
            wanted[place] = word_step(wanted[place])
        said = punctuation_step(said)
        said = word_step(said)
    return leave_one_out(said, wanted)


def openflamingo(prediction: str, answers: list[str]) -> float:
    said = word_step(punctuation_step(stripped(prediction)))
    return leave_one_out(said, [word_step(punctuation_step(stripped(answer))) for answer in answers])


def evalai(text: str) -> str:
    text = text.lower()
    text = text.replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return word_step(punctuation_step(text))


def textvqa(prediction: str, answers: list[str]) -> float:
    wanted = [evalai(answer) for answer in answers]
    scores = {answer: leave_one_out(answer, wanted) for answer in set(wanted)}
    return scores.get(evalai(prediction), 0.0)


SCRIPTS = {"vqav2": vqav2, "openflamingo": openflamingo, "textvqa": textvqa}

_WORDS = [
    *NUMBERS, *NUMBERS.values(), "a", "an", "the", "A", "The", "yes", "no", "Yes", "NO", "red", "Red", "dog", "dog's",
    "it's", "1,000", "1,000,000", "3.5", ".5", "5.", "u.s.", "p.m.", "x-ray", "t-shirt", "and/or", "black&white",
    "naïve", "Straße", "İ", "", *CONTRACTIONS, *CONTRACTIONS.values(),
]  # fmt: skip
_BLANKS = [" ", " ", " ", " ", "  ", "\t", "\n", "", ", ", ",", "-", " - ", ". ", "\r", "\u00a0"]
_EDGES = ["", "", "", "", " ", "\n", "\t", ".", "!", "?", ",", "'", "..", "." * 40, '"', *SIGNS]


def text(draw: random.Random) -> str:
    """Some words, signs and blanks, such as the scripts treat in their own way."""
    made = draw.choice(_EDGES) + draw.choice(_WORDS)
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
        made += draw.choice(_BLANKS) + draw.choice(_WORDS)
    return made + draw.choice(_EDGES)


def varied(draw: random.Random, base: str) -> str:
    """The same answer as another person might write it."""
    ways = [base, base, base.lower(), base.capitalize(), base + ".", f"the {base}", f" {base}\n", base.replace("'", "")]
    ways += [
        word_step(base),
        punctuation_step(base),
        base.replace(" ", ""),
        base + "!",
        base + "'s",
        f"{base}?",
        text(draw),
    ]
    return draw.choice(ways)


def case(draw: random.Random) -> tuple[str, list[str]]:
    """A prediction and ten answers: all equal, or but for blanks, or ways to write few answers."""
    base, other = text(draw), text(draw)
    kind = draw.random()
    if kind < 0.2:
        answers = [base] * 10
    elif kind < 0.3:
        answers = [draw.choice(["", " ", "\n"]) + base + draw.choice(["", " ", "\t"]) for _ in range(10)]
    else:
        answers = [varied(draw, base if draw.random() < 0.7 else other) for _ in range(10)]
    if kind < 0.3:
        return varied(draw, base), answers
    return draw.choice([base, varied(draw, base), varied(draw, other), draw.choice(answers)]), answers
