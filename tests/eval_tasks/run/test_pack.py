"""A pack holds a run's attacked images and what they are; scored again it gives what the run itself gives."""

import hashlib
import json
import shutil
import zipfile

import pytest

from eval_tasks.run.pack import unpacked, write_pack
from eval_tasks.run.records import read_run
from lvlm_radapt.utils.errors import NoRoom, UserError
from tests.helpers.data_sets import attacked_place
from tests.helpers.run_folders import Maker, attack


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return attacked_place(tmp_path_factory.mktemp("place"), "coco", 3)


@pytest.fixture
def pack(place, tmp_path):
    return write_pack(read_run(place / "made"), tmp_path / "made.zip")


def test_a_pack_scores_as_its_run_does(place, tmp_path, cli):
    code, out, err = cli("pack", place / "made", "--out", tmp_path / "made.zip")
    assert code == 0, err
    assert hashlib.sha256((tmp_path / "made.zip").read_bytes()).hexdigest() in out
    runs = []
    for source in (place / "made", tmp_path / "made.zip"):
        flags = ["--task", "coco", "--data", place / "data", "--images-from", source, "--surrogate", place / "llava"]
        to = tmp_path / f"run-{len(runs)}"
        code, _, err = cli("eval", place / "llava", *flags, "--out", to)
        assert code == 0, err
        runs.append(read_run(to))
    plain = [[one.model_copy(update={"seconds": 0}) for one in run.samples] for run in runs]
    assert plain[0] == plain[1]
    assert runs[0].settings["attack"] == runs[1].settings["attack"]


def test_what_people_read_is_true_and_names_no_place_of_this_machine(place, pack):
    made = read_run(place / "made")
    with zipfile.ZipFile(pack) as file:
        manifest = json.loads(file.read("manifest.json"))
        notice = file.read("NOTICE.txt").decode()
        settings = json.loads(file.read("run.json"))
        for told, record in zip(manifest["images"], made.samples, strict=True):
            assert hashlib.sha256(file.read(told["file"])).hexdigest() == told["sha256"]
            assert told["references"] == list(record.references)
            assert told["linf"] == record.adversarial.linf <= 8 / 255 + 1e-6
        assert all(entry.external_attr >> 16 == 0o644 for entry in file.infolist())
    assert (manifest["attack"]["name"], manifest["attack"]["eps"]) == ("embedding", 8 / 255)
    assert "CC BY 4.0" in notice
    assert "embedding" in notice
    assert "command" not in settings
    assert "data" not in settings


def test_equal_runs_give_equal_bytes_and_a_licence_can_be_named(place, tmp_path):
    run = read_run(place / "made")
    first, second = (write_pack(run, tmp_path / f"{n}.zip").read_bytes() for n in (1, 2))
    assert first == second
    write_pack(run, tmp_path / "1.zip", "drawn by us, MIT")  # its own earlier file is replaced
    with zipfile.ZipFile(tmp_path / "1.zip") as file:
        assert "drawn by us, MIT" in file.read("NOTICE.txt").decode()


def test_runs_without_all_their_images_are_refused(tmp_path):
    make = Maker(tmp_path)
    with pytest.raises(UserError, match="has no attacked images"):
        write_pack(make(), tmp_path / "a.zip")
    run = make([1.0] * 24, attacked=attack(), images=True)
    (run.path / "images" / "s03.png").unlink()
    with pytest.raises(UserError, match="lacks 1 of its 24 images: first that of s03"):
        write_pack(run, tmp_path / "a.zip")
    shutil.copy(run.path / "images" / "s01.png", run.path / "images" / "s03.png")
    with pytest.raises(UserError, match="is not the one that this run made"):
        write_pack(run, tmp_path / "a.zip")
    (tmp_path / "mine.zip").write_bytes(b"PK my own file")
    with pytest.raises(UserError, match="is no pack of this program, so it is not replaced"):
        write_pack(make([1.0] * 24, attacked=attack(), images=True), tmp_path / "mine.zip")
    assert not (tmp_path / "a.zip").exists()


def changed(pack, **files):
    """The pack with other files: content by name, None to leave one out."""
    out = pack.with_name("changed.zip")
    with zipfile.ZipFile(pack) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename not in files:
                new.writestr(entry.filename, old.read(entry))
        for name, content in files.items():
            if content is not None:
                new.writestr(name, content)
    return out


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"../out.png": b"x"}, "it holds '../out.png'"),
        ({"images/../../out.png": b"x"}, "it holds 'images/../../out.png'"),
        ({"images/a/b.png": b"x"}, "it holds"),
        ({"/etc/x.png": b"x"}, "it holds"),
        ({"evil.py": b"x"}, "it holds 'evil.py'"),
        ({"run.json": None}, "it lacks run.json"),
    ],
)
def test_packs_that_hold_something_else_are_refused(pack, files, said):
    with pytest.raises(UserError, match="is no pack of this program") as error, unpacked(changed(pack, **files)):
        pass
    assert said in str(error.value)


def flipped(whole: bytes, at: int, bits: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :]


@pytest.mark.parametrize(
    ("central", "local", "bits"),
    [(8, 6, 1), (10, 8, 4), (10, 8, 2), (6, 4, 0x80), (46, 30, 0x80)],
    ids=["encrypted", "bzip2", "an old way to compress", "a version of the future", "a name in no UTF-8"],
)
def test_entries_that_no_pack_has_are_refused(pack, tmp_path, central, local, bits):
    """One field of the first entry is changed, in the directory at the end and before the content."""
    whole = pack.read_bytes()
    listed = whole.index(b"PK\x01\x02")
    other = flipped(flipped(whole, listed + central, bits), local, bits)
    if central == 46:  # the flag that says UTF-8
        other = flipped(flipped(other, listed + 9, 8), 7, 8)
    (tmp_path / "odd.zip").write_bytes(other)
    with pytest.raises(UserError, match="is no pack of this program"), unpacked(tmp_path / "odd.zip"):
        pass


def test_no_single_wrong_byte_ends_in_another_error(pack, tmp_path):
    whole = pack.read_bytes()
    content = whole.index(b"run.json") + 8  # deflated
    for at in range(content, content + 200):
        (tmp_path / "odd.zip").write_bytes(flipped(whole, at, 0xFF))
        with pytest.raises(UserError, match="or is damaged"), unpacked(tmp_path / "odd.zip"):
            pass


def test_packs_that_are_damaged_or_too_large_are_refused(pack, tmp_path):
    whole = pack.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.zip").write_bytes(whole.replace(b"IDAT", b"IDAX", 1))
    (tmp_path / "text.zip").write_text("nothing")
    for name in ("cut", "flipped", "text"):
        with (
            pytest.raises(UserError, match="no pack of this program, or is damaged"),
            unpacked(tmp_path / f"{name}.zip"),
        ):
            pass
    bomb = changed(pack, **{"images/bomb.png": bytes(2**30 + 1)})
    assert bomb.stat().st_size < 2**22
    with pytest.raises(NoRoom, match="has no room"), unpacked(bomb):
        pass


def test_an_image_that_was_changed_in_the_pack_is_named(place, pack, tmp_path, cli):
    with zipfile.ZipFile(pack) as file:
        names = [name for name in file.namelist() if name.startswith("images/")]
        other = file.read(names[1])
    swapped = changed(pack, **{names[0]: other})
    flags = ["--task", "coco", "--data", place / "data", "--images-from", swapped, "--surrogate", place / "llava"]
    code, _, err = cli("eval", place / "llava", *flags, "--out", tmp_path / "run")
    assert code == 2
    assert "is not the one that this run made and scored" in err
