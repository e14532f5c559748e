#!/usr/bin/env python3
"""Trains a mixture of experts and one model on as many tokens, and compares their losses.

  python3 bench/experts.py CORPUS                                  # 1.5 M tokens, four experts, one seed
  python3 bench/experts.py CORPUS --shared 0.4 0.7 --seeds 3 --record

The mixture's tokens are those of its shared start and of all experts together. Both see the same validation
windows, with the same tokenizer. Runs keep their folders in OUT: a call that was stopped goes on. --record
writes bench/record/experts-TOKENS-DATE.json.
"""
import argparse, datetime, json, platform, statistics, subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def train(args, name, seed, sets, extra=()):
    """The JSON object that a run prints."""
    out = args.out / f"{args.tokens}-{name}-{seed}"
    result = Path(f"{out}.json")
    if not result.exists():
        command = [args.tritrain, "train", "--out", out, "--json"]
        if (out / "config.toml").exists():
            command += ["--resume"]
        else:
            command += ["--data", *args.data, *extra]
            sets = {"run.tokens": args.tokens, "run.seed": seed, "run.threads": args.threads, **sets}
            for part in [f"{key}={value}" for key, value in sets.items()] + args.set:
                command += ["--set", part]
        args.out.mkdir(parents=True, exist_ok=True)
        with open(f"{out}.log", "a") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=True, text=True)
        result.write_text(done.stdout.splitlines()[-1])
    return json.loads(result.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--tritrain", default=ROOT / "target/release/tritrain")
    parser.add_argument("--out", type=Path, default=Path("/tmp/tritrain-experts"))
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--shared", type=float, nargs="+", default=[0.7])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    rows = {}
    for seed in range(1, args.seeds + 1):
        base = {"run.sample_every": 0, "run.keep": 1, "run.eval_every": 0, "run.eval_tokens": 262_144}
        found = {"one model": train(args, "one", seed, {**base, "data.clusters_k": args.k})["loss"]}
        for shared in args.shared:
            name = f"{args.k} experts, {shared:g} shared"
            run = train(args, f"{args.k}-{shared:g}", seed, {**base, "run.shared": shared}, ["--experts", str(args.k)])
            found[name] = run["loss"]
            found[f"{name}: nearest alone"] = run["nearest_expert"]["loss"]
            found[f"{name}: shared start"] = run["shared_start"]["loss"]
        for name, loss in found.items():
            rows.setdefault(name, []).append(loss)
            print(f"seed {seed}  {name:36} {loss:.4f}", flush=True)
    if args.seeds > 1:
        for name, losses in rows.items():
            print(f"mean    {name:36} {statistics.mean(losses):.4f}")
    if args.record:
        day = datetime.date.today().isoformat()
        path = ROOT / "bench/record" / f"experts-{args.tokens}-{day}.json"
        record = dict(date=day, machine=platform.processor() or platform.machine(), tokens=args.tokens, k=args.k,
                      set=args.set, losses=rows)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(path)


main()
