//! A model's weights on the device, with its kernels.

use super::config::share::ModelShare;
use super::config::Config;
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Gpu};
use crate::io::foreign::missing;
use crate::io::gguf::Gguf;
use crate::io::regular::regular;
use crate::io::{xxh64, Progress};
use crate::model::config::keys::MAX_BYTES;
use crate::model::layers::block::Block;
use crate::model::layers::large_keys::LargeKeys;
use crate::model::weights::reader::WeightReader;
use crate::model::weights::split::Split;
use crate::model::weights::store::WeightFiles;
use crate::model::weights::{ReadAt, WeightBytes};
use crate::nn::{BlockType, Embedding, Sample, WeightType};
use crate::parallel::Shard;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The weights and kernels of a model, which are compiled at their first use. Never changes; cheap to clone, and shared by any number of
/// [`Session`](super::Session)s.
#[derive(Clone)]
pub struct Decoder {
    pub(super) inner: Arc<DecoderInner>,
}

pub(crate) struct DecoderInner {
    pub(super) gpu: Gpu,
    pub(super) config: Config,
    /// What of it is here.
    pub(super) share: ModelShare,
    /// What all ranks of a model have in common: 0 of one that is whole.
    pub(super) identity: u64,
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    pub(super) large_keys: LargeKeys,
    /// With the last norm before it.
    pub(super) head: Split,
    pub(super) sample: Sample,
    fingerprint: u64,
}

/// How a model is kept on the device, and who is told how far its loading is.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Of matrices, whatever they are in the files: F16, F32 or I8.
    pub dtype: DType,
    /// Of matrices, in the place of `dtype`: Q8_0 or Q4_0, made of the numbers as they are read ([`BlockType::quantise`]). Rows
    /// that are no whole blocks stay in `dtype`, which is then F16 or F32; the embedding table, and a head tied to it, are Q8_0.
    pub blocks: Option<BlockType>,
    /// Whether matrices that are I8 or blocks on the device multiply few rows (a decode step's, up to
    /// [`LinearTuning::max_rows`](crate::nn::LinearTuning)) by dot products of bytes, with the input rounded to 8 bits:
    /// faster on many GPUs, less exact, and refused by none
    /// ([`Linear::with_integer_dot`](crate::nn::Linear::with_integer_dot) has the bound). Experts, and matrices of
    /// other types, multiply as before.
    pub integer_dot: bool,
    /// Of GLA and MLA, whether `kv_b_proj` is kept as it is beside its absorbed form, for prompts in the explicit form
    /// ([`PrefillPath`](super::PrefillPath)): some hundredths of the weights (2% of the paper's largest GLA-2 model, 4% of its MLA). Without,
    /// sessions take the absorbed form alone.
    pub explicit: bool,
    /// Told of the bytes of tensors read so far and of those of all files, after each MiB or row. The last call has as many of
    /// both, tensors that the model has no use for included.
    pub progress: Option<&'a dyn Fn(Progress)>,
    /// Whether tensors that look like weights of the model, but have no place in it, are left out with a warning in the log.
    /// Else they are an error: the model would compute something else without them.
    pub leave_out: bool,
    /// The part that this device is to have of a model that several compute ([`Session::sharded`](super::Session::sharded)); by default
    /// the whole. Of each matrix of the layers only that part is read, and of a file's blocks none may be cut. Attention is divided by
    /// heads, or, with [`Shard::by_context`], by the tokens of each sequence.
    pub shard: Shard,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DecoderInner { gpu, config, fingerprint, .. } = &*self.inner;
        let fingerprint = format_args!("{fingerprint:016x}");
        f.debug_struct("Decoder").field("config", config).field("fingerprint", &fingerprint).field("gpu", gpu).finish()
    }
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        LoadOptions {
            dtype: DType::F16,
            blocks: None,
            integer_dot: false,
            explicit: true,
            progress: None,
            leave_out: false,
            shard: Shard::whole(),
        }
    }
}

impl LoadOptions<'_> {
    /// The defaults, with matrices of this type.
    pub fn of(kind: impl Into<WeightType>) -> Self {
        match kind.into() {
            WeightType::Plain(dtype) => LoadOptions { dtype, ..Default::default() },
            WeightType::Blocks(block) => LoadOptions { blocks: Some(block), ..Default::default() },
        }
    }
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadOptions { dtype, blocks, integer_dot, explicit, progress, leave_out, shard } = self;
        let progress = progress.map(|_| "..");
        f.debug_struct("LoadOptions")
            .field("dtype", dtype)
            .field("blocks", blocks)
            .field("integer_dot", integer_dot)
            .field("explicit", explicit)
            .field("progress", &progress)
            .field("leave_out", leave_out)
            .field("shard", shard)
            .finish()
    }
}

