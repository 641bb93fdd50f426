//! The one error type of the crate: a kind to match on, and a message with the names and numbers.

mod rank_fault;

pub use rank_fault::RankFault;
use std::fmt;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words for a person and, through [`Error::kind`], in a form for code.
///
/// A call that refuses its arguments, a sequence, a stale plan or a full cache has recorded nothing and changed nothing.
/// After an error of the device ([`ErrorKind::OutOfMemory`], [`ErrorKind::DeviceLost`], [`ErrorKind::Gpu`]) commands
/// recorded and not yet submitted may be gone: whoever asks for what they were to write gets [`ErrorKind::CommandsLost`],
/// whichever thread or call it was that failed. Sequences and pages are as they were.
///
/// [`source`](std::error::Error::source) is the [`std::io::Error`] behind [`ErrorKind::Io`], and the [`wgpu::Error`] behind
/// [`ErrorKind::Gpu`] and [`ErrorKind::OutOfMemory`], where there is one. Its words are in the message, too.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: Box<ErrorKind>,
    /// The error of the system or of wgpu that this one tells of.
    source: Option<Cause>,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl Error {
    /// The kind, with its numbers.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Error { kind: Box::new(kind), source: None }
    }
}

/// Every way a call can fail.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ErrorKind {
    /// No usable GPU adapter; `hint` names what to install or set.
    #[error("no usable GPU adapter ({found}); {hint}")]
    NoAdapter {
        /// The adapters that were found, or "none found".
        found: String,
        /// What to do about it.
        hint: String,
    },
    /// The adapter or device lacks something that the call needs.
    #[error("unsupported on this device: {what}")]
    Unsupported {
        /// What is missing, with numbers.
        what: String,
    },
    /// A tensor or slice has the wrong shape.
    #[error("{name} has shape {got}, wanted {want}")]
    Shape {
        /// The argument's name.
        name: &'static str,
        /// Its shape.
        got: String,
        /// The shape it should have; `_` is any size.
        want: String,
    },
    /// A tensor has the wrong dtype.
    #[error("{name} has dtype {got}, wanted {want}")]
    DType {
        /// The argument's name.
        name: &'static str,
        /// Its dtype.
        got: String,
        /// The dtype it should have.
        want: String,
    },
    /// An argument's value is out of range or does not fit the others.
    #[error("{name}: {why}")]
    Argument {
        /// The argument's name.
        name: &'static str,
        /// What is wrong with it, with numbers.
        why: String,
    },
    /// The sequence is not (or no longer) in the cache.
    #[error("sequence {id} is not in this cache")]
    UnknownSequence {
        /// The id as printed by `SeqId`.
        id: u64,
    },
    /// The same sequence was named twice in one call.
    #[error("sequence {id} is named twice in one call")]
    RepeatedSequence {
        /// The id as printed by `SeqId`.
        id: u64,
    },
    /// Not enough free pages.
    #[error("the KV cache is full: {needed} pages needed, {free} free")]
    CacheFull {
        /// Pages the call needs.
        needed: usize,
        /// Pages that are free.
        free: usize,
    },
    /// A plan made before the cache's sequences last changed.
    #[error(
        "stale plan: made at cache generation {plan}, the cache is at {cache}; make a plan after the last change of the \
         cache's sequences, and use it before the next"
    )]
    StalePlan {
        /// The plan's generation.
        plan: u64,
        /// The cache's.
        cache: u64,
    },
    /// A buffer would exceed a limit of the device.
    #[error("{what} needs {needed_bytes} bytes, the device allows {limit_bytes}")]
    TooLarge {
        /// What was to be allocated or bound.
        what: String,
        /// Its size.
        needed_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The device ran out of memory.
    #[error("out of GPU memory: {message}")]
    OutOfMemory {
        /// The driver's words.
        message: String,
    },
    /// The device is lost; everything on it is gone.
    #[error("the GPU device is lost: {message}")]
    DeviceLost {
        /// The driver's words.
        message: String,
    },
    /// Commands that were recorded are lost with a batch that the device refused, by the fault of this call's work or another's;
    /// so a buffer, or a step's result, is not what it should be. Compute it again: a step of a cache or a session from its
    /// reservation on (after `commit` of 0 tokens, or [`truncate`](super::PagedKvCache::truncate)), a tensor by
    /// writing all of it ([`upload`](super::Gpu::upload), or a kernel whose output it is as a whole), or take a new one.
    #[error("{what} is not what was recorded: its commands are lost ({message})")]
    CommandsLost {
        /// Whose content is not there.
        what: String,
        /// Why the batch was refused, in the driver's words.
        message: String,
    },
    /// A shader did not compile, or the API refused a call: a bug in this crate or a driver.
    #[error("GPU error in {context}: {message}")]
    Gpu {
        /// The kernel or call.
        context: String,
        /// The message, with shader file names and lines.
        message: String,
    },
    /// A model folder's configuration cannot be used.
    #[error("model config {path}: {message}")]
    Config {
        /// The file.
        path: String,
        /// The key and what is wrong with it.
        message: String,
    },
    /// A tensor of a model is missing, has the wrong shape or dtype, or is one that the model has no place for.
    #[error("model weights {path}: {}{message}", named("tensor ", tensor))]
    Weights {
        /// The file.
        path: String,
        /// The tensor's name; empty where the file itself is broken.
        tensor: String,
        /// What is wrong with it.
        message: String,
    },
    /// A saved cache cannot be loaded. Nothing was changed.
    #[error("{}{fault}", named("saved cache ", if path.is_empty() { "from a reader" } else { path }))]
    Saved {
        /// The file; empty where the bytes come from elsewhere.
        path: String,
        /// What is wrong with it.
        fault: SavedFault,
    },
    /// A grammar cannot be compiled, or no token of the model continues a text by it: see
    /// `Constraint` of [`model`](super::model).
    #[error("grammar: {why}")]
    Grammar {
        /// What is wrong with it, or where it ends.
        why: String,
    },
    /// A file, or a caller's reader or writer, could not be read or written.
    #[error("{}{message}", named("", if path.is_empty() { "the reader or writer" } else { path }))]
    Io {
        /// The file; empty where there is none.
        path: String,
        /// The system's words.
        message: String,
    },
    /// Ranks that work together cannot go on ([`parallel`](super::parallel)).
    #[error("rank {rank} of {size}: {fault}")]
    Rank {
        /// Whose call this is.
        rank: usize,
        /// How many there are.
        size: usize,
        /// What happened, to whichever of them.
        fault: RankFault,
    },
}

