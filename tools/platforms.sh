# Whether the crate compiles for platforms that are not here: functions of ./dev, which sources this from the repository's root.
#
# target/platforms   what cargo checks there, apart from all other builds

# Windows, macOS, Android, browsers.
platforms=(x86_64-pc-windows-gnu aarch64-apple-darwin aarch64-linux-android wasm32-unknown-unknown)

# The libraries of std for Windows are described by a tool of binutils; nothing is linked.
need_dlltool() {
  has x86_64-w64-mingw32-dlltool || install_packages binutils-mingw-w64-x86-64
}

# Sets platform_cargo, and build_std to the arguments that compile the standard library where this toolchain has not all targets.
choose_platform_cargo() {
  local sysroot platform missing=
  sysroot=$(rustc --print sysroot)
  for platform in "${platforms[@]}"; do
    compgen -G "$sysroot/lib/rustlib/$platform/lib/libcore-*.rlib" >/dev/null || missing=1
  done
  platform_cargo=(cargo)
  build_std=()
  [[ -n $missing ]] || return 0
  build_std=(-Zbuild-std=std,panic_abort)
  platform_cargo=(env RUSTC_BOOTSTRAP=1 cargo)
  [[ -d $sysroot/lib/rustlib/src/rust/library/std ]] && return
  # Debian's compiler with Debian's source, as for browsers.
  [[ -x /usr/bin/rustc && -x /usr/bin/cargo && -d /usr/lib/rustlib/src/rust/library/std ]] ||
    install_packages rustc-web cargo-web rust-web-src
  platform_cargo=(env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 /usr/bin/cargo)
}

# One call of cargo, so that what runs here (build scripts, macros) is compiled once.
check_platforms() {
  local start=$SECONDS platform native=() all=() failed=()
  mkdir -p "$browser" # for the words of apt-get
  need_dlltool
  choose_platform_cargo
  say "checking with $("${platform_cargo[@]}" --version)"
  local check=("${platform_cargo[@]}" check --locked --quiet --keep-going -p latten --lib --profile tool
    --target-dir target/platforms ${build_std[@]+"${build_std[@]}"})
  for platform in "${platforms[@]}"; do
    all+=(--target "$platform")
    # The tokenizers' random numbers ask JavaScript there, which they must be told to.
    [[ $platform == wasm32* ]] || native+=(--target "$platform")
  done
  if ! RUSTFLAGS="-D warnings" "${check[@]}" "${all[@]}" ||
    ! RUSTFLAGS="-D warnings" "${check[@]}" --features serde,tokenizers,constrained "${native[@]}"; then
    # Which of them it is; the reason is then the last thing on the screen.
    for platform in "${platforms[@]}"; do
      RUSTFLAGS="-D warnings" "${check[@]}" --target "$platform" >/dev/null 2>&1 || failed+=("$platform")
    done
    stop "does not compile (the compiler's words are above) for: ${failed[*]:-the features serde, tokenizers, constrained}"
  fi
  say "compiles for ${platforms[*]}; with all features for all but the last; $((SECONDS - start)) s"
}
