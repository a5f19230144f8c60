"""The demo: one image per family, dense and with RAS, from the example workflow in a real ComfyUI.

`make demo` runs the demo for both families, SD3 and Lumina 2. ARGS passes options, for example:
`make demo ARGS='--families sd3 --speed 3x --seed 7'`. With `--ratio 0.3`, speed is `custom`, and regional
steps compute 30 % of the image.

For each family, a short warm-up run loads the model and tunes the kernels. Two timed runs with the same
workflow and seed follow, first dense, then with RAS. Reported times are seconds that the sampler node took.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shutil
import sys
from pathlib import Path

from .client import Client, Result
from .demo_options import WORKFLOWS, parse, sampler_settings
from .environment import cpu_flag, current
from .paths import HOME, ROOT
from .processes import DevError, exit_on_signals
from .report import Run, comparison, table
from .server import Server, tail
from .workflow import ComfyError, Prompt, to_api

NEEDED_NODES = ("RASKSampler", "RASMaskPreview", "RASDemoModel", "RASDemoPrompt")

# Ids of nodes that the demo adds to a workflow. It saves their images, whatever the workflow itself saves.
PICTURE, FRAMES, SUMMARY = "demo_picture", "demo_frames", "demo_summary"


def say(text: str = "", end: str = "\n") -> None:
    """Print progress without buffering."""
    print(text, end=end, flush=True)


# --- prompts ----------------------------------------------------------------------------------------


def nodes_of(prompt: Prompt, class_type: str) -> list[str]:
    """The ids of all nodes of the class `class_type` in a prompt."""
    return [key for key, node in prompt.items() if node["class_type"] == class_type]


def only(prompt: Prompt, class_type: str) -> str:
    """The id of the only node of the class in a prompt. Raises ComfyError unless there is exactly one."""
    found = nodes_of(prompt, class_type)
    if len(found) != 1:
        raise ComfyError(
            f"The workflow has {len(found)} active nodes {class_type}; the demo expects exactly one. "
            "Mute the others, or add the missing one."
        )
    return found[0]


def demo_prompt(workflow: dict, object_info: dict) -> Prompt:
    """The workflow as a prompt, plus three nodes of known ids for the image, the masks and the summary."""
    prompt = to_api(workflow, object_info)
    decode, masks = only(prompt, "VAEDecode"), only(prompt, "RASMaskPreview")
    for key, source in ((PICTURE, [decode, 0]), (FRAMES, [masks, 0]), (SUMMARY, [masks, 1])):
        prompt[key] = {"class_type": "PreviewImage", "inputs": {"images": source}}
    return prompt


def with_sampler(prompt: Prompt, **inputs: object) -> Prompt:
    """A copy of a prompt in which these inputs of its RASKSampler node are changed."""
    changed = copy.deepcopy(prompt)
    changed[only(changed, "RASKSampler")]["inputs"].update(inputs)
    return changed


def with_size(prompt: Prompt, size: int) -> Prompt:
    """A copy of a prompt for a square image of `size` x `size` pixels."""
    changed = copy.deepcopy(prompt)
    for node in changed.values():
        if node["inputs"].keys() >= {"width", "height", "batch_size"}:
            node["inputs"].update(width=size, height=size)
    return changed


# --- one family -------------------------------------------------------------------------------------


class Progress:
    """Prints the sampler's progress, step by step, on one line of the terminal."""

    def __init__(self, label: str, sampler: str) -> None:
        self._label, self._sampler = label, sampler
        say(f"  {label}: ", end="")

    def __call__(self, node: str, step: int, steps: int) -> None:
        if node != self._sampler:
            return
        if sys.stdout.isatty():
            say(f"\r  {self._label}: step {step} of {steps}   ", end="")
        elif step == steps or step % 4 == 0:
            say(f"{step}/{steps} ", end="")

    def done(self, seconds: float) -> None:
        """Print the time in the sampler and end the line."""
        say(
            f"\r  {self._label}: {seconds:.2f} s in the sampler" + " " * 20
            if sys.stdout.isatty()
            else f"{seconds:.2f} s"
        )