/// What is wrong with a saved cache.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedFault {
    /// It does not begin as one.
    #[error("not a saved cache, its first bytes are {}", bytes_text(found))]
    Foreign {
        /// The bytes that should be the format's name.
        found: [u8; 8],
    },
    /// A later version of this crate wrote it.
    #[error("its format is version {version}, this program knows up to {known}")]
    Newer {
        /// The file's version.
        version: u32,
        /// The last one known here.
        known: u32,
    },
    /// It ends too soon.
    #[error("ends at byte {end}, {missing} bytes before the end of its {part}")]
    Truncated {
        /// What was being read.
        part: String,
        /// Bytes that there are.
        end: u64,
        /// Bytes of that part that are not there.
        missing: u64,
    },
    /// A checksum does not fit the bytes.
    #[error("its {part}, from byte {first}, is damaged: checksum {got:016x}, wanted {want:016x}")]
    Damaged {
        /// What the checksum is of.
        part: String,
        /// The part's first byte.
        first: u64,
        /// The checksum of the bytes.
        got: u64,
        /// The one in the file.
        want: u64,
    },
    /// The checksum fits, yet a number cannot be right.
    #[error("its {name} is {value}, {why}")]
    Malformed {
        /// The number's name.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it should be.
        why: &'static str,
    },
    /// The checksum fits, yet no [`HeadLayout`](super::HeadLayout) has these numbers: q_heads, groups, state_dim, nope_dim,
    /// rope_dim, v_offset, v_dim.
    #[error("its layout {numbers:?} (q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim) is one that no model has")]
    Layout {
        /// The file's.
        numbers: [u32; 7],
    },
    /// It goes on after its end.
    #[error("goes on after its {size} bytes")]
    TooLong {
        /// Bytes that it should have.
        size: u64,
    },
    /// Whole, but of another cache or model.
    #[error("its {name} is {file}, here it is {here}")]
    Other {
        /// What differs.
        name: &'static str,
        /// The file's.
        file: String,
        /// The cache's, or the caller's.
        here: String,
    },
}

impl Error {
    /// The same, with the error that is behind it.
    pub(crate) fn caused_by(self, source: impl Into<Cause>) -> Error {
        Error { source: Some(source.into()), ..self }
    }

    /// The same, which says that it is of this: where memory is asked for, only the caller knows what for.
    pub(crate) fn of(self, name: &str) -> Error {
        let kind = match *self.kind {
            ErrorKind::TooLarge { needed_bytes, limit_bytes, .. } => {
                ErrorKind::TooLarge { what: name.into(), needed_bytes, limit_bytes }
            }
            ErrorKind::OutOfMemory { message } => ErrorKind::OutOfMemory { message: format!("{name}: {message}") },
            kind => kind,
        };
        Error { kind: Box::new(kind), source: self.source }
    }
}

/// `tensor x: `, or nothing of what has no name.
fn named(what: &str, name: &str) -> String {
    match name {
        "" => String::new(),
        _ => format!("{what}{name}: "),
    }
}

/// Bytes as their owner may know them: text where they are text, else hexadecimal.
pub(crate) fn bytes_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.contains(char::is_control) => format!("{text:?}"),
        _ => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    }
}

impl ErrorKind {
    /// An [`ErrorKind::Argument`] as an [`Error`].
    pub(crate) fn argument(name: &'static str, why: impl Into<String>) -> Error {
        ErrorKind::Argument { name, why: why.into() }.into()
    }

    /// An [`ErrorKind::Io`] as an [`Error`].
    pub(crate) fn io(path: impl AsRef<std::path::Path>, error: std::io::Error) -> Error {
        let kind = ErrorKind::Io { path: path.as_ref().display().to_string(), message: error.to_string() };
        Error::from(kind).caused_by(error)
    }

    /// An [`ErrorKind::Shape`] as an [`Error`].
    pub(crate) fn shape(name: &'static str, got: &[usize], want: impl Into<String>) -> Error {
        ErrorKind::Shape { name, got: shape_text(got), want: want.into() }.into()
    }
}

/// `(2,16,320)`.
pub(crate) fn shape_text(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("({})", dims.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn what_is_behind_an_error_is_kept() {
        let cause = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = ErrorKind::io("a/file", cause());
        let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
        assert_eq!(source.map(std::io::Error::kind), Some(std::io::ErrorKind::PermissionDenied));
        assert_eq!(error.to_string(), format!("a/file: {}", cause()));
        assert!(ErrorKind::argument("x", "y").source().is_none());
        let memory = Error::from(ErrorKind::OutOfMemory { message: "full".into() }).caused_by(cause());
        let named = memory.of("a tensor");
        assert!(named.source().is_some() && named.to_string().contains("a tensor: full"), "{named}");
    }
}
