//! What a table tells of itself, and asks of whoever owns the memory.

/// How full a cache is, and what sharing does for it. `used + evictable + free == total`.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Pages of the cache, or what its budget allows.
    pub total: usize,
    /// Pages that sequences (reservations included) and pins hold; one that several hold counts once.
    pub used: usize,
    /// Of those, pages with more than one holder.
    pub shared: usize,
    /// Pages that no one holds, kept for prompts that begin with their tokens until their room is needed.
    pub evictable: usize,
    /// Pages that hold nothing.
    pub free: usize,
    /// Bytes of the used and evictable pages, over all layers; 0 from a [`SeqTable`](crate::cache::SeqTable), which has no memory.
    pub bytes: u64,
    /// Pages found by `match_prefix` so far, and full pages of its prompts that were not there.
    pub hits: u64,
    /// See `hits`.
    pub misses: u64,
    /// Pages whose content was given up for others so far.
    pub evictions: u64,
}

impl CacheStats {
    /// Pages that can be reserved: those free, and those that would be evicted.
    pub fn available(&self) -> usize {
        self.free + self.evictable
    }
}

/// A page whose content is to be copied to another, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageCopy {
    /// The page to read.
    pub source: u32,
    /// The page to write.
    pub target: u32,
}
