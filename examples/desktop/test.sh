# The window's tests: functions of ./dev, which sources this from the repository's root.
#
# target/desktop/window.png   what the window showed

desktop=$PWD/target/desktop

need_display() {
  has Xvfb && has import || install_packages xvfb imagemagick libxkbcommon-x11-0 libxcursor1 libxi6 libxrandr2
}

# Runs the window for a prompt of so many tokens, and looks at it. The arguments are the program's.
desktop_window() {
  local program=${CARGO_TARGET_DIR:-target}/release/latten-desktop server window i colours
  rm -f "$desktop/window.png"
  : >"$desktop/display"
  : >"$desktop/said"
  Xvfb -displayfd 3 -screen 0 1100x700x24 -nolisten tcp 3>"$desktop/display" 2>"$desktop/xvfb.log" &
  server=$!
  for ((i = 0; i < 100; i++)); do
    [[ -s $desktop/display ]] && break
    sleep 0.1
  done
  env -u WAYLAND_DISPLAY DISPLAY=":$(cat "$desktop/display")" "$program" --hold 4 "$@" >"$desktop/said" 2>"$desktop/window.log" &
  window=$!
  for ((i = 0; i < 3000; i++)); do
    { grep -q frames: "$desktop/said" || ! kill -0 "$window" 2>/dev/null; } && break
    sleep 0.1
  done
  sleep 1 # the last frame
  DISPLAY=":$(cat "$desktop/display")" import -window root "$desktop/window.png" || true
  local ended=0
  wait "$window" || ended=$?
  kill "$server"
  wait "$server" 2>/dev/null || true
  cat "$desktop/said" >&2
  [[ $ended == 0 ]] || { tail -20 "$desktop/window.log" >&2; stop "the window ended with status $ended"; }
  grep -q "^[1-9][0-9]* frames: " "$desktop/said" || stop "the window measured no frame"
  # A window with text, lines and buttons has hundreds, an empty one a few.
  colours=$(identify -format %k "$desktop/window.png")
  ((colours > 100)) || stop "$desktop/window.png has $colours colours: the window is empty"
  say "target/desktop/window.png: $colours colours"
}

desktop_test() {
  mkdir -p "$desktop" "$browser"
  cargo fmt --check -p latten-desktop
  cargo clippy --release --locked -p latten-desktop --all-targets -- -D warnings
  cargo test --release --locked -p latten-desktop
  need_display
  cargo build --release --locked -p latten-desktop
  desktop_window --model examples/models/gla --window 512 --measure 512 --max-tokens 40
}
