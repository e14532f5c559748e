#!/usr/bin/env python3
"""Trains the same model by every batch plan and compares the losses.

  python3 bench/plans.py CORPUS                                  # 3 M tokens, three seeds; hours
  python3 bench/plans.py CORPUS --tokens 12000000 --seeds 3 --record
  python3 bench/plans.py CORPUS --plans stratified adaptive --set model.layers=2

Runs of all plans alternate, seed by seed, and keep their folders in OUT: a call that was stopped goes on.
--jobs N trains N at once, which is for cores that have nothing else to do.
For each plan it prints the mean validation loss at the end, and the share of the tokens of `stratified` that
it takes to reach the final loss of that plan with the same seed (linear between evaluations; none where it
does not), and what part of a step goes by until its batch is chosen and read and its losses are sorted by cluster.
--record writes bench/record/plans-DATE.json and an SVG of the curves, which needs matplotlib.
"""
import argparse, datetime, json, platform, shutil, statistics, subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLANS = ["stratified", "shuffle", "balanced", "homogeneous", "adaptive", "ordered"]
EVALUATIONS, CHECKPOINTS = 40, 10


def train(args, plan, seed):
    """Validation losses of a run as (tokens, nats per token)."""
    out = args.out / f"{args.tokens}-{plan}-{seed}"
    sets = {
        "data.plan": plan, "data.clusters_k": args.k, "run.tokens": args.tokens, "run.seed": seed,
        "run.sample_every": 0, "run.keep": 1,
    }
    if not (out / "done").exists():
        command = [args.tritrain, "train", "--data", *args.data, "--out", out, "--json"]
        # Evaluations by steps: the program says how many there are.
        probe = subprocess.run([args.tritrain, "config"], stdout=subprocess.PIPE, check=True, text=True).stdout
        options = dict(line.split("#")[0].split(" = ") for line in probe.splitlines() if " = " in line.split("#")[0])
        options.update(part.split("=") for part in args.set)
        number = lambda *names: next(int(options[name]) for name in names if name in options)
        steps = max(1, args.tokens // (number("run.batch", "batch") * number("model.context", "context")))
        sets["run.eval_every"] = max(1, steps // EVALUATIONS)
        sets["run.checkpoint_every"] = max(1, steps // CHECKPOINTS)
        for part in [f"{key}={value}" for key, value in sets.items()] + args.set:
            command += ["--set", part]
        if any(out.glob("step-*")):
            command = [args.tritrain, "train", "--out", out, "--resume", "--json"]
        elif out.exists():
            shutil.rmtree(out)
        args.out.mkdir(parents=True, exist_ok=True)
        with open(f"{out}.log", "a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True)
        (out / "done").touch()
    records = [json.loads(line) for line in open(out / "metrics.jsonl")]
    tokens = {record["step"]: record["tokens"] for record in records if "tokens" in record}
    return [(tokens.get(r["step"], 0), r["validation_loss"]) for r in records if "validation_loss" in r]


def overhead(args, plan):
    """The median share of a step that the plan takes, over all runs that say so."""
    shares = []
    for path in args.out.glob(f"{args.tokens}-{plan}-*/timing.jsonl"):
        records = [json.loads(line) for line in open(path)]
        shares += [r["plan_seconds"] / r["seconds"] for r in records if "plan_seconds" in r]
    return statistics.median(shares) if shares else None


def tokens_to(curve, loss):
    """Tokens at which a curve first falls to a loss."""
    for (before, high), (after, low) in zip(curve, curve[1:]):
        if low <= loss:
            return after if high <= low else before + (after - before) * (high - loss) / (high - low)
    return None


def plot(curves, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for plan, runs in curves.items():
        points = [(runs[0][i][0], statistics.mean(run[i][1] for run in runs)) for i in range(len(runs[0]))]
        half = points[len(points) // 4 :]
        axes.plot([tokens / 1e6 for tokens, _ in half], [loss for _, loss in half], label=plan)
    axes.set_xlabel("million tokens")
    axes.set_ylabel("validation loss, nats per token, mean over seeds")
    axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--tritrain", default=ROOT / "target/release/tritrain")
    parser.add_argument("--out", type=Path, default=Path("/tmp/tritrain-plans"))
    parser.add_argument("--plans", nargs="+", default=PLANS)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("-k", type=int, default=16)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    plans = ["stratified", *[plan for plan in args.plans if plan != "stratified"]]
    curves = {plan: [] for plan in plans}
    runs = [(seed, plan) for seed in range(1, args.seeds + 1) for plan in plans]
    with ThreadPoolExecutor(args.jobs) as pool:
        for (seed, plan), curve in zip(runs, pool.map(lambda run: train(args, run[1], run[0]), runs)):
            curves[plan].append(curve)
            print(f"seed {seed} {plan:12} {curve[-1][1]:.4f}", flush=True)
    rows = []
    for plan in plans:
        final = [run[-1][1] for run in curves[plan]]
        shares = [tokens_to(run, base[-1][1]) for run, base in zip(curves[plan], curves["stratified"])]
        shares = [tokens and tokens / base[-1][0] for tokens, base in zip(shares, curves["stratified"])]
        share = overhead(args, plan)
        rows.append(dict(plan=plan, losses=final, mean=statistics.mean(final), tokens_to_stratified=shares, overhead=share))
        shown = ", ".join("none" if share is None else f"{share:.3f}" for share in shares)
        shown += "" if share is None else f"; overhead {100 * share:.3f} %"
        print(f"{plan:12} {rows[-1]['mean']:.4f}  tokens to the loss of stratified: {shown}")
    if args.record:
        day = datetime.date.today().isoformat()
        record = dict(date=day, machine=platform.processor() or platform.machine(), tokens=args.tokens, k=args.k,
                      set=args.set, plans=rows, curves=curves)
        path = ROOT / "bench/record" / f"plans-{args.tokens}-{day}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        plot(curves, path.with_suffix(".svg"))
        print(path)


main()
