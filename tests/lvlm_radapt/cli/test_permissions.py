"""Files and folders of another user: each is told in one line, wherever a command meets it."""

import pytest

from tests.helpers.data_sets import scenes_folder
from tests.helpers.permissions import obeyed

data = scenes_folder(count=2)


SCORED = "--task vqav2 --samples 2 --device cpu"
COMMANDS = {
    "data": f"eval tiny-llava {SCORED} --data LOCKED/data --out OUT",
    "the data's own folder": f"eval tiny-llava {SCORED} --data LOCKED --out OUT",
    "a run": f"eval tiny-llava {SCORED} --data DATA --out LOCKED/run",
    "a run's own folder": f"eval tiny-llava {SCORED} --data DATA --out LOCKED",
    "a model": f"eval LOCKED/model {SCORED} --data DATA --out OUT",
    "a tower": f"eval tiny-llava --tower LOCKED/tower {SCORED} --data DATA --out OUT",
    "images of a run": f"eval tiny-llava {SCORED} --data DATA --out OUT --images-from LOCKED/run",
    "a preset": f"eval tiny-llava {SCORED} --data DATA --out OUT --preset LOCKED/own.yaml",
    "a log": f"eval tiny-llava {SCORED} --data DATA --out OUT --log-json LOCKED/log.jsonl",
    "a report's run": "report LOCKED/run --out OUT",
    "a model to protect": "robustify LOCKED/model --out OUT --device cpu",
    "an adapter's folder": "robustify tiny-clip --out LOCKED/out --device cpu",
    "a guide": "robustify tiny-clip --anchor guided --guide LOCKED/twin --out OUT --device cpu",
    "images to learn from": "robustify tiny-clip --anchor learned --images LOCKED/images --out OUT --device cpu",
    "a tuning": "robustify tiny-clip --tuned LOCKED/tuned --out OUT --device cpu",
    "a fine-tuned model": "finetune tiny-clip --method fare --images DATA/val2014 --out LOCKED/out --device cpu",
    "images to train on": "finetune tiny-clip --method fare --images LOCKED/images --out OUT --device cpu",
    "an audit": f"audit tiny-llava {SCORED} --data DATA --out LOCKED/out",
    "a sweep": f"tune tiny-llava {SCORED} --data DATA --out LOCKED/out",
    "an analysis": "analyze tiny-clip --guide tiny-clip-fare --images DATA/val2014 --out LOCKED/out --device cpu",
    "images to analyse": "analyze tiny-clip --guide tiny-clip-fare --images LOCKED --out OUT --device cpu",
    "a comparison": "compare LOCKED/own.yaml --out OUT --device cpu",
    "a comparison's folder": "compare paper --out LOCKED/out --device cpu",
    "a demo": "demo --out LOCKED/out --device cpu",
    "scenes": "data scenes --out LOCKED/out",
    "data to check": "data check vqav2 --data LOCKED/data",
    "an image to talk about": "chat tiny-llava --image LOCKED/image.png --device cpu",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_belongs_to_another_user_is_one_line(name, data, tmp_path, cli):
    locked, out = tmp_path / "locked", tmp_path / "out"
    locked.mkdir(mode=0)
    places = {"LOCKED": locked, "DATA": data, "OUT": out}
    words = COMMANDS[name]
    for place, path in places.items():
        words = words.replace(place, str(path))
    with obeyed():
        err = cli.refused(*words.split())
    assert str(locked) in err
    assert "Permission denied" in err
    assert not out.exists()
