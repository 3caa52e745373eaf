"""A trained network, at which gradients are looked at."""

import argparse
from pathlib import Path

import measure
import torch
import training
from images import Images
from options import DTYPES, Options
from torch import nn


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--checkpoint", type=Path, help="file with the trained state; trained and written if missing")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print such results as Markdown, no run")


def start(benchmark: str, arguments: argparse.Namespace, options: Options) -> tuple[dict, nn.Module, Images]:
    """(what the results' file says of machine, options and training, the trained model, its training images)"""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = measure.chosen_device(arguments)
    record = {"benchmark": benchmark, "machine": measure.machine(device), "options": vars(options)}
    measure.print_machine(record["machine"])
    train, test = training.load_images(options, arguments.data, device)
    model, course = trained(options, arguments.checkpoint, arguments.seed, train, device)
    course["test_accuracy"] = training.test_accuracy(model, test, DTYPES[options.dtype])
    print(f"loss {course['final_loss']:.3f}, test accuracy {100 * course['test_accuracy']:.2f} %\n", flush=True)
    return record | {"training": course, "seed": arguments.seed, "rows": []}, model, train


def trained(
    options: Options, path: Path | None, seed: int, train: Images, device: torch.device
) -> tuple[nn.Module, dict]:
    """(the model, what became of it in training), from a checkpoint if there is one."""
    others = ("device", "test_images", "draws", "noise_batches", "corrections", "graph")
    wanted = {key: value for key, value in vars(options).items() if key not in others} | {"seed": seed}
    if path is not None and path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved["options"] != wanted:
            raise SystemExit(f"{path} was trained with other options: {saved['options']}, now {wanted}")
        model = training.make_model(seed, options.width, device, options.network)
        model.load_state_dict(saved["model"])
        return model, saved["training"]
    run = training.Run(options, "exact", seed, train, device)
    run.fit()
    course = {"first_loss": run.losses[0].item(), "final_loss": torch.stack(run.losses[-50:]).mean().item()}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": run.model.state_dict(), "options": wanted, "training": course}, path)
    return run.model, course
