/** Which limits to ask the device for; the two others are for tests. */
export interface DeviceOptions {
  /** "adapter" (all it has), "default" (WebGPU's defaults) or "downlevel". */
  limits?: "adapter" | "default" | "downlevel";
  /** Ask for no optional feature: no timestamps. */
  noFeatures?: boolean;
  /** How many workgroups keep the device busy, if you know better than a guess by its type. */
  targetWorkgroups?: number;
}
export interface DeviceInfo {
  adapter: string;
  /** Whether the adapter is a CPU. */
  software: boolean;
  maxBindingBytes: number;
  maxBufferBytes: number;
  maxStorageBuffers: number;
  workgroupStorageBytes: number;
  maxInvocations: number;
  timestamps: boolean;
  targetWorkgroups: number;
}
export interface DeviceCounters {
  buffers: number;
  pipelines: number;
  /** Of the pipelines, those that the browser has compiled; goes up while a result is awaited. */
  compiled: number;
  bindGroups: number;
  dispatches: number;
  submits: number;
  readbacks: number;
}
/** Element type of a cache. */
export type CacheDType = "f32" | "f16" | "bf16" | "i8" | "i4";
/** A variant of attention in numbers. */
export type Layout =
  | { variant: "gqa"; qHeads: number; kvHeads: number; headDim: number }
  | { variant: "gta"; qHeads: number; kvHeads: number; headDim: number; ropeDim: number }
  | { variant: "gla"; qHeads: number; latentHeads: number; latentDim: number; ropeDim: number }
  | { variant: "mla"; qHeads: number; latentDim: number; ropeDim: number };
/**
 * What takes a Layout. In a variable whose type is not said, `const heads = { variant: "gla", .. }`, TypeScript takes the
 * variant for any string: that is accepted too, and checked at the call.
 */
export type Heads =
  | Layout
  | { variant: string; qHeads: number; kvHeads: number; headDim: number; ropeDim?: number }
  | { variant: string; qHeads: number; latentHeads?: number; latentDim: number; ropeDim: number };
