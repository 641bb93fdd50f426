#!/usr/bin/env python3
"""Tables and plot of the study. Standard library; the plot needs matplotlib.

    python3 training/study_report.py --join out_a/results_small.json out_b/results_small.json out_c/results_large.json
                                     --conversion out_d/conversion.json --decode decode.json --svg training/study.svg
    python3 training/study_report.py                                   the tables again, from training/study.json

--join takes study.py's results (of a unit in several files the last complete one), --conversion convert.py's, --decode what
`prefill_table --lengths 8192 --json` wrote. What is given replaces that part of training/study.json.
"""
import argparse
import json
import math
import pathlib
import random
import statistics

HERE = pathlib.Path(__file__).parent
VARIANTS = ["mha", "mqa", "gqa", "gta", "gla", "mla"]
NAMES = dict(mha="MHA", mqa="MQA", gqa="GQA-4", gta="GTA-4", gla="GLA-2", mla="MLA")
# The paper's two claims first.
PAIRS = [("gta", "gqa"), ("gla", "mla"), ("gqa", "mha"), ("mqa", "mha"), ("mqa", "gqa"), ("gla", "gqa"), ("mla", "gqa"), ("gta", "mha"),
         ("gla", "mha"), ("mla", "mha")]
CLAIMS = 2


def t_quantile(p, df):
    """Of Student's distribution, by its density summed up (Simpson) and bisection: 1e-6 for df from 1 to 100."""
    scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)

    def upto(x, n=2000):
        # In the angle a with t = sqrt(df) tan(a) the range is finite and the density smooth.
        end, h = math.atan(x / math.sqrt(df)), math.atan(x / math.sqrt(df)) / n
        f = [math.cos(i * h) ** (df - 1) for i in range(n + 1)] if end else [0] * (n + 1)
        return 0.5 + scale * math.sqrt(df) * h / 3 * (f[0] + f[-1] + 4 * sum(f[1:-1:2]) + 2 * sum(f[2:-1:2]))
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if upto(middle) < p else (low, middle)
    return low


