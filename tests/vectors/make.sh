#!/bin/sh
# Rewrites the committed oracle vectors beside this script: sh tests/vectors/make.sh path/to/attention_oracle.py
#
# The oracle is an independent float64 implementation in Python (standard library only) with the commands
#   kernel <variant> --q-heads --groups --state --rope --len --q-len --seed     one decode of one sequence
#   layer  <variant> --q-heads --groups --head-dim --model-dim --rope --len --seed     one whole attention layer
# that print the JSON which src/reference/vector.rs describes. Only white space is taken out; no number is rounded.
# Nothing in the build or the tests runs this: the committed files stand alone.
set -eu
oracle=${1:?usage: make.sh path/to/attention_oracle.py}
here=$(cd "$(dirname "$0")" && pwd)
rm -f "$here"/kernel_*.json "$here"/layer_*.json

make() { # make <kind> <variant> <number> <options..>
    kind=$1 variant=$2 number=$3
    shift 3
    python3 "$oracle" "$kind" "$variant" "$@" --seed "$number" >"$here/raw.tmp"
    python3 -c 'import json, sys; json.dump(json.load(sys.stdin), sys.stdout, separators=(",", ":")); print()' \
        <"$here/raw.tmp" >"$here/${kind}_${variant}_$number.json"
    rm "$here/raw.tmp"
}

# Lengths around nothing, one token, a page of 16 and 64; 1, 3 and 5 query tokens, also more than there are cached;
# 1, 2, 3 and 9 heads per group; widths that are no multiple of 8, and one with no rope key.
make kernel gqa 1 --q-heads 4 --groups 2 --state 16 --len 37 --q-len 1
make kernel gqa 2 --q-heads 6 --groups 2 --state 12 --len 17 --q-len 3
make kernel gqa 3 --q-heads 9 --groups 1 --state 16 --len 70 --q-len 5
make kernel gqa 4 --q-heads 3 --groups 3 --state 20 --len 0 --q-len 3
make kernel gqa 5 --q-heads 4 --groups 4 --state 8 --len 1 --q-len 5
make kernel gqa 6 --q-heads 18 --groups 2 --state 64 --len 33 --q-len 2
make kernel gta 1 --q-heads 4 --groups 2 --state 16 --rope 8 --len 37 --q-len 1
make kernel gta 2 --q-heads 6 --groups 2 --state 12 --rope 6 --len 17 --q-len 3
make kernel gta 3 --q-heads 9 --groups 1 --state 16 --rope 4 --len 70 --q-len 5
make kernel gta 4 --q-heads 2 --groups 2 --state 12 --rope 6 --len 0 --q-len 1
make kernel gta 5 --q-heads 4 --groups 2 --state 16 --rope 4 --len 1 --q-len 3
make kernel gta 6 --q-heads 18 --groups 2 --state 48 --rope 24 --len 64 --q-len 2
make kernel gta 7 --q-heads 4 --groups 2 --state 8 --rope 8 --len 16 --q-len 1
make kernel gla 1 --q-heads 4 --groups 2 --state 16 --rope 4 --len 37 --q-len 3
make kernel gla 2 --q-heads 6 --groups 2 --state 12 --rope 6 --len 17 --q-len 1
make kernel gla 3 --q-heads 18 --groups 2 --state 16 --rope 4 --len 70 --q-len 5
make kernel gla 4 --q-heads 4 --groups 4 --state 16 --rope 4 --len 0 --q-len 5
make kernel gla 5 --q-heads 6 --groups 2 --state 12 --rope 6 --len 1 --q-len 1
make kernel gla 6 --q-heads 16 --groups 2 --state 64 --rope 16 --len 50 --q-len 2
make kernel gla 7 --q-heads 8 --groups 8 --state 10 --rope 0 --len 65 --q-len 1
make kernel mla 1 --q-heads 4 --groups 1 --state 32 --rope 4 --len 37 --q-len 1
make kernel mla 2 --q-heads 3 --groups 1 --state 12 --rope 6 --len 17 --q-len 3
make kernel mla 3 --q-heads 9 --groups 1 --state 16 --rope 4 --len 70 --q-len 5
make kernel mla 4 --q-heads 2 --groups 1 --state 16 --rope 4 --len 0 --q-len 1
make kernel mla 5 --q-heads 1 --groups 1 --state 12 --rope 6 --len 2 --q-len 5
make kernel mla 6 --q-heads 16 --groups 1 --state 128 --rope 16 --len 50 --q-len 2
make layer gta 1 --q-heads 4 --groups 2 --head-dim 8 --model-dim 24 --len 9
make layer gta 2 --q-heads 9 --groups 1 --head-dim 12 --model-dim 20 --len 17
make layer gta 3 --q-heads 6 --groups 2 --head-dim 16 --model-dim 32 --len 1
make layer gla 1 --q-heads 4 --groups 2 --head-dim 8 --model-dim 24 --rope 4 --len 9
make layer gla 2 --q-heads 6 --groups 2 --head-dim 6 --model-dim 20 --rope 6 --len 17
make layer gla 3 --q-heads 4 --groups 4 --head-dim 8 --model-dim 16 --rope 8 --len 1
make layer mla 1 --q-heads 4 --groups 1 --head-dim 8 --model-dim 24 --rope 4 --len 9
make layer mla 2 --q-heads 3 --groups 1 --head-dim 6 --model-dim 20 --rope 6 --len 17
