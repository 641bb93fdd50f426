import type { ModelWorker, WorkerLoadOptions } from "./worker.js";

export interface DownloadOptions {
  /** Names in the model's folder; default config.json and model.safetensors. */
  files?: string[];
  /** What a file must have, by its name: bytes, and the SHA-256 of them in hexadecimal. Another is refused: kind `Damaged`. */
  bytes?: Record<string, number>;
  sha256?: Record<string, string>;
  /** Ends the download; what came stays, and the next call goes on there. */
  signal?: AbortSignal;
  onProgress?: (progress: DownloadProgress) => void;
}
/** Of one file. `totalBytes` is there if the server tells it, or `bytes` of the options. */
export interface DownloadProgress {
  file: string;
  bytes: number;
  totalBytes?: number;
}
export interface StoredModel {
  name: string;
  /** Whether all of it is there. */
  complete: boolean;
  /** Where it is from. */
  url?: string;
  bytes: number;
  /** Bytes of each file that are there. */
  files: Record<string, number>;
}
/** Models in the origin's private file system, where they stay from one visit to the next; `navigator.storage.persist` asks to keep them. */
export declare class ModelStore {
  private constructor();
  /** Models of a folder of that name; default "latten". */
  static open(folder?: string): Promise<ModelStore>;
  /**
   * Gets the files of a folder into the store; of one that is complete, nothing. After an interruption the same call goes on with the bytes
   * that are missing, if the server has the same version still (`ETag`, `Last-Modified`) and knows ranges. Rejects with kind `Io` (the
   * connection broke off, a status), `Quota` (`neededBytes`, `usedBytes`, `quotaBytes`), `Damaged`, or `Busy` (the same, by another call).
   */
  download(model: string, url: string | URL, options?: DownloadOptions): Promise<StoredModel>;
  list(): Promise<StoredModel[]>;
  /** Its files. Kind `Io` where it is not there, or not complete. */
  files(model: string): Promise<Record<string, File>>;
  /** A model of it; its file is read by ranges, whatever its size. */
  load(model: string, options?: WorkerLoadOptions): Promise<ModelWorker>;
  /** Whether there was one. Kind `Busy` while it is being downloaded. */
  delete(model: string): Promise<boolean>;
}