def interval(values, confidence=0.95):
    """(mean, half width of the t interval); the width is nan of one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, t_quantile(0.5 + confidence / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def bootstrap(values, confidence=0.95, draws=20000):
    """Percentile interval of the mean, with fixed random numbers."""
    generator, n = random.Random(23), len(values)
    means = sorted(sum(generator.choices(values, k=n)) / n for _ in range(draws))
    at = round((1 - confidence) / 2 * draws)
    return means[at], means[-1 - at]


def join(paths):
    """{size: {variant: {kind: unit}}} of complete units, with what is the same for all models said once."""
    found = {}
    for path in paths:
        for unit in json.loads(pathlib.Path(path).read_text())["units"]:
            if unit["complete"]:
                found.setdefault(unit["size"], {}).setdefault(unit["variant"], {})[unit["kind"]] = unit
    for size, variants in found.items():
        finals = [units["final"] for units in variants.values() if "final" in units]
        for key in ("seeds", "steps", "batch", "length", "tokens"):  # or differences would not be paired
            assert all(unit[key] == finals[0][key] for unit in finals), (size, key)
    return found


def last_bits(unit):
    return unit["curve"][-1]["valid_bits"]


def rates_of(pilot):
    """{rate: bits of the seeds that ran at every rate}."""
    pairs = list(zip(pilot["seeds"], pilot["rates"], last_bits(pilot)))
    rates = sorted(set(pilot["rates"]))
    full = [s for s in sorted(set(pilot["seeds"])) if {r for t, r, _ in pairs if t == s} == set(rates)]
    return {rate: [b for s, r, b in pairs if r == rate and s in full] for rate in rates}


def show_size(size, variants):
    order = [v for v in VARIANTS if v in variants]
    finals = {v: variants[v]["final"] for v in order if "final" in variants[v]}
    if any("pilot" in variants[v] for v in order):
        print(f"\n### {size}: learning rates, pilots\n")
        rates = rates_of(next(variants[v]["pilot"] for v in order if "pilot" in variants[v]))
        print("| variant | " + " | ".join(f"{rate:g}" for rate in rates) + " |\n|" + "---|" * (1 + len(rates)))
        for v in [v for v in order if "pilot" in variants[v]]:
            means = [statistics.mean(bits) for bits in rates_of(variants[v]["pilot"]).values()]
            print(f"| {NAMES[v]} | " + " | ".join(f"**{m:.4f}**" if m == min(means) else f"{m:.4f}" for m in means) + " |")
    if not finals:
        return
    one = next(iter(finals.values()))
    print(f"\n### {size}: {len(one['seeds'])} seeds, {one['tokens'] / 1e6:.1f} million bytes each, bits per byte\n")
    print("| variant | parameters | KV bytes per token, f16 | rate | mean ± 95% | std | min..max | earlier | training |\n|" + "---|" * 9)
    for v, unit in finals.items():
        bits, curve = last_bits(unit), unit["curve"]
        mean, half = interval(bits)
        earlier = ", ".join(f"{statistics.mean(point['valid_bits']):.4f}" for point in curve[:-1])
        kv = unit["kv_elements"] * 2 * unit["config"]["num_hidden_layers"]
        print(f"| {NAMES[v]} | {unit['parameters']:,} | {kv:,} | {unit['rates'][0]:g} | {mean:.4f} ± {half:.4f} | {statistics.stdev(bits):.4f} | "
              f"{min(bits):.4f}..{max(bits):.4f} | {earlier} | {statistics.mean(curve[-1]['train_bits']):.4f} |")
    print(f"\n### {size}: paired differences (negative: the first is better)\n")
    print("| pair | mean | 95%, t | 95%, bootstrap | seeds with the first better | standard error paired, unpaired |\n|" + "---|" * 6)
    for i, (a, b) in enumerate(PAIRS):
        if a not in finals or b not in finals:
            continue
        x, y = last_bits(finals[a]), last_bits(finals[b])
        d = [p - q for p, q in zip(x, y)]
        mean, half = interval(d)
        low, high = bootstrap(d)
        name = f"{NAMES[a]} - {NAMES[b]}"
        unpaired = math.sqrt((statistics.variance(x) + statistics.variance(y)) / len(d))
        print(f"| {f'**{name}**' if i < CLAIMS else name} | {mean:+.4f} | {mean - half:+.4f}..{mean + half:+.4f} | {low:+.4f}..{high:+.4f} | "
              f"{sum(v < 0 for v in d)} of {len(d)} | {statistics.stdev(d) / math.sqrt(len(d)):.4f}, {unpaired:.4f} |")


def decode_cell(row):
    cut = f" (batch {row['batch']})" if row["batch"] < row["wanted_batch"] else ""
    return f"{row['tokens_per_s']:.0f}{cut}"


def show_decode(table):
    print(f"\n### Decode of {table['size']}, {table['adapter']}: tokens per second\n")
    rows = table["decode"]
    columns = sorted({(row["length"], row["wanted_batch"]) for row in rows})
    print("| variant | KV bytes per token and layer | " + " | ".join(f"{b} x {l}" for l, b in columns) + " |\n|" + "---|" * (2 + len(columns)))
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = {(row["length"], row["wanted_batch"]): row for row in rows if row["variant"] == variant}
        cells = [decode_cell(mine[c]) if c in mine else "" for c in columns]
        print(f"| {variant} | {next(iter(mine.values()))['bytes_per_token_and_layer']} | " + " | ".join(cells) + " |")


def show_conversion(data):
    sets = {found["variant"]: found for found in data["sets"]}
    shares = sorted({r["share"] for found in sets.values() for r in found["retrained"]})
    seeds = len(next(iter(sets.values()))["seeds"])
    print(f"\n### Conversion of GQA-4, {seeds} seeds, bits per byte: mean, and paired difference from GQA-4 before any of it (95%, t)\n")
    print("| to | parameters | KV elements per token and layer | at once | " + " | ".join(f"{share:.0%} of the tokens" for share in shares)
          + " |\n|" + "---|" * (4 + len(shares)))
    before = sets["gqa"]["converted"]
    for v, found in sets.items():
        cells = []
        for share in [0.0, *shares]:
            runs = [(found["converted"], None)] if share == 0 else [(r["valid_bits"], r["rate"]) for r in found["retrained"] if r["share"] == share]
            bits, rate = min(runs, key=lambda run: statistics.mean(run[0]))
            mean, half = interval([x - y for x, y in zip(bits, before)])
            cells.append(f"{statistics.mean(bits):.4f}, {mean:+.4f} ± {half:.4f}" + (f" (rate {rate:g})" if rate else ""))
        print(f"| {NAMES[v]}{' (control)' if v == 'gqa' else ''} | {found['parameters']:,} | {found['kv_elements']} | " + " | ".join(cells) + " |")


def draw(study, path):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"svg.hashsalt": "latten", "font.size": 9, "svg.fonttype": "none"})
    sizes = [(s, {v: u["final"] for v, u in study["sizes"][s].items() if "final" in u}) for s in ("small", "large") if s in study.get("sizes", {})]
    sizes = [(s, finals) for s, finals in sizes if finals]
    figure, axes = plt.subplots(1, len(sizes), figsize=(4.6 * len(sizes), 3.8), squeeze=False)
    for axis, (size, finals) in zip(axes[0], sizes):
        ticks = set()
        # Variants of the same cache stand beside one another.
        places = {}
        for v in [v for v in VARIANTS if v in finals]:
            unit = finals[v]
            kv = unit["kv_elements"] * 2 * unit["config"]["num_hidden_layers"]
            places[kv] = places.get(kv, -1) + 1
            mean, half = interval(last_bits(unit))
            x = kv * 1.08 ** places[kv]
            axis.errorbar(x, mean, yerr=half, fmt="o", capsize=3, markersize=5)
            axis.annotate(NAMES[v], (x, mean), textcoords="offset points", xytext=(6, 5))
            ticks.add(kv)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(ticks), [str(t) for t in sorted(ticks)])
        axis.minorticks_off()
        axis.margins(x=0.2)
        parameters = statistics.mean(unit["parameters"] for unit in finals.values())
        axis.set_title(f"{parameters / 1e6:.1f} M parameters, {len(next(iter(finals.values()))['seeds'])} seeds")
        axis.set_xlabel("KV bytes per token (f16, all layers)")
        axis.set_ylabel("validation, bits per byte (mean, 95%)")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--join", nargs="+", default=[], metavar="FILE")
    p.add_argument("--conversion", type=pathlib.Path)
    p.add_argument("--decode", type=pathlib.Path)
    p.add_argument("--svg", type=pathlib.Path)
    p.add_argument("--study", default=HERE / "study.json", type=pathlib.Path)
    a = p.parse_args()
    study = json.loads(a.study.read_text()) if a.study.exists() else {}
    for size, variants in join(a.join).items():
        for variant, units in variants.items():
            study.setdefault("sizes", {}).setdefault(size, {}).setdefault(variant, {}).update(units)
    for key in ("conversion", "decode"):
        if getattr(a, key):
            study[key] = json.loads(getattr(a, key).read_text())
    if "decode" in study:  # the breakdowns of steps are not the study's
        study["decode"] = {k: v for k, v in study["decode"].items() if k in ("adapter", "size", "date", "commit", "driver", "clocks", "decode")}
        study["decode"]["decode"] = [{k: v for k, v in row.items() if k != "breakdown"} for row in study["decode"]["decode"]]
    if a.join or a.conversion or a.decode:
        a.study.write_text(json.dumps(rounded(study), separators=(",", ":")) + "\n")
        study = json.loads(a.study.read_text())  # what is shown is what the file gives again
    if not study:
        raise SystemExit(f"{a.study} is not there yet: --join the results of study.py")
    for size in [s for s in ("small", "large") if s in study.get("sizes", {})]:
        show_size(size, study["sizes"][size])
    if "decode" in study:
        show_decode(study["decode"])
    if "conversion" in study:
        show_conversion(study["conversion"])
    if a.svg:
        draw(study, a.svg)


def rounded(value):
    """Floats to six significant digits: enough for differences of 1e-5 bits."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
