"""The script that packs a comparison and prints it again, against the table that the comparison itself wrote."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from lvlm_radapt.experiments.compare.preset import load_comparison
from lvlm_radapt.utils.errors import UserError
from tests.helpers.paths import ROOT
from tests.helpers.scripts import script


def test_a_pack_gives_the_numbers_of_the_comparison_without_its_images_or_paths(tmp_path: Path, cli) -> None:
    evidence = script("benchmarks/evidence.py")
    shipped = load_comparison("evidence")
    captions = shipped.columns[0].model_copy(update={"title": "captions e2e", "task": "coco"})
    columns = [*shipped.columns[::2], captions]
    few = shipped.changed(samples=3, steps=1, eps=["4/255"], rows=shipped.rows[:3:2], columns=columns)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(few.model_dump(mode="json")))
    out = tmp_path / "compared"
    with pytest.raises(UserError, match="no finished comparison or run"):
        evidence.pack(tmp_path, tmp_path / "x.tar.xz")
    cli.done("compare", tmp_path / "own.yaml", "--out", out, "--device", "cpu")
    file = evidence.pack(out, tmp_path / "packs" / "small.tar.xz")
    vqa, coco = "\n".join(evidence.tables(file)).strip().split("\n\nsmall: ")
    assert "tiny-llava, vqav2, Linf 4/255, 1 steps, n = 3" in vqa
    assert coco.startswith("tiny-llava, coco, Linf 4/255")
    table = {
        (row["defence"], row["column"], row["threat"]): row
        for row in csv.DictReader((out / "comparison.csv").read_text().splitlines())
    }
    for printed, titles in (vqa, ["VQA e2e", "VQA embedding"]), (coco, ["captions e2e"]):
        lines = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines()[-2:]]
        assert [cells[1] for cells in lines] == ["none", "R-Adapt_CLIP"]
        for _, name, _, clean, *cells in lines:
            attacked = [table[name, title, "adaptive"] for title in titles]
            worst = table[name, titles[0], "worst"]
            shown = zip(
                [clean, *cells[: len(titles)], cells[-3]],
                [table[name, titles[0], "clean"], *attacked, worst],
                strict=True,
            )
            for cell, row in shown:
                score, low, high = (float(row[key]) for key in ("score", "score_low", "score_high"))
                assert cell == f"{score:.1f} [{low:.1f}, {high:.1f}]"
            if name != "none":
                change, low, high = (float(worst[key]) for key in ("change", "change_low", "change_high"))
                assert cells[-2] == f"{change:+.1f} [{low:+.1f}, {high:+.1f}]"
    packed = evidence.texts(file)
    assert not [name for name in packed if name.endswith(".png") or str(tmp_path) in packed[name]]


def test_a_run_without_an_attack_is_refused_and_leaves_no_pack(tmp_path: Path, cli) -> None:
    cli.done("data", "scenes", "--count", "2", "--out", tmp_path / "scenes")
    asked = ("eval", "tiny-llava", "--task", "vqav2", "--data", tmp_path / "scenes", "--samples", "2")
    cli.done(*asked, "--attack", "none", "--device", "cpu", "--out", tmp_path / "runs" / "clean")
    with pytest.raises(UserError, match="clean has no attacked images"):
        script("benchmarks/evidence.py").pack(tmp_path / "runs", tmp_path / "packs" / "x.tar.xz")
    assert not list((tmp_path / "packs").iterdir())


def test_a_pack_of_runs_gives_a_line_for_each_budget_and_number_of_steps(tmp_path: Path, cli) -> None:
    evidence = script("benchmarks/evidence.py")
    cli.done("data", "scenes", "--count", "4", "--out", tmp_path / "scenes")
    words = [
        "eval",
        "tiny-llava",
        "--task",
        "vqav2",
        "--data",
        tmp_path / "scenes",
        "--attack",
        "e2e",
        "--samples",
        "4",
    ]
    runs = tmp_path / "runs"
    cli.done(*words, "--eps", "2/255,16/255", "--steps", "1", "--out", runs / "plain" / "eps")
    cli.done(*words, "--eps", "16/255", "--steps", "3", "--out", runs / "plain" / "steps-3")
    head, columns, _, clean, *lines = evidence.tables(evidence.pack(runs, tmp_path / "packs" / "small.tar.xz"))
    assert head == "\nsmall: vqav2, e2e, adaptive, Linf, n = 4\n"
    assert columns == "| eps | steps | plain |"
    assert [line.rsplit("|", 2)[0] for line in lines] == ["| 2/255 | 1 ", "| 16/255 | 1 ", "| 16/255 | 3 "]
    folders = ("eps/eps-2-255", "eps/eps-16-255", "steps-3")
    metrics = [json.loads((runs / "plain" / folder / "metrics.json").read_text()) for folder in folders]
    wanted = [metrics[0]["clean"], *(one["adversarial"] for one in metrics)]
    for line, score in zip([clean, *lines], wanted, strict=True):
        low, high = score["ci95"]
        assert line.split("|")[3] == f" {score['vqa_accuracy']:.1f} [{low:.1f}, {high:.1f}] "


def test_the_tables_of_the_page_are_those_of_the_packs() -> None:
    evidence = script("benchmarks/evidence.py")
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    packs = sorted(evidence.PACKS.iterdir())
    assert len(packs) > 1
    for pack in packs:
        for table in "\n".join(evidence.tables(pack)).strip().split("\n\n")[1::2]:
            assert table in page, f"{pack.name}: {table.splitlines()[0]}"


def test_a_comparison_whose_rows_saw_no_images_of_others_is_one_line(tmp_path: Path) -> None:
    evidence = script("benchmarks/evidence.py")
    plan = json.loads(evidence.texts(evidence.PACKS / "captions.tar.xz")["plan.json"])
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"cross": False}))
    for name in ("comparison.json", "metrics.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="has no cross: true"):
        evidence.pack(tmp_path, tmp_path / "x.tar.xz")
    assert not (tmp_path / "x.tar.xz").exists()


def test_a_damaged_pack_is_one_line(tmp_path: Path) -> None:
    evidence = script("benchmarks/evidence.py")
    whole = (evidence.PACKS / "curves.tar.xz").read_bytes()
    for content in (b"nothing", whole[: len(whole) // 2], whole[:2000] + b"?" + whole[2001:]):
        (tmp_path / "x.tar.xz").write_bytes(content)
        with pytest.raises(UserError, match="is no pack, or is damaged"):
            list(evidence.tables(tmp_path / "x.tar.xz"))
