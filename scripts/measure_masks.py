"""Measure what masks do against a scene that leaks into the subject, on the embedded world.

All photographs of a withheld subject show one scene. For each seed and each weight of what lies outside of the exact
masks, a run is trained, and pictures of other scenes are drawn: how many of them show the photographs' scene?
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser
from ldm.errors import exit_code_of
from ldm.files import PROJECT
from ldm.values import Count, Probability, Seed, option

FEATURES = PROJECT / "assets" / "features"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    return exit_code_of(run, parse(sys.argv[1:] if argv is None else argv))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Words that are no option are config overrides of the runs, `key.sub=value`."""
    recipe = PROJECT / "configs" / "dreambooth.yaml"
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "-b", "--base", nargs="+", default=[str(recipe)], metavar="YAML", help="the runs' configs"
    )
    parser.add_argument("--outdir", type=Path, default=Path("logs/masks"), help="where all of it goes")
    parser.add_argument("--weights", nargs="+", type=option(Probability), default=[1.0, 0.1, 0.0])
    parser.add_argument("--seeds", nargs="+", type=option(Seed), default=[0, 1, 2])
    parser.add_argument("--per_scene", type=option(Count), default=4, help="pictures of each other scene")
    parser.add_argument("--steps", type=option(Count), default=20, help="sampler steps of a picture")
    parser.add_argument("--clip", default=str(FEATURES / "clip"), help="the network that tells scenes")
    parser.add_argument("--dino", default=str(FEATURES / "dino"), help="the network that knows the subject")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="config keys of the runs to change"
    )
    return parser.parse_with_overrides(argv)


def run(options: argparse.Namespace) -> None:
    """Make the photographs, train, draw, measure, print."""
    from ldm.config import load_config
    from ldm.data.images import image_files, load_image, to_image
    from ldm.diffusion.sampling import Sampling
    from ldm.evaluation.features import Clip, Dino
    from ldm.evaluation.settings_file import keep_to, of_training
    from ldm.methods.load import load_for_sampling
    from ldm.world.drawing import World
    from ldm.world.mask_leakage import SCENE, make_photographs, measure, report
    from ldm.world.runs import trained
    from main import main as train

    world, out = World(), options.outdir
    training = {"training": of_training(load_config(options.base, options.overrides))}
    keep_to(training, out, ["*/seed-*/*/checkpoints/*.ckpt"], "runs")
    make_photographs(out / "data", world)
    clip, dino = Clip(options.clip), Dino(options.dino)
    photographs = [load_image(path) for path in image_files(out / "data" / "other_scenes")]
    rows = []
    for seed in options.seeds:
        for weight in options.weights:
            runs = out / f"weight-{weight:g}" / f"seed-{seed}"
            words = ["--base", *options.base, "--seed", str(seed), "--class_word", "cat"]
            words += ["--data_root", str(out / "data" / "one_scene"), *options.overrides]
            run = trained(train, runs, [*words, f"data.params.unmasked_weight={weight}"])
            loaded = load_for_sampling(run / "model")
            sampling = Sampling("dpmpp_2m_sde", options.steps, 2.0)
            pictures = {}
            for scene in (name for name in world.scenes if name != SCENE):
                prompts = [loaded.with_identifier(f"a photo of [V] cat {scene}")] * options.per_scene
                drawn = loaded.model.images(prompts, range(options.per_scene), sampling)
                pictures[scene] = [to_image(pixels) for pixels in drawn]
            rows.append(
                {"unmasked_weight": weight, "seed": seed, **measure(pictures, photographs, "cat", clip, dino)}
            )
    print(report(rows, out / "masks.json"))


if __name__ == "__main__":
    sys.exit(main())
