#!/usr/bin/env python3
"""Join the results.json of one or more run_all.py calls into training/results.json and print the tables of README.md. Standard library.

    python3 training/report.py --join long=out_long/results.json short=out_short/results.json
    python3 training/report.py --replace long=out_gta/results.json     (a set's runs of the variants in that file)
    python3 training/report.py
"""
import argparse
import json
import pathlib
import statistics

HERE = pathlib.Path(__file__).parent
VARIANTS = ["gqa", "gta", "gla", "mla", "draft"]
PAIRS = [("gta", "gqa"), ("gla", "mla")]


def join(sources):
    """Runs keep their numbers; what is the same in all of a set's runs is written once."""
    sets = {}
    for source in sources:
        name, path = source.split("=", 1)
        runs = json.loads(pathlib.Path(path).read_text())["runs"]
        shared = {key: runs[0][key] for key in ("torch", "epochs", "steps", "lr", "batch", "recipe")}
        assert all(run[key] == value for run in runs for key, value in shared.items()), name
        configs = {run["variant"]: dict(run["config"], parameters=run["parameters"], device=run["device"]) for run in runs}
        kept = [dict(variant=r["variant"], seed=r["seed"], complete=r["complete"], seconds=r["seconds"], best=r["best"],
                     curve_columns=list(r["best"]), curve=[list(point.values()) for point in r["curve"]]) for r in runs]
        sets[name] = dict(shared, configs=configs, runs=sorted(kept, key=lambda r: (VARIANTS.index(r["variant"]), r["seed"])))
    return sets


def replace(sets, fresh):
    """Puts a set's runs of some variants in the place of the earlier ones, trained by the same recipe. A new set is added."""
    for name, new in fresh.items():
        if name not in sets:
            sets[name] = new
            continue
        old, variants = sets[name], set(new["configs"])
        for key in ("torch", "epochs", "steps", "lr", "batch", "recipe"):
            assert old[key] == new[key], (name, key)
        old["configs"].update(new["configs"])
        kept = [r for r in old["runs"] if r["variant"] not in variants] + new["runs"]
        old["runs"] = sorted(kept, key=lambda r: (VARIANTS.index(r["variant"]), r["seed"]))


def cached(c):
    """Cached elements per token and layer."""
    if c["attention"] == "gqa":
        return 2 * c["num_key_value_heads"] * c["head_dim"]
    if c["attention"] == "gta":
        return c["num_key_value_heads"] * c["head_dim"] + c["rope_dim"]
    return c["latent_heads"] * c["latent_dim"] + c["rope_dim"]


def show(name, data):
    print(f"\n## {name}: {data['epochs']:g} epochs, PyTorch {data['torch']}\n")
    print("| variant | parameters | FFN width | KV elements per token and layer | KV bytes per token (f16, all layers) | validation bits per byte, "
          "each seed | mean ± std (min..max) | last checkpoint, mean | epochs at best | million bytes seen at best | seconds a run |")
    print("|" + "---|" * 11)
    best = {}
    for variant in [v for v in VARIANTS if v in data["configs"]]:
        c, runs = data["configs"][variant], [r for r in data["runs"] if r["variant"] == variant]
        bits = best[variant] = [r["best"]["valid_bits"] for r in runs]
        column = runs[0]["curve_columns"].index("valid_bits")
        last = statistics.mean(r["curve"][-1][column] for r in runs)
        spread = statistics.stdev(bits) if len(bits) > 1 else 0.0
        print(f"| {variant} | {c['parameters']} | {c['intermediate_size']} | {cached(c)} | {cached(c) * 2 * c['num_hidden_layers']} | "
              f"{', '.join(f'{b:.4f}' for b in bits)} | {statistics.mean(bits):.4f} ± {spread:.4f} ({min(bits):.4f}..{max(bits):.4f}) | {last:.4f} | "
              f"{', '.join(str(round(r['best']['epoch'])) for r in runs)} | {', '.join(str(round(r['best']['tokens'] / 1e6)) for r in runs)} | "
              f"{', '.join(str(round(r['seconds'])) for r in runs)} |")
    print()
    for one, other in [pair for pair in PAIRS if set(pair) <= set(best)]:
        difference = statistics.mean(best[one]) - statistics.mean(best[other])
        error = (statistics.variance(best[one]) / len(best[one]) + statistics.variance(best[other]) / len(best[other])) ** 0.5
        print(f"{one} - {other}: {difference:+.4f} bits per byte, standard error {error:.4f}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--join", nargs="+", metavar="NAME=PATH")
    p.add_argument("--replace", nargs="+", metavar="NAME=PATH")
    p.add_argument("--results", default=HERE / "results.json", type=pathlib.Path)
    a = p.parse_args()
    sets = join(a.join) if a.join else json.loads(a.results.read_text())
    if a.replace:
        replace(sets, join(a.replace))
    if a.join or a.replace:
        a.results.write_text(json.dumps(sets, separators=(",", ":")) + "\n")
    for name, data in sets.items():
        show(name, data)


if __name__ == "__main__":
    main()
