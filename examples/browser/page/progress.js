// How far the browser is with compiling, which takes longer than all else where the adapter is slow.

/** Runs `work`, and shows in `box`, a bar and words, how many of its kernels are compiled while there are some to wait for. */
export async function whileCompiling(device, box, work) {
  const [bar, words] = [box.querySelector("progress"), box.querySelector("span")];
  const before = device.counters.compiled;
  const show = () => {
    const { pipelines, compiled } = device.counters;
    const [done, all] = [compiled - before, pipelines - before];
    box.hidden = done === all;
    [bar.max, bar.value] = [Math.max(all, 1), done];
    words.textContent = `${done} of ${all} kernels compiled`;
  };
  const timer = setInterval(show, 100);
  try {
    return await work();
  } finally {
    clearInterval(timer);
    box.hidden = true;
  }
}
