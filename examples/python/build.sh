# The Python package: functions of ./dev, which sources this from the repository's root.
#
# target/python/venv     what building and testing need from PyPI, by examples/python/tests/requirements.txt, and the package
# target/python/wheels   the package: latten-VERSION-cp39-abi3-PLATFORM.whl

python=$PWD/target/python

python_venv() {
  local list=examples/python/tests/requirements.txt
  cmp -s "$list" "$python/venv/installed.txt" && return
  say "installing what $list names into $python/venv"
  rm -rf "$python/venv"
  mkdir -p "$python"
  python3 -m venv "$python/venv" >&2 || stop "python3 (3.11 or later) with venv is needed; Debian: apt-get install python3-venv"
  "$python/venv/bin/pip" install --quiet --disable-pip-version-check -r "$list" >&2 || stop "pip failed (its words are above)"
  cp "$list" "$python/venv/installed.txt"
}

python_build() {
  local models=examples/python/python/latten/models variant wheel
  python_venv
  rm -rf "$models" "$python/wheels"
  mkdir -p "$models"
  for variant in gqa gta gla mla; do
    cp -r "examples/models/$variant" "$models/$variant"
  done
  "$python/venv/bin/maturin" build --release --locked --manifest-path examples/python/Cargo.toml --out "$python/wheels" >&2
  wheel=$(echo "$python"/wheels/*.whl)
  say "${wheel#"$PWD/"}: $(wc -c <"$wheel") bytes, of which the four models are" \
    "$(python3 -c 'import sys, zipfile
print(sum(f.compress_size for f in zipfile.ZipFile(sys.argv[1]).infolist() if "/models/" in f.filename))' "$wheel")"
  "$python/venv/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheel" >&2
}

# The arguments are pytest's.
python_test() {
  local start=$SECONDS
  cargo fmt --check -p latten-python
  cargo clippy --release --locked -p latten-python -- -D warnings
  python_build
  say "linted and built in $((SECONDS - start)) s"
  # From a folder of its own: what is tested is the package that was installed.
  (cd "$python" && "$python/venv/bin/python" -m pytest -q -p no:cacheprovider "$OLDPWD/examples/python/tests" "$@")
  (cd "$python" && "$python/venv/bin/mypy" --config-file "$OLDPWD/examples/python/pyproject.toml" "$OLDPWD/examples/python/tests/typed.py" &&
    "$python/venv/bin/python" -m mypy.stubtest latten)
  (cd "$python" && MPLBACKEND=agg "$python/venv/bin/python" "$OLDPWD/examples/python/plots.py" --quick --out "$python/plots")
  say "test-python took $((SECONDS - start)) s"
}
