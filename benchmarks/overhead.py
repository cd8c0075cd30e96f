"""What filter and anchor cost: their share of one forward of a ViT-L/14-336 vision tower, random weights.

    python benchmarks/overhead.py [--repeats 20] [--batch 1] [--device cpu] [--threads N]

Filter and mix are timed alone, on tensors of the tower's shapes, since their difference of two whole forwards
would drown in noise. Prints a table with one row: medians in milliseconds and the share in percent.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable

import torch
import transformers

from eval_tasks.run.environment import environment
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.modules import AnchorMix, GaussianFilter


def median_ms(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median wall time of `work()` in milliseconds over `repeats` runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="runs behind each median")
    parser.add_argument("--batch", type=int, default=1, help="images in one forward")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, help="torch threads on the CPU")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    config = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    tower = transformers.CLIPVisionModel(config).eval().to(options.device)
    settings = RAdaptConfig()
    assert settings.cutoff is not None
    low_pass = GaussianFilter(settings.cutoff, settings.cutoff_unit, settings.boundary)
    mix = AnchorMix(torch.randn(577, 1024), 0.9, settings.mix).to(options.device)
    pixels = torch.randn(options.batch, 3, 336, 336, device=options.device)
    attention = torch.randn(options.batch, 577, 1024, device=options.device)
    with torch.inference_mode():
        whole = median_ms(lambda: tower(pixels), options.repeats, options.device)
        filtering = median_ms(lambda: low_pass(pixels), options.repeats, options.device)
        mixing = median_ms(lambda: mix(attention), options.repeats, options.device)
    share = 100 * (filtering + mixing) / whole
    where = environment()
    hardware = where["gpu"] if options.device.type == "cuda" else f"{where['cpu']}, {where['threads']} threads"
    print("| date | hardware | torch | batch | tower ms | filter ms | anchor ms | share % |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {datetime.date.today()} | {hardware} | {torch.__version__} | {options.batch} "
        f"| {whole:.1f} | {filtering:.2f} | {mixing:.2f} | {share:.2f} |"
    )


if __name__ == "__main__":
    main()
