// Four rows' numbers of a lane in the tile's memory, which is done with as a tile: words of 8 bytes. Slot: attention/tile.

fn tile_put(lane: u32, wide: vec4<f32>) {
    tile[2u * lane] = bitcast<vec2<u32>>(wide.xy);
    tile[2u * lane + 1u] = bitcast<vec2<u32>>(wide.zw);
}

fn tile_get(lane: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec2<f32>>(tile[2u * lane]), bitcast<vec2<f32>>(tile[2u * lane + 1u]));
}
