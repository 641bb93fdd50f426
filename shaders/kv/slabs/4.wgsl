// One layer's pages are up to 4 buffers, slabs: `pool` and those below, each of `params.slab_pages` pages, the last perhaps
// of fewer. An address is a slab, in its upper two bits, and a word of it; words are counted up without reaching those bits.
// Read and written, as `pool_ordered` is, so that no driver takes it for constant. Slot: kv/slabs.
// Constants: SLAB_BINDING. Types: PoolWord.

@group(0) @binding(SLAB_BINDING) var<storage, read_write> pool_1: array<PoolWord>;
@group(0) @binding(SLAB_BINDING + 1u) var<storage, read_write> pool_2: array<PoolWord>;
@group(0) @binding(SLAB_BINDING + 2u) var<storage, read_write> pool_3: array<PoolWord>;

const SLAB_SHIFT = 30u;
const WORD_MASK = (1u << SLAB_SHIFT) - 1u;

// First word of a page.
fn page_first(page: u32, page_words: u32) -> u32 {
    let pages = params.slab_pages;
    let slab = u32(page >= pages) + u32(page >= 2u * pages) + u32(page >= 3u * pages);
    return (slab << SLAB_SHIFT) | ((page - slab * params.slab_pages) * page_words);
}
