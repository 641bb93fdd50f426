// Copy pages: whole pages of one layer's pool to other pages of it, for sequences that part (copy on write).
//
//   pool[target] := pool[source]   for each copy; no page is both a source and a target, none is twice a target
//
// A page is one contiguous block (kv/page.wgsl), so its layout and dtype do not matter here.
//
// Grid: x over words of a page, 64 lanes each, from the start again where the page is longer; y over copies (z folds y
// past 65,535). Constants: none. Parts: kv/slabs/*, kv/slab_loads/*, kv/slab_stores/*.

struct Params {
    copy_count: u32,
    page_count: u32, // of the pool
    page_words: u32, // of a page (vec4 words)
    slab_pages: u32, // of each slab but the last
}

@group(0) @binding(0) var<uniform> params: Params;
// (copies) u32 (source, target)
@group(0) @binding(1) var<storage, read> copies: array<vec2<u32>>;
// (page_count, page_words) words (kv/slabs/*)
@group(0) @binding(2) var<storage, read_write> pool: array<PoolWord>;

alias PoolWord = vec4<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let index = id.z * grid.y + id.y;
    if (index >= params.copy_count) {
        return;
    }
    // The host made the list; the clamp keeps a corrupted buffer from reaching another binding.
    let pages = min(copies[index], vec2<u32>(params.page_count - 1u));
    let source = page_first(pages.x, params.page_words);
    let target_first = page_first(pages.y, params.page_words);
    for (var word = id.x; word < params.page_words; word += grid.x * 64u) {
        store_pool_word(target_first + word, pool_word(source + word));
    }
}