export interface CacheOptions {
  pages: number;
  /** Tokens per page, a power of two; default 64. */
  pageSize?: number;
  /** Default 1. */
  layers?: number;
  /** How rows that are appended are rotated to their positions, and `Decode.run`'s queries with them; without it both come rotated. */
  rope?: {
    /** Default 10000. */
    theta?: number;
    /** Which elements are a pair: `(i, i + d/2)`, the default, or `(2i, 2i + 1)`. */
    pairs?: "half" | "interleaved";
  };
}
export interface AttentionOptions {
  softcap?: number;
  /** Tokens that a token sees, its own included. */
  window?: number;
  /** And the first this many, beside a window. */
  keepFirst?: number;
  /** Cut long sequences into runs of this many tokens, whatever the batch. */
  splitTokens?: number;
}
/** `used + evictable + free == total`, in pages. */
export interface KvCacheStats {
  total: number;
  used: number;
  shared: number;
  evictable: number;
  free: number;
  /** Of the used and evictable pages, over all layers. */
  bytes: number;
  hits: number;
  misses: number;
  evictions: number;
  pageSize: number;
  /** Of one token, over all layers. */
  tokenBytes: number;
  /** Of all pages, over all layers. */
  poolBytes: number;
}
export interface Attended {
  /** (tokens, qHeads, vDim) */
  out: Float32Array;
  /** (tokens, qHeads) */
  lse: Float32Array;
}
/** A file that is read by ranges, at once: of a worker, where `FileReaderSync` and `FileSystemSyncAccessHandle` are. */
export interface ByteSource {
  /** Bytes of it. */
  size: number;
  /** So many bytes from one on. What it throws is an error of kind `Io`. */
  read(offset: number, bytes: number): Uint8Array;
}
/** A model that is in memory, or read by ranges: config.json, and the bytes of model.safetensors. */
export interface ModelBytes {
  config: string | Uint8Array;
  weights: Uint8Array | ByteSource;
}
/** How far the reading of tensors is. */
export interface LoadProgress {
  bytes: number;
  totalBytes: number;
}
export interface LoadOptions {
  /** Default: one of the model's own, which goes with it. */
  device?: Device;
  /** How matrices are kept; default f16. */
  weights?: "f32" | "f16" | "i8";
  /** Default f16. */
  kvDType?: CacheDType;
  /** Tokens that the cache holds; default what the model has positions for, at most 4096. */
  cacheTokens?: number;
  /** Default 64. */
  pageSize?: number;
  /** Most tokens of one step of a prompt; default 128. */
  chunk?: number;
  /** Compile everything before the promise resolves; default false. */
  warmUp?: boolean;
  /** Hears of each part of the file that is read, some MiB at most. What it throws ends the load. */
  onProgress?: (progress: LoadProgress) => void;
}
export interface ModelInfo {
  variant: "gqa" | "gta" | "gla" | "mla";
  layers: number;
  hiddenSize: number;
  qHeads: number;
  vocabSize: number;
  maxPositions: number;
  /** Elements cached per token, over all layers. */
  kvElementsPerToken: number;
  /** Bytes of them as the cache holds them. */
  kvBytesPerToken: number;
}
export interface GenerateOptions {
  /** Default 100. */
  maxNewTokens?: number;
  /** 0, the default, is greedy. */
  temperature?: number;
  /** Default 1. */
  topP?: number;
  /** So many of the most likely tokens; 0, the default, is all. */
  topK?: number;
  /** Tokens with at least this share of the largest probability; default 0. */
  minP?: number;
  /** Tokens of typical information that hold this share of the mass; default 1. */
  typicalP?: number;
  /** Of tokens in the window, those of the prompt too; in (0, 100], default 1. */
  repetitionPenalty?: number;
  /** Of tokens drawn in the window; default 0. */
  presencePenalty?: number;
  /** For each time that a token was drawn in the window; default 0. */
  frequencyPenalty?: number;
  /** Last tokens that count for penalties; default all. */
  penaltyWindow?: number;
  /** Added to the logits of tokens, in -1000..=1000. */
  logitBias?: Record<number, number>;
  /** Tell log-probabilities, and those of so many of the most likely tokens, at most 20. */
  logprobs?: number;
  /** Texts that end it, where tokens are bytes; none of them is in the text. */
  stop?: string | string[];
  /** Tokens that end it. */
  stopTokens?: Uint32Array | number[];
  /** The same seed gives the same text on the same device; default 0. */
  seed?: number;
}
export interface Generated {
  /** Of the new tokens, where tokens are bytes; else empty. */
  text: string;
  /** All that were drawn, a token that ended it too. */
  tokens: Uint32Array;
  /** What ended it: maxNewTokens; stop or stopTokens; or the callback. */
  finished: "length" | "stop" | "callback";
  /** Of each token by the model's logits as they are, where they are asked for. */
  logprobs?: { logprob: number; mostLikely: [token: number, logprob: number][] }[];
}
/** Gets each token with the text that it completed, as it comes; stops by returning false. */
export type OnToken = (text: string, token: number) => boolean | void;
/** One line of a kernel table. */
export interface Measured {
  microseconds: number;
  /** Of the bytes that must be read: each cached element once, queries and outputs. */
  gbPerSecond: number;
  bytesPerToken: number;
  /** Largest difference from the f64 reference, of sampled rows. */
  maxError: number;
}
export interface MeasureOptions {
  /** Cached tokens per sequence. */
  tokens: number;
  /** Default 1. */
  sequences?: number;
  /** Milliseconds to measure for; default 300. */
  milliseconds?: number;
}
/** What everything here throws or rejects with. */
export interface LattenError extends Error {
  name: "LattenError";
  kind:
    | "NoAdapter" | "Unsupported" | "Shape" | "DType" | "Argument" | "UnknownSequence" | "RepeatedSequence" | "CacheFull"
    | "StalePlan" | "TooLarge" | "OutOfMemory" | "DeviceLost" | "Gpu" | "Config" | "Weights" | "Saved" | "Io" | "Busy"
    | "Other"
    /** Of workers and stored models: the worker has gone; it was freed; there is no room for a file; a file is not what it should be. */
    | "WorkerLost" | "Closed" | "Quota" | "Damaged";
  /** Of CacheFull: pages. */
  needed?: number;
  free?: number;
  /** Of TooLarge. */
  neededBytes?: number;
  limitBytes?: number;
  /** Of Argument, Shape and DType: which one. */
  argument?: string;
  why?: string;
  got?: string;
  want?: string;
  /** Of Config, Weights, Io, Quota and Damaged. */
  path?: string;
  /** Of Quota, by `navigator.storage.estimate`, beside `neededBytes`. */
  usedBytes?: number;
  quotaBytes?: number;
}