def execute(client: Client, prompt: Prompt, label: str) -> tuple[Result, float]:
    """Run a prompt and show its progress. Returns its result and the seconds that the sampler node took."""
    sampler = only(prompt, "RASKSampler")
    progress = Progress(label, sampler)
    result = client.run(prompt, progress)
    # The seconds that the RAS nodes report, else the time between the server's messages about the sampler.
    stats = (result.ui("ras") or [{}])[0]
    seconds = stats.get("seconds") or result.node_seconds.get(sampler, 0.0)
    progress.done(seconds)
    return result, seconds


def save_images(client: Client, result: Result, node: str, paths: list[Path]) -> None:
    """Save a node's images to these paths."""
    for path, reference in zip(paths, result.images(node), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.image(reference))


def make_pair(client: Client, prompt: Prompt, folder: Path) -> tuple[Run, Run]:
    """Run the prompt three times: as a short warm-up, dense, and with RAS. Save images, masks and summary."""
    short = {"speed": "custom", "steps": 3, "start_percent": 0.3, "error_reset_every": 0}
    execute(client, with_sampler(prompt, seed=1, **short), "warm-up")
    runs = []
    for name, changed in (("dense", with_sampler(prompt, speed="custom", sample_ratio=1.0)), ("ras", prompt)):
        result, seconds = execute(client, changed, name)
        save_images(client, result, PICTURE, [folder / f"{name}.png"])
        stats = (result.ui("ras") or [{}])[0]
        runs.append(Run(seconds, (folder / f"{name}.png").read_bytes(), stats))
    count = len(result.images(FRAMES))
    save_images(client, result, FRAMES, [folder / "masks" / f"step_{i:02d}.png" for i in range(count)])
    save_images(client, result, SUMMARY, [folder / "summary.png"])
    return runs[0], runs[1]


def chosen_speed(settings: dict) -> str:
    """The setting that decides how fast a run is: its speed, or sample_ratio if speed is custom."""
    custom = settings["speed"] == "custom"
    return f"sample_ratio {settings['sample_ratio']}" if custom else f"speed {settings['speed']}"


def demonstrate(client: Client, family: str, prompt: Prompt, folder: Path) -> None:
    """Run the demo of one family and print the table that compares dense and RAS."""
    settings = prompt[only(prompt, "RASKSampler")]["inputs"]
    say(
        f"\n{family}: {settings['steps']} steps, {settings['sampler_name']}, seed {settings['seed']}, "
        f"{chosen_speed(settings)}"
    )
    dense, ras = make_pair(client, prompt, folder)
    say("\n" + table(comparison(dense, ras)))
    for note in ras.stats.get("notes", []):
        say(f"note: {note}")
    say(f"images: {folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder}")


# --- all families --------------------------------------------------------------------------------------


def family_folder(output: Path, family: str) -> Path:
    """Folder for a family's images: `output` itself for the first family, else a folder in `output`."""
    return output if family == next(iter(WORKFLOWS)) else output / family


def check_nodes(object_info: dict, log: Path) -> None:
    """Check that the server has loaded the pack. A server without the pack starts, but its prompts fail."""
    missing = [name for name in NEEDED_NODES if name not in object_info]
    if missing:
        raise ComfyError(
            f"{tail(log, 60)}\n\nThe server runs without these nodes of the pack: {', '.join(missing)}. "
            f"Expected: all of {', '.join(NEEDED_NODES)}. The reason is in the log above ({log})."
        )


def run(options: argparse.Namespace) -> None:
    """Start the server, run the demo of every chosen family, stop the server."""
    env = current()
    say(f"Starting ComfyUI ({env.comfyui}); its log: {options.output / 'server.log'}")
    log = options.output / "server.log"
    with Server(env, HOME / "demo", log, tuple(cpu_flag(env))) as server:
        client = Client(server.url)
        object_info = client.object_info()
        check_nodes(object_info, log)
        chosen = sampler_settings(options)
        for family in options.families:
            workflow = json.loads(WORKFLOWS[family].read_text(encoding="utf-8"))
            prompt = with_sampler(demo_prompt(workflow, object_info), **chosen)
            if options.size:
                prompt = with_size(prompt, options.size)
            demonstrate(client, family, prompt, family_folder(options.output, family))


def main(argv: list[str] | None = None) -> int:
    """Run the demo as a program. The server is stopped in any case, also after an error or Ctrl-C."""
    exit_on_signals()
    options = parse(argv)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(options.output / "masks")  # else masks of an earlier run with more steps remain
    try:
        run(options)
    except (ComfyError, DevError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
