import type {
  CacheDType, DeviceCounters, DeviceInfo, Generated, GenerateOptions, KvCacheStats, LoadOptions, LoadProgress, ModelBytes, ModelInfo, OnToken,
} from "./latten.js";

/** A model's two files; those of the browser are read by ranges, whatever their size, and never lie in memory as a whole. */
export interface ModelFiles {
  config: string | Uint8Array | Blob;
  weights: Uint8Array | Blob;
}
/** As of `Model.load`, but for the device: a worker has its own. */
export interface WorkerLoadOptions extends Omit<LoadOptions, "device"> {
  kvDType?: CacheDType;
  onProgress?: (progress: LoadProgress) => void;
  /** Ends the load, and the worker. */
  signal?: AbortSignal;
  /** A module worker of `latten/thread`, where a bundler does not find it by itself. It is this model's from now on. */
  worker?: Worker;
}
export interface WorkerGenerateOptions extends GenerateOptions {
  /** Ends the text: the promise rejects at once with its reason, and the next call waits for the token that was under way. */
  signal?: AbortSignal;
}
export interface TokenPart {
  /** What the token completed. */
  text: string;
  token: number;
}
/**
 * A `Model` in a worker of its own: the page's thread has nothing to do while it loads and writes. The methods are those of `Model`, and
 * so are the errors. When the worker ends, whoever waits is told: kind `WorkerLost`, or `Closed` after `free`.
 */
export declare class ModelWorker {
  private constructor();
  /** As `Model.load`; of `Blob`s and `File`s as well. Addresses are the page's. What is in memory is copied. */
  static load(source: string | URL | ModelBytes | ModelFiles, options?: WorkerLoadOptions): Promise<ModelWorker>;
  /**
   * As `Model.generate`, and iterable: `for await (const { text } of model.generate("A"))`. Leaving the loop ends the text, as `false` of
   * the callback does. Either is heard of a little later than in `Model`: tokens that were drawn meanwhile are in the result.
   */
  generate(
    prompt: string | Uint32Array, options?: WorkerGenerateOptions, onToken?: OnToken,
  ): Promise<Generated> & AsyncIterable<TokenPart, Generated>;
  /** The logits after each token, (tokens, vocabSize), in a sequence of its own. */
  logits(tokens: ArrayLike<number>): Promise<Float32Array>;
  /** How full the cache is, as of the last answer or token. */
  stats(): KvCacheStats;
  readonly info: ModelInfo;
  /** The worker's device, as of the last answer or token. */
  readonly device: { info: DeviceInfo; counters: DeviceCounters };
  readonly worker: Worker;
  /** Ends the worker and gives back all that it had. */
  free(): void;
  [Symbol.dispose](): void;
}