impl Decoder {
    /// Loads a folder: `config.json`, and `model.safetensors` or the files that `model.safetensors.index.json` names. Or a GGUF
    /// file, or a folder with one and no safetensors file ([GGUF files](super#gguf-files)).
    /// `kind` (F16, F32 or I8; [`BlockType::Q8_0`] or [`BlockType::Q4_0`]) is how matrices are kept on the device, whatever they
    /// are in the files. I8 has a scale per row ([`nn::quantise`](crate::nn::quantise)); the embedding table,
    /// and a head tied to it, stay F16. Of blocks: [`LoadOptions::blocks`]. With F16, what a GGUF file has in blocks stays in
    /// them, but where it is one matrix with what is not. A matrix that is more than the device binds at once
    /// ([`Capabilities::max_binding_bytes`](crate::Capabilities)) lies in several buffers, one dispatch each; not so a layer's
    /// experts, nor the absorbed matrices of GLA and MLA.
    ///
    /// Rows go to the device as they are read: host memory holds some tens of MiB of them, whatever the model's size, while up to
    /// 8 threads read and convert, and the caller's uploads. Folders in 4 bits by AWQ and GPTQ stay so with F16, as
    /// [`BlockType::Q4_G128`] or [`BlockType::Q4_G32`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`], [`ErrorKind::Config`], [`ErrorKind::Argument`] for numbers that [`LoadOptions::shard`] cannot divide,
    /// [`ErrorKind::Weights`] for a missing, misshapen or unfit
    /// tensor, one that looks like a weight and has no place in the model ([`LoadOptions::leave_out`]), or a broken file;
    /// [`ErrorKind::TooLarge`] and [`ErrorKind::OutOfMemory`], which name the tensor.
    pub fn load(gpu: &Gpu, folder: impl AsRef<Path>, kind: impl Into<WeightType>) -> Result<Self> {
        Self::load_with(gpu, folder, LoadOptions::of(kind))
    }

