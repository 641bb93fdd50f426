// Numbers for people.
export const whole = new Intl.NumberFormat("en");

export function bytes(n) {
  if (n < 10_000) return `${whole.format(n)} B`;
  if (n < 10 * 2 ** 20) return `${(n / 1024).toFixed(0)} KiB`;
  if (n < 2 ** 30) return `${(n / 2 ** 20).toFixed(0)} MiB`;
  return `${Number((n / 2 ** 30).toFixed(1))} GiB`;
}

export const milliseconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** A time that was measured in microseconds, in the unit that suits it. */
export function duration(microseconds) {
  if (microseconds < 1000) return `${short(microseconds)} µs`;
  return microseconds < 1e6 ? `${short(microseconds / 1000)} ms` : `${short(microseconds / 1e6)} s`;
}

/** To three digits. */
export const short = (x) => (x >= 100 ? whole.format(Math.round(x)) : x.toPrecision(3));

/** A share, of which little is not nothing. */
export const percent = (x) => (x < 0.1 ? `${(100 * x).toPrecision(1)}%` : `${(100 * x).toFixed(0)}%`);

/** What went wrong, for a reader. */
export const wrong = (error) => (error?.kind ? `${error.kind}: ${error.message}` : `${error?.message ?? error}`);
