"""Cost of reinforcement learning in the imagined world, and of the agent's update beside the official one.

python benchmarks/mbrl.py                               # the agent's update at its official size
python benchmarks/mbrl.py --run metaworld --steps 400   # then a short run: seconds per 1,000 steps, by part

Prints tables and one line of JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace

import torch
from _official_drqv2 import OfficialDrQv2

from ivideogpt.core.run import Run, choose_device
from ivideogpt.policies.drqv2 import AgentConfig, DrQv2, Transitions

IMAGE, STACK, ACTIONS = 64, 3, 4


def batch_of(config: AgentConfig, device: torch.device) -> Transitions:
    rows, shape = config.batch_size, (IMAGE, IMAGE, 3 * STACK)
    pixels = torch.randint(0, 256, (2, rows, *shape), dtype=torch.uint8)
    actions, discounts = torch.rand(rows, ACTIONS) * 2 - 1, torch.full((rows,), 0.97)
    demonstrated = torch.zeros(rows, dtype=torch.bool)
    batch = Transitions(pixels[0], actions, torch.rand(rows), discounts, pixels[1], demonstrated)
    return batch.to(device)


def compared(config: AgentConfig, device: torch.device, turns: int) -> dict[str, float]:
    """Median seconds of an update of both, in turns."""
    torch.manual_seed(0)
    ours = DrQv2(IMAGE, STACK, ACTIONS, config).to(device)
    theirs = OfficialDrQv2(IMAGE, STACK, ACTIONS, config)
    for name in ("encoder", "actor", "critic", "target"):
        getattr(theirs, name).to(device)
    batch, generator = batch_of(config, device), torch.Generator().manual_seed(0)
    took: dict[str, list[float]] = {"ours": [], "official": []}
    for turn in range(turns + 1):
        for name, update in (
            ("official", lambda: theirs.learn(batch, 0.2)),
            ("ours", lambda: ours.learn(batch, 0.2, generator)),
        ):
            start = time.perf_counter()
            update()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                took[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def parts(preset: str, steps: int, device: str) -> dict[str, float]:
    """Seconds per 1,000 steps of a short run after its random phase, by part; without what happens once."""
    from ivideogpt.configs.registry import find_preset
    from ivideogpt.mbrl.loop import train_agent

    config, seconds = find_preset(preset, "mbrl"), []
    world = replace(config.world_model, initial_updates=1)
    config = replace(config, imagination=replace(config.imagination, initial_rollouts=1), world_model=world)
    for extra in (1, 1 + steps):
        many = 100 + extra
        short = replace(
            config,
            random_steps=100,
            total_env_steps=many,
            evaluate_every_steps=10**9,
            evaluation_episodes=1,
        )
        with tempfile.TemporaryDirectory() as folder:
            found = train_agent(short, Run(folder, device=device, log_every=0, save_every=0))
        seconds.append(found.seconds)
    names = [name for name in seconds[1] if name != "evaluation"]
    return {name: 1000 * (seconds[1][name] - seconds[0].get(name, 0.0)) / steps for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--run", help="a preset of `ivideogpt mbrl`; without it the agent's update alone is measured")
    parser.add_argument("--steps", type=int, default=400, help="of the environment, after 100 at random")
    options = parser.parse_args()
    device = choose_device(options.device)
    found: dict[str, object] = {"benchmark": "mbrl", "device": str(device), "threads": torch.get_num_threads()}
    took = compared(AgentConfig(), device, options.turns)
    ratio = took["official"] / took["ours"]
    print(f"an update of 256 transitions of {STACK} frames at {IMAGE} px")
    print(f"official  {1000 * took['official']:8.1f} ms")
    print(f"ours      {1000 * took['ours']:8.1f} ms   {ratio:.2f} times as fast")
    found |= {
        "update_ms_official": 1000 * took["official"],
        "update_ms": 1000 * took["ours"],
        "ratio_to_official": ratio,
    }
    if options.run:
        split = parts(options.run, options.steps, options.device)
        print(f"\nseconds per 1,000 steps of {options.run}")
        for name, seconds in sorted(split.items()):
            print(f"{name:12} {seconds:8.1f}")
        found |= {"run": options.run, "seconds_per_1000_steps": split}
    print(json.dumps({name: round(x, 3) if isinstance(x, float) else x for name, x in found.items()}))


if __name__ == "__main__":
    main()
