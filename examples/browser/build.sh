# The browser package: functions of ./dev, which sources this from the repository's root.
#
# target/browser/wasm    what cargo compiles for wasm32, apart from all other builds
# target/browser/tool    latten-bindgen
# target/browser/npm     wasm-opt and what the tests need, by examples/browser/package-lock.json
# target/browser/pkg     the package, and latten-VERSION.tgz of it beside
# target/browser/native  what the models give natively: what the tests compare with
# target/browser/site    the page with the package and the models: what a static server serves

browser=$PWD/target/browser
wasm_target=wasm32-unknown-unknown

# Debian's packages, where their commands are missing.
install_packages() {
  local root=()
  has apt-get || stop "please install: $*"
  if [[ $(id -u) != 0 ]]; then
    { has sudo && sudo -n true 2>/dev/null; } || stop "please run as root: apt-get update && apt-get install -y $*"
    root=(sudo -n)
  fi
  say "installing $*"
  { ${root[@]+"${root[@]}"} apt-get update -qq &&
    ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
    >"$browser/apt.log" 2>&1 || { tail -20 "$browser/apt.log" >&2; stop "apt-get failed (its last words are above)"; }
}

need_node() {
  has node && has npm || install_packages nodejs npm
  [[ $(node -p 'process.versions.node.split(".")[0]') -ge 18 ]] || stop "Node.js 18 or later is needed, this is $(node --version)"
}

# What `cargo` compiles for browsers, as the array wasm_cargo. No toolchain is downloaded: an installed target, else the
# standard library's source beside rustc, else Debian's compiler with Debian's source.
choose_toolchain() {
  local sysroot debian=/usr/bin/rustc build_std=(-Zbuild-std=std,panic_abort)
  sysroot=$(rustc --print sysroot)
  if compgen -G "$sysroot/lib/rustlib/$wasm_target/lib/libcore-*.rlib" >/dev/null; then
    wasm_cargo=(cargo)
    build_std=()
  elif [[ -d $sysroot/lib/rustlib/src/rust/library/std ]]; then
    wasm_cargo=(env RUSTC_BOOTSTRAP=1 cargo)
  else
    # Any linker will do that Debian has beside its compiler.
    [[ -x $debian && -x /usr/bin/cargo && -d /usr/lib/rustlib/src/rust/library/std && -x /usr/bin/wasm-ld-22 ]] ||
      install_packages rustc-web cargo-web rust-web-src lld-22
    wasm_cargo=(env RUSTC="$debian" RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-22 /usr/bin/cargo)
  fi
  say "compiling with $("${wasm_cargo[@]}" --version)"
  wasm_build=(build --locked --profile browser -p latten-browser --target "$wasm_target"
    --target-dir "$browser/wasm" ${build_std[@]+"${build_std[@]}"})
}

# Node's modules, once per lock file.
install_modules() {
  local lock=examples/browser/package-lock.json
  cmp -s "$lock" "$browser/npm/installed.json" && return
  mkdir -p "$browser/npm"
  cp examples/browser/package.json "$lock" "$browser/npm"
  (cd "$browser/npm" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2)
  cp "$lock" "$browser/npm/installed.json"
}

# What Chromium takes: --all-features would make a file that it refuses.
wasm_features=(--enable-bulk-memory --enable-nontrapping-float-to-int --enable-sign-ext --enable-mutable-globals
  --enable-reference-types --enable-multivalue)

browser_build() {
  local wasm pkg=$browser/pkg version made_from
  mkdir -p "$browser"
  need_node
  install_modules
  choose_toolchain
  "${wasm_cargo[@]}" "${wasm_build[@]}"
  cargo build --locked --profile tool -p latten-bindgen --target-dir "$browser/tool"
  wasm=$browser/wasm/$wasm_target/browser/latten_browser.wasm
  # The optimiser takes its time, so nothing is done where nothing changed.
  made_from=$(cat "$wasm" "$browser/tool/tool/latten-bindgen" examples/browser/build.sh | sha256sum)
  if [[ $made_from != "$(cat "$browser/made-from" 2>/dev/null)" ]]; then
    rm -rf "$pkg"
    "$browser/tool/tool/latten-bindgen" "$wasm" "$pkg" latten
    node "$browser/npm/node_modules/binaryen/bin/wasm-opt" -Oz "${wasm_features[@]}" \
      "$pkg/latten_bg.wasm" -o "$pkg/latten_bg.wasm"
    echo "$made_from" >"$browser/made-from"
  fi
  cp examples/browser/js/* examples/browser/README.md LICENSE-APACHE LICENSE-MIT "$pkg"
  version=$(sed -n 's/^version = "\(.*\)"/\1/p; /^version/q' Cargo.toml)
  sed "s/\"version\": \"0.0.0\"/\"version\": \"$version\"/" examples/browser/npm/package.json >"$pkg/package.json"
  (cd "$browser" && npm pack --silent ./pkg >/dev/null)
  say "target/browser/latten-$version.tgz: .wasm $(wc -c <"$pkg/latten_bg.wasm") bytes, $(gzip -9c "$pkg/latten_bg.wasm" | wc -c)" \
    "by gzip; .js $(wc -c <"$pkg/latten.js"), $(gzip -9c "$pkg/latten.js" | wc -c)"
  rm -rf "$browser/site"
  mkdir -p "$browser/site/latten" "$browser/site/models"
  cp examples/browser/page/* "$browser/site"
  # The page uses what npm would install, no more.
  tar -xzf "$browser/latten-$version.tgz" -C "$browser/site/latten" --strip-components=1
  for variant in gqa gta gla mla; do
    cp -r "examples/models/$variant" "$browser/site/models/$variant"
  done
  site_documents "$version"
}

# What the page links to: it is to stand alone wherever it is served. As plain text, which every server and browser shows.
site_documents() {
  local name site=$browser/site
  mkdir -p "$site/documents"
  for name in README ARCHITECTURE CHANGELOG; do
    cp "$name.md" "$site/documents/$name.txt"
  done
  cp examples/browser/README.md "$site/documents/javascript.txt"
  cp "$browser/pkg/latten.d.ts" "$site/documents/types.txt"
  cp "$browser/latten-$1.tgz" "$site/latten.tgz"
  # Without the models, which are on the page, and the tests' vectors, which are many megabytes.
  tar -czf "$site/latten-source.tar.gz" --exclude examples/models --exclude tests/vectors \
    Cargo.toml Cargo.lock README.md ARCHITECTURE.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT clippy.toml rustfmt.toml dev \
    src shaders examples benches tests training
}

browser_serve() {
  browser_build
  node examples/browser/tests/serve.mjs "$browser/site" "${1:-8000}"
}

need_chromium() {
  local name
  for name in ${LATTEN_CHROMIUM:-} chromium chromium-browser google-chrome; do
    if has "$name"; then
      LATTEN_CHROMIUM=$(command -v "$name")
      export LATTEN_CHROMIUM
      return
    fi
  done
  install_packages chromium
  LATTEN_CHROMIUM=$(command -v chromium) || stop "no Chromium; set LATTEN_CHROMIUM to one"
  export LATTEN_CHROMIUM
}

browser_test() {
  mkdir -p "$browser"
  cargo fmt --check -p latten-browser -p latten-bindgen
  need_chromium
  need_gpu # for what the models give natively
  browser_build
  node examples/browser/tests/run.mjs "$@"
}