    /// [`Decoder::load`] with options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn load_with(gpu: &Gpu, folder: impl AsRef<Path>, options: LoadOptions<'_>) -> Result<Self> {
        if let Some(file) = Gguf::of_model(folder.as_ref())? {
            let (config, store) = WeightFiles::open_gguf(&file)?;
            return Self::from_store(gpu, config, store, options);
        }
        let path = folder.as_ref().join("config.json");
        let config = Config::parse(&path.display().to_string(), &config_text(&path)?)?;
        let store = WeightFiles::open(folder.as_ref())?;
        Self::from_store(gpu, config, store, options)
    }

    /// [`Decoder::load`] without a file system.
    ///
    /// # Errors
    ///
    /// As there, but [`ErrorKind::Io`]; and [`ErrorKind::Argument`] for a config whose fields no file could have.
    pub fn from_bytes(
        gpu: &Gpu,
        config: Config,
        weights: WeightBytes<'_>,
        kind: impl Into<WeightType>,
    ) -> Result<Self> {
        Self::from_bytes_with(gpu, config, weights, LoadOptions::of(kind))
    }

    /// [`Decoder::from_bytes`] with options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn from_bytes_with(
        gpu: &Gpu,
        config: Config,
        weights: WeightBytes<'_>,
        options: LoadOptions<'_>,
    ) -> Result<Self> {
        Self::from_store(gpu, config, WeightFiles::from_bytes(weights.name, weights.bytes)?, options)
    }

    /// [`Decoder::load`] of one safetensors file that is read by ranges, whatever its size. Errors call it `name`.
    ///
    /// # Errors
    ///
    /// As [`Decoder::load`], and [`ErrorKind::Argument`] for a config whose fields no file could have.
    pub fn from_source_with(
        gpu: &Gpu,
        config: Config,
        (name, file): (&str, &dyn ReadAt),
        options: LoadOptions<'_>,
    ) -> Result<Self> {
        Self::from_store(gpu, config, WeightFiles::from_source(name, file)?, options)
    }

    /// [`Decoder::load`] of the bytes of one GGUF file, whose metadata are the config.
    ///
    /// # Errors
    ///
    /// As [`Decoder::load`], but [`ErrorKind::Io`].
    pub fn from_gguf_bytes(gpu: &Gpu, file: WeightBytes<'_>, options: LoadOptions<'_>) -> Result<Self> {
        let (config, store) = WeightFiles::gguf_from_bytes(file.name, file.bytes)?;
        Self::from_store(gpu, config, store, options)
    }

    fn from_store<'a>(gpu: &'a Gpu, config: Config, store: WeightFiles<'a>, options: LoadOptions<'a>) -> Result<Self> {
        gpu.lazily(|| Self::read_store(gpu, config, store, options))
    }

    fn read_store<'a>(gpu: &'a Gpu, config: Config, store: WeightFiles<'a>, options: LoadOptions<'a>) -> Result<Self> {
        let LoadOptions { dtype, blocks, integer_dot, explicit, progress, leave_out, shard } = options;
        config.check()?;
        let share = config.share(shard)?;
        let kind = blocks.map_or(dtype.into(), WeightType::from);
        let store = store.with_made(&config)?.with_report(progress);
        let source = WeightReader::new(gpu, &config, store, dtype)
            .with_choices(explicit, leave_out)
            .with_integer_dot(integer_dot)
            .with_blocks(blocks)?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let ends = source.ends(&config)?;
        let table = source.table(ends.table, vocab, hidden)?;
        let head = match ends.head {
            None => Split::new(table.iter().map(|part| source.linear_of(part, None)).collect::<Result<_>>()?),
            Some(head) => source.linear(&source.matrix(head, vocab, hidden)?)?,
        };
        let head = source.normed(head, "model.norm", config.rms_norm_eps)?;
        let head = head.map(|head| match config.logit_softcap {
            Some(cap) => head.with_softcap(cap),
            None => head.with_scale(config.logit_scale),
        })?;
        let block = |i| {
            // What was written waits on the host for the next submit.
            gpu.flush()?;
            Block::load(&source, &config, &share, i)
        };
        let embedding = Embedding::of_parts(gpu, &table)?.with_scale(config.embedding_scale)?;
        let blocks = (0..config.layers).map(block).collect::<Result<Vec<Block>>>()?;
        let biases: Vec<_> = blocks.iter().map(|block| block.attention().large_biases()).collect();
        let identity = match shard.size() {
            1 => 0,
            _ => fingerprint(&config, source.identity()?, (kind, integer_dot), by_context(shard)),
        };
        let part = match shard.size() {
            1 => String::new(),
            size => format!(" rank {} of {size}{}", shard.rank(), by_context(shard)),
        };
        let inner = DecoderInner {
            gpu: gpu.clone(),
            embedding,
            blocks,
            large_keys: LargeKeys::of(&share.config, &biases)?,
            head,
            sample: Sample::new(gpu, vocab)?,
            fingerprint: fingerprint(&config, source.checksum(), (kind, integer_dot), &part),
            identity,
            share,
            config,
        };
        gpu.flush()?;
        source.check_unused(Some(inner.config.layers))?;
        source.end_report();
        Ok(Decoder { inner: Arc::new(inner) })
    }

    /// The model's numbers: of all of it, where it is shared out.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The numbers of what is computed here.
    pub(super) fn own_config(&self) -> &Config {
        &self.inner.share.config
    }

    /// Which part of the model is here ([`LoadOptions::shard`]).
    pub fn shard(&self) -> Shard {
        self.inner.share.shard
    }

    /// A number that decoders of the same weights, in the same dtype, config and shard share: what saved sessions know their
    /// model by. Against mistakes, not against malice.
    pub fn fingerprint(&self) -> u64 {
        self.inner.fingerprint
    }

    /// Whether prompts may take the explicit form ([`LoadOptions::explicit`]); of GQA and GTA, which have one form, no.
    pub fn keeps_explicit(&self) -> bool {
        self.inner.blocks.first().is_some_and(Block::keeps_explicit)
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.inner.gpu
    }
}

/// The text of a folder's config.json.
fn config_text(path: &Path) -> Result<String> {
    let (file, len) = regular(path).map_err(|e| missing(path, e))?;
    if len > MAX_BYTES {
        let message = format!("{len} bytes, a config has at most {MAX_BYTES}");
        return Err(ErrorKind::Config { path: path.display().to_string(), message }.into());
    }
    std::io::read_to_string(file).map_err(|e| ErrorKind::io(path, e))
}

/// What all ranks have in common of how a model is divided.
fn by_context(shard: Shard) -> &'static str {
    if shard.is_by_context() {
        " by context"
    } else {
        ""
    }
}

/// Of the weights, and of every other number that a cached row depends on.
fn fingerprint(config: &Config, weights: u64, (kind, integer_dot): (WeightType, bool), part: &str) -> u64 {
    let bytes = if integer_dot { ", bytes" } else { "" };
    xxh64(format!("{kind}{bytes} {config:?}{part}").as_bytes(), weights)
}
