#!/usr/bin/env python3
"""Trains the same model by every batch plan and compares the losses.

  python3 bench/plans.py CORPUS                                  # 3 M tokens, three seeds; hours
  python3 bench/plans.py CORPUS --tokens 12000000 --seeds 3 --record
  python3 bench/plans.py CORPUS --plans stratified adaptive --set model.layers=2
  python3 bench/plans.py CORPUS --tokens 12000000 --known bench/record/plans-12000000-DATE.json --record

Runs of all plans alternate, seed by seed, and keep their folders in OUT: a call that was stopped goes on.
--jobs N trains N at once, which is for cores that have nothing else to do.
For each plan it prints the mean validation loss at the end, and the share of the tokens of `stratified` that
it takes to reach the final loss of that plan with the same seed (linear between evaluations; none where it
does not), and what part of a step goes by until its batch is chosen and read and its losses are sorted by cluster.
--record writes bench/record/plans-TOKENS-DATE.json and an SVG of the curves, which needs matplotlib. With --done
nothing is trained and what is done so far counts; --known RECORD takes the runs of a record, made with the same
settings, as they are: so a comparison of days can be put together on several machines.
"""
import argparse, datetime, json, shutil, statistics, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench" / "peers"))
from kmeans import processor

PLANS = ["stratified", "shuffle", "balanced", "homogeneous", "adaptive", "ordered"]
EVALUATIONS, CHECKPOINTS = 40, 10


def train(args, plan, seed):
    """Validation losses of a run as (tokens, nats per token), and the median share of a step that its plan takes."""
    out = args.out / f"{args.tokens}-{plan}-{seed}"
    sets = {
        "data.plan": plan, "data.clusters_k": args.k, "run.tokens": args.tokens, "run.seed": seed,
        "run.sample_every": 0, "run.keep": 1,
    }
    if args.done and not (out / "done").exists():
        return None
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
    curve = [(tokens.get(r["step"], 0), r["validation_loss"]) for r in records if "validation_loss" in r]
    timing = [json.loads(line) for line in open(out / "timing.jsonl")]
    return curve, statistics.median(r["plan_seconds"] / r["seconds"] for r in timing if "plan_seconds" in r)


def known(args):
    """Runs of a record, by plan and seed."""
    if args.known is None:
        return {}
    record = json.loads(args.known.read_text())
    if "runs" not in record:
        raise SystemExit(f"{args.known}: a record of before runs were kept by seed, expected `runs`")
    for name, value in [("tokens", args.tokens), ("k", args.k), ("set", args.set)]:
        if record[name] != value:
            raise SystemExit(f"{args.known}: {name} is {record[name]}, expected {value}")
    return {(plan, int(seed)): (run["curve"], run["overhead"])
            for plan, seeds in record["runs"].items() for seed, run in seeds.items()}


def tokens_to(curve, loss):
    """Tokens at which a curve first falls to a loss."""
    for (before, high), (after, low) in zip(curve, curve[1:]):
        if low <= loss:
            return after if high <= low else before + (after - before) * (high - loss) / (high - low)
    return None


def plot(runs, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for plan, seeds in runs.items():
        curves = [curve for curve, _ in seeds.values()]
        points = [(curves[0][i][0], statistics.mean(curve[i][1] for curve in curves)) for i in range(len(curves[0]))]
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
    parser.add_argument("--done", action="store_true")
    parser.add_argument("--known", type=Path)
    args = parser.parse_args()
    plans = ["stratified", *[plan for plan in args.plans if plan != "stratified"]]
    runs = {plan: {} for plan in plans}
    order = [(plan, seed) for seed in range(1, args.seeds + 1) for plan in plans]
    given = known(args)
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda run: given.get(run) or train(args, *run), order)
        for (plan, seed), run in zip(order, results):
            if run:
                runs[plan][seed] = run
                print(f"seed {seed} {plan:12} {run[0][-1][1]:.4f}", flush=True)
    rows = []
    for plan in [plan for plan in plans if runs[plan]]:
        final = {seed: curve[-1][1] for seed, (curve, _) in runs[plan].items()}
        shares = {}
        for seed, (base, _) in runs["stratified"].items():
            if seed in runs[plan]:
                tokens = tokens_to(runs[plan][seed][0], base[-1][1])
                shares[seed] = tokens and tokens / base[-1][0]
        overhead = statistics.median(share for _, share in runs[plan].values())
        rows.append(dict(plan=plan, losses=final, mean=statistics.mean(final.values()),
                         tokens_to_stratified=shares, overhead=overhead))
        shown = ", ".join("none" if share is None else f"{share:.3f}" for share in shares.values())
        print(f"{plan:12} {rows[-1]['mean']:.4f}  tokens to the loss of stratified: {shown};"
              f" overhead {100 * overhead:.3f} %")
    if args.record:
        day = datetime.date.today().isoformat()
        runs = {plan: seeds for plan, seeds in runs.items() if seeds}
        kept = {plan: {seed: dict(curve=curve, overhead=overhead) for seed, (curve, overhead) in seeds.items()}
                for plan, seeds in runs.items()}
        record = dict(date=day, machine=processor(), tokens=args.tokens, k=args.k,
                      set=args.set, plans=rows, runs=kept)
        path = ROOT / "bench/record" / f"plans-{args.tokens}-{day}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        plot(runs, path.with_suffix(".svg"))
        print(path)


main()
